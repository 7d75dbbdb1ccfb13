/**
 * The client's side of the wire, by hand: what a test sends byte for byte, and what it reads of the answers.
 * Written from doc/proto.md, apart from the codecs of the library, so that one is checked by the other.
 */
import assert from 'node:assert/strict';
import * as nbd from '../../src/nbd/constants.ts';

export function bytes(...parts: (Uint8Array | readonly number[] | string)[]): Uint8Array {
  return Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : Uint8Array.from(part))));
}

export function u16(value: number): Uint8Array {
  const into = Buffer.alloc(2);
  into.writeUInt16BE(value);
  return into;
}

export function u32(value: number): Uint8Array {
  const into = Buffer.alloc(4);
  into.writeUInt32BE(value);
  return into;
}

export function u64(value: number | bigint): Uint8Array {
  const into = Buffer.alloc(8);
  into.writeBigUInt64BE(BigInt(value));
  return into;
}

export const clientFlags = (flags = 3) => u32(flags);

export function option(type: number, data: Uint8Array = new Uint8Array(0), length = data.length): Uint8Array {
  return bytes('IHAVEOPT', u32(type), u32(length), data);
}

export function infoData(name: string, requests: readonly number[] = []): Uint8Array {
  return bytes(u32(Buffer.byteLength(name)), name, u16(requests.length), ...requests.map(u16));
}

export function contextData(name: string, queries: readonly string[]): Uint8Array {
  const list = queries.map((query) => bytes(u32(Buffer.byteLength(query)), query));
  return bytes(u32(Buffer.byteLength(name)), name, u32(queries.length), ...list);
}

export interface RequestFields {
  readonly type: number;
  readonly cookie?: number | bigint;
  readonly offset?: number | bigint;
  readonly length?: number;
  readonly flags?: number;
  readonly payload?: Uint8Array;
  readonly magic?: number;
}

export function request(fields: RequestFields): Uint8Array {
  const { type, cookie = 0, offset = 0, flags = 0, payload, magic = nbd.NBD_REQUEST_MAGIC } = fields;
  const length = fields.length ?? payload?.length ?? 0;
  return bytes(u32(magic), u16(flags), u16(type), u64(cookie), u64(offset), u32(length), payload ?? []);
}

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** Reads a server's handshake output: the greeting, then option replies until one ends the list. */
export function optionReplies(output: Uint8Array): { replies: OptionReply[]; rest: Buffer } {
  const all = Buffer.from(output);
  assert.equal(all.subarray(0, 16).toString(), 'NBDMAGICIHAVEOPT');
  assert.equal(all.readUInt16BE(16), 3);
  const replies: OptionReply[] = [];
  let at = 18;
  while (all.length - at >= 20 && all.readBigUInt64BE(at) === 0x3e889045565a9n) {
    const length = all.readUInt32BE(at + 16);
    replies.push({
      option: all.readUInt32BE(at + 8),
      type: all.readUInt32BE(at + 12),
      data: all.subarray(at + 20, at + 20 + length),
    });
    at += 20 + length;
  }
  return { replies, rest: all.subarray(at) };
}

/** What was answered to one request. */
export interface Answer {
  readonly cookie: bigint;
  error: number;
  message: string;
  data: Buffer | null;
  /** context id -> descriptors */
  readonly status: Map<number, { length: number; flags: number }[]>;
  readonly structured: boolean;
}

/**
 * Reads transmission output; every reply must be whole and well formed.
 * @param reads lengths of the reads, by cookie: a simple reply does not say whether data follows
 */
export function answers(output: Uint8Array, reads: ReadonlyMap<bigint, number>): Answer[] {
  const all = Buffer.from(output);
  const done: Answer[] = [];
  const open = new Map<bigint, Answer>();
  let at = 0;
  const take = (count: number) => {
    assert.ok(at + count <= all.length, `output ends within a reply at ${at}`);
    at += count;
    return all.subarray(at - count, at);
  };
  while (at < all.length) {
    const magic = take(4).readUInt32BE();
    if (magic === nbd.NBD_SIMPLE_REPLY_MAGIC) {
      const error = take(4).readUInt32BE();
      const cookie = take(8).readBigUInt64BE();
      const data = error === 0 && reads.has(cookie) ? take(reads.get(cookie) ?? 0) : null;
      done.push({ cookie, error, message: '', data, status: new Map(), structured: false });
      continue;
    }
    assert.equal(magic, nbd.NBD_STRUCTURED_REPLY_MAGIC, `bad reply magic at ${at - 4}`);
    const flags = take(2).readUInt16BE();
    const type = take(2).readUInt16BE();
    const cookie = take(8).readBigUInt64BE();
    const payload = take(take(4).readUInt32BE());
    const answer = open.get(cookie) ?? emptyAnswer(cookie);
    open.set(cookie, answer);
    readChunk(answer, type, payload);
    if ((flags & nbd.NBD_REPLY_FLAG_DONE) !== 0) {
      open.delete(cookie);
      done.push(answer);
    }
  }
  assert.equal(open.size, 0, 'a structured reply has no last chunk');
  return done;
}

function emptyAnswer(cookie: bigint): Answer {
  return { cookie, error: 0, message: '', data: null, status: new Map(), structured: true };
}

function readChunk(answer: Answer, type: number, payload: Buffer): void {
  if (type === nbd.NBD_REPLY_TYPE_NONE) assert.equal(payload.length, 0);
  else if (type === nbd.NBD_REPLY_TYPE_OFFSET_DATA) {
    assert.ok(payload.length >= 9, 'a content chunk describes at least one byte');
    answer.data = payload.subarray(8);
  } else if (type === nbd.NBD_REPLY_TYPE_ERROR) {
    answer.error = payload.readUInt32BE();
    assert.notEqual(answer.error, 0);
    assert.equal(payload.readUInt16BE(4), payload.length - 6);
    answer.message = payload.subarray(6).toString();
  } else if (type === nbd.NBD_REPLY_TYPE_BLOCK_STATUS) {
    const descriptors: { length: number; flags: number }[] = [];
    for (let at = 4; at < payload.length; at += 8) {
      descriptors.push({ length: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
    }
    assert.ok(descriptors.length > 0 && (payload.length - 4) % 8 === 0);
    answer.status.set(payload.readUInt32BE(), descriptors);
  } else assert.fail(`unknown chunk type ${type}`);
}
