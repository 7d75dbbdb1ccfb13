/**
 * A disk in the memory of this process: what was written lives as long as the node. Nothing is allocated for what was
 * never written, nor for what was zeroed or discarded in whole chunks.
 *
 * Invariant: a chunk that is absent reads as zeroes.
 */
import { z } from 'zod';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

const chunkSize = 64 * 1024;

export const memoryDriver = defineDriver({
  name: 'memory',
  summary: 'a disk in the memory of this process',
  options: z.strictObject({ size: z.int().nonnegative().describe('bytes') }),
  async open(options): Promise<DriverNode> {
    return new MemoryDisk(options.size);
  },
});

class MemoryDisk implements DriverNode {
  length: number;
  private readonly chunks = new Map<number, Uint8Array>();

  constructor(length: number) {
    this.length = length;
  }

  read(offset: number, into: Uint8Array): Done {
    for (let at = 0; at < into.length; ) {
      const within = (offset + at) % chunkSize;
      const count = Math.min(into.length - at, chunkSize - within);
      const chunk = this.chunks.get((offset + at - within) / chunkSize);
      if (chunk === undefined) into.fill(0, at, at + count);
      else into.set(chunk.subarray(within, within + count), at);
      at += count;
    }
    return undefined;
  }

  write(offset: number, from: Uint8Array, _flags: WriteFlags): Done {
    for (let at = 0; at < from.length; ) {
      const within = (offset + at) % chunkSize;
      const count = Math.min(from.length - at, chunkSize - within);
      this.chunk((offset + at - within) / chunkSize).set(from.subarray(at, at + count), within);
      at += count;
    }
    return undefined;
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    this.zero(offset, offset + length, (flags & writeFlags.noHole) !== 0);
    return undefined;
  }

  discard(offset: number, length: number): Done {
    this.zero(offset, offset + length, false);
    return undefined;
  }

  flush(): Done {
    return undefined;
  }

  blockStatus(offset: number, length: number): Extent[] {
    const extents: Extent[] = [];
    const end = Math.min(offset + length, this.length);
    for (let at = offset; at < end; ) {
      const next = Math.min(end, (Math.floor(at / chunkSize) + 1) * chunkSize);
      const has = this.chunks.has(Math.floor(at / chunkSize));
      addExtent(extents, next - at, !has, has);
      at = next;
    }
    return extents;
  }

  async resize(length: number): Promise<void> {
    if (length < this.length) this.zero(length, this.length, false);
    this.length = length;
  }

  close(): Done {
    this.chunks.clear();
    return undefined;
  }

  private chunk(index: number): Uint8Array {
    let chunk = this.chunks.get(index);
    if (chunk === undefined) {
      try {
        chunk = new Uint8Array(chunkSize);
      } catch (cause) {
        throw new BlockError('no-memory', 'no memory left for a memory disk', { cause });
      }
      this.chunks.set(index, chunk);
    }
    return chunk;
  }

  private zero(start: number, end: number, keep: boolean): void {
    for (let at = start; at < end; ) {
      const within = at % chunkSize;
      const count = Math.min(end - at, chunkSize - within);
      const index = (at - within) / chunkSize;
      // The last chunk of the disk may be short: it goes when all of the disk in it does.
      const whole = within === 0 && (count === chunkSize || at + count >= this.length);
      if (keep) this.chunk(index).fill(0, within, within + count);
      else if (whole) this.chunks.delete(index);
      else this.chunks.get(index)?.fill(0, within, within + count);
      at += count;
    }
  }
}
