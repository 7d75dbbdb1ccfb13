/**
 * Cuts the bytes of a client into requests, in place.
 *
 * The receive slab has head room: the partial tail of a batch is moved to just before the place of the next arrival and
 * goes on there, so nothing is joined and nothing allocated.
 *
 *   | ... head room ... [tail]|next arrival ->              |
 *
 * Where a request in flight still needs bytes of the slab, the next arrival is put behind what is there, and once the
 * slab is full the framer goes on in another one. A payload that does not fit into the head room gets its own slab: the
 * rest arrives there directly. The payload of a refused write is passed over.
 *
 * Use: write to `space()`, call `received`, then `next()` until it is false; after a true the fields tell of a request.
 */
import { NBD_CMD_WRITE, NBD_PAYLOAD_BYTES_MAX, NBD_REQUEST_BYTES, NBD_REQUEST_MAGIC } from './constants.ts';
import type { Refusal, RequestHeader } from './request.ts';
import { type Slab, type SlabPool, slabBytes } from './slab.ts';

/** bytes asked for at once: larger arrivals measured no better, and leave the cache */
const arrivalBytes = 64 * 1024;
/** the largest tail that is moved; a payload that makes a larger one gets its own slab */
const headBytes = 64 * 1024;
/** the least room worth a read behind bytes that are still needed */
const roomBytesMin = 16 * 1024;
const high = 0x1_0000_0000;

export class Framer implements RequestHeader {
  type = 0;
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offset = 0;
  length = 0;
  /** not 0: answer with this error */
  refusal: Refusal = 0;
  /** not null: the stream cannot be understood any more, and why */
  broken: string | null = null;
  readonly #pool: SlabPool;
  readonly #check: (request: RequestHeader) => Refusal;
  #slab: Slab;
  #from = headBytes;
  #to = headBytes;
  #payloadAt = 0;
  /** the own slab of a large payload, and how much of it is there */
  #large: Slab | null = null;
  #filled = 0;
  /** the last request was handed out with `#large` */
  #handedOut = false;
  #spaceIsLarge = false;
  #skip = 0;
  #skipping = false;

  constructor(pool: SlabPool, check: (request: RequestHeader) => Refusal) {
    this.#pool = pool;
    this.#check = check;
    this.#slab = pool.take();
  }

  /** Room for the next bytes, never empty. Stays valid until `received`, even if `next` is called in between. */
  space(): Uint8Array {
    const large = this.#large;
    if (large !== null && this.#filled < this.length) {
      this.#spaceIsLarge = true;
      return large.memory.subarray(this.#filled, this.length);
    }
    this.#spaceIsLarge = false;
    const tail = this.#to - this.#from;
    if (this.#slab.holds === 1 && tail <= headBytes) {
      if (this.#to !== headBytes) {
        // The one copy of the input: what is left of a batch, on average half a request.
        if (tail > 0) this.#slab.memory.copyWithin(headBytes - tail, this.#from, this.#to);
        this.#from = headBytes - tail;
        this.#to = headBytes;
      }
      return this.#slab.part(headBytes, arrivalBytes);
    }
    if (this.#slab.memory.length - this.#to < roomBytesMin) this.#changeSlab(tail);
    return this.#slab.memory.subarray(this.#to, Math.min(this.#to + arrivalBytes, this.#slab.memory.length));
  }

  /** `count` bytes stand at the start of the last `space()`. */
  received(count: number): void {
    if (this.#spaceIsLarge) this.#filled += count;
    else this.#to += count;
  }

  /** Cuts the next request; false: more bytes are needed, or the stream is broken. */
  next(): boolean {
    if (this.#large !== null) {
      if (!this.#handedOut) {
        this.#handedOut = this.#filled === this.length;
        return this.#handedOut;
      }
      this.#pool.release(this.#large);
      this.#large = null;
      this.#handedOut = false;
    }
    if (this.#skipping) return this.#passOver();
    const at = this.#from;
    if (this.#to - at < NBD_REQUEST_BYTES || this.broken !== null) return false;
    const view = this.#slab.view;
    const magic = view.getUint32(at);
    if (magic !== NBD_REQUEST_MAGIC) {
      this.broken = `a request begins with 0x${magic.toString(16)} instead of its magic`;
      return false;
    }
    this.flags = view.getUint16(at + 4);
    this.type = view.getUint16(at + 6);
    this.cookieHigh = view.getUint32(at + 8);
    this.cookieLow = view.getUint32(at + 12);
    this.offset = view.getUint32(at + 16) * high + view.getUint32(at + 20);
    this.length = view.getUint32(at + 24);
    if (this.type === NBD_CMD_WRITE) return this.#write(at + NBD_REQUEST_BYTES);
    this.refusal = this.#check(this);
    this.#from = at + NBD_REQUEST_BYTES;
    return true;
  }

  /** The payload of the write that `next` told of; borrowed until the next call, or while `holdPayload` holds it. */
  payload(): Uint8Array {
    return this.#large === null ? this.#slab.part(this.#payloadAt, this.length) : this.#large.part(0, this.length);
  }

  /** Keeps the memory of the payload until it is released to the pool. */
  holdPayload(): Slab {
    const slab = this.#large ?? this.#slab;
    slab.hold();
    return slab;
  }

  /** Gives the memory back; the framer is not used afterwards. */
  close(): void {
    if (this.#large !== null) this.#pool.release(this.#large);
    this.#large = null;
    this.#pool.release(this.#slab);
  }

  #write(at: number): boolean {
    // "any payload not exceeding 2^25 bytes SHOULD NOT be considered a denial of service attack" ("Size constraints").
    if (this.length > NBD_PAYLOAD_BYTES_MAX) {
      this.broken = `a write of ${this.length} bytes is larger than the maximum payload of ${NBD_PAYLOAD_BYTES_MAX}`;
      return false;
    }
    this.refusal = this.#check(this);
    if (this.refusal !== 0) {
      this.#from = at;
      this.#skip = this.length;
      this.#skipping = true;
      return this.#passOver();
    }
    const here = this.#to - at;
    if (here >= this.length) {
      this.#payloadAt = at;
      this.#from = at + this.length;
      return true;
    }
    if (NBD_REQUEST_BYTES + this.length <= headBytes) return false;
    const large = this.#pool.take(this.length);
    large.memory.set(this.#slab.memory.subarray(at, this.#to));
    this.#large = large;
    this.#filled = here;
    this.#from = this.#to;
    return false;
  }

  #passOver(): boolean {
    const count = Math.min(this.#skip, this.#to - this.#from);
    this.#from += count;
    this.#skip -= count;
    this.#skipping = this.#skip > 0;
    return !this.#skipping;
  }

  /** Goes on in another slab; the old one lives on with the requests that need it. */
  #changeSlab(tail: number): void {
    // Only a connection that is held in the middle of a batch has a tail that does not fit into the head room.
    const fits = tail <= headBytes;
    const slab = this.#pool.take(fits ? slabBytes : tail + arrivalBytes);
    const from = fits ? headBytes - tail : 0;
    slab.memory.set(this.#slab.memory.subarray(this.#from, this.#to), from);
    this.#pool.release(this.#slab);
    this.#slab = slab;
    this.#from = from;
    this.#to = from + tail;
  }
}
