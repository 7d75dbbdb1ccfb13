/**
 * XXH64, a checksum that costs 0.3 us for 4 KiB: it finds torn and damaged blocks and blocks that differ. It is no
 * protection against somebody who changes them on purpose.
 */
import xxhash, { type XXHashAPI } from 'xxhash-wasm';

export type { XXHashAPI };

/** XXH64 of bytes, with a seed (0 if it is left out). */
export type Hash64 = XXHashAPI['h64Raw'];

let loaded: Promise<XXHashAPI> | undefined;

/** The functions: WebAssembly, compiled once, at the first call. */
export function loadXxhash(): Promise<XXHashAPI> {
  loaded ??= xxhash();
  return loaded;
}

/** The one function that most users need. */
export async function loadHash64(): Promise<Hash64> {
  return (await loadXxhash()).h64Raw;
}
