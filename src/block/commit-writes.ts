/**
 * The writes that go on while a chain is committed into its base (record-log.md 10): they reach the top, and where the
 * base is up to date already, the base as well.
 *
 *     dirty: not copied yet      write -> top                 a copy takes the range, reads the top, writes the base
 *     clean: base equals top     write -> top, then -> base
 *
 * Invariants: where nothing is dirty and no copy is under way the base holds what the top reads; the dirty part only
 * shrinks, so a commit ends under any load. Overlapping writes and copies wait for each other. A base that fails ends
 * the commit, not the write: the top has it. A top that fails leaves the base as the top is.
 */
import { BlockError, toBlockError } from '../util/errors.ts';
import { attempt, type Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';
import type { CopyTarget, CopyTicket } from './copy-target.ts';
import { DirtyBitmap, type DirtyRange } from './dirty-bitmap.ts';
import { type BlockNode, type WriteFlags, writeFlags } from './node.ts';

/** bytes of a failed write that are read again in one go */
const rereadBytesMax = 2 ** 20;

/** The filter `commit-top`: what it is given decides over its writes; null: they go to its child alone. */
export interface CommitTap {
  follow(commit: CommitWrites | null): void;
}

export class CommitWrites implements CopyTarget {
  readonly dirty: DirtyBitmap;
  private readonly lock = new RangeLock();
  private readonly base: () => BlockNode;
  /** a request that a copy may have waited for has ended, or the base failed */
  private readonly changed: () => void;
  private takenBytes = 0;
  private baseFailure: BlockError | null = null;

  constructor(length: number, granularity: number, base: () => BlockNode, changed: () => void) {
    this.dirty = new DirtyBitmap(length, granularity);
    this.base = base;
    this.changed = changed;
  }

  /** What the base failed with; the commit is lost then. */
  get failure(): BlockError | null {
    return this.baseFailure;
  }

  /** Every write is in the base, and no copy is left to be made. */
  get inStep(): boolean {
    return this.dirty.empty && this.lock.idle && this.baseFailure === null;
  }

  // ------------------------------------------------------------ users

  read(top: BlockNode, offset: number, into: Uint8Array): Done {
    if (this.lock.idle) return top.read(offset, into);
    return this.told(this.lock.run(offset, into.length, true, () => top.read(offset, into)));
  }

  /** @param from null: zeroes */
  write(top: BlockNode, offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done {
    const done = this.lock.run(offset, length, false, () => {
      const failed = (error: unknown): Promise<void> => this.followFailed(top, offset, length, error);
      let above: Done;
      try {
        above = put(top, offset, length, from, flags);
      } catch (error) {
        return failed(error);
      }
      return above === undefined
        ? this.follow(offset, length, from)
        : above.then(() => this.follow(offset, length, from), failed);
    });
    return this.told(done);
  }

  /** A copy may wait for the end of a request, also of one that came before its range was found to be dirty. */
  private told(done: Done): Done {
    return done?.finally(() => {
      if (!this.dirty.empty) this.changed();
    });
  }

  /** The clean parts of a write go to the base too. Its failure is no failure of the write. */
  private follow(offset: number, length: number, from: Uint8Array | null): Done {
    let waiting: Promise<void>[] | null = null;
    for (let at = offset; at < offset + length && this.baseFailure === null; ) {
      const dirty = this.dirty.next(at, offset + length);
      const end = dirty?.offset ?? offset + length;
      const bytes = from === null ? null : from.subarray(at - offset, end - offset);
      const start = at;
      const done = end > at ? attempt(() => put(this.base(), start, end - start, bytes, writeFlags.none)) : undefined;
      if (done !== undefined) {
        waiting ??= [];
        waiting.push(done.catch((error: unknown) => this.fail(error)));
      }
      at = dirty === null ? end : dirty.offset + dirty.length;
    }
    return waiting === null ? undefined : Promise.all(waiting).then(() => undefined);
  }

  /** The top may hold a part of the write: the base gets what the top has now. The failure is the write's. */
  private async followFailed(top: BlockNode, offset: number, length: number, error: unknown): Promise<never> {
    const bytes = new Uint8Array(Math.min(length, rereadBytesMax));
    try {
      for (let at = 0; at < length; at += bytes.length) {
        const part = bytes.subarray(0, Math.min(bytes.length, length - at));
        await top.read(offset + at, part);
        await this.follow(offset + at, part.length, part);
      }
    } catch (unreadable) {
      this.fail(unreadable);
    }
    throw error;
  }

  /** The base is not what was written to it, or may not be. */
  fail(error: unknown): void {
    this.baseFailure ??= toBlockError(error);
    this.changed();
  }

  settle(): Done {
    return this.lock.idle ? undefined : this.lock.settled();
  }

  // ------------------------------------------------------------ the copy

  get granularity(): number {
    return this.dirty.granularity;
  }

  get remainingBytes(): number {
    return this.dirty.bytes - this.takenBytes;
  }

  /** Skips what is being read, written or copied: `changed` tells when that has ended. */
  next(from: number, lengthMax: number): DirtyRange | null {
    const { dirty, lock, granularity } = this;
    for (let at = from; ; ) {
      const range = dirty.next(at);
      if (range === null) return null;
      let length = Math.min(range.length, lengthMax);
      while (lock.conflicts(range.offset, length)) {
        if (length <= granularity) break;
        length = Math.max(granularity, Math.floor(length / 2 / granularity) * granularity);
      }
      if (!lock.conflicts(range.offset, length)) return { offset: range.offset, length };
      at = range.offset + length;
    }
  }

  take(range: DirtyRange): CopyTicket {
    const hold = this.lock.acquire(range.offset, range.length);
    if (hold instanceof Promise) throw new BlockError('wrong-state', 'a copy took a range that is in use');
    let { length } = range;
    this.takenBytes += range.length;
    const giveBack = (): void => {
      this.takenBytes -= range.length;
      hold.release();
    };
    const send = async (bytes: Uint8Array | null): Promise<void> => {
      try {
        await put(this.base(), range.offset, length, bytes, writeFlags.none);
        this.dirty.clear(range.offset, length);
      } finally {
        giveBack();
      }
    };
    return {
      trim: (shorter: number): void => {
        length = shorter;
      },
      send,
      // The base may hold anything there.
      skipZeroes: () => send(null),
      giveBack,
    };
  }

  flush(): Done {
    return this.base().flush();
  }
}

function put(node: BlockNode, offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done {
  return from === null ? node.writeZeroes(offset, length, flags) : node.write(offset, from, flags);
}
