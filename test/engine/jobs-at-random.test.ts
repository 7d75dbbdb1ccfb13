/**
 * Backups and mirrors at random, side by side on a few nodes, under users of one disk who come by any name that it has
 * at that moment and may be written by. Whatever was begun, paused, completed and cancelled: they all read what they
 * wrote, and stand on the same node; a backup is the disk of the moment when it began; a mirror that ended well is the
 * disk of the moment when it ended; nothing is left of a job that is gone.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { BlockParent, RootUse } from '../../src/block/graph-view.ts';
import type { BlockNode } from '../../src/block/node.ts';
import type { BlockError } from '../../src/util/errors.ts';
import { attempt } from '../../src/util/later.ts';
import { writer } from '../block/fixture.ts';
import { Random, seeded } from '../drivers/replication-world.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

const size = 256 * 1024;
const nodeNames = ['n0', 'n1', 'n2', 'n3', 'n4', 'n5'];

/** A backup whose target is to be what the user's disk was; null: it was of another node. */
interface Backup {
  readonly target: string;
  readonly content: Buffer | null;
}

/** A user as a parent in the graph: it begins nothing while it is drained. */
class Holder implements BlockParent {
  readonly description = 'a user';
  drains = 0;

  drainBegin(): undefined {
    this.drains += 1;
  }

  drainEnd(): void {
    this.drains -= 1;
  }
}

interface User {
  readonly use: RootUse;
  readonly holder: Holder;
}

const usersMax = 4;

class World {
  readonly #checked: CheckedEngine;
  readonly #random: Random;
  /** the first stays to the end */
  readonly #users: User[] = [];
  readonly #model = Buffer.alloc(size);
  readonly #backups = new Map<string, Backup>();
  #jobs = 0;
  #eventsSeen = 0;
  checks = 0;

  private constructor(checked: CheckedEngine, random: Random) {
    this.#checked = checked;
    this.#random = random;
  }

  static async create(t: TestContext, seed: number): Promise<World> {
    const checked = checkedEngine(t);
    for (const name of nodeNames) await checked.execute('blockdev-add', memoryNode(name, size));
    const world = new World(checked, new Random(seed));
    await world.#come('n0');
    return world;
  }

  async step(): Promise<void> {
    const random = this.#random;
    for (let i = random.below(4); i > 0; i -= 1) await this.#write();
    if (random.chance(0.3)) await this.#turns(random.below(4));
    if (random.chance(0.3)) await this.#comeOrGo();
    const chance = random.fraction();
    if (chance < 0.25) await this.#backup();
    else if (chance < 0.5) await this.#mirror();
    else if (chance < 0.6) await this.#mirrorToItsEnd();
    else await this.#verb();
    await this.#look();
  }

  async end(): Promise<void> {
    const { execute, engine } = this.#checked;
    for (const { id } of engine.jobs.list()) await this.#try('job-cancel', { id });
    for (let i = 0; i < 1000 && engine.jobs.list().length > 0; i += 1) {
      await this.#turns(1);
      await this.#look();
    }
    assert.deepEqual(await execute('query-jobs'), []);
    assert.deepEqual(
      engine.graph.list().map(({ nodeName }) => nodeName),
      nodeNames,
      'filters that are left',
    );
    for (const name of nodeNames) {
      for (const operation of ['resize', 'backup-source', 'mirror-target'] as const) {
        engine.graph.blockers.check(name, operation);
      }
    }
    for (const { use } of this.#users) await use.release();
  }

  async #come(nodeName: string): Promise<void> {
    const holder = new Holder();
    this.#users.push({ use: await this.#checked.engine.graph.use(nodeName, holder, writer), holder });
  }

  /** By the name of the node or of any filter above it, which may be gone when it is their turn. */
  async #comeOrGo(): Promise<void> {
    const some = 1 + this.#random.below(usersMax);
    if (this.#users.length > some) return await this.#users.pop()?.use.release();
    if (this.#users.length === usersMax) return;
    const [top = assert.fail(), ...others] = this.#names();
    const name = this.#random.chance(0.5) ? top : this.#pick([top, ...others]);
    try {
      await this.#come(name);
    } catch (error) {
      // Of the filters only the first sees everything.
      const { code } = error as BlockError;
      assert.ok(code === 'permission-conflict' ? name !== top : code === 'node-not-found' && !nodeNames.includes(name));
    }
  }

  #pick<T>(of: readonly T[]): T {
    const one = of[this.#random.below(of.length)];
    return one ?? assert.fail();
  }

  #names({ use } = this.#users[0] ?? assert.fail()): string[] {
    const { graph } = this.#checked.engine;
    const names: string[] = [];
    for (let name: string | undefined = use.nodeName; name !== undefined; ) {
      names.push(name);
      name = graph.find(name).children.find(({ role }) => role === 'filtered')?.nodeName;
    }
    return names;
  }

