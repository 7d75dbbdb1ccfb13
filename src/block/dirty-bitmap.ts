/**
 * Which bytes of a disk are dirty, kept in granules: marking rounds outward, clearing rounds inward, so that a byte
 * that was marked stays so until a clear has covered its whole granule.
 */
import { Bitmap } from '../util/bitmap.ts';
import { isRange } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';

/** Limits of a granule, bytes; a power of two (QEMU's are the same). */
export const granularityMin = 512;
export const granularityMax = 2 ** 31;

/** A run of dirty bytes. */
export interface DirtyRange {
  readonly offset: number;
  readonly length: number;
}

export class DirtyBitmap {
  /** bytes of the disk */
  readonly length: number;
  /** bytes a bit stands for */
  readonly granularity: number;
  private readonly bitmap: Bitmap;

  constructor(length: number, granularity: number) {
    const isPower = Number.isSafeInteger(granularity) && Number.isInteger(Math.log2(granularity));
    if (!isPower || granularity < granularityMin || granularity > granularityMax) {
      throw new BlockError(
        'invalid-option',
        `granularity must be a power of two from ${granularityMin} to ${granularityMax}, not ${granularity}`,
      );
    }
    this.length = length;
    this.granularity = granularity;
    this.bitmap = new Bitmap(Math.ceil(length / granularity));
  }

  /** Marks every granule that the range touches. */
  mark(offset: number, length: number): void {
    this.check(offset, length);
    if (length === 0) return;
    const first = this.granuleOf(offset);
    this.bitmap.set(first, this.granuleOf(offset + length - 1) - first + 1);
  }

  markAll(): void {
    this.bitmap.set(0, this.bitmap.bits);
  }

  /** Clears the granules that lie wholly in the range (the last one of the disk may be short). */
  clear(offset: number, length: number): void {
    this.check(offset, length);
    const first = Math.ceil(offset / this.granularity);
    const end = offset + length === this.length ? this.bitmap.bits : this.granuleOf(offset + length);
    if (end > first) this.bitmap.clear(first, end - first);
  }

  clearAll(): void {
    this.bitmap.clearAll();
  }

  /** True if any byte of the range is dirty. */
  any(offset: number, length: number): boolean {
    this.check(offset, length);
    if (length === 0) return false;
    const first = this.granuleOf(offset);
    return this.bitmap.any(first, this.granuleOf(offset + length - 1) - first + 1);
  }

  /** Marks what is marked in `other`, which has the same length and granularity. */
  or(other: DirtyBitmap): void {
    if (other.granularity !== this.granularity) {
      throw new RangeError(`granularities ${this.granularity} and ${other.granularity}`);
    }
    this.bitmap.or(other.bitmap);
  }

  /** The first run of dirty bytes at or after `from` and before `end`, clipped to both; null: there is none. */
  next(from: number, end = this.length): DirtyRange | null {
    if (from >= end) return null;
    const bitsEnd = Math.ceil(Math.min(end, this.length) / this.granularity);
    const first = this.bitmap.nextSet(this.granuleOf(from), bitsEnd);
    if (first < 0) return null;
    const clear = this.bitmap.nextClear(first, bitsEnd);
    const offset = Math.max(from, first * this.granularity);
    const rangeEnd = Math.min(end, this.length, (clear < 0 ? bitsEnd : clear) * this.granularity);
    return { offset, length: rangeEnd - offset };
  }

  /** All runs in order; made as it is walked, so marks behind the walk are not seen. */
  *ranges(): Generator<DirtyRange> {
    for (let range = this.next(0); range !== null; range = this.next(range.offset + range.length)) yield range;
  }

  get empty(): boolean {
    return this.bitmap.count === 0;
  }

  /** how many granules are dirty */
  get count(): number {
    return this.bitmap.count;
  }

  /** how many bytes are dirty */
  get bytes(): number {
    const bits = this.bitmap.bits;
    const whole = this.bitmap.count * this.granularity;
    return bits > 0 && this.bitmap.get(bits - 1) ? whole - (bits * this.granularity - this.length) : whole;
  }

  private granuleOf(offset: number): number {
    return Math.floor(offset / this.granularity);
  }

  private check(offset: number, length: number): void {
    if (!isRange(offset, length, this.length)) {
      throw new RangeError(`bytes ${offset}+${length} of a bitmap over ${this.length}`);
    }
  }
}
