/**
 * What the tests of replication stand on: a graph over disks that a test answers by hand, or that answer at random, and
 * a clock that moves when told.
 */
import fc from 'fast-check';
import { z } from 'zod';
import { allPermissions, permissionBits } from '../../src/block/child.ts';
import { type DriverNode, defineDriver } from '../../src/block/driver.ts';
import { BlockGraph } from '../../src/block/graph.ts';
import type { RootUse } from '../../src/block/graph-view.ts';
import { type WriteFlags, writeFlags } from '../../src/block/node.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { ReplicationGroup } from '../../src/block/replication-group.ts';
import { mirrorTopDriver } from '../../src/drivers/mirror-top.ts';
import { quorumDriver } from '../../src/drivers/quorum.ts';
import { replicationDriver } from '../../src/drivers/replication.ts';
import type { Host, HostTimer } from '../../src/host/host.ts';
import { JobManager } from '../../src/jobs/job.ts';
import { BlockError } from '../../src/util/errors.ts';
import { addExtent, type Extent } from '../../src/util/extents.ts';
import { type Deferred, type Done, deferred } from '../../src/util/later.ts';

/** Lets everything that can go on without time or I/O do so. */
export async function settleTurns(turns = 20): Promise<void> {
  for (let i = 0; i < turns; i += 1) await new Promise<void>((resolve) => setImmediate(resolve));
}

/** A number from 0 up to `below`, from a seed (mulberry32). */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = seed >>> 0;
  }

  fraction(): number {
    this.state = (this.state + 0x6d2b_79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(limit: number): number {
    return Math.floor(this.fraction() * limit);
  }

  chance(probability: number): boolean {
    return this.fraction() < probability;
  }
}

/** A clock that stands until it is moved. */
export class TestClock {
  private nowMs = 1000;
  private timers: { at: number; call: () => void }[] = [];

  now(): number {
    return this.nowMs;
  }

  wall(): number {
    return this.nowMs;
  }

  after(ms: number, call: () => void): HostTimer {
    const timer = { at: this.nowMs + ms, call };
    this.timers.push(timer);
    return {
      cancel: (): void => {
        this.timers = this.timers.filter((one) => one !== timer);
      },
    };
  }

  endOfTurn(call: () => void): void {
    setImmediate(call);
  }

  async move(ms: number): Promise<void> {
    const end = this.nowMs + ms;
    for (;;) {
      const [next] = this.timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at);
      if (next === undefined) break;
      this.timers = this.timers.filter((one) => one !== next);
      this.nowMs = Math.max(this.nowMs, next.at);
      next.call();
      await settleTurns(3);
    }
    this.nowMs = end;
  }
}

type Kind = 'read' | 'write' | 'zeroes' | 'discard' | 'flush' | 'status';

/** A request that the disk has not answered. */
export interface Pending {
  readonly kind: Kind;
  readonly offset: number;
  readonly length: number;
  readonly flags: WriteFlags;
  readonly bytes: Uint8Array | null;
  readonly done: Deferred;
}

/**
 * A disk in memory that keeps the contract: overlapping requests take effect in the order issued; bytes are read from
 * the caller's buffer when the request is answered, not before, so a buffer that is used again too soon shows.
 */
export class TestDisk implements DriverNode {
  length: number;
  flushesInOrder = false;
  readonly content: Uint8Array;
  /** what a power cut would leave */
  readonly durable: Uint8Array;
  pending: Pending[] = [];
  readonly log: { kind: Kind; offset: number; length: number; flags: WriteFlags }[] = [];
  /** `by-hand`: a request waits for `answer` */
  mode: 'at-once' | 'by-hand' = 'at-once';
  /** the error that requests of a kind get at once */
  readonly failing = new Map<Kind, BlockError>();
  private readonly brokenListeners = new Set<(error: BlockError) => void>();
  private broken: BlockError | null = null;

  constructor(length: number) {
    this.length = length;
    this.content = new Uint8Array(length);
    this.durable = new Uint8Array(length);
  }

  read(offset: number, into: Uint8Array): Done {
    return this.request('read', offset, into.length, into, 0);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    return this.request('write', offset, from.length, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    return this.request('zeroes', offset, length, null, flags);
  }

  discard(offset: number, length: number): Done {
    return this.request('discard', offset, length, null, 0);
  }

  flush(): Done {
    return this.request('flush', 0, 0, null, 0);
  }

  /** Status is a read: it waits for the writes issued before it. */
  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    const done = this.request('status', offset, length, null, 0);
    return done === undefined ? this.status(offset, length) : done.then(() => this.status(offset, length));
  }

