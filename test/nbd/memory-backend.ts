/** An array as an NBD backend: the simplest thing that is right, for tests and for tools run against the server. */
import type { NbdBackend } from '../../src/nbd/backend.ts';
import type { Extent } from '../../src/util/extents.ts';

export class MemoryBackend implements NbdBackend {
  readonly bytes: Uint8Array;

  constructor(length: number) {
    this.bytes = new Uint8Array(length);
  }

  get length(): number {
    return this.bytes.length;
  }

  read(offset: number, into: Uint8Array): undefined {
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): undefined {
    this.bytes.set(from, offset);
  }

  writeZeroes(offset: number, length: number): undefined {
    this.bytes.fill(0, offset, offset + length);
  }

  discard(offset: number, length: number): undefined {
    this.bytes.fill(0, offset, offset + length);
  }

  flush(): undefined {
    return undefined;
  }

  blockStatus(_offset: number, length: number): Extent[] {
    return [{ length, zero: false, allocated: true }];
  }
}
