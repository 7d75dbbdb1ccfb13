/**
 * The bytes of a record log (docs/record-log.md draws them): records and the superblock. Pure: bytes in, values out.
 *
 * A record is a header of 72 bytes and its payload, all integers big-endian:
 *
 *     0 magic u32 | 4 kind u32 | 8 sequence u64 | 16 epoch u64 | 24 offset u64 | 32 length u64 | 40 syncedTo u64
 *     48 payload bytes u32 | 52 zero u32 | 56 checksum u64 | 64 chain u64 | 72 payload
 *
 * `checksum` is over bytes 0..56 and the payload, seeded by the life's salt: a record of another life does not hold.
 * `chain` is over `checksum`, seeded by the chain of the record before it (the first: by the salt).
 */
import xxhash, { type XXHashAPI } from 'xxhash-wasm';
import { getU64, putU64, viewOf } from '../util/bytes.ts';

/** XXH64 with a seed; loaded once. */
export type Hash64 = XXHashAPI['h64Raw'];

let loaded: Promise<Hash64> | undefined;
/** The hash function: WebAssembly, compiled at the first call. */
export function loadHash64(): Promise<Hash64> {
  loaded ??= xxhash().then((api) => api.h64Raw);
  return loaded;
}

export const recordKinds = { data: 1, zero: 2, seal: 3 } as const;
export type RecordKind = (typeof recordKinds)[keyof typeof recordKinds];

export const recordHeaderBytes = 72;
/** bytes of one record's payload; longer writes become several records */
export const recordPayloadBytesMax = 1024 * 1024;
/** `BSrl` */
export const recordMagic = 0x4253_726c;
const checkedHeaderBytes = 56;

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

/**
 * Writes the header for `payload`, which already stands in `into` behind it, and returns the record's chain value.
 * @param into header and payload, exactly
 */
export function encodeRecord(
  hash: Hash64,
  into: Uint8Array,
  header: RecordHeader,
  salt: bigint,
  previousChain: bigint,
): bigint {
  const view = viewOf(into);
  view.setUint32(0, recordMagic);
  view.setUint32(4, header.kind);
  putU64(view, 8, header.sequence);
  putU64(view, 16, header.epoch);
  putU64(view, 24, header.offset);
  putU64(view, 32, header.length);
  putU64(view, 40, header.syncedTo);
  view.setUint32(48, header.payloadBytes);
  view.setUint32(52, 0);
  const checksum = checksumOf(hash, into, salt);
  view.setBigUint64(56, checksum);
  const chain = hash(into.subarray(56, 64), previousChain);
  view.setBigUint64(64, chain);
  return chain;
}

function checksumOf(hash: Hash64, record: Uint8Array, salt: bigint): bigint {
  return hash(record.subarray(recordHeaderBytes), hash(record.subarray(0, checkedHeaderBytes), salt));
}

/** The header at the start of `bytes`, or null where there is no plausible one. Its checksums are not looked at. */
export function decodeHeader(bytes: Uint8Array): RecordHeader | null {
  if (bytes.length < recordHeaderBytes) return null;
  const view = viewOf(bytes);
  if (view.getUint32(0) !== recordMagic) return null;
  const kind = view.getUint32(4);
  if (kind !== recordKinds.data && kind !== recordKinds.zero && kind !== recordKinds.seal) return null;
  const payloadBytes = view.getUint32(48);
  const header = {
    kind,
    sequence: getU64(view, 8),
    epoch: getU64(view, 16),
    offset: getU64(view, 24),
    length: getU64(view, 32),
    syncedTo: getU64(view, 40),
    payloadBytes,
  };
  if (payloadBytes > recordPayloadBytesMax || view.getUint32(52) !== 0) return null;
  if (!Object.values(header).every(Number.isSafeInteger)) return null;
  return header;
}

/** The record's own checksum holds in the life of `salt`. `record` is header and payload, exactly. */
export function checksumHolds(hash: Hash64, record: Uint8Array, salt: bigint): boolean {
  return viewOf(record).getBigUint64(56) === checksumOf(hash, record, salt);
}

/** The chain value of a record, or null if it does not follow `previousChain`. Its own checksum must have been checked. */
export function chainAfter(hash: Hash64, record: Uint8Array, previousChain: bigint): bigint | null {
  const chain = hash(record.subarray(56, 64), previousChain);
  return viewOf(record).getBigUint64(64) === chain ? chain : null;
}