  private status(offset: number, length: number): Extent[] {
    const extents: Extent[] = [];
    for (let at = offset; at < offset + length; at += 512) {
      const end = Math.min(at + 512, offset + length);
      const zero = this.content.subarray(at, end).every((byte) => byte === 0);
      addExtent(extents, end - at, zero, !zero);
    }
    return extents;
  }

  onBroken(listener: (error: BlockError) => void): () => void {
    this.brokenListeners.add(listener);
    const { broken } = this;
    if (broken !== null) queueMicrotask(() => listener(broken));
    return () => this.brokenListeners.delete(listener);
  }

  breakConnection(reason: string): void {
    if (this.broken !== null) return;
    this.broken = new BlockError('connection-lost', reason);
    for (const listener of this.brokenListeners) listener(this.broken);
    const { pending } = this;
    this.pending = [];
    for (const { done } of pending) done.reject(this.broken);
  }

  /** As a cable that is pulled: some of what was under way has reached the disk all the same. */
  breakAtRandom(random: Random): void {
    for (let i = random.below(this.pending.length + 1); i > 0; i -= 1) {
      const request = this.freeRequest(random);
      if (request === undefined) break;
      this.pending = this.pending.filter((one) => one !== request);
      this.takeEffect(request);
      request.done.reject(new BlockError('connection-lost', 'broken at random'));
    }
    this.breakConnection('broken at random');
  }

  /** A new connection to the same disk. */
  mend(): void {
    this.broken = null;
    this.brokenListeners.clear();
  }

  /** Requests of a kind that wait. */
  waiting(kind: Kind): Pending[] {
    return this.pending.filter((one) => one.kind === kind);
  }

  /** Answers one request; an error: it had no effect. */
  answer(request: Pending | undefined, error?: BlockError): void {
    if (request === undefined) throw new Error('no such request');
    this.pending = this.pending.filter((one) => one !== request);
    if (error !== undefined) {
      request.done.reject(error);
      return;
    }
    this.takeEffect(request);
    request.done.resolve();
  }

  answerAll(): void {
    while (this.pending.length > 0) this.answer(this.pending[0]);
  }

  /** Answers one request that no earlier overlapping one precedes. False: there is none. */
  answerRandom(random: Random, failProbability = 0): boolean {
    const request = this.freeRequest(random);
    if (request === undefined) return false;
    this.answer(request, random.chance(failProbability) ? new BlockError('io-error', 'failed at random') : undefined);
    return true;
  }

  /** One that no earlier request has to precede. */
  private freeRequest(random: Random): Pending | undefined {
    const free = this.pending.filter(
      (one, index) => !this.pending.slice(0, index).some((earlier) => inOrder(earlier, one, this.flushesInOrder)),
    );
    return free[random.below(free.length)];
  }

  private request(kind: Kind, offset: number, length: number, bytes: Uint8Array | null, flags: WriteFlags): Done {
    if (kind !== 'status') this.log.push({ kind, offset, length, flags });
    if (this.broken !== null) throw this.broken;
    const error = this.failing.get(kind);
    if (error !== undefined) throw error;
    const request = { kind, offset, length, bytes, flags, done: deferred() };
    if (this.mode === 'at-once') {
      this.takeEffect(request);
      return undefined;
    }
    this.pending.push(request);
    return request.done.promise;
  }

  private takeEffect({ kind, offset, length, bytes, flags }: Pending): void {
    switch (kind) {
      case 'status':
        return;
      case 'read':
        bytes?.set(this.content.subarray(offset, offset + length));
        return;
      case 'write':
        if (bytes !== null) this.content.set(bytes, offset);
        break;
      case 'zeroes':
      case 'discard':
        this.content.fill(0, offset, offset + length);
        break;
      case 'flush':
        this.durable.set(this.content);
        return;
    }
    if ((flags & writeFlags.fua) !== 0) {
      this.durable.set(this.content.subarray(offset, offset + length), offset);
    }
  }
}

/** Must `later` wait for `earlier`? */
function inOrder(earlier: Pending, later: Pending, ordered: boolean): boolean {
  if (earlier.kind === 'flush' || later.kind === 'flush') return ordered && later.kind === 'flush';
  if (reads(earlier) && reads(later)) return false;
  return earlier.offset < later.offset + later.length && later.offset < earlier.offset + earlier.length;
}

function reads({ kind }: Pending): boolean {
  return kind === 'read' || kind === 'status';
}

export interface WorldEvent {
  readonly event: string;
  readonly data: Record<string, unknown>;
}

