/**
 * A client of one export of an NBD server, over one connection: the operations of a block node.
 *
 * - Requests are batched: all that are issued in one turn leave in one send. Large ones are split to what the server
 *   takes.
 * - Overlapping requests take effect in the order issued: a server that agreed on `blockstep:ordered` (pair.md 3) keeps
 *   it by itself and gets everything at once; towards any other the later one waits here.
 * - What the server did not announce is not sent.
 * - A connection that is lost fails every request, those in flight and later ones, with `connection-lost`; a server
 *   that breaks the protocol with `protocol-error`. There is no reconnecting here: the owner connects anew.
 * - Buffers are borrowed until the promise of their request settles, also when the connection breaks.
 */
import type { Host, HostStream, HostTimer, SocketAddress, StreamReceiver } from '../host/host.ts';
import { isRange } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import type { BackendFlags, NbdBackend } from './backend.ts';
import * as nbd from './constants.ts';
import { describeServer, dial, handshakeMsDefault } from './dial.ts';
import type { NbdExportInfo } from './export-info.ts';
import { HandshakeClient } from './handshake-client.ts';
import { InFlight } from './in-flight.ts';
import type { PendingRequest } from './pending.ts';
import { type PendingReplies, ReplyReader } from './reply.ts';
import { RequestWriter } from './request-writer.ts';
import { serverError, shutdownErrno } from './server-error.ts';
import { quote } from './text.ts';

/** requests in flight by default */
export const inflightDefault = 128;
export const inflightMax = 4096;
/** ms that a polite close waits for what is in flight, and then for the server to hang up */
const lastRepliesMsMax = 30_000;
const hangUpMsMax = 5000;
/** bytes of one block status request */
const statusBytesMax = 2 ** 30;
/** Flags of `NbdBackend`. */
const fua = 1;
const noHole = 2;
const fastZero = 4;

export interface NbdConnectOptions {
  readonly address: SocketAddress;
  /** empty: the server's default export */
  readonly exportName: string;
  /** ms for connecting and shaking hands (default 5000) */
  readonly timeoutMs?: number;
  /** metadata contexts to ask for (default: `base:allocation` and `blockstep:ordered`) */
  readonly contexts?: readonly string[];
  /** false: simple replies only, and so no contexts (default true) */
  readonly structured?: boolean;
  /** requests in flight at most; the others wait in order (default 128, at most 4096) */
  readonly inflightMax?: number;
}

const nothing = new Uint8Array(0);

export class NbdClient implements NbdBackend {
  readonly info: NbdExportInfo;
  readonly #peer: string;
  readonly #host: Host;
  readonly #stream: HostStream;
  readonly #writer: RequestWriter;
  readonly #reader: ReplyReader;
  readonly #inFlight: InFlight;
  /** bytes of a request at most, a multiple of the server's minimum block size */
  readonly #requestBytesMax: number;
  readonly #listeners = new Set<(error: BlockError | null) => void>();
  readonly #ended = Promise.withResolvers<void>();
  /** why no request is taken any more; null: open */
  #refusal: BlockError | null = null;
  /** the connection is gone */
  #gone = false;
  /** what listeners are told; null: it was closed politely */
  #goneBy: BlockError | null = null;
  /** what requests without an answer fail with, once the connection is gone */
  #lost: BlockError | null = null;
  /** a polite disconnect once nothing is in flight */
  #leaving = false;
  #discSent = false;
  #closeTimer: HostTimer | null = null;

  /**
   * Connects to an export.
   * @throws BlockError connection-failed, timed-out, file-not-found (no such export), access-denied (policy, TLS),
   *   protocol-error (not an NBD server, or a broken one), not-supported (too old)
   */
  static async connect(host: Host, where: NbdConnectOptions): Promise<NbdClient> {
    const peer = describeServer(where.address);
    const capacity = where.inflightMax ?? inflightDefault;
    if (!Number.isInteger(capacity) || capacity < 1 || capacity > inflightMax) {
      throw new BlockError('invalid-option', `inflightMax: expected 1 to ${inflightMax}, got ${capacity}`);
    }
    const handshake = HandshakeClient.forExport(peer, {
      exportName: where.exportName,
      contexts: where.contexts ?? [nbd.NBD_META_BASE_ALLOCATION, nbd.NBD_META_BLOCKSTEP_ORDERED],
      structured: where.structured ?? true,
    });
    const { promise, resolve } = Promise.withResolvers<NbdClient>();
    await dial(host, where.address, where.timeoutMs ?? handshakeMsDefault, handshake, (stream, info) => {
      const client = new NbdClient(host, stream, peer, info, capacity);
      resolve(client);
      return client.#receiver();
    });
    return await promise;
  }

