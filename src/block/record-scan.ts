/**
 * Reading a record log back: which records count, and whether what broke off is a torn end or damage (record-log.md 2).
 */

import type { Hash64 } from '../util/xxhash.ts';
import {
  alignUp,
  chainAfter,
  decodeHeader,
  type RecordHeader,
  recordHeaderBytes,
  recordMagic,
} from './record-format.ts';
import { type Life, type Readable, type Superblock, superblockAreaBytes } from './record-superblock.ts';

/** Told each record that counts, in the order of its sequence. */
export type RecordVisitor = (header: RecordHeader, payloadPosition: number) => void;

export interface ScanEnd {
  /** the last record that counts; below the first of the last life if that one has none */
  sequence: number;
  /** bytes: behind that record */
  position: number;
  /** the chain value of that record */
  chain: bigint;
}

export interface Scanned extends ScanEnd {
  /** the last sequence that was known durable */
  readonly durable: number;
  /** records that were known durable are missing or broken: this is no torn end */
  readonly damaged: boolean;
}

/** bytes of the file that are looked at together */
const windowBytes = 4 * 1024 * 1024;
const magicBytes = Uint8Array.of(
  recordMagic >>> 24,
  (recordMagic >>> 16) & 255,
  (recordMagic >>> 8) & 255,
  recordMagic & 255,
);

/** A window over the file that moves forward, so that small records do not cost a read each. */
class Window {
  readonly length: number;
  private readonly source: Readable;
  private bytes = new Uint8Array(0);
  private start = 0;

  constructor(source: Readable) {
    this.source = source;
    this.length = source.length;
  }

  /** The bytes from `position`: `length` of them, or fewer at the end of the file. */
  at(position: number, length: number): Uint8Array | Promise<Uint8Array> {
    const end = Math.min(position + length, this.length);
    if (end <= position) return this.bytes.subarray(0, 0);
    if (position >= this.start && end <= this.start + this.bytes.length) {
      return this.bytes.subarray(position - this.start, end - this.start);
    }
    return this.moveTo(position, end);
  }

  private async moveTo(position: number, end: number): Promise<Uint8Array> {
    this.bytes = new Uint8Array(Math.min(Math.max(windowBytes, end - position), this.length - position));
    this.start = position;
    await this.source.read(position, this.bytes);
    return this.bytes.subarray(0, end - position);
  }
}

/** Visits every record of the superblock's lives, up to where they break off. */
export async function scanLives(
  source: Readable,
  hash: Hash64,
  superblock: Superblock,
  visit: RecordVisitor,
): Promise<Scanned> {
  const window = new Window(source);
  let end: ScanEnd = { sequence: superblock.syncedTo, position: superblockAreaBytes, chain: 0n };
  for (const life of superblock.lives) {
    end = await scanLife(window, hash, life, visit);
    if (life.end !== null) {
      const whole = end.sequence === life.end.sequence && end.chain === BigInt(`0x${life.end.chain}`);
      if (!whole) return { ...end, durable: life.end.sequence, damaged: true };
      continue;
    }
    const durable = Math.max(superblock.syncedTo, await highestSynced(window, hash, life, end.position));
    return { ...end, durable, damaged: durable > end.sequence };
  }
  return { ...end, durable: end.sequence, damaged: false };
}

async function scanLife(window: Window, hash: Hash64, life: Life, visit: RecordVisitor): Promise<ScanEnd> {
  const salt = BigInt(`0x${life.salt}`);
  const end: ScanEnd = { sequence: life.firstSequence - 1, position: life.start, chain: salt };
  while (life.end === null || end.sequence < life.end.sequence) {
    const aligned = alignUp(end.position);
    // The first record after a sync begins a physical block; the others follow directly.
    const found =
      (await visitAt(window, hash, end.position, salt, end, visit)) ||
      (aligned !== end.position && (await visitAt(window, hash, aligned, salt, end, visit)));
    if (!found) break;
  }
  return end;
}

/** Visits the record at `position` and moves `end` behind it, if there is one that follows. */
async function visitAt(
  window: Window,
  hash: Hash64,
  position: number,
  salt: bigint,
  end: ScanEnd,
  visit: RecordVisitor,
): Promise<boolean> {
  const head = window.at(position, recordHeaderBytes);
  const header = decodeHeader(hash, head instanceof Promise ? await head : head, salt);
  if (header === null || header.sequence !== end.sequence + 1) return false;
  const size = recordHeaderBytes + header.payloadBytes;
  const whole = window.at(position, size);
  const record = whole instanceof Promise ? await whole : whole;
  const chain = record.length < size ? null : chainAfter(hash, record, end.chain);
  if (chain === null) return false;
  visit(header, position + recordHeaderBytes);
  end.sequence = header.sequence;
  end.position = position + size;
  end.chain = chain;
  return true;
}

/** The highest `syncedTo` of any header of this life at or behind `from` that holds; 0: there is none. */
async function highestSynced(window: Window, hash: Hash64, life: Life, from: number): Promise<number> {
  const salt = BigInt(`0x${life.salt}`);
  let highest = 0;
  const step = windowBytes - recordHeaderBytes;
  for (let start = from; start < window.length; start += step) {
    const bytes = await window.at(start, windowBytes);
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = text.indexOf(magicBytes); at !== -1; at = text.indexOf(magicBytes, at + 1)) {
      const header = decodeHeader(hash, bytes.subarray(at, at + recordHeaderBytes), salt);
      if (header !== null) highest = Math.max(highest, header.syncedTo);
    }
  }
  return highest;
}

/** What is known of a log whose records are not looked at. */
export function notScanned({ lives, syncedTo }: Superblock): Scanned {
  const last = lives.at(-1);
  const position = last?.end?.position ?? last?.start ?? superblockAreaBytes;
  const sequence = Math.max(syncedTo, last?.end?.sequence ?? last?.firstSequence ?? 0);
  return { sequence, position, chain: 0n, durable: sequence, damaged: false };
}
