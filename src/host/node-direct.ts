/**
 * Reads and writes past the page cache (O_DIRECT). The kernel takes only whole blocks into aligned memory there, so
 * bytes are copied through aligned buffers, and the blocks at the ends of a write are read first. The device answers
 * each call, so all of them are made on threads.
 *
 * Invariant: two writes that share a block are never under way together, nor a write and a call that zeroes a part of
 * it, nor is any other beside one that writes the last block of a file, which is cut afterwards to where its bytes end.
 */
import type { FileHandle } from 'node:fs/promises';
import { RangeLock } from '../util/range-lock.ts';
import type { FileThreads } from './node-threads.ts';
import type { SystemCalls } from './system-calls.ts';

/** Fits every disk's logical block, and memory. */
const blockLengthMax = 4096;
/** As much as one system call moves, and as much as most requests need. */
const largeBuffer = 1 << 20;
const smallBuffer = 1 << 16;
/** bytes of buffers that are kept to be used again */
const spareBytesMax = 16 << 20;

export class DirectIo {
  readonly #handle: FileHandle;
  readonly #blockLength: number;
  readonly #isDevice: boolean;
  readonly #threads: FileThreads;
  readonly #calls: SystemCalls;
  readonly #ranges = new RangeLock();
  readonly #spare: Uint8Array[] = [];
  #spareBytes = 0;
  /** the file is at least as long, as far as it is known: asked for only when a write goes beyond */
  #knownSize = 0;

  /** @param deviceBlock logical block of the device, bytes, or null for a regular file, which may end anywhere */
  constructor(handle: FileHandle, deviceBlock: number | null, threads: FileThreads, calls: SystemCalls) {
    this.#handle = handle;
    this.#isDevice = deviceBlock !== null;
    this.#blockLength = deviceBlock ?? blockLengthMax;
    this.#threads = threads;
    this.#calls = calls;
  }

  /** Fills `into`; past the end there are zeroes. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    const buffer = this.#take(into.length);
    try {
      for (let done = 0; done < into.length; ) {
        const start = this.#down(offset + done);
        const skip = offset + done - start;
        const got = await this.#load(buffer, 0, start, this.#up(Math.min(buffer.length, skip + into.length - done)));
        const count = Math.min(got - skip, into.length - done);
        if (count <= 0) {
          into.fill(0, done);
          break;
        }
        into.set(buffer.subarray(skip, skip + count), done);
        done += count;
      }
    } finally {
      this.#giveBack(buffer);
    }
  }

  /** Writes all of `from`. */
  async write(offset: number, from: Uint8Array): Promise<void> {
    if (from.length === 0) return;
    const start = this.#down(offset);
    const end = this.#up(offset + from.length);
    if (!this.#isDevice && end > this.#knownSize) return await this.#writeLastBlock(offset, from);
    const hold = await this.#ranges.acquire(start, end - start);
    try {
      await this.#writeBlocks(offset, from);
    } finally {
      hold.release();
    }
  }

  /** Makes a call that zeroes a range: not while a write holds, and puts back, what stood in a block of it. */
  async between<T>(offset: number, length: number, call: () => Promise<T>): Promise<T> {
    const start = this.#down(offset);
    const hold = await this.#ranges.acquire(start, this.#up(offset + length) - start);
    try {
      return await call();
    } finally {
      hold.release();
    }
  }

  /** The file has been cut. */
  forgetSize(): void {
    this.#knownSize = 0;
  }

  /** A write that may go beyond the end, where whole blocks make the file longer than its bytes. */
  async #writeLastBlock(offset: number, from: Uint8Array): Promise<void> {
    const end = offset + from.length;
    const hold = await this.#ranges.acquire(0, Number.MAX_SAFE_INTEGER);
    try {
      const { size } = await this.#threads.run(() => this.#handle.stat());
      await this.#writeBlocks(offset, from);
      this.#knownSize = Math.max(size, end);
      if (this.#up(end) > size) await this.#threads.run(() => this.#handle.truncate(this.#knownSize));
    } finally {
      hold.release();
    }
  }

  async #writeBlocks(offset: number, from: Uint8Array): Promise<void> {
    const buffer = this.#take(from.length);
    try {
      for (let done = 0; done < from.length; ) {
        const start = this.#down(offset + done);
        const skip = offset + done - start;
        const count = Math.min(buffer.length - skip, from.length - done);
        const length = this.#up(skip + count);
        if (skip > 0) await this.#load(buffer, 0, start, this.#blockLength);
        if (skip + count < length && (skip === 0 || length > this.#blockLength)) {
          const last = length - this.#blockLength;
          await this.#load(buffer, last, start + last, this.#blockLength);
        }
        buffer.set(from.subarray(done, done + count), skip);
        await this.#store(buffer, start, length);
        done += count;
      }
    } finally {
      this.#giveBack(buffer);
    }
  }

  /** Reads into the buffer at `at`, and zeroes what lies past the end. Returns the bytes that were there. */
  async #load(buffer: Uint8Array, at: number, offset: number, length: number): Promise<number> {
    const got = await this.#threads.read(buffer, at, length, offset);
    buffer.fill(0, at + got, at + length);
    return got;
  }

  async #store(buffer: Uint8Array, offset: number, length: number): Promise<void> {
    for (let done = 0; done < length; ) {
      const count = this.#down(await this.#threads.write(buffer, done, length - done, offset + done));
      if (count === 0) throw Object.assign(new Error('the system takes no whole block'), { code: 'EIO' });
      done += count;
    }
  }

  /** A buffer for `length` bytes and the rest of their blocks, or for as many of them as one call moves. */
  #take(length: number): Uint8Array {
    const wanted = length + 2 * blockLengthMax > smallBuffer ? largeBuffer : smallBuffer;
    const found = this.#spare.findIndex((spare) => spare.length === wanted);
    const [spare] = found < 0 ? [] : this.#spare.splice(found, 1);
    if (spare !== undefined) {
      this.#spareBytes -= wanted;
      return spare;
    }
    const memory = new Uint8Array(wanted + blockLengthMax);
    const past = this.#calls.addressOf(memory) % blockLengthMax;
    const at = past === 0 ? 0 : blockLengthMax - past;
    return memory.subarray(at, at + wanted);
  }

  #giveBack(buffer: Uint8Array): void {
    if (this.#spareBytes + buffer.length > spareBytesMax) return;
    this.#spareBytes += buffer.length;
    this.#spare.push(buffer);
  }

  #down(offset: number): number {
    return offset - (offset % this.#blockLength);
  }

  #up(offset: number): number {
    return this.#down(offset + this.#blockLength - 1);
  }
}
