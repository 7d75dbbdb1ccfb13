/**
 * What the other side may not have, block by block (pair.md 4).
 *
 *     missing    S does not have it: it must be copied
 *     written    sent since the last proof began; nothing is known of its durability
 *     proving    sent before the flush that is under way now
 *     mayDiffer  = missing + written + proving: all that S has not proven durable
 *
 * A proof moves `written` to `proving` when it begins. Its success empties `proving`; its failure gives it back to
 * `written`. Invariant: a block is in mayDiffer from the moment a write to it is accepted until a flush that went out
 * after the reply to that write has succeeded.
 */
import { DirtyBitmap, type DirtyRange } from '../block/dirty-bitmap.ts';
import type { ReplicationBitmap } from '../block/link-group.ts';

/** Most ranges that a bitmap is told in; beyond it neighbours are joined. */
export const bitmapRangesMax = 65_536;

/** A run of blocks of which S has all, or nothing. */
export interface MarkRun {
  readonly missing: boolean;
  /** bytes from the start of the disk */
  readonly end: number;
}

export class ReplicationMarks {
  /** bytes */
  readonly length: number;
  /** bytes a bit */
  readonly granularity: number;
  private readonly missing: DirtyBitmap;
  private written: DirtyBitmap;
  private proving: DirtyBitmap;
  /** sent at any time since the filter was opened: the other side may not be zero there any more */
  private readonly sent: DirtyBitmap;
  /** missing because the local disk failed a write that S was given (pair.md 8) */
  private readonly diverged: DirtyBitmap;

  constructor(length: number, granularity: number) {
    this.length = length;
    this.granularity = granularity;
    this.missing = new DirtyBitmap(length, granularity);
    this.written = new DirtyBitmap(length, granularity);
    this.proving = new DirtyBitmap(length, granularity);
    this.sent = new DirtyBitmap(length, granularity);
    this.diverged = new DirtyBitmap(length, granularity);
  }

  // ------------------------------------------------------------ writes

  /** A write is sent to S. */
  markWritten(offset: number, length: number): void {
    this.written.mark(offset, length);
    this.sent.mark(offset, length);
  }

  /** S does not have a write: it was not sent, or its fate is not known. */
  markMissing(offset: number, length: number): void {
    this.missing.mark(offset, length);
  }

  markAllMissing(): void {
    this.missing.markAll();
  }

  /** The local disk failed what S was given. @returns whether that was not known of all of the range */
  markDiverged(offset: number, length: number): boolean {
    const known = this.missing.bytes + this.diverged.bytes;
    this.missing.mark(offset, length);
    this.diverged.mark(offset, length);
    return this.missing.bytes + this.diverged.bytes > known;
  }

  /** S is another instance, or may have dropped what it had not made durable. */
  markUnprovenMissing(): void {
    this.missing.or(this.written);
    this.missing.or(this.proving);
  }

  /** A copy of whole blocks is sent to S: from now on it is like any write. */
  markCopied(offset: number, length: number): void {
    this.markPresent(offset, length);
    this.markWritten(offset, length);
  }

  /** Whole blocks that S is known to have, durably. */
  markPresent(offset: number, length: number): void {
    this.missing.clear(offset, length);
    this.diverged.clear(offset, length);
  }

  /** The caller has proof that S equals. */
  clearAll(): void {
    for (const bitmap of [this.missing, this.written, this.proving, this.diverged]) bitmap.clearAll();
  }

  // ------------------------------------------------------------ proofs

  /** Only one proof at a time. */
  beginProof(): void {
    const old = this.written;
    this.written = this.proving;
    this.proving = old;
  }

  endProof(proven: boolean): void {
    if (!proven) this.written.or(this.proving);
    this.proving.clearAll();
  }

  // ------------------------------------------------------------ questions

  get missingBytes(): number {
    return this.missing.bytes;
  }

  get noneMissing(): boolean {
    return this.missing.empty;
  }

  anyMissing(offset: number, length: number): boolean {
    return !this.missing.empty && this.missing.any(offset, length);
  }

  /** Anything of the range was sent since the filter was opened. */
  wasSent(offset: number, length: number): boolean {
    return this.sent.any(offset, length);
  }

  /** The run of blocks at `offset` that are all missing or all there, clipped to `end`. */
  run(offset: number, end: number): MarkRun {
    const next = this.missing.next(offset, end);
    if (next === null) return { missing: false, end };
    return next.offset > offset ? { missing: false, end: next.offset } : { missing: true, end: offset + next.length };
  }

  nextMissing(from: number, end?: number): DirtyRange | null {
    return this.missing.next(from, end);
  }

  divergedRanges(): [number, number][] {
    return toRanges(this.diverged);
  }

  mayDiffer(offset: number, length: number): boolean {
    return this.missing.any(offset, length) || this.written.any(offset, length) || this.proving.any(offset, length);
  }

  /** Costs what is marked, not the size of the disk: status commands ask it often. */
  get mayDifferBytes(): number {
    const { missing, written, proving } = this;
    return missing.bytes + bytesBeyond(written, [missing]) + bytesBeyond(proving, [missing, written]);
  }

  /** @param waiting ranges of users' writes that wait for the next mode: the local disk has them, S does not */
  bitmap(waiting: Iterable<DirtyRange>): ReplicationBitmap {
    const union = this.union();
    for (const { offset, length } of waiting) union.mark(offset, length);
    return { mayDiffer: toRanges(union), missingBytes: this.missing.bytes, mayDifferBytes: union.bytes };
  }

  private union(): DirtyBitmap {
    const union = new DirtyBitmap(this.length, this.granularity);
    for (const bitmap of [this.missing, this.written, this.proving]) union.or(bitmap);
    return union;
  }
}

/** The bytes that are marked in `bitmap` and in none of the others. */
function bytesBeyond(bitmap: DirtyBitmap, others: readonly DirtyBitmap[]): number {
  let bytes = 0;
  for (const { offset, length } of bitmap.ranges()) {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      let coveredTo = at;
      let freeTo = end;
      for (const other of others) {
        const range = other.next(at, end);
        if (range === null) continue;
        if (range.offset === at) coveredTo = Math.max(coveredTo, at + range.length);
        else freeTo = Math.min(freeTo, range.offset);
      }
      if (coveredTo === at) bytes += freeTo - at;
      at = coveredTo > at ? coveredTo : freeTo;
    }
  }
  return bytes;
}

/** At most `bitmapRangesMax` ranges: too many are joined over ever wider gaps, which only adds to them. */
function toRanges(bitmap: DirtyBitmap): [number, number][] {
  for (let gapMax = 0; ; gapMax = gapMax === 0 ? bitmap.granularity : gapMax * 2) {
    const ranges: [number, number][] = [];
    let last: [number, number] | undefined;
    for (const { offset, length } of bitmap.ranges()) {
      if (last !== undefined && offset - (last[0] + last[1]) <= gapMax) last[1] = offset + length - last[0];
      else {
        if (ranges.length === bitmapRangesMax) break;
        last = [offset, length];
        ranges.push(last);
      }
    }
    const told = last === undefined ? 0 : last[0] + last[1];
    if (bitmap.next(told) === null) return ranges;
  }
}
