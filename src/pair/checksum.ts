/**
 * The checksum of what a side keeps about itself (group file, saved bitmaps): XXH64. It finds torn and damaged blocks;
 * it is no protection against somebody who changes them on purpose.
 */
import xxhash from 'xxhash-wasm';

export type Checksum = (bytes: Uint8Array) => bigint;

let loaded: Promise<Checksum> | undefined;

/** WebAssembly, compiled at the first call. */
export function loadChecksum(): Promise<Checksum> {
  loaded ??= xxhash().then(
    ({ h64Raw }) =>
      (bytes) =>
        h64Raw(bytes),
  );
  return loaded;
}
