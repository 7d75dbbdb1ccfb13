/**
 * Encodes replies into an arena and sends a batch of them at once (doc/proto.md, "Simple reply message", "Structured
 * reply chunk message").
 *
 *   | sent ... |from: replies of this batch |at: free ...        |
 *
 * Data of a read is put straight where it leaves from: `place` gives the memory, `finishRead` writes the header before
 * it. A read that is not answered at once keeps its piece (`detach`), held in its slab; the batch goes on behind it.
 * A piece handed to the stream is held until the stream has taken it.
 */
import type { Done } from '../util/later.ts';
import {
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_BYTES,
  NBD_STRUCTURED_REPLY_MAGIC,
} from './constants.ts';
import { type Slab, type SlabPool, slabBytes } from './slab.ts';

/** A read up to this, header included, is put into the arena; a larger one gets a slab of its own. */
const inlineBytesMax = 64 * 1024 + 64;
/** A late reply up to this is copied to the batch that leaves next; a larger one leaves by itself, from where it is. */
const copyBytesMax = 16 * 1024;
/** bytes of an error message ("message length MUST NOT exceed the 4096 bytes string length limit") */
const messageBytesMax = 1024;
/** block status descriptors in one chunk: 64 KiB; the client asks again for the rest */
export const extentsMax = 8192;

const high = 0x1_0000_0000;
const offsetBytes = 8;
const encoder = new TextEncoder();

/** Where a reply with data is made. */
export interface Piece {
  readonly slab: Slab;
  readonly at: number;
  readonly bytes: number;
}

export class ReplyWriter {
  /** bytes before the data of a read reply */
  readonly dataAt: number;
  /** sends that the stream has not taken yet: do not read on while there are any */
  unsent = 0;
  readonly #structured: boolean;
  readonly #pool: SlabPool;
  readonly #send: (bytes: Uint8Array) => Done;
  readonly #drained: () => void;
  #slab: Slab;
  #from = 0;
  #at = 0;
  /** where the last `place` was, in `#placed` */
  #placed: Slab;
  #placedAt = 0;

  constructor(pool: SlabPool, structured: boolean, send: (bytes: Uint8Array) => Done, drained: () => void) {
    this.#pool = pool;
    this.#structured = structured;
    this.#send = send;
    this.#drained = drained;
    this.#slab = pool.take();
    this.#placed = this.#slab;
    this.dataAt = structured ? NBD_STRUCTURED_REPLY_BYTES + offsetBytes : NBD_SIMPLE_REPLY_BYTES;
  }

  /** Memory for the data of a read of `length` bytes. What follows is `finishRead`, `detach` or `giveUp`. */
  place(length: number): Uint8Array {
    const bytes = this.dataAt + length;
    if (bytes <= inlineBytesMax) {
      this.#reserve(bytes);
      this.#placed = this.#slab;
      this.#placedAt = this.#at;
      return this.#slab.part(this.#at + this.dataAt, length);
    }
    this.#placed = this.#pool.take(bytes);
    this.#placedAt = 0;
    return this.#placed.part(this.dataAt, length);
  }

  /** The data stands in what `place` gave: the reply is complete. */
  finishRead(cookieHigh: number, cookieLow: number, offset: number, length: number): void {
    this.#readHeader(this.#placed, this.#placedAt, cookieHigh, cookieLow, offset, length);
    if (this.#placed === this.#slab) {
      this.#at += this.dataAt + length;
      return;
    }
    this.flush();
    this.#sendPiece(this.#placed, 0, this.dataAt + length);
    this.#pool.release(this.#placed);
    this.#placed = this.#slab;
  }

