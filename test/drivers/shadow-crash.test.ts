/**
 * `shadow` on the simulated machine: the power cut, the process killed, or an error returned, at every I/O of a run;
 * over several lives, with a log so small that its space is used anew and compacted all the time.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type BlockNode, writeFlags } from '../../src/block/node.ts';
import { parent, randomOf, testGraph, writer } from '../block/fixture.ts';
import { World } from '../sim/world.ts';

const sector = 512;
const size = 96 * 1024 + 3 * sector;
const sectors = size / sector;

/** What each sector may hold: versions since the last one that is proven durable, oldest first. */
class Versions {
  private allowed: { stamp: number; done: boolean }[][] = [];
  /** an emptying is under way: it happened as a whole, or not at all */
  private emptying = false;
  private stamp = 0;

  constructor() {
    this.restart(() => 0);
  }

  private restart(stampOf: (index: number) => number): void {
    this.allowed = Array.from({ length: sectors }, (_, index) => [{ stamp: stampOf(index), done: true }]);
  }

  async write(node: BlockNode, first: number, count: number, zero: boolean, fua: boolean): Promise<void> {
    this.stamp = (this.stamp % 254) + 1;
    const stamp = zero ? 0 : this.stamp;
    const entries = Array.from({ length: count }, () => ({ stamp, done: false }));
    for (const [i, entry] of entries.entries()) this.allowed[first + i]?.push(entry);
    const flags = fua ? writeFlags.fua : writeFlags.none;
    if (zero) await node.writeZeroes(first * sector, count * sector, flags);
    else await node.write(first * sector, new Uint8Array(count * sector).fill(stamp), flags);
    for (const [i, entry] of entries.entries()) {
      entry.done = true;
      if (fua) this.prove(first + i, entry);
    }
  }

  async flush(node: BlockNode): Promise<void> {
    const covered = this.allowed.map((versions) => versions.findLast(({ done }) => done));
    await node.flush();
    for (const [index, version] of covered.entries()) this.prove(index, version);
  }

  async empty(node: BlockNode): Promise<void> {
    this.emptying = true;
    await node.makeEmpty?.();
    this.emptying = false;
    this.restart(() => 0);
  }

  /** @param isDurable what is read now is durable: the power was cut */
  async check(node: BlockNode, isDurable: boolean, claim: string): Promise<void> {
    const bytes = new Uint8Array(size);
    await node.read(0, bytes);
    const found = Array.from({ length: sectors }, (_, index) => bytes[index * sector] ?? -1);
    for (let i = 0; i < size; i++) assert.equal(bytes[i], found[Math.floor(i / sector)], `${claim}: a torn sector`);
    const isEmptied = this.emptying && found.every((stamp) => stamp === 0);
    const wrong = found.findIndex((stamp, index) => {
      const versions = this.allowed[index] ?? [];
      // The page cache of a machine that goes on has every write that was answered.
      const from = isDurable ? 0 : versions.findLastIndex(({ done }) => done);
      return !versions.slice(from).some((version) => version.stamp === stamp);
    });
    if (!isEmptied) assert.equal(wrong, -1, `${claim}: sector ${wrong} is ${found[wrong]}`);
    if (isDurable) this.restart((index) => found[index] ?? 0);
    // Emptied for the page cache only: what was there before may be back after a power cut.
    else if (isEmptied) for (const versions of this.allowed) versions.push({ stamp: 0, done: true });
    this.emptying = false;
  }

  /** All is as the last write left it: nothing went wrong. */
  async checkLatest(node: BlockNode, claim: string): Promise<void> {
    const bytes = new Uint8Array(size);
    await node.read(0, bytes);
    for (let index = 0; index < sectors; index++) {
      assert.equal(bytes[index * sector], this.allowed[index]?.at(-1)?.stamp, `${claim}: sector ${index}`);
    }
  }

  private prove(index: number, version: { stamp: number; done: boolean } | undefined): void {
    const versions = this.allowed[index];
    const at = version === undefined ? -1 : (versions?.indexOf(version) ?? -1);
    if (at > 0) versions?.splice(0, at);
  }
}

interface Opened {
  readonly node: BlockNode;
  close(): Promise<void>;
}

async function makeFiles(world: World): Promise<void> {
  const { files } = world.host('a');
  await (await files.open('/log', { access: 'write', create: 'exclusive' })).close();
  await files.syncFolder('/');
}

