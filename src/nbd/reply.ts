/**
 * Reads the replies of the transmission phase (doc/proto.md, "Simple reply message", "Structured reply chunk message").
 *
 * A pure codec: bytes in, completed requests out; fed byte by byte it gives the same result. Each chunk is bounded by
 * the request that it answers before it has any effect, and whatever breaks the protocol is thrown as a
 * `protocol-error`: framing cannot be trusted after it, so the connection must be closed.
 *
 *     space() -> receive buffer    [ parsed | waiting for the rest of a header ............. ]
 *             -> caller's buffer   when nothing is buffered and much of a read's data is still to come
 *
 * Data that arrived in the receive buffer is copied once to the caller's, because one arrival holds many small replies;
 * the rest of a large read is received where it belongs.
 */
import { getU64, viewOf } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent } from '../util/extents.ts';
import * as nbd from './constants.ts';
import type { PendingRequest } from './pending.ts';
import { printable } from './text.ts';

/** bytes that one arrival may bring */
export const receiveBytes = 256 * 1024;
/** bytes still missing of a read's data from which on they are received in place */
const directBytesMin = 32 * 1024;
/** bytes of an error chunk: its message may have 4096 */
const errorChunkBytesMax = 8 * 1024;
/** "Servers SHOULD NOT send more than 2^20 extents in a single reply chunk" */
const statusChunkBytesMax = 4 + 8 * 2 ** 20;
/** extents kept of one block status reply; the rest is asked for again */
const extentsMax = 65_536;
const messageBytesMax = 1024;

/** The requests that the replies belong to. */
export interface PendingReplies {
  /** The request in flight with this cookie; undefined: there is none. */
  find(cookieHigh: number, cookieLow: number): PendingRequest | undefined;
  /** All of its reply has come. */
  replied(request: PendingRequest): void;
}

/** What was agreed on in the handshake, as far as replies depend on it. */
export interface ReplyForm {
  readonly structured: boolean;
  /** ids of the metadata contexts that were selected */
  readonly contextIds: ReadonlySet<number>;
  /** the id of `base:allocation`; null: not selected */
  readonly allocationId: number | null;
}

type State = 'header' | 'data' | 'status';

export class ReplyReader {
  readonly #form: ReplyForm;
  readonly #pending: PendingReplies;
  readonly #peer: string;
  readonly #bytes = new Uint8Array(receiveBytes);
  readonly #view = viewOf(this.#bytes);
  #start = 0;
  #end = 0;
  #state: State = 'header';
  /**
   * In `data` and `status`: the request, whether its reply ends with this chunk, bytes to come, place in its buffer.
   */
  #request: PendingRequest | null = null;
  #last = false;
  #left = 0;
  #at = 0;
  #contextId = 0;
  #direct = false;

  /** `peer` names the server in messages. */
  constructor(form: ReplyForm, pending: PendingReplies, peer: string) {
    this.#form = form;
    this.#pending = pending;
    this.#peer = peer;
  }

  /** Where the next bytes go. */
  space(): Uint8Array {
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
      if (this.#state === 'data' && this.#left >= directBytesMin && this.#request !== null) {
        this.#direct = true;
        return this.#request.buffer.subarray(this.#at, this.#at + this.#left);
      }
      return this.#bytes;
    }
    // The beginning of a header or of an error chunk, a few bytes or a few KiB at most.
    if (this.#start > 0) {
      this.#bytes.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    return this.#bytes.subarray(this.#end);
  }

