/**
 * The operations of an overlay on a record log (`shadow.ts`): index, reading, writing, emptying.
 */
import { type Child, type PermissionMask, permissionBits } from '../block/child.ts';
import type { DriverNode } from '../block/driver.ts';
import type { Epochal } from '../block/epochal.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { recordHeaderBytes, recordKinds, recordPayloadBytesMax } from '../block/record-format.ts';
import type { Stretch } from '../block/record-lives.ts';
import type { RecordLog } from '../block/record-log.ts';
import type { HostClock } from '../host/host.ts';
import { BlockIndex } from '../util/block-index.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import { after, attempt, type Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';
import { Compaction } from './shadow-compaction.ts';

/** Of a run that reads as zeroes. In the index such a block has the position of its record, negative. */
const zeroPosition = 0;
const nothing = new Uint8Array(0);
/** blocks that are looked up for one answer of block status */
const statusBlocksMax = 2 ** 18;
/** bytes that are zeroed before others have their turn: each block takes an entry of the index */
const zeroesAtOnceBytes = 256 * 1024 * 1024;
/** bytes that a compaction moves together */
const moveBytesMax = 256 * 1024;
/** lives of the log (openings, in effect) behind which it is compacted */
const livesTolerated = 16;

export interface ShadowParts {
  readonly log: RecordLog;
  readonly index: BlockIndex;
  readonly epoch: number;
  readonly backing: Child | null;
  readonly length: number;
  readonly granularity: number;
  /** bytes of old records from which on their space is used anew */
  readonly reuseBytes: number;
  readonly belongsToGroup: boolean;
  readonly clock: HostClock;
}

export class Shadow implements DriverNode, Epochal {
  readonly length: number;
  /** its epoch is the group's: made durable by the group's owner */
  readonly belongsToGroup: boolean;
  epoch: number;
  private readonly granularity: number;
  private readonly reuseBytes: number;
  private readonly backing: Child | null;
  private readonly clock: HostClock;
  private readonly log: RecordLog;
  private readonly lock = new RangeLock();
  private index: BlockIndex;
  private compaction: Compaction | null = null;

  constructor(parts: ShadowParts) {
    this.granularity = parts.granularity;
    this.reuseBytes = parts.reuseBytes;
    this.belongsToGroup = parts.belongsToGroup;
    this.clock = parts.clock;
    this.log = parts.log;
    this.index = parts.index;
    this.epoch = parts.epoch;
    this.backing = parts.backing;
    this.length = parts.length;
  }

  // ---------------------------------------------------------------- reading

  read(offset: number, into: Uint8Array): Done {
    if (!this.lock.idle && this.lock.conflicts(offset, into.length, true)) {
      return this.lock.run(offset, into.length, true, () => this.readNow(offset, into));
    }
    return this.readNow(offset, into);
  }

  /** Reads run by run: blocks that stand behind each other in the log, or in the backing, are one call. */
  private readNow(offset: number, into: Uint8Array): Done {
    if (this.log.lost !== null) throw this.log.lostError();
    let waiting: Promise<void>[] | null = null;
    for (let at = 0; at < into.length; ) {
      const { length, position } = this.runAt(offset + at, into.length - at);
      const done = this.readRun(offset + at, position, into, at, length, waiting !== null);
      if (done !== undefined) {
        waiting ??= [];
        waiting.push(done);
      }
      at += length;
    }
    return waiting === null ? undefined : settleAll(waiting);
  }

  /** A throw while other runs are under way is kept for when they have ended: they still fill the buffer. */
  private readRun(
    offset: number,
    position: number | undefined,
    into: Uint8Array,
    at: number,
    length: number,
    others: boolean,
  ): Done {
    const part = length === into.length ? into : into.subarray(at, at + length);
    if (position === zeroPosition) {
      part.fill(0);
      return undefined;
    }
    if (others) return attempt(() => this.readPart(offset, position, part));
    return this.readPart(offset, position, part);
  }

