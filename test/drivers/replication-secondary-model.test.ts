/**
 * Two writers against a model: the primary on the secondary disk, the secondary's user on the top, with checkpoints and
 * a failover at random moments, over disks that answer at once or later.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { type DriverNode, defineDriver, filterOver } from '../../src/block/driver.ts';
import { BlockGraph } from '../../src/block/graph.ts';
import type { BlockParent, RootUse } from '../../src/block/graph-view.ts';
import { nodeReference } from '../../src/block/options.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { ReplicationGroup } from '../../src/block/replication-group.ts';
import { drivers } from '../../src/drivers/index.ts';
import { createHost } from '../../src/host/index.ts';
import { JobManager } from '../../src/jobs/job.ts';
import { attempt, type Deferred, type Done, deferred } from '../../src/util/later.ts';
import { RangeLock } from '../../src/util/range-lock.ts';
import { randomOf, writer } from '../block/fixture.ts';

const length = 256 * 1024 + 1536;

/** Answers at once, or a few turns later, before or after it has done what was asked. */
const turnsDriver = defineDriver({
  name: 'turns',
  summary: 'answers at once or some turns later, at random',
  options: z.strictObject({ file: nodeReference, seed: z.int() }),
  isFilter: true,
  async open(options, context): Promise<DriverNode> {
    const child = await context.attach('file', 'filtered', options.file);
    const random = randomOf(options.seed);
    const ranges = new RangeLock();
    const turns = async (): Promise<void> => {
      for (let i = random() * 6; i > 0; i -= 1) await new Promise<void>((resolve) => setImmediate(resolve));
    };
    const jitter = (offset: number, size: number, shared: boolean, issue: () => Done): Done =>
      ranges.run(offset, size, shared, () => {
        const chance = random();
        if (chance < 0.4) return issue();
        if (chance < 0.7) return turns().then(issue);
        const done = issue();
        return turns().then(() => done);
      });
    return filterOver(child, {
      read: (offset, into) => jitter(offset, into.length, true, () => child.node.read(offset, into)),
      write: (offset, from, flags) => jitter(offset, from.length, false, () => child.node.write(offset, from, flags)),
      writeZeroes: (offset, size, flags) =>
        jitter(offset, size, false, () => child.node.writeZeroes(offset, size, flags)),
      flush: () => (random() < 0.5 ? child.node.flush() : turns().then(() => child.node.flush())),
      settle: () => ranges.settled(),
      resize: async (size) => await child.node.resize?.(size),
    });
  },
});

/** A user of a node: it keeps several requests in flight that do not overlap, and knows what it must read. */
class User implements BlockParent {
  readonly description: string;
  model = new Uint8Array(length);
  use: RootUse | null = null;
  /** what a drain's end does to the model */
  released: () => void = () => undefined;
  writes = 0;
  reads = 0;
  private readonly random: () => number;
  private readonly busy = new Set<{ start: number; end: number }>();
  private held = 0;
  private quiet: Deferred | null = null;
  private wake: Deferred | null = null;
  private stopped = false;

  constructor(description: string, random: () => number) {
    this.description = description;
    this.random = random;
  }

  drainBegin(): Done {
    this.held += 1;
    if (this.busy.size === 0) return undefined;
    this.quiet ??= deferred();
    return this.quiet.promise;
  }

  drainEnd(): void {
    this.held -= 1;
    this.released();
    this.wake?.resolve();
    this.wake = null;
  }

  stop(): void {
    this.stopped = true;
    this.wake?.resolve();
  }