  /** Takes `count` bytes that stand in the last `space()`. @throws BlockError protocol-error */
  received(count: number): void {
    if (this.#direct) {
      this.#direct = false;
      this.#at += count;
      this.#left -= count;
      if (this.#left === 0) this.#endChunk();
      return;
    }
    this.#end += count;
    while (this.#step());
  }

  /** True if a reply has begun and not ended. */
  get midReply(): boolean {
    return this.#state !== 'header' || this.#end > this.#start;
  }

  /** One step of parsing; false: more bytes are needed. */
  #step(): boolean {
    switch (this.#state) {
      case 'header':
        return this.#header();
      case 'data':
        return this.#data();
      case 'status':
        return this.#status();
    }
  }

  #header(): boolean {
    const available = this.#end - this.#start;
    if (available < 4) return false;
    const magic = this.#view.getUint32(this.#start);
    if (magic === nbd.NBD_SIMPLE_REPLY_MAGIC) {
      return available >= nbd.NBD_SIMPLE_REPLY_BYTES && this.#simpleReply();
    }
    if (magic === nbd.NBD_STRUCTURED_REPLY_MAGIC) {
      if (!this.#form.structured) throw this.#broken('a structured reply, which was not agreed on');
      return available >= nbd.NBD_STRUCTURED_REPLY_BYTES && this.#chunk(available);
    }
    throw this.#broken(`a reply with the magic number 0x${magic.toString(16)}`);
  }

  #simpleReply(): boolean {
    const view = this.#view;
    const at = this.#start;
    const request = this.#find(view.getUint32(at + 8), view.getUint32(at + 12));
    const read = request.command === nbd.NBD_CMD_READ;
    if (read && this.#form.structured)
      throw this.#broken('a simple reply to a read, where structured ones were agreed on');
    const errno = view.getUint32(at + 4);
    if (errno === 0 && request.command === nbd.NBD_CMD_BLOCK_STATUS) {
      throw this.#broken('a simple reply to a block status request');
    }
    this.#start += nbd.NBD_SIMPLE_REPLY_BYTES;
    request.errno = errno;
    if (read && errno === 0) {
      request.cover(0, request.length);
      this.#expect('data', request, true, request.length);
      this.#at = 0;
    } else {
      this.#pending.replied(request);
    }
    return true;
  }

  /** A structured chunk whose header is complete. Nothing is taken before all that is checked here has come. */
  #chunk(available: number): boolean {
    const view = this.#view;
    const at = this.#start;
    const flags = view.getUint16(at + 4);
    const type = view.getUint16(at + 6);
    const length = view.getUint32(at + 16);
    const request = this.#find(view.getUint32(at + 8), view.getUint32(at + 12));
    const last = (flags & nbd.NBD_REPLY_FLAG_DONE) !== 0;
    switch (type) {
      case nbd.NBD_REPLY_TYPE_NONE:
        if (length !== 0 || !last) throw this.#broken('an empty chunk with a payload, or not at the end of its reply');
        this.#start += nbd.NBD_STRUCTURED_REPLY_BYTES;
        this.#endReply(request);
        return true;
      case nbd.NBD_REPLY_TYPE_OFFSET_DATA:
        return this.#dataChunk(available, request, last, length);
      case nbd.NBD_REPLY_TYPE_OFFSET_HOLE:
        return this.#holeChunk(available, request, last, length);
      case nbd.NBD_REPLY_TYPE_BLOCK_STATUS:
        return this.#statusChunk(available, request, last, length);
      default:
        // "any unknown or unexpected type, other than an error chunk": hard disconnect
        if ((type & nbd.NBD_REPLY_TYPE_FLAG_ERROR) === 0) throw this.#broken(`a chunk of the unknown type ${type}`);
        return this.#errorChunk(available, request, last, length, type);
    }
  }