  private readPart(offset: number, position: number | undefined, part: Uint8Array): Done {
    if (position !== undefined) return this.log.read(position, part);
    if (this.backing !== null) return readBacking(this.backing, offset, part);
    part.fill(0);
    return undefined;
  }

  private readonly run = { length: 0, position: 0 as number | undefined };

  /**
   * The run that begins at `offset`: how long (at most `max`), and where its bytes stand; undefined: in the backing.
   * One object, used again.
   */
  private runAt(offset: number, max: number): { readonly length: number; readonly position: number | undefined } {
    const { granularity, index, run } = this;
    const start = Math.floor(offset / granularity);
    const end = Math.ceil((offset + max) / granularity);
    const first = index.get(start);
    let block = start + 1;
    if (first === undefined) {
      for (block = index.passFree(block, end); block < end && !index.has(block); )
        block = index.passFree(block + 1, end);
    } else if (first < 0) {
      while (block < end && (index.get(block) ?? 0) < 0) block += 1;
    } else {
      while (block < end && index.get(block) === first + (block - start) * granularity) block += 1;
    }
    run.length = Math.min(block * granularity - offset, max);
    run.position = first === undefined ? undefined : first < 0 ? zeroPosition : first + offset - start * granularity;
    return run;
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    if (this.log.lost !== null) throw this.log.lostError();
    const most = this.index.size === 0 ? length : Math.min(length, statusBlocksMax * this.granularity);
    const { position, length: runLength } = this.runAt(offset, most);
    const extents: Extent[] = [];
    if (position !== undefined) {
      addExtent(extents, runLength, position === zeroPosition, true);
      return extents;
    }
    const below = this.backing?.node;
    if (below === undefined || offset >= below.length) {
      addExtent(extents, runLength, true, false);
      return extents;
    }
    const inside = Math.min(runLength, below.length - offset);
    const asOurs = (theirs: Extent[]): Extent[] => {
      // It comes from the backing: this node does not have it.
      for (const extent of theirs) addExtent(extents, extent.length, extent.zero, false);
      return extents;
    };
    const theirs = below.blockStatus(offset, inside);
    return theirs instanceof Promise ? theirs.then(asOurs) : asOurs(theirs);
  }

