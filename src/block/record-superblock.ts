/**
 * The superblock of a record log (record-log.md 1): which lives of the log count, and what the log's user adds.
 *
 * Two copies, each in physical blocks of its own; the older is overwritten, then synced: one whole copy always stands.
 * A copy has 64 KiB, of which what is used is written:
 *
 *     0 magic `BSsb` u32 | 4 format version u32 | 8 JSON bytes u32 | 12 zero u32 | 16 checksum u64 | 24 JSON
 */
import { z } from 'zod';
import { isZero, viewOf } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { Hash64 } from '../util/xxhash.ts';
import { alignUp, physicalBlockBytes } from './record-format.ts';

export const superblockBytes = 65536;
/** bytes before the first record: the two copies */
export const superblockAreaBytes = 2 * superblockBytes;

const magic = 0x4253_7362;
/** lives that may count at once */
export const livesMax = 200;
const formatVersion = 1;
const headBytes = 24;
/** what a disk writes whole or not at all */
const sectorBytes = 512;

const hex64 = z.string().regex(/^[0-9a-f]{16}$/);
const count = z.int().nonnegative();

/** A stretch of the log, written in one go from its start. Its records chain from the salt. */
const lifeSchema = z.strictObject({
  salt: hex64,
  /** bytes: where its first record stands */
  start: count,
  firstSequence: count,
  /** of an ended life: its last record, and the bytes up to which it goes */
  end: z.strictObject({ sequence: count, chain: hex64, position: count }).nullable(),
});

const superblockSchema = z.strictObject({
  volume: z.string(),
  generation: z.string(),
  /** of the superblock itself: the higher copy is the newer */
  sequence: count,
  bootId: z.string(),
  /** False: what was written in this boot is whole only as long as the boot lasts (record-log.md 8, `sync=false`). */
  clean: z.boolean(),
  lives: z.array(lifeSchema).max(livesMax),
  /** the last record known durable when this was written */
  syncedTo: count,
  /** what the log's user adds */
  user: z.record(z.string(), z.json()),
});

export type Life = z.infer<typeof lifeSchema>;
export type Superblock = z.infer<typeof superblockSchema>;

/** What a log is read from. */
export interface Readable {
  readonly length: number;
  read(offset: number, into: Uint8Array): Done;
}

const encoder = new TextEncoder();

/** Encodes one copy. */
export function encodeSuperblock(hash: Hash64, superblock: Superblock): Uint8Array {
  const json = JSON.stringify(superblock);
  // Of a character that is no ASCII there is more than one byte.
  const bytes = new Uint8Array(alignUp(headBytes + 3 * json.length));
  const { written } = encoder.encodeInto(json, bytes.subarray(headBytes));
  if (written > superblockBytes - headBytes) {
    throw new BlockError('no-space', `the superblock of a record log would need ${written + headBytes} bytes`);
  }
  const view = viewOf(bytes);
  view.setUint32(0, magic);
  view.setUint32(4, formatVersion);
  view.setUint32(8, written);
  view.setBigUint64(16, hash(bytes.subarray(headBytes, headBytes + written), BigInt(formatVersion)));
  return bytes.subarray(0, alignUp(headBytes + written));
}

/**
 * Decodes one copy; null if it is torn, was never written, or makes no sense.
 * @throws BlockError bad-image if it is whole but of a version that this program does not know
 */
export function decodeSuperblock(hash: Hash64, bytes: Uint8Array, where: string): Superblock | null {
  const view = viewOf(bytes);
  // What a later version keeps in its JSON is its own affair; these first 24 bytes stay as they are.
  const jsonBytes = view.getUint32(8);
  if (view.getUint32(0) !== magic || jsonBytes > superblockBytes - headBytes) return null;
  const version = view.getUint32(4);
  const json = bytes.subarray(headBytes, headBytes + jsonBytes);
  if (view.getBigUint64(16) !== hash(json, BigInt(version))) return null;
  if (version !== formatVersion) {
    throw new BlockError('bad-image', `${where}: record log format ${version}; this program knows ${formatVersion}`);
  }
  const parsed = superblockSchema.safeParse(parseJson(new TextDecoder().decode(json)));
  return parsed.success && isOrdered(parsed.data.lives) ? parsed.data : null;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Only the last life may be without an end, and each begins behind the one before it. */
function isOrdered(lives: readonly Life[]): boolean {
  let sequence = 0;
  return lives.every(({ firstSequence, start, end }, index) => {
    if (firstSequence <= sequence || start < superblockAreaBytes) return false;
    if (end === null) return index === lives.length - 1;
    sequence = end.sequence;
    return end.sequence >= firstSequence && end.position >= start;
  });
}

/**
 * The newer whole copy, or null for a file that never was a log: one that is empty or reads as zeroes there.
 * @param where for messages
 * @throws BlockError bad-image: something else, or both copies damaged; a log of another version
 */
export async function readSuperblock(file: Readable, hash: Hash64, where: string): Promise<Superblock | null> {
  const area = new Uint8Array(Math.min(superblockAreaBytes, file.length));
  await file.read(0, area);
  let newest: Superblock | null = null;
  for (let at = 0; at + superblockBytes <= area.length; at += superblockBytes) {
    const copy = decodeSuperblock(hash, area.subarray(at, at + superblockBytes), where);
    if (copy !== null && (newest === null || copy.sequence > newest.sequence)) newest = copy;
  }
  if (newest === null && !isZero(area) && !isTornFirst(area)) {
    throw new BlockError('bad-image', `${where}: not a record log, or both copies of its superblock are damaged`);
  }
  return newest;
}

/**
 * A new log writes its first superblock into the second place and then into the first, before any record: a file with
 * nothing in the first and a torn one in the second never had a record.
 */
function isTornFirst(area: Uint8Array): boolean {
  const second = area.subarray(superblockBytes);
  if (!isZero(area.subarray(0, superblockBytes)) || !isZero(second.subarray(physicalBlockBytes))) return false;
  return viewOf(second).getUint32(0) === magic || isZero(second.subarray(0, sectorBytes));
}

/** The one place where a copy of this sequence stands: a new one replaces the older of the two. */
export function superblockPosition(sequence: number): number {
  return (sequence % 2) * superblockBytes;
}
