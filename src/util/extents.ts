/**
 * An extent is a run of bytes with one status. Lists of extents are in order, without gaps, neighbours differ.
 */

/** What a block node says of a run of bytes; the words are those of NBD's `base:allocation` and QEMU's block status. */
export interface Extent {
  /** bytes, above 0 */
  length: number;
  /** reads as zeroes for certain */
  zero: boolean;
  /** this node or one of its data children has it (false: a hole, or it comes from the backing) */
  allocated: boolean;
}

/** Appends to a list and joins with its last extent where both say the same. */
export function addExtent(list: Extent[], length: number, zero: boolean, allocated: boolean): void {
  if (length <= 0) return;
  const last = list.at(-1);
  if (last !== undefined && last.zero === zero && last.allocated === allocated) last.length += length;
  else list.push({ length, zero, allocated });
}

/** Cuts a list to its first `length` bytes (a new list; the old one is left as it is). */
export function clipExtents(list: readonly Extent[], length: number): Extent[] {
  const clipped: Extent[] = [];
  let left = length;
  for (const extent of list) {
    if (left <= 0) break;
    addExtent(clipped, Math.min(left, extent.length), extent.zero, extent.allocated);
    left -= extent.length;
  }
  return clipped;
}
