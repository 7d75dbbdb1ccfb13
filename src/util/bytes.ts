/**
 * Big-endian integers over a DataView, u64 as safe integers (no bigint on a data path).
 * A u64 beyond 2^53-1 cannot be a length or an offset of ours: reading one gives a number that is not a safe integer,
 * and the caller's range check (`isRange`) refuses it.
 */

const high = 0x1_0000_0000;

/**
 * Reads an unsigned 64-bit big-endian integer at `at`; exact up to 2^53-1, larger ones are inexact but still larger.
 */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at) * high + view.getUint32(at + 4);
}

/** Writes `value` (a safe integer, not negative) as unsigned 64-bit big-endian at `at`. */
export function putU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / high));
  view.setUint32(at + 4, value >>> 0);
}

/** True if `[offset, offset + length)` are safe integers and lie inside `[0, size)`. */
export function isRange(offset: number, length: number, size: number): boolean {
  return (
    Number.isSafeInteger(offset) &&
    offset >= 0 &&
    Number.isSafeInteger(length) &&
    length >= 0 &&
    offset <= size - length
  );
}

/** A DataView over the same memory as `bytes`. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** True if every byte is zero (also of none): the first one is, and each equals the one before it. */
export function isZero(bytes: Uint8Array): boolean {
  if (bytes.length === 0) return true;
  return bytes[0] === 0 && Buffer.compare(bytes.subarray(0, -1), bytes.subarray(1)) === 0;
}
