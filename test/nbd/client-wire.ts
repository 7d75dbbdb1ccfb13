/**
 * The server's side of the wire, by hand, and a server that plays a script over a real unix socket: for tests of the
 * client. Written from doc/proto.md, apart from the codecs of the library.
 */
import assert from 'node:assert/strict';
import * as net from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { SocketAddress } from '../../src/host/host.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { cleanup } from '../support/cleanup.ts';
import { temporaryFolder } from '../support/temp.ts';
import { bytes, u16, u32, u64 } from './wire.ts';

/** HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, FAST_ZERO */
export const allFlags = 1 | 4 | 8 | 32 | 64 | 2048;

export const greeting = (flags = 3): Uint8Array => bytes('NBDMAGICIHAVEOPT', u16(flags));

export function optionReply(option: number, type: number, data: Uint8Array | string = ''): Uint8Array {
  const payload = bytes(data);
  return bytes(u64(0x3e889045565a9n), u32(option), u32(type), u32(payload.length), payload);
}

export const infoExport = (size: number | bigint, flags = allFlags): Uint8Array => bytes(u16(0), u64(size), u16(flags));

export const infoBlockSize = (minimum: number, preferred: number, maximum: number): Uint8Array =>
  bytes(u16(3), u32(minimum), u32(preferred), u32(maximum));

export type Cookie = bigint;

export const simpleReply = (cookie: Cookie, errno = 0, data: Uint8Array | readonly number[] = []): Uint8Array =>
  bytes(u32(nbd.NBD_SIMPLE_REPLY_MAGIC), u32(errno), u64(cookie), data);

export function chunk(
  cookie: Cookie,
  type: number,
  payload: Uint8Array,
  flags = 1,
  length = payload.length,
): Uint8Array {
  return bytes(u32(nbd.NBD_STRUCTURED_REPLY_MAGIC), u16(flags), u16(type), u64(cookie), u32(length), payload);
}

export const dataChunk = (cookie: Cookie, offset: number, data: Uint8Array, flags = 1): Uint8Array =>
  chunk(cookie, nbd.NBD_REPLY_TYPE_OFFSET_DATA, bytes(u64(offset), data), flags);

export const holeChunk = (cookie: Cookie, offset: number, size: number, flags = 1): Uint8Array =>
  chunk(cookie, nbd.NBD_REPLY_TYPE_OFFSET_HOLE, bytes(u64(offset), u32(size)), flags);

export const doneChunk = (cookie: Cookie): Uint8Array => chunk(cookie, nbd.NBD_REPLY_TYPE_NONE, new Uint8Array(0));

export const errorChunk = (cookie: Cookie, errno: number, message = '', flags = 1): Uint8Array =>
  chunk(cookie, nbd.NBD_REPLY_TYPE_ERROR, bytes(u32(errno), u16(Buffer.byteLength(message)), message), flags);

export const statusChunk = (cookie: Cookie, id: number, extents: readonly [number, number][], flags = 1): Uint8Array =>
  chunk(
    cookie,
    nbd.NBD_REPLY_TYPE_BLOCK_STATUS,
    bytes(u32(id), ...extents.flatMap(([length, status]) => [u32(length), u32(status)])),
    flags,
  );

export interface SeenRequest {
  readonly flags: number;
  readonly type: number;
  readonly cookie: Cookie;
  readonly offset: number;
  readonly length: number;
  readonly payload: Buffer;
}

/** One request from the front of what a client sent; null: it is not whole. */
export function parseRequest(from: Buffer): { request: SeenRequest; bytes: number } | null {
  if (from.length < 28) return null;
  assert.equal(from.readUInt32BE(0), nbd.NBD_REQUEST_MAGIC);
  const type = from.readUInt16BE(6);
  const length = from.readUInt32BE(24);
  const size = 28 + (type === nbd.NBD_CMD_WRITE ? length : 0);
  if (from.length < size) return null;
  const request = {
    flags: from.readUInt16BE(4),
    type,
    cookie: from.readBigUInt64BE(8),
    offset: Number(from.readBigUInt64BE(16)),
    length,
    payload: Buffer.from(from.subarray(28, size)),
  };
  return { request, bytes: size };
}