  /** The read failed at once: its memory is free again. */
  giveUp(): void {
    if (this.#placed !== this.#slab) this.#pool.release(this.#placed);
    this.#placed = this.#slab;
  }

  /** The read goes on and keeps its memory; what follows is put elsewhere. `finishPiece` or `dropPiece` ends it. */
  detach(length: number): Piece {
    const piece: Piece = { slab: this.#placed, at: this.#placedAt, bytes: this.dataAt + length };
    if (this.#placed === this.#slab) {
      this.flush();
      piece.slab.hold();
      this.#at = piece.at + piece.bytes;
      this.#from = this.#at;
    }
    this.#placed = this.#slab;
    return piece;
  }

  finishPiece(piece: Piece, cookieHigh: number, cookieLow: number, offset: number, length: number): void {
    const { slab, at, bytes } = piece;
    this.#readHeader(slab, at, cookieHigh, cookieLow, offset, length);
    if (bytes <= copyBytesMax) {
      // A copy of 4 KiB costs a tenth of the system call that it saves: late replies of one turn leave together.
      this.#reserve(bytes);
      this.#slab.memory.set(slab.memory.subarray(at, at + bytes), this.#at);
      this.#at += bytes;
    } else {
      this.flush();
      this.#sendPiece(slab, at, at + bytes);
    }
    this.#pool.release(slab);
  }

  dropPiece(piece: Piece): void {
    this.#pool.release(piece.slab);
  }

  /** Done, no data. */
  done(cookieHigh: number, cookieLow: number): void {
    this.#reserve(NBD_SIMPLE_REPLY_BYTES);
    const view = this.#slab.view;
    const at = this.#at;
    view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
    view.setUint32(at + 4, 0);
    view.setUint32(at + 8, cookieHigh);
    view.setUint32(at + 12, cookieLow);
    this.#at = at + NBD_SIMPLE_REPLY_BYTES;
  }

  /** A successful read of no bytes: a content chunk "MUST describe at least one byte", so there is none. */
  doneEmpty(cookieHigh: number, cookieLow: number): void {
    if (this.#structured) this.#chunk(NBD_REPLY_TYPE_NONE, NBD_REPLY_FLAG_DONE, cookieHigh, cookieLow, 0);
    else this.done(cookieHigh, cookieLow);
  }

  /** An error; with structured replies the sentence goes with it. */
  error(cookieHigh: number, cookieLow: number, errno: number, message: string): void {
    if (!this.#structured) {
      this.done(cookieHigh, cookieLow);
      this.#slab.view.setUint32(this.#at - NBD_SIMPLE_REPLY_BYTES + 4, errno);
      return;
    }
    const text = new Uint8Array(messageBytesMax);
    const textBytes = encoder.encodeInto(message, text).written;
    const at = this.#chunk(NBD_REPLY_TYPE_ERROR, NBD_REPLY_FLAG_DONE, cookieHigh, cookieLow, 6 + textBytes);
    this.#slab.view.setUint32(at, errno);
    this.#slab.view.setUint16(at + 4, textBytes);
    this.#slab.memory.set(text.subarray(0, textBytes), at + 6);
  }

  /** One block status chunk: pairs of length and flags. */
  blockStatus(cookieHigh: number, cookieLow: number, context: number, extents: readonly number[], last: boolean): void {
    const flags = last ? NBD_REPLY_FLAG_DONE : 0;
    let at = this.#chunk(NBD_REPLY_TYPE_BLOCK_STATUS, flags, cookieHigh, cookieLow, 4 + extents.length * 4);
    const view = this.#slab.view;
    view.setUint32(at, context);
    for (const value of extents) {
      at += 4;
      view.setUint32(at, value);
    }
  }

  /** Sends what was written since the last time. */
  flush(): void {
    if (this.#at > this.#from) {
      this.#sendPiece(this.#slab, this.#from, this.#at);
      this.#from = this.#at;
    }
    if (this.#slab.holds === 1) {
      this.#from = 0;
      this.#at = 0;
    }
  }

  /** Gives the memory back; nothing is written afterwards. */
  close(): void {
    this.#pool.release(this.#slab);
  }

  #readHeader(slab: Slab, at: number, cookieHigh: number, cookieLow: number, offset: number, length: number): void {
    const view = slab.view;
    if (!this.#structured) {
      view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
      view.setUint32(at + 4, 0);
      view.setUint32(at + 8, cookieHigh);
      view.setUint32(at + 12, cookieLow);
      return;
    }
    // One content chunk that is the last one too: no error can come any more, all the data is there.
    view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC);
    view.setUint16(at + 4, NBD_REPLY_FLAG_DONE);
    view.setUint16(at + 6, NBD_REPLY_TYPE_OFFSET_DATA);
    view.setUint32(at + 8, cookieHigh);
    view.setUint32(at + 12, cookieLow);
    view.setUint32(at + 16, offsetBytes + length);
    view.setUint32(at + 20, Math.floor(offset / high));
    view.setUint32(at + 24, offset >>> 0);
  }

  /** Writes a chunk's header and makes room for its payload: returns where that begins. */
  #chunk(type: number, flags: number, cookieHigh: number, cookieLow: number, payloadBytes: number): number {
    this.#reserve(NBD_STRUCTURED_REPLY_BYTES + payloadBytes);
    const view = this.#slab.view;
    const at = this.#at;
    view.setUint32(at, NBD_STRUCTURED_REPLY_MAGIC);
    view.setUint16(at + 4, flags);
    view.setUint16(at + 6, type);
    view.setUint32(at + 8, cookieHigh);
    view.setUint32(at + 12, cookieLow);
    view.setUint32(at + 16, payloadBytes);
    this.#at = at + NBD_STRUCTURED_REPLY_BYTES + payloadBytes;
    return at + NBD_STRUCTURED_REPLY_BYTES;
  }

  /** Makes sure that `bytes` fit behind `#at`, in another slab if this one is full and still needed. */
  #reserve(bytes: number): void {
    if (this.#at + bytes <= slabBytes) return;
    this.flush();
    if (this.#at + bytes <= slabBytes) return;
    const full = this.#slab;
    this.#slab = this.#pool.take();
    this.#pool.release(full);
    this.#placed = this.#slab;
    this.#from = 0;
    this.#at = 0;
  }

  #sendPiece(slab: Slab, from: number, to: number): void {
    const sent = this.#send(slab.memory.subarray(from, to));
    if (sent === undefined) return;
    slab.hold();
    this.unsent += 1;
    const taken = () => {
      this.#pool.release(slab);
      this.unsent -= 1;
      if (this.unsent === 0) this.#drained();
    };
    sent.then(taken, taken);
  }
}