async function openOverlay(world: World): Promise<Opened> {
  const { graph } = testGraph(world.host('a'));
  await graph.add({
    driver: 'shadow',
    'node-name': 'top',
    size,
    file: { driver: 'file', filename: '/log' },
    'grow-bytes': 65536,
    'reuse-bytes': 65536,
  });
  const use = await graph.use('top', parent('the test'), writer);
  const close = async (): Promise<void> => {
    await use.release();
    await graph.close();
  };
  return { node: graph.find('top').node, close };
}

type Ending = 'power cut' | 'kill' | 'EIO' | 'ENOSPC';

/** One process's life: random requests until it ends. */
async function live(world: World, versions: Versions, seed: number, steps: number): Promise<void> {
  const random = randomOf(seed);
  const claim = `seed ${world.seed}, life ${seed}`;
  const { node, close } = await openOverlay(world);
  const below = (limit: number): number => Math.floor(random() * limit);
  let pending: Promise<void>[] = [];
  let failed = false;
  const settle = async (): Promise<void> => {
    for (const result of await Promise.allSettled(pending)) failed ||= result.status === 'rejected';
    pending = [];
  };
  for (let step = 0; step < steps; step++) {
    const chance = random();
    if (chance < 0.1) pending.push(versions.flush(node));
    else if (chance < 0.13) {
      await settle();
      await (node as BlockNode & { settle(): Promise<void> }).settle();
      pending.push(versions.empty(node));
      await settle();
    } else {
      const first = below(sectors);
      const count = Math.min(1 + below(random() < 0.5 ? 8 : 40), sectors - first);
      pending.push(versions.write(node, first, count, random() < 0.15, random() < 0.1));
    }
    for (const one of pending) one.catch(() => undefined);
    if (random() < 0.3) await settle();
  }
  await settle();
  if (!failed) await versions.checkLatest(node, claim);
  await close().catch(() => undefined);
}

/** Runs lives, each ended at an I/O; null: let it go on to its end. Returns how many I/Os the first took. */
async function runLives(
  seed: number,
  endings: readonly (readonly [at: number, how: Ending] | null)[],
): Promise<number> {
  const world = new World(seed);
  await world.complete(makeFiles(world));
  const versions = new Versions();
  let took = 0;
  for (const [index, ending] of endings.entries()) {
    const claim = `seed ${seed}, life ${index}, ${ending?.[1]} at I/O ${ending?.[0]}`;
    const before = world.ioCount;
    let over = false;
    let fault: { remove(): void } | null = null;
    world.onIo((n) => {
      if (ending === null || n - before !== ending[0]) return;
      const [, how] = ending;
      if (how === 'power cut') world.powerCut('a');
      else if (how === 'kill') world.kill('a');
      else fault = world.fault('a', { operation: 'any', path: '/log', errno: how, count: 1 });
    });
    let problem: unknown = null;
    live(world, versions, seed * 10 + index, 60).then(
      () => {
        over = true;
      },
      (error: unknown) => {
        over = true;
        problem = error;
      },
    );
    await world.run(() => over || !world.isAlive('a'));
    if (problem !== null && (ending === null || ending[1] === 'kill' || ending[1] === 'power cut')) throw problem;
    if (problem instanceof assert.AssertionError) throw problem;
    world.onIo(null);
    (fault as { remove(): void } | null)?.remove();
    if (index === 0) took = world.ioCount - before;
    // What failed or was lost shows when the power goes; a kill leaves the page cache to the next life.
    const isCut = ending?.[1] !== 'kill';
    if (world.isAlive('a')) world.powerCut('a');
    world.restart('a');
    const { node, close } = await world.complete(openOverlay(world));
    await world.complete(versions.check(node, isCut, claim));
    await world.complete(close());
  }
  return took;
}

/** `SEEDS=1,2,3 node --test ...` goes through every I/O of these runs; without it a sample is taken. */
const { SEEDS } = process.env;
const samples = { 'power cut': 11, kill: 19, EIO: 29, ENOSPC: 31 } as const;

for (const how of ['power cut', 'kill', 'EIO', 'ENOSPC'] as const) {
  test(`every flushed write is there after ${how} at each I/O; an emptying happened wholly or not at all`, async () => {
    for (const seed of (SEEDS ?? '1,2').split(',').map(Number)) {
      const count = await runLives(seed, [null]);
      const step = SEEDS === undefined ? samples[how] : 1;
      for (let at = Math.min(seed, step); at <= count; at += step) {
        await runLives(seed, [[at, how], [1 + ((at * 7) % count), 'power cut'], null]);
      }
    }
  });
}

test('lives that are killed again and again do not use the log up', async () => {
  const endings = Array.from({ length: 40 }, (_, index) => [20 + ((index * 13) % 90), 'kill'] as const);
  await runLives(7, [...endings, null]);
});
