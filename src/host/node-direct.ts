/**
 * Reads and writes past the page cache (O_DIRECT). The kernel takes only whole blocks into aligned memory there, so
 * bytes are copied through an aligned buffer, and the blocks at the ends of a write are read first. One call at a time
 * uses the buffer: calls are synchronous.
 */
import * as fs from 'node:fs';
import type { SystemCalls } from './system-calls.ts';

/** Fits every disk's logical block, and memory. */
const blockLengthMax = 4096;
/** A device that does not end at a multiple of those has blocks of this length. */
const blockLengthMin = 512;
/** As much as one system call moves. */
const bufferLength = 1 << 20;

export class DirectIo {
  readonly #fd: number;
  readonly #blockLength: number;
  readonly #isDevice: boolean;
  readonly #buffer: Uint8Array;

  /** @param deviceSize bytes of the block device, or null for a regular file, which may end anywhere */
  constructor(fd: number, deviceSize: number | null, calls: SystemCalls) {
    this.#fd = fd;
    this.#isDevice = deviceSize !== null;
    this.#blockLength = (deviceSize ?? 0) % blockLengthMax === 0 ? blockLengthMax : blockLengthMin;
    const memory = new Uint8Array(bufferLength + blockLengthMax);
    const past = calls.addressOf(memory) % blockLengthMax;
    const at = past === 0 ? 0 : blockLengthMax - past;
    this.#buffer = memory.subarray(at, at + bufferLength);
  }

  /** Fills `into`; past the end there are zeroes. */
  read(offset: number, into: Uint8Array): undefined {
    for (let done = 0; done < into.length; ) {
      const start = this.#down(offset + done);
      const skip = offset + done - start;
      const got = this.#load(0, start, this.#up(Math.min(bufferLength, skip + into.length - done)));
      const count = Math.min(got - skip, into.length - done);
      if (count <= 0) {
        into.fill(0, done);
        break;
      }
      into.set(this.#buffer.subarray(skip, skip + count), done);
      done += count;
    }
  }

  /** Writes all of `from`. */
  write(offset: number, from: Uint8Array): undefined {
    const sizeBefore = this.#isDevice ? 0 : fs.fstatSync(this.#fd).size;
    const end = offset + from.length;
    for (let done = 0; done < from.length; ) {
      const start = this.#down(offset + done);
      const skip = offset + done - start;
      const count = Math.min(bufferLength - skip, from.length - done);
      const length = this.#up(skip + count);
      if (skip > 0) this.#load(0, start, this.#blockLength);
      if (skip + count < length && (skip === 0 || length > this.#blockLength)) {
        const last = length - this.#blockLength;
        this.#load(last, start + last, this.#blockLength);
      }
      this.#buffer.set(from.subarray(done, done + count), skip);
      this.#store(start, length);
      done += count;
    }
    // The last block was written whole: a file ends where its bytes end.
    if (!this.#isDevice && from.length > 0 && this.#up(end) > sizeBefore)
      fs.ftruncateSync(this.#fd, Math.max(sizeBefore, end));
  }

  /** Reads into the buffer at `at`, and zeroes what lies past the end. Returns the bytes that were there. */
  #load(at: number, offset: number, length: number): number {
    const got = fs.readSync(this.#fd, this.#buffer, at, length, offset);
    this.#buffer.fill(0, at + got, at + length);
    return got;
  }

  #store(offset: number, length: number): void {
    for (let done = 0; done < length; ) {
      const count = this.#down(fs.writeSync(this.#fd, this.#buffer, done, length - done, offset + done));
      if (count === 0) throw Object.assign(new Error('the system takes no whole block'), { code: 'EIO' });
      done += count;
    }
  }

  #down(offset: number): number {
    return offset - (offset % this.#blockLength);
  }

  #up(offset: number): number {
    return this.#down(offset + this.#blockLength - 1);
  }
}