  #dataChunk(available: number, request: PendingRequest, last: boolean, length: number): boolean {
    if (request.command !== nbd.NBD_CMD_READ) throw this.#broken('data for a request that is not a read');
    if (length < 9) throw this.#broken(`a data chunk of ${length} bytes`);
    if (available < nbd.NBD_STRUCTURED_REPLY_BYTES + 8) return false;
    const from = this.#place(request, this.#start + nbd.NBD_STRUCTURED_REPLY_BYTES, length - 8);
    this.#start += nbd.NBD_STRUCTURED_REPLY_BYTES + 8;
    this.#expect('data', request, last, length - 8);
    this.#at = from;
    return true;
  }

  #holeChunk(available: number, request: PendingRequest, last: boolean, length: number): boolean {
    if (request.command !== nbd.NBD_CMD_READ) throw this.#broken('a hole for a request that is not a read');
    if (length !== 12) throw this.#broken(`a hole chunk of ${length} bytes`);
    if (available < nbd.NBD_STRUCTURED_REPLY_BYTES + 12) return false;
    const payload = this.#start + nbd.NBD_STRUCTURED_REPLY_BYTES;
    const size = this.#view.getUint32(payload + 8);
    if (size === 0) throw this.#broken('a hole of no bytes');
    const from = this.#place(request, payload, size);
    request.buffer.fill(0, from, from + size);
    this.#start = payload + 12;
    if (last) this.#endReply(request);
    return true;
  }

  /** Where in the request's buffer the content of a chunk goes; `at` is where its offset stands. */
  #place(request: PendingRequest, at: number, count: number): number {
    const from = getU64(this.#view, at) - request.offset;
    if (!(from >= 0 && from <= request.length - count)) {
      throw this.#broken(`${count} bytes outside of the ${request.length} that were asked for`);
    }
    if (!request.cover(from, count)) throw this.#broken('a part of a reply twice, or in too many pieces');
    return from;
  }

  #statusChunk(available: number, request: PendingRequest, last: boolean, length: number): boolean {
    if (request.command !== nbd.NBD_CMD_BLOCK_STATUS) throw this.#broken('block status that was not asked for');
    if (length < 12 || (length - 4) % 8 !== 0 || length > statusChunkBytesMax) {
      throw this.#broken(`a block status chunk of ${length} bytes`);
    }
    if (available < nbd.NBD_STRUCTURED_REPLY_BYTES + 4) return false;
    const contextId = this.#view.getUint32(this.#start + nbd.NBD_STRUCTURED_REPLY_BYTES);
    if (!this.#form.contextIds.has(contextId)) throw this.#broken('block status of a context that was not selected');
    if (request.contextIds.includes(contextId)) throw this.#broken('block status of one context twice');
    request.contextIds.push(contextId);
    this.#start += nbd.NBD_STRUCTURED_REPLY_BYTES + 4;
    this.#expect('status', request, last, length - 4);
    this.#contextId = contextId;
    return true;
  }

  #errorChunk(available: number, request: PendingRequest, last: boolean, length: number, type: number): boolean {
    const fixed = type === nbd.NBD_REPLY_TYPE_ERROR_OFFSET ? 14 : 6;
    if (length < fixed || length > errorChunkBytesMax) throw this.#broken(`an error chunk of ${length} bytes`);
    if (available < nbd.NBD_STRUCTURED_REPLY_BYTES + length) return false;
    const at = this.#start + nbd.NBD_STRUCTURED_REPLY_BYTES;
    const errno = this.#view.getUint32(at);
    const messageLength = this.#view.getUint16(at + 4);
    if (errno === 0) throw this.#broken('an error chunk without an error');
    if (messageLength > length - fixed || messageLength > nbd.NBD_STRING_BYTES_MAX) {
      throw this.#broken('an error message longer than its chunk');
    }
    if (type === nbd.NBD_REPLY_TYPE_ERROR_OFFSET) {
      const where = getU64(this.#view, at + 6 + messageLength) - request.offset;
      if (!(where >= 0 && where < Math.max(request.length, 1))) throw this.#broken('an error outside of its request');
    }
    if (request.errno === 0) {
      request.errno = errno;
      request.errorMessage = printable(this.#bytes.subarray(at + 6, at + 6 + messageLength), messageBytesMax);
    }
    this.#start = at + length;
    if (last) this.#endReply(request);
    return true;
  }

  #data(): boolean {
    const request = this.#request;
    const count = Math.min(this.#left, this.#end - this.#start);
    if (request === null || count === 0) return false;
    request.buffer.set(this.#bytes.subarray(this.#start, this.#start + count), this.#at);
    this.#start += count;
    this.#at += count;
    this.#left -= count;
    if (this.#left > 0) return false;
    this.#endChunk();
    return true;
  }

  #status(): boolean {
    const request = this.#request;
    if (request === null) return false;
    const keep = this.#contextId === this.#form.allocationId;
    while (this.#left > 0) {
      if (this.#end - this.#start < 8) return false;
      const length = this.#view.getUint32(this.#start);
      const flags = this.#view.getUint32(this.#start + 4);
      this.#start += 8;
      this.#left -= 8;
      if (length === 0) throw this.#broken('an extent of no bytes');
      if (keep) this.#addExtent(request, length, flags);
    }
    this.#endChunk();
    return true;
  }

  /** "the length of the final extent MAY result in a sum larger than the original requested length": clipped. */
  #addExtent(request: PendingRequest, length: number, flags: number): void {
    if (request.extents.length >= extentsMax) return;
    const count = Math.min(length, request.length - request.extentsLength);
    addExtent(request.extents, count, (flags & nbd.NBD_STATE_ZERO) !== 0, (flags & nbd.NBD_STATE_HOLE) === 0);
    request.extentsLength += count;
  }

  #expect(state: State, request: PendingRequest, last: boolean, left: number): void {
    this.#state = state;
    this.#request = request;
    this.#last = last;
    this.#left = left;
  }

  #endChunk(): void {
    const request = this.#request;
    this.#state = 'header';
    this.#request = null;
    if (this.#last && request !== null) this.#endReply(request);
  }

  /**
   * "the server MUST send enough data chunks to cover the entire region", "exactly one status chunk per ... context"
   */
  #endReply(request: PendingRequest): void {
    if (request.errno === 0) {
      if (request.command === nbd.NBD_CMD_READ && !request.covered) {
        throw this.#broken(`only ${request.coveredBytes} of ${request.length} bytes that were asked for`);
      }
      const contexts = request.contextIds.length;
      if (request.command === nbd.NBD_CMD_BLOCK_STATUS && contexts !== this.#form.contextIds.size) {
        throw this.#broken(`block status of ${contexts} instead of ${this.#form.contextIds.size} contexts`);
      }
    }
    this.#pending.replied(request);
  }

  #find(cookieHigh: number, cookieLow: number): PendingRequest {
    const request = this.#pending.find(cookieHigh, cookieLow);
    if (request === undefined) throw this.#broken('a reply to a request that is not in flight');
    return request;
  }

  #broken(what: string): BlockError {
    return new BlockError('protocol-error', `${this.#peer} broke the NBD protocol: it sent ${what}`);
  }
}
