/**
 * Any byte range over a server that takes only multiples of its minimum block size (doc/proto.md, "Size constraints").
 *
 * A block of which a write covers a part is read, changed and written. While that goes on the block is held against
 * every other request to it; others pass.
 */
import { type WriteFlags, writeFlags } from '../block/node.ts';
import type { NbdBackend } from '../nbd/backend.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';

/** bytes of a read that goes through a buffer of ours, at once */
const bounceBytesMax = 1024 * 1024;

export class AlignedBackend implements NbdBackend {
  readonly #below: NbdBackend;
  readonly #block: number;
  readonly #lock = new RangeLock();

  /** @param block minimum block size of `below`, a power of two; its length is a multiple of it */
  constructor(below: NbdBackend, block: number) {
    this.#below = below;
    this.#block = block;
  }

  get length(): number {
    return this.#below.length;
  }

  read(offset: number, into: Uint8Array): Done {
    const first = this.#down(offset);
    const fits = this.#fits(offset, into.length);
    return this.#lock.run(first, this.#up(offset + into.length) - first, true, () =>
      fits ? this.#below.read(offset, into) : this.#readParts(offset, into),
    );
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    if (this.#fits(offset, from.length)) {
      return this.#lock.run(offset, from.length, false, () => this.#below.write(offset, from, flags));
    }
    return this.#modify(offset, from.length, (at, count) => {
      const part = from.subarray(at - offset, at - offset + count);
      return { whole: () => this.#below.write(at, part, flags), fill: (block, to) => block.set(part, to), flags };
    });
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    if (this.#fits(offset, length)) {
      return this.#lock.run(offset, length, false, () => this.#below.writeZeroes(offset, length, flags));
    }
    const partFlags = flags & writeFlags.fua;
    return this.#modify(offset, length, (at, count) => ({
      whole: () => this.#below.writeZeroes(at, count, flags),
      fill: (block, to) => block.fill(0, to, to + count),
      flags: partFlags,
    }));
  }

  /** Only whole blocks; the ends of the range stay as they are. */
  discard(offset: number, length: number): Done {
    const from = this.#up(offset);
    const count = this.#down(offset + length) - from;
    if (count <= 0) return undefined;
    return this.#lock.run(from, count, false, () => this.#below.discard(from, count));
  }

  flush(): Done {
    return this.#below.flush();
  }

  async blockStatus(offset: number, length: number): Promise<Extent[]> {
    const from = this.#down(offset);
    const extents = await this.#below.blockStatus(from, this.#up(offset + length) - from);
    const inside: Extent[] = [];
    let at = from;
    for (const extent of extents) {
      const start = Math.max(at, offset);
      const end = Math.min(at + extent.length, offset + length);
      addExtent(inside, end - start, extent.zero, extent.allocated);
      at += extent.length;
    }
    return inside;
  }

  /**
   * Reads through a buffer what does not begin or end at a block: copied, because the server takes only whole blocks.
   */
  async #readParts(offset: number, into: Uint8Array): Promise<void> {
    const end = offset + into.length;
    const most = Math.max(bounceBytesMax, this.#block);
    for (let at = this.#down(offset); at < end; at += most) {
      const bounce = new Uint8Array(Math.min(most, this.#up(end) - at));
      await this.#below.read(at, bounce);
      const from = Math.max(at, offset);
      into.set(bounce.subarray(from - at, Math.min(end - at, bounce.length)), from - offset);
    }
  }

  /** The head and the tail by reading and writing their block, the whole blocks between as they are. */
  async #modify(offset: number, length: number, part: (at: number, count: number) => Part): Promise<void> {
    const first = this.#down(offset);
    const end = offset + length;
    const hold = await this.#lock.acquire(first, this.#up(end) - first);
    try {
      const middle = this.#up(offset);
      const tail = Math.max(this.#down(end), middle);
      if (offset < middle) await this.#modifyBlock(first, offset, part(offset, Math.min(middle, end) - offset));
      if (middle < tail) await part(middle, tail - middle).whole();
      if (tail < end) await this.#modifyBlock(tail, tail, part(tail, end - tail));
    } finally {
      hold.release();
    }
  }

  async #modifyBlock(block: number, at: number, part: Part): Promise<void> {
    const bytes = new Uint8Array(this.#block);
    await this.#below.read(block, bytes);
    part.fill(bytes, at - block);
    await this.#below.write(block, bytes, part.flags);
  }

  #fits(offset: number, length: number): boolean {
    return offset % this.#block === 0 && length % this.#block === 0;
  }

  #down(at: number): number {
    return at - (at % this.#block);
  }

  #up(at: number): number {
    return this.#down(at + this.#block - 1);
  }
}

/** A part of a change that lies in whole blocks, or in one block. */
interface Part {
  /** makes the change, if the part is whole blocks */
  whole(): Done;
  /** makes it in the content of its block, from `to` on */
  fill(block: Uint8Array, to: number): void;
  /** of the write that puts the block back */
  readonly flags: WriteFlags;
}
