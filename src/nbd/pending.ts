/**
 * One request of a client from its issue to its end: what was asked, and what of the reply has come.
 *
 * Objects are used again (`in-flight.ts` keeps them), so nothing may hold one after its promise was settled. The buffer
 * of a read is filled as the reply arrives and the payload of a write may still be on its way out: both are the
 * caller's, borrowed until the promise settles.
 */
import type { BlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import * as nbd from './constants.ts';

const nothing = new Uint8Array(0);

/** Pieces of a read reply that came out of order and do not touch: a server that needs more is refused. */
export const replyPiecesMax = 8192;

export class PendingRequest {
  /** `NBD_CMD_*` */
  command = 0;
  /** `NBD_CMD_FLAG_*` */
  flags = 0;
  offset = 0;
  length = 0;
  /** what a write sends, what a read fills */
  buffer: Uint8Array = nothing;
  /** its place in the table of requests in flight, and in the dense list there */
  slot = -1;
  active = -1;

  /** the payload is on its way out from the caller's buffer */
  sending = false;
  /** the whole reply has come */
  replied = false;
  /** the first error of the reply, as it stands on the wire; 0: none */
  errno = 0;
  errorMessage = '';
  /** block status of `base:allocation`, and for how many contexts a chunk has come */
  extents: Extent[] = [];
  extentsLength = 0;
  contextIds: number[] = [];

  resolve: (extents: Extent[] | undefined) => void = () => undefined;
  reject: (error: BlockError) => void = () => undefined;

  /** bytes of a read that have come, and where: `[from, to)` pairs in order once they came out of order */
  #coveredBytes = 0;
  #pieces: number[] | null = null;

  begin(command: number, flags: number, offset: number, length: number, buffer: Uint8Array): void {
    this.command = command;
    this.flags = flags;
    this.offset = offset;
    this.length = length;
    this.buffer = buffer;
    this.sending = false;
    this.replied = false;
    this.errno = 0;
    this.errorMessage = '';
    this.extentsLength = 0;
    if (this.extents.length > 0) this.extents = [];
    if (this.contextIds.length > 0) this.contextIds = [];
    this.#coveredBytes = 0;
    this.#pieces = null;
  }

  /** Lets go of what belongs to others. */
  forget(): void {
    this.buffer = nothing;
    this.slot = -1;
    this.active = -1;
  }

  /** It changes what its range holds. */
  get modifies(): boolean {
    return (
      this.command === nbd.NBD_CMD_WRITE ||
      this.command === nbd.NBD_CMD_WRITE_ZEROES ||
      this.command === nbd.NBD_CMD_TRIM
    );
  }

  overlaps(other: PendingRequest): boolean {
    return this.offset < other.offset + other.length && other.offset < this.offset + this.length;
  }

  /** All of a read has come. */
  get covered(): boolean {
    return this.#coveredBytes === this.length;
  }

  get coveredBytes(): number {
    return this.#coveredBytes;
  }

  /**
   * Notes that `[from, from + count)` of the buffer comes now. False: a part of it came before, or there are too many
   * pieces.
   */
  cover(from: number, count: number): boolean {
    // Nearly always the pieces come in order: then the count is all there is to know.
    if (this.#pieces === null && from === this.#coveredBytes) {
      this.#coveredBytes += count;
      return true;
    }
    this.#pieces ??= this.#coveredBytes > 0 ? [0, this.#coveredBytes] : [];
    if (!insertPiece(this.#pieces, from, from + count)) return false;
    this.#coveredBytes += count;
    return true;
  }
}

/**
 * Adds `[from, to)` to a sorted list of disjoint pieces, joining neighbours. False: it overlaps, or the list is full.
 */
function insertPiece(pieces: number[], from: number, to: number): boolean {
  let low = 0;
  let high = pieces.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((pieces[2 * middle + 1] ?? 0) <= from) low = middle + 1;
    else high = middle;
  }
  // Piece `low` is the first that ends beyond `from`.
  const next = pieces[2 * low];
  if (next !== undefined && next < to) return false;
  const joinsPrevious = low > 0 && pieces[2 * low - 1] === from;
  const joinsNext = next === to;
  if (joinsPrevious && joinsNext) pieces.splice(2 * low - 1, 2);
  else if (joinsPrevious) pieces[2 * low - 1] = to;
  else if (joinsNext) pieces[2 * low] = from;
  else {
    if (pieces.length >= 2 * replyPiecesMax) return false;
    pieces.splice(2 * low, 0, from, to);
  }
  return true;
}