/** A graph with test disks, and whatever a test builds on it. */
export class ReplicationWorld {
  readonly clock = new TestClock();
  readonly group = new ReplicationGroup();
  readonly events: WorldEvent[] = [];
  readonly jobs: JobManager;
  readonly graph: BlockGraph;
  private readonly disks = new Map<string, TestDisk>();

  constructor() {
    const disks = this.disks;
    const testDriver = defineDriver({
      name: 'test',
      summary: 'a disk of the test',
      options: z.strictObject({ disk: z.string() }),
      async open({ disk }): Promise<DriverNode> {
        const found = disks.get(disk);
        if (found === undefined) throw new BlockError('invalid-option', `disk: no '${disk}'`);
        return found;
      },
    });
    const emit = (event: string, data: Record<string, unknown>): void => {
      this.events.push({ event, data });
    };
    this.jobs = new JobManager(emit);
    const services = new Map<string, unknown>([['replication-group', this.group]]);
    const registry = new DriverRegistry([testDriver, quorumDriver, replicationDriver, mirrorTopDriver]);
    this.graph = new BlockGraph({ clock: this.clock } as unknown as Host, registry, services, emit);
  }

  /** A node named `name` over a new disk. */
  async disk(name: string, length: number): Promise<TestDisk> {
    const disk = new TestDisk(length);
    this.disks.set(name, disk);
    await this.graph.add({ driver: 'test', 'node-name': name, disk: name, discard: 'unmap' });
    return disk;
  }

  async use(nodeName: string): Promise<RootUse> {
    const parent = { description: 'a test', drainBegin: (): undefined => undefined, drainEnd: (): void => undefined };
    return await this.graph.use(nodeName, parent, {
      needs: permissionBits['consistent-read'] | permissionBits.write,
      shares: allPermissions,
    });
  }

  /** A filter that records, over disk `remote`. */
  async recordFilter(
    length: number,
    options: Record<string, unknown> = {},
  ): Promise<{ remote: TestDisk; use: RootUse }> {
    const remote = await this.disk('remote', length);
    await this.graph.add({
      driver: 'replication',
      'node-name': 'filter',
      mode: 'primary',
      file: 'remote',
      discard: 'unmap',
      ...options,
    });
    return { remote, use: await this.use('filter') };
  }

  /** One disk of a pair, as a supervisor builds it: NAME over NAME-local and NAME-replication, with NAME-remote. */
  async pairDisk(name: string, length: number, options: Record<string, unknown> = {}): Promise<PairDisk> {
    const local = await this.disk(`${name}-local`, length);
    const remote = await this.disk(`${name}-remote`, length);
    await this.graph.add({
      driver: 'replication',
      'node-name': `${name}-replication`,
      mode: 'primary',
      file: null,
      size: length,
      acknowledge: 'flush',
      'on-link-down': 'hold',
      discard: 'unmap',
      ...options,
    });
    await this.graph.add({
      driver: 'quorum',
      'node-name': name,
      children: [`${name}-local`, `${name}-replication`],
      'vote-threshold': options.degraded === 'stop' ? 2 : 1,
      'read-pattern': 'fifo',
      discard: 'unmap',
    });
    return { name, local, remote, use: await this.use(name) };
  }

  async connect(...disks: PairDisk[]): Promise<void> {
    for (const { name } of disks) await this.group.links.find(`${name}-replication`).connect(`${name}-remote`);
  }

  told(event: string): Record<string, unknown>[] {
    return this.events.filter((one) => one.event === event).map(({ data }) => data);
  }
}

export interface PairDisk {
  readonly name: string;
  readonly local: TestDisk;
  readonly remote: TestDisk;
  readonly use: RootUse;
}

/** Whether a request is done; a failure of it is thrown. */
export interface Watched {
  done: boolean;
  error: BlockError | null;
}

export function watch(call: () => Done): Watched {
  const watched: Watched = { done: false, error: null };
  const failed = (error: unknown): void => {
    watched.done = true;
    watched.error = error as BlockError;
  };
  try {
    const done = call();
    if (done === undefined) watched.done = true;
    else
      done.then(() => {
        watched.done = true;
      }, failed);
  } catch (error) {
    failed(error);
  }
  return watched;
}

/** `length` bytes of one value. */
export function bytes(length: number, value: number): Uint8Array {
  return new Uint8Array(length).fill(value);
}

/** Options of fast-check with a seed that is printed, so that a run can be repeated: SEED=... */
export function seeded(runs: number): { seed: number; numRuns: number; endOnFailure: boolean } {
  const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31);
  console.log(`seed ${seed}`);
  return { seed, numRuns: runs, endOnFailure: true };
}

export { fc };