  private constructor(host: Host, stream: HostStream, peer: string, info: NbdExportInfo, capacity: number) {
    this.info = info;
    this.#host = host;
    this.#peer = peer;
    this.#stream = stream;
    const { minimum, maximum } = info.blockSizes;
    const most = Math.min(maximum, nbd.NBD_PAYLOAD_BYTES_MAX);
    this.#requestBytesMax = most - (most % minimum);
    this.#inFlight = new InFlight(capacity, info.ordered);
    this.#writer = new RequestWriter(stream, host.clock, (request) => this.#payloadSent(request));
    const allocationId = info.contexts.get(nbd.NBD_META_BASE_ALLOCATION) ?? null;
    const form = { structured: info.structured, contextIds: new Set(info.contexts.values()), allocationId };
    this.#reader = new ReplyReader(form, this.#replies(), peer);
  }

  /** bytes */
  get length(): number {
    return this.info.size;
  }

  /** requests that were issued and have no answer yet */
  get inflightCount(): number {
    return this.#inFlight.count + this.#inFlight.waitingCount;
  }

  /** Why no request is taken any more; null while the connection stands. */
  get error(): BlockError | null {
    return this.#refusal;
  }

  // -------------------------------------------------------------- operations

  read(offset: number, into: Uint8Array): Done {
    this.#check(offset, into.length);
    if (into.length === 0) return undefined;
    return this.#transfer(nbd.NBD_CMD_READ, 0, offset, into.length, into);
  }

  write(offset: number, from: Uint8Array, flags: BackendFlags): Done {
    this.#check(offset, from.length);
    this.#checkWritable();
    if (from.length === 0) return undefined;
    const wire = this.#fuaFlag(flags);
    return this.#durable(flags, wire, this.#transfer(nbd.NBD_CMD_WRITE, wire, offset, from.length, from));
  }

  /**
   * @throws BlockError not-supported if the server announced no write-zeroes, or no fast ones and only those will do
   */
  writeZeroes(offset: number, length: number, flags: BackendFlags): Done {
    this.#check(offset, length);
    this.#checkWritable();
    this.#announced(nbd.NBD_FLAG_SEND_WRITE_ZEROES, 'write-zeroes');
    if ((flags & fastZero) !== 0) this.#announced(nbd.NBD_FLAG_SEND_FAST_ZERO, 'fast write-zeroes');
    if (length === 0) return undefined;
    const wire =
      this.#fuaFlag(flags) |
      ((flags & noHole) === 0 ? 0 : nbd.NBD_CMD_FLAG_NO_HOLE) |
      ((flags & fastZero) === 0 ? 0 : nbd.NBD_CMD_FLAG_FAST_ZERO);
    return this.#durable(flags, wire, this.#transfer(nbd.NBD_CMD_WRITE_ZEROES, wire, offset, length, nothing));
  }

