/**
 * One disk on several children: writes go to all of them, reads are voted on (`quorum`) or come from the first
 * (`fifo`).
 *
 * Invariants:
 * - Every child is called, in order and in the same tick, before any result is looked at.
 * - Overlapping writes are never in flight together in the children (pair.md 3): while a request takes time its range
 *   is held; as long as all children answer at once nothing is held and nothing allocated.
 * - `fifo`: the first child decides writes and flushes, whatever the others say (pair.md 8; QEMU answers success
 *   there); beyond that at least `vote-threshold` children must succeed. The others are told of a write or a flush that
 *   it failed.
 * - Where all must succeed, and one says beforehand that it refuses, nobody is given the request.
 */
import { z } from 'zod';
import { type Child, type PermissionNeed, permissionBits } from '../block/child.ts';
import { type DriverNode, defineDriver, type NodeReference, type OpenContext } from '../block/driver.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import { joinStatus } from '../block/status.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';
import { QuorumReports } from './quorum-reports.ts';
import { VotedReads } from './quorum-vote.ts';

/** Most children of one quorum. */
export const quorumChildrenMax = 32;

const optionsSchema = z.strictObject({
  children: z.array(nodeReference).min(1).max(quorumChildrenMax).describe('in fifo the first one decides'),
  'vote-threshold': z.int().min(1).describe('how many children must agree, or succeed'),
  'read-pattern': z.enum(['quorum', 'fifo']).default('quorum').describe('fifo: from the first child that can'),
  'rewrite-corrupted': z.boolean().default(false).describe('a child that was outvoted is written with what won'),
  blkverify: z.literal(false).default(false).describe('only false'),
});

type QuorumOptions = z.output<typeof optionsSchema>;

export const quorumDriver = defineDriver({
  name: 'quorum',
  summary: 'one disk on several children, by vote or with the first one deciding',
  options: optionsSchema,
  async open(options, context): Promise<DriverNode> {
    if (options['vote-threshold'] > options.children.length) {
      throw new BlockError('invalid-option', `vote-threshold: there are only ${options.children.length} children`);
    }
    if (options['rewrite-corrupted'] && options['read-pattern'] === 'fifo') {
      throw new BlockError('invalid-option', 'rewrite-corrupted: is only possible with read-pattern=quorum');
    }
    const node = new QuorumNode(options, context);
    for (const reference of options.children) await node.addChild(reference);
    return node;
  },
});

type FanOut = 'write' | 'write-zeroes' | 'flush';
const nothing = new Uint8Array(0);

class QuorumNode implements DriverNode {
  private children: Child[] = [];
  private childrenMade = 0;
  private readonly threshold: number;
  private readonly fifo: boolean;
  private readonly rewrites: boolean;
  private readonly context: OpenContext;
  private readonly reports: QuorumReports;
  private readonly votes: VotedReads;
  private readonly ranges = new RangeLock();

  constructor(options: QuorumOptions, context: OpenContext) {
    this.threshold = options['vote-threshold'];
    this.fifo = options['read-pattern'] === 'fifo';
    this.rewrites = options['rewrite-corrupted'] && !context.readOnly;
    this.context = context;
    this.reports = new QuorumReports(context);
    this.votes = new VotedReads(this.threshold, this.rewrites, this.reports);
  }

  /** One child may grow by itself (a device): what is beyond the others cannot be given to all. */
  get length(): number {
    let least = Number.POSITIVE_INFINITY;
    for (const child of this.children) least = Math.min(least, child.node.length);
    return least === Number.POSITIVE_INFINITY ? 0 : least;
  }

  get ordered(): boolean {
    return this.children.every((child) => child.node.ordered !== false);
  }

