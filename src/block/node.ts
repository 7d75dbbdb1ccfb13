/**
 * The contract of a block node (design: "The block node contract"), in bytes, with 64-bit offsets as safe integers.
 *
 * - Answered at once when it can be (`undefined`), a promise when it must be. A throw is a completion with an error.
 * - Reads fill the caller's buffer; writes borrow theirs until done. A node that answers a write before its child is
 *   done owns the bytes (it has copied them).
 * - Overlapping requests take effect in the order issued; others in any order.
 * - A caller checks ranges and read-only before it calls (exports and jobs do); a node may take them as valid.
 * - Errors are `BlockError`s; nothing else crosses.
 */
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

/** Flags of a write, or-ed. The names are NBD's (doc/proto.md, "Command flags"). */
export const writeFlags = {
  none: 0,
  /** durable before it is done: as the write plus a flush of that range */
  fua: 1,
  /** write-zeroes: the range stays allocated, no hole */
  noHole: 2,
  /** write-zeroes: only if quicker than writing; else `not-supported` */
  fastZero: 4,
} as const;

/** An or of `writeFlags`. */
export type WriteFlags = number;

export interface BlockNode {
  /** Bytes. May be asked at any time, costs nothing. */
  readonly length: number;
  read(offset: number, into: Uint8Array): Done;
  write(offset: number, from: Uint8Array, flags: WriteFlags): Done;
  /** Makes the range read as zeroes; a hole unless `noHole` says otherwise. */
  writeZeroes(offset: number, length: number, flags: WriteFlags): Done;
  /** A hint: the content is not needed any more. What the range reads afterwards is the node's choice. */
  discard(offset: number, length: number): Done;
  /**
   * Done only when every write that was completed before this call is durable. A failed one sticks
   * (`docs/failures.md`).
   */
  flush(): Done;
  /**
   * The status of `[offset, offset + length)`: extents from `offset` on, at least one; it may stop early (ask again),
   * it never goes beyond the range.
   */
  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]>;
  /** Drops all content of its own, so that the backing shows through, where the format can. */
  makeEmpty?(): Done;
  /** Changes the length, where the driver can; the caller holds the permission `resize`. */
  resize?(length: number): Promise<void>;
}