  /** Without effect if the server announced no trim: it is a hint. */
  discard(offset: number, length: number): Done {
    this.#check(offset, length);
    this.#checkWritable();
    if (length === 0 || !this.#can(nbd.NBD_FLAG_SEND_TRIM)) return undefined;
    return this.#transfer(nbd.NBD_CMD_TRIM, 0, offset, length, nothing);
  }

  /** A server that announces no flush keeps no cache (that is how every client takes it): then it is done at once. */
  flush(): Done {
    this.#check(0, 0);
    if (!this.#can(nbd.NBD_FLAG_SEND_FLUSH)) return undefined;
    return this.#issue(nbd.NBD_CMD_FLUSH, 0, 0, 0, nothing) as Promise<void>;
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    this.#check(offset, length);
    if (!this.info.contexts.has(nbd.NBD_META_BASE_ALLOCATION) || length === 0) {
      const extents: Extent[] = [];
      addExtent(extents, length, false, true);
      return extents;
    }
    // It may stop early, so one request is enough, however long the range is.
    const asked = Math.min(length, statusBytesMax);
    return this.#issue(nbd.NBD_CMD_BLOCK_STATUS, 0, offset, asked, nothing) as Promise<Extent[]>;
  }

  // -------------------------------------------------------------- the end

  /** Polite: what is in flight is answered first (for 30 s at most), then NBD_CMD_DISC. Never rejects. */
  async close(): Promise<void> {
    this.#leave(new BlockError('shutting-down', `the connection to ${this.#peer} was closed`));
    await this.#ended.promise;
  }

  /** Cuts the connection now: every request in flight fails with `connection-lost`, `reason` in its message. */
  destroy(reason: string): void {
    this.#lose(new BlockError('connection-lost', `the connection to ${this.#peer} was cut: ${reason}`));
  }

  /**
   * Calls the listener when the connection has ended: with null after `close`, otherwise with the reason, also if
   * nothing was in flight. At once in the next microtask if it has ended before. Returns how to stop listening.
   */
  onClosed(listener: (error: BlockError | null) => void): () => void {
    this.#listeners.add(listener);
    if (this.#gone) queueMicrotask(() => this.#tell(listener));
    return () => this.#listeners.delete(listener);
  }

  // -------------------------------------------------------------- requests

  #check(offset: number, length: number): void {
    if (this.#refusal !== null) throw this.#refusal;
    if (!isRange(offset, length, this.info.size)) {
      throw new BlockError(
        'invalid-request',
        `${length} bytes at ${offset}: export ${quote(this.info.name)} has ${this.info.size}`,
      );
    }
    const { minimum } = this.info.blockSizes;
    if (minimum !== 1 && (offset % minimum !== 0 || length % minimum !== 0)) {
      throw new BlockError(
        'invalid-request',
        `${length} bytes at ${offset}: ${this.#peer} takes only multiples of ${minimum}`,
      );
    }
  }

  #checkWritable(): void {
    if (this.info.readOnly)
      throw new BlockError('read-only', `export ${quote(this.info.name)} at ${this.#peer} is read-only`);
  }

  #can(flag: number): boolean {
    return (this.info.flags & flag) !== 0;
  }

  #announced(flag: number, what: string): void {
    if (!this.#can(flag)) throw new BlockError('not-supported', `${this.#peer} does not support ${what}`);
  }

  #fuaFlag(flags: BackendFlags): number {
    return (flags & fua) !== 0 && this.#can(nbd.NBD_FLAG_SEND_FUA) ? nbd.NBD_CMD_FLAG_FUA : 0;
  }