  // ---------------------------------------------------------------- writing

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const done = this.writeInTurn(offset, from);
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.log.sync());
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const done = this.exclusively(offset, length, () =>
      length > zeroesAtOnceBytes ? this.zeroInPieces(offset, length) : this.zeroNow(offset, length),
    );
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.log.sync());
  }

  /** What was given up here stays: an overlay has no way to say "nobody cares". */
  discard(): Done {
    return undefined;
  }

  flush(): Done {
    return this.log.sync();
  }

  private writeInTurn(offset: number, from: Uint8Array): Done {
    const { granularity, lock } = this;
    const { length } = from;
    const isWhole = offset % granularity === 0 && (length % granularity === 0 || offset + length === this.length);
    if (!isWhole || length > recordPayloadBytesMax || (!lock.idle && lock.conflicts(offset, length))) {
      return this.exclusively(offset, length, () => this.writeNow(offset, from));
    }
    // Whole blocks that nobody else is at: nothing is allocated while the file answers at once.
    const done = this.append(recordKinds.data, offset, length, from);
    const held = done === undefined ? undefined : lock.holdUntil(done, offset, length);
    this.reclaim();
    return held;
  }

  /** Issues a change of whole blocks around the range, after overlapping ones. */
  private exclusively(offset: number, length: number, issue: () => Done): Done {
    const { granularity } = this;
    const start = Math.floor(offset / granularity) * granularity;
    const end = Math.ceil((offset + length) / granularity) * granularity;
    const done = this.lock.run(start, end - start, false, issue);
    this.reclaim();
    return done;
  }

  private writeNow(offset: number, from: Uint8Array): Done {
    return this.byBlocks(offset, from.length, (at, length, whole) => {
      const part = from.subarray(at - offset, at - offset + length);
      return whole ? this.append(recordKinds.data, at, length, part) : this.appendPart(at, part);
    });
  }

  private zeroNow(offset: number, length: number): Done {
    return this.byBlocks(offset, length, (at, part, whole) =>
      whole ? this.append(recordKinds.zero, at, part, nothing) : this.appendPart(at, new Uint8Array(part)),
    );
  }

  private async zeroInPieces(offset: number, length: number): Promise<void> {
    const { granularity, clock } = this;
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const until = Math.min(end, Math.floor((at + zeroesAtOnceBytes) / granularity) * granularity);
      await this.zeroNow(at, until - at);
      await new Promise<void>((resolve) => clock.endOfTurn(resolve));
      at = until;
    }
  }

  /** Splits a range into the part of a block at its start, whole blocks, and the part at its end. */
  private byBlocks(offset: number, length: number, issue: (at: number, length: number, whole: boolean) => Done): Done {
    const { granularity } = this;
    const end = offset + length;
    const lastWhole = end === this.length ? end : Math.floor(end / granularity) * granularity;
    const waiting: Promise<void>[] = [];
    for (let at = offset; at < end; ) {
      const blockEnd = Math.min(Math.floor(at / granularity) * granularity + granularity, this.length);
      const isWhole = at % granularity === 0 && end >= blockEnd;
      const until = isWhole ? Math.min(lastWhole, at + recordPayloadBytesMax) : Math.min(end, blockEnd);
      const part = at;
      const done = attempt(() => issue(part, until - part, isWhole));
      if (done !== undefined) waiting.push(done);
      at = until;
    }
    return waiting.length === 0 ? undefined : settleAll(waiting);
  }

  private append(kind: 1 | 2, offset: number, length: number, payload: Uint8Array): Done {
    const { log, index, granularity } = this;
    if (length === 0) return undefined;
    const done = log.append(kind, this.epoch, offset, length, payload);
    const position = kind === recordKinds.zero ? recordHeaderBytes - log.appendedAt : log.appendedAt;
    if (done === undefined) return void enterBlocks(index, granularity, offset, length, position);
    // An emptying meanwhile has put another index in its place: this one may fill up.
    return done.then(() => enterBlocks(index, granularity, offset, length, position));
  }

  /** A part of one block: the rest is what reads there now; the range lock is held. */
  private appendPart(offset: number, from: Uint8Array): Done {
    const { granularity } = this;
    const start = Math.floor(offset / granularity) * granularity;
    const block = new Uint8Array(Math.min(granularity, this.length - start));
    const done = this.readNow(start, block);
    if (done === undefined) return this.appendMerged(start, block, offset, from);
    return done.then(() => this.appendMerged(start, block, offset, from));
  }

  private appendMerged(start: number, block: Uint8Array, offset: number, from: Uint8Array): Done {
    block.set(from, offset - start);
    return this.append(recordKinds.data, start, block.length, block);
  }

  // ---------------------------------------------------------------- space

  /** Begins a compaction where there is need of one, and goes on with it. */
  private reclaim(): void {
    const { log, index, granularity } = this;
    if (this.compaction === null) {
      const { usedBytes } = log;
      const isWorthIt = usedBytes > this.reuseBytes && usedBytes > 2 * index.size * (granularity + recordHeaderBytes);
      if ((!isWorthIt && log.lifeCount <= livesTolerated) || log.failed !== null || log.lost !== null) return;
      this.compaction = new Compaction({
        log,
        index,
        settled: () => this.lock.settled(),
        move: (block, stretch) => this.move(block, stretch),
      });
    }
    this.compaction.step();
    // One that failed stays, so that it is not tried again and again.
    if (this.compaction.isDone) this.compaction = null;
  }

  private async move(block: number, stretch: Stretch): Promise<void> {
    const offset = block * this.granularity;
    const { length } = this.runAt(offset, Math.min(moveBytesMax, this.length - offset));
    await this.lock.run(offset, length, false, () => {
      // The blocks may have been written while this waited for its turn.
      const run = this.runAt(offset, length);
      if (run.position === undefined || !stretch.has(Math.abs(this.index.get(block) ?? 0))) return undefined;
      if (run.position === zeroPosition) return this.append(recordKinds.zero, offset, run.length, nothing);
      const bytes = new Uint8Array(run.length);
      const { epoch } = this;
      return after(this.log.read(run.position, bytes), () =>
        // What was emptied meanwhile must not come back in the new epoch.
        this.epoch === epoch ? this.append(recordKinds.data, offset, bytes.length, bytes) : undefined,
      );
    });
  }

  // ---------------------------------------------------------------- emptying and the rest

  /** Raises the overlay's own epoch. Nothing is under way in this node: its caller has drained it. */
  makeEmpty(): Done {
    if (this.belongsToGroup) {
      throw new BlockError('wrong-state', 'the overlay belongs to a group: it is emptied together with the others');
    }
    const { log } = this;
    const dropsRecords = log.lost !== null || log.usedBytes > this.reuseBytes;
    // No record is of this epoch: it may go on. (The first time shows that the file can be written.)
    if (!dropsRecords && log.changed && log.failed === null && this.index.size === 0) return undefined;
    const user = this.userData(this.epoch + 1);
    return (dropsRecords ? log.dropAll(user) : log.setUser(user)).then(() => this.forget(this.epoch + 1));
  }

  emptyAt(epoch: number): void {
    const { log } = this;
    if (epoch <= this.epoch) throw new BlockError('invalid-request', `epoch ${epoch} is not above ${this.epoch}`);
    if (log.lost !== null) {
      // What is found there after a crash must not be taken for lost again; until that is written, it is.
      log.dropAll(this.userData(epoch)).catch(() => undefined);
    } else if (log.usedBytes > this.reuseBytes) log.drop();
    this.forget(epoch);
  }

  private forget(epoch: number): void {
    this.compaction?.end();
    this.compaction = null;
    this.epoch = epoch;
    this.index = new BlockIndex();
  }

  private userData(epoch: number): { granularity: number; length: number; epoch: number } {
    return { granularity: this.granularity, length: this.length, epoch };
  }

  permissionsChanging(needs: PermissionMask): Done {
    // Whoever may write here may rely on what stands here: a write below that copies nothing is no less lost.
    return (needs & permissionBits.write) === 0 ? undefined : this.log.markUnclean();
  }

  settle(): Done {
    return this.isQuiet ? undefined : this.settleLater();
  }

  private get isQuiet(): boolean {
    return this.lock.idle && (this.compaction === null || this.compaction.running === null);
  }

  private async settleLater(): Promise<void> {
    while (!this.isQuiet) {
      await this.lock.settled();
      await this.compaction?.running;
    }
  }

  async close(): Promise<void> {
    await this.settle();
    await this.log.close(() => this.backing?.node.flush());
  }

  info(): Record<string, unknown> {
    const { log, index } = this;
    return {
      epoch: this.epoch,
      'held-bytes': Math.min(index.size * this.granularity, this.length),
      'log-bytes': log.usedBytes,
      'log-lives': log.lifeCount,
      'index-bytes': index.bytes,
      'checkpoint-lost': log.lost,
      error: log.failed?.message ?? null,
    };
  }
}

/** The record's blocks stand at `position` and behind it; negative: they are zeroes, by the record there. */
export function enterBlocks(
  index: BlockIndex,
  granularity: number,
  offset: number,
  length: number,
  position: number,
): void {
  const first = offset / granularity;
  const count = Math.ceil(length / granularity);
  for (let i = 0; i < count; i++) index.set(first + i, position < 0 ? position : position + i * granularity);
}

/** The backing may be shorter than the overlay: behind its end there are zeroes. */
function readBacking(backing: Child, offset: number, into: Uint8Array): Done {
  const inside = Math.max(0, Math.min(into.length, backing.node.length - offset));
  if (inside === into.length) return backing.node.read(offset, into);
  into.fill(0, inside);
  return inside === 0 ? undefined : backing.node.read(offset, into.subarray(0, inside));
}

/** All of them, then the first error: a request's buffer is in use until its last part has ended. */
async function settleAll(parts: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(parts);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
