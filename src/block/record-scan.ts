/**
 * Reading a record log back: which records count, and whether what broke off is a torn end or damage (record-log.md 2).
 */
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import {
  chainAfter,
  checksumHolds,
  decodeHeader,
  type Hash64,
  type RecordHeader,
  recordHeaderBytes,
  recordMagic,
  recordPayloadBytesMax,
} from './record-format.ts';
import { type Life, type Superblock, superblockAreaBytes } from './record-superblock.ts';

/** Told each record that counts, in the order of its sequence. */
export type RecordVisitor = (header: RecordHeader, payloadPosition: number) => void;

export interface ScanEnd {
  /** the last record's sequence; below the first of the last life if that one has none */
  sequence: number;
  /** bytes: behind the last record */
  position: number;
  chain: bigint;
}

interface Source {
  readonly length: number;
  read(offset: number, into: Uint8Array): Done;
}

const physicalBlockBytes = 4096;
const windowBytes = 4 * 1024 * 1024;

/** A window over the file that moves forward, so that small records do not cost a read each. */
class Window {
  private readonly source: Source;
  private bytes = new Uint8Array(0);
  private start = 0;

  constructor(source: Source) {
    this.source = source;
  }

  /** The bytes from `position`: `length` of them, or fewer at the end of the file. */
  async at(position: number, length: number): Promise<Uint8Array> {
    const end = Math.min(position + length, this.source.length);
    if (end <= position) return this.bytes.subarray(0, 0);
    if (position < this.start || end > this.start + this.bytes.length) {
      const size = Math.min(Math.max(windowBytes, end - position), this.source.length - position);
      this.bytes = new Uint8Array(size);
      this.start = position;
      await this.source.read(position, this.bytes);
    }
    return this.bytes.subarray(position - this.start, end - this.start);
  }
}

/**
 * Visits every record of the superblock's lives.
 * @throws BlockError bad-image if records that were known durable are missing or broken
 */
export async function scanLives(
  source: Source,
  hash: Hash64,
  superblock: Superblock,
  where: string,
  visit: RecordVisitor,
): Promise<ScanEnd> {
  const window = new Window(source);
  let end: ScanEnd = { sequence: superblock.syncedTo, position: superblockAreaBytes, chain: 0n };
  for (const life of superblock.lives) {
    end = await scanLife(window, hash, life, visit);
    if (life.end !== null) {
      const { sequence, chain } = life.end;
      if (end.sequence !== sequence || end.chain !== BigInt(`0x${chain}`)) throw damage(where, end.sequence, sequence);
      end.position = life.end.position;
      continue;
    }
    const durable = Math.max(superblock.syncedTo, await highestSynced(window, source.length, hash, life, end));
    if (durable > end.sequence) throw damage(where, end.sequence, durable);
  }
  return end;
}

function damage(where: string, last: number, durable: number): BlockError {
  return new BlockError(
    'bad-image',
    `${where}: damaged: record ${last + 1} does not hold, though records up to ${durable} were durable; ` +
      'the checkpoint that rests on them does not exist any more',
  );
}

async function scanLife(window: Window, hash: Hash64, life: Life, visit: RecordVisitor): Promise<ScanEnd> {
  const salt = BigInt(`0x${life.salt}`);
  const end: ScanEnd = { sequence: life.firstSequence - 1, position: life.start, chain: salt };
  for (;;) {
    if (life.end !== null && end.sequence === life.end.sequence) return end;
    const aligned = Math.ceil(end.position / physicalBlockBytes) * physicalBlockBytes;
    const next =
      (await recordAt(window, hash, end.position, salt, end)) ??
      (aligned === end.position ? null : await recordAt(window, hash, aligned, salt, end));
    if (next === null) return end;
    visit(next.header, next.position + recordHeaderBytes);
    end.sequence = next.header.sequence;
    end.position = next.position + recordHeaderBytes + next.header.payloadBytes;
    end.chain = next.chain;
  }
}

async function recordAt(
  window: Window,
  hash: Hash64,
  position: number,
  salt: bigint,
  before: ScanEnd,
): Promise<{ header: RecordHeader; position: number; chain: bigint } | null> {
  const header = decodeHeader(await window.at(position, recordHeaderBytes));
  if (header === null || header.sequence !== before.sequence + 1) return null;
  const size = recordHeaderBytes + header.payloadBytes;
  const record = await window.at(position, size);
  if (record.length < size || !checksumHolds(hash, record, salt)) return null;
  const chain = chainAfter(hash, record, before.chain);
  return chain === null ? null : { header, position, chain };
}

/** The highest `syncedTo` of any record of this life behind the break whose own checksum holds; 0: there is none. */
async function highestSynced(window: Window, length: number, hash: Hash64, life: Life, end: ScanEnd): Promise<number> {
  const salt = BigInt(`0x${life.salt}`);
  const magic = Uint8Array.of(
    recordMagic >>> 24,
    (recordMagic >>> 16) & 255,
    (recordMagic >>> 8) & 255,
    recordMagic & 255,
  );
  let highest = 0;
  const step = windowBytes - recordPayloadBytesMax - recordHeaderBytes;
  for (let start = end.position; start < length; start += step) {
    const bytes = await window.at(start, windowBytes);
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = text.indexOf(magic); at !== -1 && at < step; at = text.indexOf(magic, at + 1)) {
      const header = decodeHeader(bytes.subarray(at));
      if (header === null || header.syncedTo <= highest) continue;
      const record = bytes.subarray(at, at + recordHeaderBytes + header.payloadBytes);
      if (record.length === recordHeaderBytes + header.payloadBytes && checksumHolds(hash, record, salt)) {
        highest = header.syncedTo;
      }
    }
  }
  return highest;
}