  /** FUA that the server does not know: a flush behind the write. */
  #durable(flags: BackendFlags, wire: number, written: Promise<void>): Promise<void> {
    const emulate = (flags & fua) !== 0 && (wire & nbd.NBD_CMD_FLAG_FUA) === 0;
    return emulate ? written.then(() => this.flush()) : written;
  }

  /** One request, or as many as it takes. */
  #transfer(command: number, flags: number, offset: number, length: number, buffer: Uint8Array): Promise<void> {
    const most = this.#requestBytesMax;
    if (length <= most) return this.#issue(command, flags, offset, length, buffer) as Promise<void>;
    // All pieces are issued in this call, so that they keep their place among other requests.
    const pieces: Promise<unknown>[] = [];
    for (let at = 0; at < length; at += most) {
      const count = Math.min(most, length - at);
      const part = buffer === nothing ? nothing : buffer.subarray(at, at + count);
      pieces.push(this.#issue(command, flags, offset + at, count, part));
    }
    return allSettled(pieces);
  }

  #issue(command: number, flags: number, offset: number, length: number, buffer: Uint8Array): Promise<unknown> {
    const request = this.#inFlight.take();
    request.begin(command, flags, offset, length, buffer);
    const promise = new Promise<unknown>((resolve, reject) => {
      request.resolve = resolve;
      request.reject = reject;
    });
    if (this.#inFlight.submit(request)) this.#send(request);
    return promise;
  }

  #send(request: PendingRequest): void {
    this.#writer.write(request, request.slot, this.#inFlight.sequenceOf(request));
  }

  /**
   * All of its reply has come. A payload that is still on its way out stays borrowed: then it settles when that is
   * done.
   */
  #replied(request: PendingRequest): void {
    request.replied = true;
    if (!request.sending) this.#settle(request);
  }

  /** The stream has let go of a payload: the caller gets its buffer back now, if the request has ended meanwhile. */
  #payloadSent(request: PendingRequest): void {
    if (this.#gone) this.#finish(request);
    else if (request.replied) this.#settle(request);
  }

  #settle(request: PendingRequest): void {
    this.#inFlight.leave(request);
    // "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect."
    if (request.errno === shutdownErrno) {
      this.#leave(new BlockError('connection-lost', `${this.#peer} is shutting down`));
    }
    this.#finish(request);
    for (let next = this.#inFlight.next(); next !== undefined; next = this.#inFlight.next()) this.#send(next);
    this.#leaveIfIdle();
  }

  /** Settles the promise; nothing is known of the request afterwards. */
  #finish(request: PendingRequest): void {
    if (!request.replied) request.reject(this.#lost ?? serverError(this.#peer, request));
    else if (request.errno !== 0) request.reject(serverError(this.#peer, request));
    else request.resolve(request.command === nbd.NBD_CMD_BLOCK_STATUS ? request.extents : undefined);
    this.#inFlight.giveBack(request);
  }

  // -------------------------------------------------------------- the connection

  #replies(): PendingReplies {
    return {
      find: (slot, sequence) => this.#inFlight.find(slot, sequence),
      replied: (request) => this.#replied(request),
    };
  }

  #receiver(): StreamReceiver {
    return {
      space: () => this.#reader.space(),
      received: (count) => {
        if (this.#gone) return;
        try {
          this.#reader.received(count);
        } catch (error) {
          this.#lose(toBlockError(error));
        }
      },
      ended: (error) => {
        const why = error === null ? 'the server closed it' : error.message;
        const what = `the connection to ${this.#peer} was lost: ${why}`;
        this.#lose(new BlockError('connection-lost', what, { cause: error }));
      },
    };
  }

  #leave(refusal: BlockError): void {
    if (this.#leaving || this.#gone) return;
    this.#leaving = true;
    this.#refusal = refusal;
    this.#goneBy = refusal.code === 'connection-lost' ? refusal : null;
    this.#cutAfter(lastRepliesMsMax, 'the last replies did not come');
    this.#leaveIfIdle();
  }

  #leaveIfIdle(): void {
    if (!this.#leaving || this.#discSent || this.#gone || !this.#inFlight.idle) return;
    this.#discSent = true;
    this.#cutAfter(hangUpMsMax, 'the server did not hang up');
    const disc = this.#inFlight.take();
    disc.begin(nbd.NBD_CMD_DISC, 0, 0, 0, nothing);
    this.#writer.write(disc, 0, 0);
    this.#writer.send();
    this.#stream.end();
  }

  #cutAfter(ms: number, why: string): void {
    this.#closeTimer?.cancel();
    this.#closeTimer = this.#host.clock.after(ms, () => this.destroy(`${why} within ${ms} ms`));
  }

  /** The connection is gone. Everything that has no answer fails. */
  #lose(error: BlockError): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#closeTimer?.cancel();
    // After NBD_CMD_DISC the server hangs up, in whatever way: it was meant to be.
    if (!this.#discSent) this.#goneBy = error;
    this.#lost = error;
    this.#refusal ??= error;
    this.#writer.drop();
    this.#stream.destroy();
    for (const request of this.#inFlight.takeAll()) {
      if (!request.sending) this.#finish(request);
    }
    this.#ended.resolve();
    for (const listener of this.#listeners) this.#tell(listener);
  }

  #tell(listener: (error: BlockError | null) => void): void {
    if (this.#listeners.delete(listener)) listener(this.#goneBy);
  }
}

/** Waits for all, so that no buffer is in use any more, then throws the first error. */
async function allSettled(pieces: readonly Promise<unknown>[]): Promise<void> {
  for (const result of await Promise.allSettled(pieces)) {
    if (result.status === 'rejected') throw result.reason;
  }
}