  read(offset: number, into: Uint8Array): Done {
    // A vote that rewrites the losers is a write as well.
    const shared = !this.rewrites;
    if (!this.ranges.idle) return this.ranges.run(offset, into.length, shared, () => this.readNow(offset, into));
    const done = this.readNow(offset, into);
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, into.length, shared);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const { length } = from;
    if (!this.ranges.idle) {
      return this.ranges.run(offset, length, false, () => this.fanOut('write', 0, offset, length, from, flags));
    }
    const done = this.fanOut('write', 0, offset, length, from, flags);
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, length);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    if (this.fifo && (flags & writeFlags.fastZero) !== 0) {
      return this.ranges.run(offset, length, false, () => this.zeroFast(offset, length, flags));
    }
    if (!this.ranges.idle) {
      return this.ranges.run(offset, length, false, () => this.zeroAll(0, offset, length, flags));
    }
    const done = this.zeroAll(0, offset, length, flags);
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, length);
  }

  /**
   * Children may make different things of a discard, and block status need not tell which. So it is zeroes for all of
   * them, where the first child can do that as cheaply as a discard, and else nothing (pair.md 9).
   */
  discard(offset: number, length: number): Done {
    return this.ranges.run(offset, length, false, () => this.discardAll(offset, length));
  }

  flush(): Done {
    return this.fanOut('flush', 0, 0, this.length, nothing, writeFlags.none);
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    const first = this.children[0];
    if (first === undefined) throw new BlockError('wrong-state', 'a quorum without children');
    if (this.fifo || this.children.length === 1) return first.node.blockStatus(offset, length);
    return this.joinedStatus(offset, length);
  }

  async addChild(reference: NodeReference): Promise<void> {
    if (this.children.length >= quorumChildrenMax) {
      throw new BlockError('invalid-option', `a quorum has at most ${quorumChildrenMax} children`);
    }
    const name = `children.${this.childrenMade}`;
    const child = await this.context.attach(name, 'data', reference, (parents) => this.needs(parents));
    const { length } = child.node;
    const fits = this.children.length === 0 || length === this.length;
    if (!fits) {
      const message = `'${child.nodeName}' has ${length} bytes, '${this.children[0]?.nodeName}' has ${this.length}`;
      await this.context.detach(child);
      throw new BlockError('invalid-option', `children of a quorum have one length: ${message}`);
    }
    this.childrenMade += 1;
    this.children = [...this.children, child];
  }

  async removeChild(name: string): Promise<void> {
    const child = this.children.find((each) => each.name === name);
    if (child === undefined) throw new BlockError('invalid-option', `there is no child '${name}'`);
    if (this.children.length <= this.threshold) {
      throw new BlockError('invalid-option', `vote-threshold is ${this.threshold}: no child can go`);
    }
    const before = this.children;
    this.children = before.filter((each) => each !== child);
    try {
      await this.context.detach(child);
    } catch (error) {
      this.children = before;
      throw error;
    }
  }

  async settle(): Promise<void> {
    await this.ranges.settled();
  }

  info(): Record<string, unknown> {
    return {
      children: this.children.map((child) => ({ child: child.name, 'node-name': child.nodeName })),
      'vote-threshold': this.threshold,
      'read-pattern': this.fifo ? 'fifo' : 'quorum',
    };
  }

  /** Nobody else may write to a child or resize it: the children would differ. */
  private needs(parents: PermissionNeed): PermissionNeed {
    return {
      needs: parents.needs | (this.rewrites ? permissionBits.write : 0),
      shares: parents.shares & (permissionBits['consistent-read'] | permissionBits['write-unchanged']),
    };
  }

  // ------------------------------------------------------------ writes

  /** Calls children `first` and on; those before count as done. At once if all of them answered so. */
  private fanOut(
    kind: FanOut,
    first: number,
    offset: number,
    length: number,
    from: Uint8Array,
    flags: WriteFlags,
  ): Done {
    const { children } = this;
    if (first === 0 && this.threshold === children.length) this.checkRefusals();
    let results: Done[] | null = null;
    let waiting: Promise<void> | null = null;
    let waitingAt = 0;
    for (let i = first; i < children.length; i += 1) {
      const node = children[i]?.node;
      let done: Done;
      try {
        if (kind === 'write') done = node?.write(offset, from, flags);
        else if (kind === 'flush') done = node?.flush();
        else done = node?.writeZeroes(offset, length, flags);
      } catch (error) {
        done = Promise.reject(error);
      }
      if (done === undefined) continue;
      if (waiting === null) {
        waiting = done;
        waitingAt = i;
        continue;
      }
      results ??= resultsOf(children, waitingAt, waiting);
      results[i] = done;
    }
    if (waiting === null) return undefined;
    if (results !== null) return this.conclude(kind, children, results, offset, length, flags);
    const only = waiting;
    const conclude = (): Promise<void> =>
      this.conclude(kind, children, resultsOf(children, waitingAt, only), offset, length, flags);
    // The usual write of a pair waits for the link alone: as long as that succeeds there is nothing to conclude.
    return waitingAt === 0 ? conclude() : only.catch(conclude);
  }

  private checkRefusals(): void {
    for (const { node } of this.children) if (node.refusal != null) throw node.refusal;
  }

  private async conclude(
    kind: FanOut,
    children: readonly Child[],
    results: readonly Done[],
    offset: number,
    length: number,
    flags: WriteFlags,
  ): Promise<void> {
    // At once, not when all are done: that may take as long as a link does.
    if (this.fifo) results[0]?.catch((thrown) => this.tellSiblings(thrown, children, offset, length, flags));
    const outcomes = await Promise.allSettled(results);
    const errors = outcomes.map((outcome) => (outcome.status === 'rejected' ? toBlockError(outcome.reason) : null));
    let failed = 0;
    let error: BlockError | undefined;
    for (const [index, each] of errors.entries()) {
      if (each === null) continue;
      failed += 1;
      error ??= each;
      this.reports.bad(kind === 'flush' ? 'flush' : 'write', children[index], offset, length, each);
    }
    if (error === undefined) return;
    if (children.length - failed < this.threshold) this.reports.failure(offset, length);
    else if (!(this.fifo && errors[0] !== null)) return;
    throw error;
  }

  /**
   * A flush stands for the whole disk: of every write since the last one it is open whether the child that decides has
   * it. FUA is a flush as well; only for want of space not even the write was done.
   */
  private tellSiblings(
    thrown: unknown,
    children: readonly Child[],
    offset: number,
    length: number,
    flags: WriteFlags,
  ): void {
    const flushed = (flags & writeFlags.fua) !== 0 && toBlockError(thrown).code !== 'no-space';
    for (const { node } of children.slice(1)) {
      if (flushed) node.siblingFailed?.(0, this.length);
      else node.siblingFailed?.(offset, length);
    }
  }

  private zeroAll(first: number, offset: number, length: number, flags: WriteFlags): Done {
    return this.fanOut('write-zeroes', first, offset, length, nothing, flags);
  }

  private async discardAll(offset: number, length: number): Promise<void> {
    const first = this.children[0]?.node;
    if (first === undefined || this.children.length === 1) return await first?.discard(offset, length);
    try {
      await this.zeroFast(offset, length, writeFlags.fastZero);
    } catch (error) {
      if (!isNotSupported(error)) throw error;
    }
  }

  /**
   * The first child alone says whether it is fast: what it refuses has happened nowhere, or the others would be zero
   * where a user was told that nothing is. They then do what was done, as quickly as they can (pair.md 9).
   */
  private async zeroFast(offset: number, length: number, flags: WriteFlags): Promise<void> {
    if (this.threshold === this.children.length) this.checkRefusals();
    try {
      await this.children[0]?.node.writeZeroes(offset, length, flags);
    } catch (error) {
      // It may have zeroed a part.
      if (!isNotSupported(error)) this.tellSiblings(error, this.children, offset, length, flags);
      throw error;
    }
    await this.zeroAll(1, offset, length, flags & ~writeFlags.fastZero);
  }

  // ------------------------------------------------------------ reads

  private readNow(offset: number, into: Uint8Array): Done {
    return this.fifo ? this.readFrom(0, offset, into, null) : this.votes.read(this.children, offset, into);
  }

  /** From child `index`, or the next that can; the error of the first one is the request's. */
  private readFrom(index: number, offset: number, into: Uint8Array, first: BlockError | null): Done {
    const child = this.children[index];
    if (child === undefined) {
      this.reports.failure(offset, into.length);
      throw first ?? new BlockError('io-error', 'no child could be read');
    }
    let error: unknown;
    try {
      const done = child.node.read(offset, into);
      return done === undefined ? undefined : this.readOrNext(done, child, index, offset, into, first);
    } catch (thrown) {
      error = thrown;
    }
    return this.readNext(error, child, index, offset, into, first);
  }

  private async readOrNext(
    done: Promise<void>,
    child: Child,
    index: number,
    offset: number,
    into: Uint8Array,
    first: BlockError | null,
  ): Promise<void> {
    let error: unknown;
    try {
      await done;
      return;
    } catch (rejected) {
      error = rejected;
    }
    await this.readNext(error, child, index, offset, into, first);
  }

  private readNext(
    thrown: unknown,
    child: Child,
    index: number,
    offset: number,
    into: Uint8Array,
    first: BlockError | null,
  ): Done {
    const error = toBlockError(thrown);
    this.reports.bad('read', child, offset, into.length, error);
    return this.readFrom(index + 1, offset, into, first ?? error);
  }

  private async joinedStatus(offset: number, length: number): Promise<Extent[]> {
    let joined: Extent[] | null = null;
    for (const child of this.children) {
      const extents = await child.node.blockStatus(offset, length);
      joined = joined === null ? extents : joinStatus(joined, extents);
    }
    return joined ?? [];
  }
}

/** What the children answered when only one of them takes time. */
function resultsOf(children: readonly Child[], waitingAt: number, waiting: Promise<void>): Done[] {
  const results = new Array<Done>(children.length).fill(undefined);
  results[waitingAt] = waiting;
  return results;
}

function isNotSupported(error: unknown): boolean {
  return error instanceof BlockError && error.code === 'not-supported';
}
