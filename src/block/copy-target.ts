/**
 * What a copy loop works on: which ranges are still to be copied, and where they go. A mirror's dirty bitmap with its
 * target is one, the missing blocks of a replication filter with the other side are another.
 */
import type { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { DirtyRange } from './dirty-bitmap.ts';

export interface CopyTarget {
  /** bytes; a copy takes whole granules (the last one of the disk may be short) */
  readonly granularity: number;
  /** bytes that no copy has taken yet */
  readonly remainingBytes: number;
  /** The first range at or after `from` that no copy has taken, at most `lengthMax` bytes of it; null: none. */
  next(from: number, lengthMax: number): DirtyRange | null;
  /**
   * Takes a range: from now until it is sent or given back, writes to it either wait or make it one to be copied again.
   * The source is read after this call.
   */
  take(range: DirtyRange): CopyTicket;
  /** The copy was cancelled: tickets that were sent need not be waited for, they may reject now. */
  cancel?(reason: BlockError): void;
  flush(): Done;
}

/** A taken range. `send`, `skipZeroes` or `giveBack` is called once, last. */
export interface CopyTicket {
  /** Gives back what is beyond `length`, a multiple of the granularity. */
  trim(length: number): void;
  /**
   * The target gets the bytes (null: zeroes), borrowed until done. A failure makes the range one to be copied again;
   * the bytes may still be read after it, so their memory is not used again then.
   */
  send(bytes: Uint8Array | null): Done;
  /**
   * The range is zeroes, and the target was zero before all: nothing is sent, unless something was sent there since.
   * Then it is sent as zeroes.
   */
  skipZeroes(): Done;
  /** It could not be read: it stays one to be copied. */
  giveBack(): void;
}

/** A node that tells of every write before it passes it on: the filter `mirror-top`. */
export interface WriteTap {
  /** Null: nobody listens any more. */
  tapWrites(listener: ((offset: number, length: number) => void) | null): void;
}

/** A range that a copy has taken; `trim` shortens it. */
export interface TakenRange {
  readonly offset: number;
  length: number;
}

/** The ranges that copies have taken: few, so a list will do. */
export class TakenRanges {
  private readonly taken = new Set<TakenRange>();

  get empty(): boolean {
    return this.taken.size === 0;
  }

  get bytes(): number {
    let bytes = 0;
    for (const { length } of this.taken) bytes += length;
    return bytes;
  }

  add(range: DirtyRange): TakenRange {
    const taken = { offset: range.offset, length: range.length };
    this.taken.add(taken);
    return taken;
  }

  /** False: it was not there any more. */
  delete(range: TakenRange): boolean {
    return this.taken.delete(range);
  }

  clear(): void {
    this.taken.clear();
  }

  overlaps(offset: number, length: number): boolean {
    for (const range of this.taken) {
      if (range.offset < offset + length && offset < range.offset + range.length) return true;
    }
    return false;
  }

  /** The first range at or after `from` among `nextOf`'s of which nothing is taken; null: none. */
  nextFree(from: number, nextOf: (from: number) => DirtyRange | null): DirtyRange | null {
    for (let at = from; ; ) {
      const range = nextOf(at);
      if (range === null) return null;
      const end = range.offset + range.length;
      const start = this.skip(range.offset);
      if (start < end) return { offset: start, length: this.clip(start, end) - start };
      at = start;
    }
  }

  /** The first byte at or after `offset` that is not taken. */
  private skip(offset: number): number {
    let at = offset;
    for (let moved = true; moved; ) {
      moved = false;
      for (const range of this.taken) {
        if (range.offset <= at && at < range.offset + range.length) {
          at = range.offset + range.length;
          moved = true;
        }
      }
    }
    return at;
  }

  private clip(from: number, end: number): number {
    let clipped = end;
    for (const { offset } of this.taken) if (from < offset && offset < clipped) clipped = offset;
    return clipped;
  }
}