  /** The node that the users stand on, below filters. */
  #under(): string {
    return this.#names().at(-1) ?? assert.fail();
  }

  async #write(): Promise<void> {
    const random = this.#random;
    const offset = random.below(size);
    const bytes = new Uint8Array(Math.min(1 + random.below(20_000), size - offset)).fill(1 + random.below(255));
    const { use, holder } = this.#pick(this.#users);
    while (holder.drains > 0) await this.#turns(1);
    await attempt(() => use.node.write(offset, bytes, 0));
    this.#model.set(bytes, offset);
  }

  /** A command that may be refused, for a reason in words. */
  async #try(command: string, args: Record<string, unknown>): Promise<boolean> {
    this.#lookAtCopies();
    try {
      await this.#checked.execute(command, args);
      return true;
    } catch (error) {
      const { code } = error as BlockError;
      assert.match(code, /^(op-blocked|permission-conflict|invalid-request|invalid-option|job-not-found)$/);
      return false;
    }
  }

  async #backup(): Promise<void> {
    const under = this.#under();
    const id = this.#newId();
    const device = this.#random.chance(0.5) ? under : this.#pick(nodeNames);
    const target = this.#pick(nodeNames.filter((name) => name !== under));
    const sync = this.#pick(['full', 'full', 'none']);
    const content = device === under && sync === 'full' ? Buffer.from(this.#model) : null;
    const speed = this.#pick([0, 1 << 20]);
    // What the job copies first is copied in a later turn: the moment of the backup is this one.
    if (await this.#try('blockdev-backup', { 'job-id': id, device, target, sync, speed })) {
      this.#backups.set(id, { target, content });
    }
  }

  async #mirror(): Promise<boolean> {
    const under = this.#under();
    const device = this.#random.chance(0.6) ? under : this.#pick(nodeNames);
    const target = this.#pick(nodeNames.filter((name) => name !== under));
    return await this.#try('blockdev-mirror', { 'job-id': this.#newId(), device, target, sync: 'full' });
  }

  /** A mirror of the user's disk, which is let go when it is ready: the target is equal then. */
  async #mirrorToItsEnd(): Promise<void> {
    const id = this.#newId();
    const under = this.#under();
    const target = this.#pick(nodeNames.filter((name) => name !== under));
    if (!(await this.#try('blockdev-mirror', { 'job-id': id, device: under, target, sync: 'full' }))) return;
    const { engine } = this.#checked;
    for (let i = 0; i < 200 && engine.jobs.find(id).status !== 'ready'; i += 1) await this.#turns(1);
    for (let i = this.#random.below(3); i > 0; i -= 1) await this.#write();
    await this.#try('block-job-cancel', { device: id });
    for (let i = 0; i < 200 && this.#isThere(id); i += 1) await this.#turns(1);
    assert.ok(this.#content(engine.graph.find(target).node).equals(this.#model), `mirror ${id}`);
    this.checks += 1;
  }

  async #verb(): Promise<void> {
    const ids = this.#checked.engine.jobs.list().map((job) => job.id);
    if (ids.length === 0) return;
    const verb = this.#pick(['complete', 'complete', 'cancel', 'pause', 'resume']);
    await this.#try(`job-${verb}`, { id: this.#pick(ids) });
  }

  /** What has to hold between two steps. */
  async #look(): Promise<void> {
    for (const { holder } of this.#users) while (holder.drains > 0) await this.#turns(1);
    const [first] = this.#users;
    for (const { use } of this.#users) {
      assert.equal(use.nodeName, first?.use.nodeName, 'where they stand');
      assert.ok(this.#content(use.node).equals(this.#model), 'what a user reads');
    }
    this.#lookAtCopies();
  }

  /** The backups that have ended: at once, before their targets may have another job. */
  #lookAtCopies(): void {
    const { events, engine } = this.#checked;
    while (this.#eventsSeen < events.length) {
      const { event, data } = events[this.#eventsSeen] ?? assert.fail();
      this.#eventsSeen += 1;
      if (event !== 'BLOCK_JOB_COMPLETED') continue;
      assert.equal(data.error, undefined, String(data.device));
      const backup = this.#backups.get(String(data.device));
      if (backup?.content == null) continue;
      const { node } = engine.graph.find(backup.target);
      assert.ok(this.#content(node).equals(backup.content), `backup ${data.device}`);
      this.checks += 1;
    }
  }

  /** Memory answers at once. */
  #content(node: BlockNode): Buffer {
    const bytes = Buffer.alloc(size);
    assert.equal(node.read(0, bytes), undefined);
    return bytes;
  }

  #isThere(id: string): boolean {
    return this.#checked.engine.jobs.list().some((job) => job.id === id);
  }

  #newId(): string {
    this.#jobs += 1;
    return `j${this.#jobs}`;
  }

  async #turns(count: number): Promise<void> {
    for (let i = 0; i < count; i += 1) await new Promise((resolve) => setImmediate(resolve));
  }
}

test('backups and mirrors at random: users read what they wrote, and each copy is of its own moment', async (t) => {
  const { seed } = seeded(1);
  let checks = 0;
  for (let life = 0; life < 6; life += 1) {
    const world = await World.create(t, seed + life);
    for (let step = 0; step < 100; step += 1) await world.step();
    await world.end();
    checks += world.checks;
  }
  assert.ok(checks > 5, `only ${checks} copies were looked at`);
});
