/**
 * Memory of the data path: slabs from a bounded pool, counted by holds.
 *
 * A slab is held by whoever still needs its bytes: the framer its receive slab, the reply writer its arena, a request
 * that was not answered at once the slab its payload lies in, a send that was not taken at once what it sends. The last
 * release gives it back. So nothing is allocated while requests are answered at once, and memory is bounded by what is
 * in flight plus what the pool keeps.
 */
import { viewOf } from '../util/bytes.ts';

/** bytes of a receive buffer or a reply arena */
export const slabBytes = 256 * 1024;
/** sizes are rounded up to this, so that a pool holds few different ones */
const slabStepBytes = 64 * 1024;
/** bytes that a pool keeps free for the next taker */
const keptBytesMax = 32 * 1024 * 1024;
/** views are remembered by position in steps of 512 bytes */
const viewShift = 9;

export class Slab {
  readonly memory: Uint8Array;
  readonly view: DataView;
  /** how many need it; kept by `SlabPool` and `hold` */
  holds = 1;
  readonly #parts: (Uint8Array | undefined)[];

  constructor(bytes: number) {
    // Not filled with zeroes: whoever sends a piece has written all of it. Not a Buffer: its slices are slower.
    this.memory = new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer);
    this.view = viewOf(this.memory);
    this.#parts = new Array((bytes >> viewShift) + 1);
  }

  hold(): void {
    this.holds += 1;
  }

  /**
   * A view of `[at, at + length)`. Equal loads ask for the same pieces again and again, and a view costs as much as the
   * rest of a request's framing: the last one near each position is kept.
   */
  part(at: number, length: number): Uint8Array {
    const index = at >> viewShift;
    const kept = this.#parts[index];
    if (kept !== undefined && kept.byteOffset === at && kept.length === length) return kept;
    const part = new Uint8Array(this.memory.buffer, at, length);
    this.#parts[index] = part;
    return part;
  }
}

export class SlabPool {
  readonly #free = new Map<number, Slab[]>();
  #keptBytes = 0;
  /** bytes of the slabs that are held */
  takenBytes = 0;

  /** A slab of at least `bytes`, held once. */
  take(bytes: number = slabBytes): Slab {
    const size = Math.max(slabBytes, Math.ceil(bytes / slabStepBytes) * slabStepBytes);
    this.takenBytes += size;
    const slab = this.#free.get(size)?.pop();
    if (slab === undefined) return new Slab(size);
    this.#keptBytes -= size;
    slab.holds = 1;
    return slab;
  }

  /** Gives one hold back; after the last one the slab is the pool's, or nobody's if the pool is full. */
  release(slab: Slab): void {
    slab.holds -= 1;
    if (slab.holds > 0) return;
    const size = slab.memory.length;
    this.takenBytes -= size;
    if (this.#keptBytes + size > keptBytesMax) return;
    this.#keptBytes += size;
    const list = this.#free.get(size);
    if (list === undefined) this.#free.set(size, [slab]);
    else list.push(slab);
  }
}