  /** Issues requests until it is stopped. */
  async run(): Promise<void> {
    const inFlight = new Set<Promise<void>>();
    while (!this.stopped) {
      while (this.held > 0 && !this.stopped) {
        this.wake ??= deferred();
        await this.wake.promise;
      }
      if (this.stopped) break;
      const request = this.request().finally(() => inFlight.delete(request));
      inFlight.add(request);
      if (inFlight.size >= 4 || this.random() < 0.2) await Promise.race(inFlight);
      if (this.random() < 0.1) await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(inFlight);
  }

  /** Throws only what is wrong: it runs until its end in any case. */
  private async request(): Promise<void> {
    const start = Math.floor(this.random() * length);
    const end = Math.min(length, start + 1 + Math.floor(this.random() ** 3 * 40_000));
    for (const one of this.busy) if (one.start < end && start < one.end) return;
    const range = { start, end };
    this.busy.add(range);
    try {
      await this.issue(start, end);
    } finally {
      this.busy.delete(range);
      if (this.busy.size === 0) {
        this.quiet?.resolve();
        this.quiet = null;
      }
    }
  }

  private async issue(start: number, end: number): Promise<void> {
    const node = this.use?.node ?? assert.fail('no node');
    const kind = this.random();
    if (kind < 0.5) {
      const into = new Uint8Array(end - start);
      await again(() => node.read(start, into));
      const expected = this.model.subarray(start, end);
      const wrong = into.findIndex((byte, i) => byte !== expected[i]);
      assert.equal(wrong, -1, `${this.description} reads ${into[wrong]} at ${start + wrong}, not ${expected[wrong]}`);
      this.reads += 1;
      return;
    }
    const value = kind < 0.6 ? 0 : 1 + Math.floor(this.random() * 255);
    const write = () => {
      const now = this.use?.node ?? node;
      if (value === 0) return now.writeZeroes(start, end - start, 0);
      return now.write(start, new Uint8Array(end - start).fill(value), 0);
    };
    await again(write);
    this.model.fill(value, start, end);
    this.writes += 1;
  }
}

/** A disk that fails once fails whoever comes then: he tries again. */
function again(request: () => Done): Done {
  return attempt(request)?.catch(() => attempt(request));
}

/** A life of one disk; the stage that it ended in. */
async function life(seed: number): Promise<string> {
  const random = randomOf(seed);
  const services = new Map<string, unknown>();
  const stages: unknown[] = [];
  const graph = new BlockGraph(createHost(), new DriverRegistry([...drivers, turnsDriver]), services, (event, data) => {
    if (event === 'REPLICATION_STAGE') stages.push(data.stage);
  });
  const group = new ReplicationGroup();
  const jobs = new JobManager(() => undefined);
  services.set('replication-group', group).set('graph', graph).set('jobs', jobs);
  services.set('devices', { nodeOf: () => null });
  const slow = (image: Record<string, unknown>) => ({
    driver: 'turns',
    file: image,
    seed: Math.floor(random() * 2 ** 31),
  });
  const memory = { driver: 'memory', size: length, discard: 'unmap' };
  await graph.add({ driver: 'blkdebug', 'node-name': 'local', image: slow(memory) });
  const overlay = { driver: 'shadow', 'grow-bytes': 65536, granularity: random() < 0.7 ? 4096 : 16384 };
  const file = () => slow({ driver: 'memory', size: 0 });
  await graph.add({ ...overlay, 'node-name': 'hidden', file: file(), backing: 'local' });
  await graph.add({ ...overlay, 'node-name': 'active', file: file(), backing: 'hidden' });
  const filter = { driver: 'replication', mode: 'secondary', 'top-id': 'top', file: 'active' };
  await graph.add({ ...filter, 'node-name': 'top' });
  const primary = new User('the primary', random);
  const secondary = new User('the secondary', random);
  primary.use = await graph.use('local', primary, writer);
  secondary.use = await graph.use('top', secondary, writer);
  const pause = (most: number) => new Promise((resolve) => setTimeout(resolve, random() * most));

  const primaryRuns = primary.run();
  await pause(3);
  // Both models are one at the moment in which nobody has a request under way. A start drains more than once: the last
  // time is its checkpoint.
  const cut = async (work: () => Promise<void>) => {
    let snapped = false;
    primary.released = () => {
      if (snapped && stages.length > 0) return;
      snapped = true;
      secondary.model = primary.model.slice();
    };
    await work();
    primary.released = () => undefined;
  };
  await cut(() => group.start('secondary'));
  const secondaryRuns = secondary.run();
  for (let i = Math.floor(random() * 6); i > 0; i -= 1) {
    await pause(4);
    await cut(() => group.checkpoint());
  }
  await pause(4);
  primary.stop();
  await primaryRuns;
  await primary.use.release();
  if (random() < 0.4) {
    const fault = {
      operation: random() < 0.8 ? 'write' : 'any',
      errno: 'EIO',
      count: 1,
      skip: Math.floor(random() * 6),
    };
    await graph.find('local').node.control?.({ action: 'add-fault', fault });
  }
  await group.stop(true);
  for (let i = 0; group.find('top').stage === 'failover'; i += 1) {
    assert.ok(i < 5000, 'the failover never ends');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await graph.find('local').node.control?.({ action: 'remove-faults' });
  const end = group.find('top').stage;
  await pause(6);
  secondary.stop();
  await secondaryRuns;
  const seen = new Uint8Array(length);
  await graph.find(end === 'done' ? 'local' : 'top').node.read(0, seen);
  assert.ok(Buffer.from(seen).equals(secondary.model), `${end}: what the user of the top has`);
  assert.deepEqual(stages, ['running', 'failover', end]);
  if (end === 'done') assert.deepEqual(childrenOf(graph, 'top'), ['local']);
  await secondary.use.release();
  await jobs.close();
  await attempt(() => graph.close().then(() => undefined));
  return end;
}

function childrenOf(graph: BlockGraph, nodeName: string): string[] {
  return graph.find(nodeName).children.map((child) => child.nodeName);
}

test('replication-filter: each writer reads what it must at each moment, over checkpoints and a failover under load', async () => {
  const first = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  const lives = Number(process.env.LIVES ?? 40);
  console.log(`seeds from ${first}`);
  const ends: Record<string, number> = { done: 0, 'failover-failed': 0 };
  for (let seed = first; seed < first + lives; seed += 1) {
    const end = await life(seed).catch((error: unknown) => {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    });
    ends[end] = (ends[end] ?? 0) + 1;
  }
  console.log(ends);
});