export interface Offer {
  readonly size?: number;
  readonly flags?: number;
  /** false: NBD_OPT_STRUCTURED_REPLY is unknown */
  readonly structured?: boolean;
  /** contexts that are selected if asked for */
  readonly contexts?: Readonly<Record<string, number>>;
  readonly blockSizes?: readonly [number, number, number];
}

/** One client of a scripted server. */
export class Peer {
  readonly #socket: net.Socket;
  #input = Buffer.alloc(0);
  #ended = false;
  #wake: () => void = () => undefined;

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('data', (data: Buffer) => {
      this.#input = Buffer.concat([this.#input, data]);
      this.#wake();
    });
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
    socket.on('end', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  send(...parts: Uint8Array[]): void {
    this.#socket.write(bytes(...parts));
  }

  /** Closes after what was sent. */
  end(): void {
    this.#socket.end();
  }

  /** Breaks the connection. */
  reset(): void {
    this.#socket.destroy();
  }

  /** Stops and starts reading, as a server does that hangs. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  /** Resolves when the client has closed. */
  async closed(): Promise<void> {
    while (!this.#ended) await this.#arrival();
  }

  async read(count: number): Promise<Buffer> {
    while (this.#input.length < count) {
      if (this.#ended) throw new Error(`the client closed with ${count - this.#input.length} bytes missing`);
      await this.#arrival();
    }
    const taken = this.#input.subarray(0, count);
    this.#input = this.#input.subarray(count);
    return taken;
  }

  async request(): Promise<SeenRequest> {
    for (;;) {
      const parsed = parseRequest(this.#input);
      if (parsed !== null) {
        this.#input = this.#input.subarray(parsed.bytes);
        return parsed.request;
      }
      if (this.#ended) throw new Error('the client closed');
      await this.#arrival();
    }
  }

  async requests(count: number): Promise<SeenRequest[]> {
    const all: SeenRequest[] = [];
    while (all.length < count) all.push(await this.request());
    return all;
  }

  /** Bytes that came and were not taken. */
  get unread(): number {
    return this.#input.length;
  }

  async option(): Promise<{ option: number; data: Buffer }> {
    const header = await this.read(16);
    assert.equal(header.subarray(0, 8).toString(), 'IHAVEOPT');
    return { option: header.readUInt32BE(8), data: await this.read(header.readUInt32BE(12)) };
  }

  /** A handshake that ends in the transmission phase. */
  async accept(offer: Offer = {}): Promise<void> {
    this.send(greeting());
    await this.read(4);
    for (;;) {
      const { option, data } = await this.option();
      if (option === nbd.NBD_OPT_STRUCTURED_REPLY) {
        this.send(optionReply(option, (offer.structured ?? true) ? nbd.NBD_REP_ACK : nbd.NBD_REP_ERR_UNSUP));
      } else if (option === nbd.NBD_OPT_SET_META_CONTEXT) {
        for (const [name, id] of Object.entries(offer.contexts ?? {})) {
          if (data.includes(name)) this.send(optionReply(option, nbd.NBD_REP_META_CONTEXT, bytes(u32(id), name)));
        }
        this.send(optionReply(option, nbd.NBD_REP_ACK));
      } else if (option === nbd.NBD_OPT_GO) {
        if (offer.blockSizes !== undefined) {
          this.send(optionReply(option, nbd.NBD_REP_INFO, infoBlockSize(...offer.blockSizes)));
        }
        this.send(optionReply(option, nbd.NBD_REP_INFO, infoExport(offer.size ?? 1024 * 1024, offer.flags)));
        this.send(optionReply(option, nbd.NBD_REP_ACK));
        return;
      } else this.send(optionReply(option, nbd.NBD_REP_ERR_UNSUP));
    }
  }

  #arrival(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/** Listens on a unix socket and plays the script to every client. An error in the script fails the test at its end. */
export async function scriptedServer(t: TestContext, script: (peer: Peer) => Promise<void>): Promise<SocketAddress> {
  const path = join(await temporaryFolder(t), 's');
  const sockets = new Set<net.Socket>();
  const failures: unknown[] = [];
  const server = net.createServer((socket) => {
    sockets.add(socket);
    script(new Peer(socket)).catch((error: unknown) => {
      failures.push(error);
      socket.destroy();
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(path, resolve);
  });
  cleanup(t, async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => {
      server.close(resolve);
    });
    assert.deepEqual(failures, [], 'the script of the server failed');
  });
  return { type: 'unix', path };
}
