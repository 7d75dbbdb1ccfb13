/**
 * The superblock of a record log (record-log.md 1): which lives of the log count, and what the log's user adds.
 *
 * Two copies, each in physical blocks of its own; the older is overwritten, then synced: one whole copy always stands.
 * A copy has 64 KiB, of which what is used is written: `BSsb` u32 | format version u32 | JSON bytes u32 | zero u32 | checksum u64 | JSON.
 */
import { z } from 'zod';
import { viewOf } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import type { Hash64 } from './record-format.ts';

export const superblockBytes = 65536;
/** bytes before the first record: the two copies */
export const superblockAreaBytes = 2 * superblockBytes;

const magic = 0x4253_7362;
/** lives that may count at once: openings since the overlay was last emptied */
export const livesMax = 200;
const formatVersion = 1;
const headBytes = 24;

const hex64 = z.string().regex(/^[0-9a-f]{16}$/);
const count = z.int().nonnegative();

/** A stretch of the log written by one opening. Its records chain from the salt. */
const lifeSchema = z.strictObject({
  salt: hex64,
  /** bytes: where its first record stands */
  start: count,
  firstSequence: count,
  /** of an ended life: its last record (null chain: it has none) */
  end: z.strictObject({ sequence: count, chain: hex64, position: count }).nullable(),
});

const superblockSchema = z.strictObject({
  volume: z.string(),
  generation: z.string(),
  /** of the superblock itself: the higher copy is the newer */
  sequence: count,
  bootId: z.string(),
  lives: z.array(lifeSchema).max(livesMax),
  /** the last record known durable when this was written */
  syncedTo: count,
  /** what the log's user adds */
  user: z.record(z.string(), z.json()),
});

export type Life = z.infer<typeof lifeSchema>;
export type Superblock = z.infer<typeof superblockSchema>;

/** Encodes one copy. */
export function encodeSuperblock(hash: Hash64, superblock: Superblock): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(superblock));
  if (json.length > superblockBytes - headBytes) {
    throw new BlockError('no-space', `the superblock of a record log would need ${json.length + headBytes} bytes`);
  }
  const bytes = new Uint8Array(Math.ceil((json.length + headBytes) / 4096) * 4096);
  const view = viewOf(bytes);
  view.setUint32(0, magic);
  view.setUint32(4, formatVersion);
  view.setUint32(8, json.length);
  bytes.set(json, headBytes);
  view.setBigUint64(16, hash(bytes.subarray(headBytes, headBytes + json.length), BigInt(formatVersion)));
  return bytes;
}

/**
 * Decodes one copy; null if it is torn or was never written.
 * @throws BlockError bad-image if it is whole but of a version that this program does not know
 */
export function decodeSuperblock(hash: Hash64, bytes: Uint8Array, where: string): Superblock | null {
  const view = viewOf(bytes);
  const jsonBytes = view.getUint32(8);
  if (view.getUint32(0) !== magic || jsonBytes > superblockBytes - headBytes) return null;
  const version = view.getUint32(4);
  const json = bytes.subarray(headBytes, headBytes + jsonBytes);
  if (view.getBigUint64(16) !== hash(json, BigInt(version))) return null;
  if (version !== formatVersion) {
    throw new BlockError('bad-image', `${where}: record log format ${version}; this program knows ${formatVersion}`);
  }
  const parsed = superblockSchema.safeParse(JSON.parse(new TextDecoder().decode(json)));
  return parsed.success ? parsed.data : null;
}
