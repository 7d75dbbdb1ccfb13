/**
 * The window: the bytes of writes that were answered before the other side had them (pair.md 2).
 *
 *      tail                 head            a ring of `size` bytes; a write is one piece of it, never split
 *        v                    v
 *     ...[ w1 ][ w2 ][ w3 ]..........       pieces are taken at the head
 *        free once w1 is answered           and go at the tail, in the order they were taken
 *
 * Invariant: a piece is not used again before it is given back, so the child may borrow it for as long as it likes.
 */

/** Most writes in one window, those without bytes (zeroes) included. */
export const windowPiecesMax = 16_384;

/** A taken piece of the ring. The object itself is used again after `giveBack`. */
export interface WindowPiece {
  /** A copy of the writer's bytes. */
  bytes: Uint8Array;
}

class Piece implements WindowPiece {
  bytes: Uint8Array = nothing;
  start = 0;
  length = 0;
  free = false;
}

const nothing = new Uint8Array(0);

export class ReplicationWindow {
  /** bytes */
  readonly size: number;
  private memory: Uint8Array | null = null;
  /** a queue in a ring of its own, oldest at `first` */
  private readonly pieces: Piece[] = [];
  private first = 0;
  private count = 0;
  private head = 0;
  private tail = 0;
  /** in the pieces that stand in the queue */
  private usedBytes = 0;

  constructor(size: number) {
    this.size = size;
  }

  get empty(): boolean {
    return this.count === 0;
  }

  /**
   * Copies `from` into the ring: the one copy on the way of a forwarded write, because its writer is answered, and may
   * use its buffer again, before the child is done. Null: no room now.
   */
  take(from: Uint8Array): WindowPiece | null {
    const piece = this.takeRoom(from.length);
    if (piece === null) return null;
    if (from.length === 0) piece.bytes = nothing;
    else {
      // Pages of a fresh allocation cost nothing until they are touched.
      this.memory ??= new Uint8Array(this.size);
      piece.bytes = this.memory.subarray(piece.start, piece.start + from.length);
      piece.bytes.set(from);
    }
    return piece;
  }

  /** For a request without bytes: it takes a place among the pieces only. */
  takeEmpty(): WindowPiece | null {
    return this.take(nothing);
  }

  /** Called once for each piece, in any order. */
  giveBack(piece: WindowPiece): void {
    (piece as Piece).free = true;
    while (this.count > 0 && this.at(0).free) {
      this.usedBytes -= this.at(0).length;
      this.at(0).bytes = nothing;
      this.first = (this.first + 1) % windowPiecesMax;
      this.count -= 1;
      this.tail = this.count === 0 ? 0 : this.at(0).start;
    }
    if (this.count === 0) this.head = 0;
  }

  private takeRoom(length: number): Piece | null {
    if (this.count === windowPiecesMax) return null;
    const start = this.placeOf(length);
    if (start < 0) return null;
    const index = (this.first + this.count) % windowPiecesMax;
    let piece = this.pieces[index];
    if (piece === undefined) {
      piece = new Piece();
      this.pieces[index] = piece;
    }
    piece.start = start;
    piece.length = length;
    piece.free = false;
    this.count += 1;
    this.usedBytes += length;
    this.head = start + length;
    return piece;
  }

  /** Where `length` bytes fit in one run at or after the head; -1: nowhere now. */
  private placeOf(length: number): number {
    if (this.count === 0) return length <= this.size ? 0 : -1;
    // The head has come round and stands behind the tail, or has met it: with bytes in the ring that means it is full.
    const wrapped = this.head < this.tail || (this.head === this.tail && this.usedBytes > 0);
    if (wrapped) return this.tail - this.head >= length ? this.head : -1;
    if (this.size - this.head >= length) return this.head;
    return this.tail >= length ? 0 : -1;
  }

  private at(index: number): Piece {
    const piece = this.pieces[(this.first + index) % windowPiecesMax];
    if (piece === undefined) throw new RangeError(`no piece ${index}`);
    return piece;
  }
}
