/**
 * The bytes of a record of a record log (docs/record-log.md draws them). Pure: bytes in, values out.
 *
 * A record is a header of 80 bytes and its payload, all integers big-endian:
 *
 *     0 magic u32 | 4 kind u32 | 8 sequence u64 | 16 epoch u64 | 24 offset u64 | 32 length u64 | 40 syncedTo u64
 *     48 payload bytes u32 | 52 zero u32 | 56 header check u64 | 64 checksum u64 | 72 chain u64 | 80 payload
 *
 * `header check` is over bytes 0..56, seeded by the life's salt: a header of another life does not hold.
 * `checksum` is over the payload, seeded by the header check.
 * `chain` is over the checksum, seeded by the chain of the record before it (the first: by the salt).
 */
import { getU64, putU64, viewOf } from '../util/bytes.ts';
import type { Hash64 } from '../util/xxhash.ts';

/** bytes that a torn write may damage together */
export const physicalBlockBytes = 4096;

/** The start of the physical block at or after a position. */
export function alignUp(position: number): number {
  return Math.ceil(position / physicalBlockBytes) * physicalBlockBytes;
}

export const recordKinds = { data: 1, zero: 2, seal: 3 } as const;
export type RecordKind = (typeof recordKinds)[keyof typeof recordKinds];

export const recordHeaderBytes = 80;
/** bytes of one record's payload; longer writes become several records */
export const recordPayloadBytesMax = 1024 * 1024;
/** bytes of a payload that memory for records has room for, at least */
export const spareBytesMin = 65536;
/** `BSrl` */
export const recordMagic = 0x4253_726c;
const headerCheckAt = 56;
const checksumAt = 64;
const chainAt = 72;

export interface RecordHeader {
  kind: RecordKind;
  sequence: number;
  epoch: number;
  /** bytes: the place in the disk that the record is about */
  offset: number;
  /** bytes of the disk that it covers */
  length: number;
  /** the last sequence that was known durable when the record was written */
  syncedTo: number;
  payloadBytes: number;
}

/** Memory in which records are made, one after the other. Its views are kept: they cost as much as an encoding. */
export class RecordBuffer {
  /** bytes of the longest payload */
  readonly payloadBytesMax: number;
  readonly view: DataView;
  /** what the header check is over */
  readonly checked: Uint8Array;
  readonly checksum: Uint8Array;
  /** the record that is in the making, and its payload */
  record: Uint8Array;
  payload: Uint8Array;
  private readonly memory: Uint8Array;

  constructor(payloadBytesMax: number) {
    this.memory = new Uint8Array(recordHeaderBytes + payloadBytesMax);
    this.payloadBytesMax = payloadBytesMax;
    this.view = viewOf(this.memory);
    this.checked = this.memory.subarray(0, headerCheckAt);
    this.checksum = this.memory.subarray(checksumAt, chainAt);
    this.record = this.memory;
    this.payload = this.memory.subarray(recordHeaderBytes);
  }

  /** Begins a record with a copy of `payload`, which is at most `payloadBytesMax` long. */
  begin(payload: Uint8Array): void {
    if (this.payload.length !== payload.length) {
      this.record = this.memory.subarray(0, recordHeaderBytes + payload.length);
      this.payload = this.record.subarray(recordHeaderBytes);
    }
    this.payload.set(payload);
  }
}

/** Writes the header of the record that was begun in `buffer`, and returns its chain value. */
export function encodeRecord(
  hash: Hash64,
  buffer: RecordBuffer,
  header: RecordHeader,
  salt: bigint,
  previousChain: bigint,
): bigint {
  const { view } = buffer;
  view.setUint32(0, recordMagic);
  view.setUint32(4, header.kind);
  putU64(view, 8, header.sequence);
  putU64(view, 16, header.epoch);
  putU64(view, 24, header.offset);
  putU64(view, 32, header.length);
  putU64(view, 40, header.syncedTo);
  view.setUint32(48, header.payloadBytes);
  view.setUint32(52, 0);
  const headerCheck = hash(buffer.checked, salt);
  view.setBigUint64(headerCheckAt, headerCheck);
  view.setBigUint64(checksumAt, hash(buffer.payload, headerCheck));
  const chain = hash(buffer.checksum, previousChain);
  view.setBigUint64(chainAt, chain);
  return chain;
}

/** The header at the start of `bytes`, or null where there is none that was written in the life of `salt`. */
export function decodeHeader(hash: Hash64, bytes: Uint8Array, salt: bigint): RecordHeader | null {
  if (bytes.length < recordHeaderBytes) return null;
  const view = viewOf(bytes);
  if (view.getUint32(0) !== recordMagic) return null;
  if (view.getBigUint64(headerCheckAt) !== hash(bytes.subarray(0, headerCheckAt), salt)) return null;
  const kind = view.getUint32(4);
  if (kind !== recordKinds.data && kind !== recordKinds.zero && kind !== recordKinds.seal) return null;
  const header = {
    kind,
    sequence: getU64(view, 8),
    epoch: getU64(view, 16),
    offset: getU64(view, 24),
    length: getU64(view, 32),
    syncedTo: getU64(view, 40),
    payloadBytes: view.getUint32(48),
  };
  if (header.payloadBytes > recordPayloadBytesMax || !Object.values(header).every(Number.isSafeInteger)) return null;
  return header;
}

/**
 * The chain value of a whole record whose header holds, or null if its payload is not what was written, or if it does
 * not follow `previousChain`.
 */
export function chainAfter(hash: Hash64, record: Uint8Array, previousChain: bigint): bigint | null {
  const view = viewOf(record);
  const checksum = hash(record.subarray(recordHeaderBytes), view.getBigUint64(headerCheckAt));
  if (view.getBigUint64(checksumAt) !== checksum) return null;
  const chain = hash(record.subarray(checksumAt, chainAt), previousChain);
  return view.getBigUint64(chainAt) === chain ? chain : null;
}
