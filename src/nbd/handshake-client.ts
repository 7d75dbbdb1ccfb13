/**
 * The client's side of the handshake (doc/proto.md, "Handshake"): bytes in; bytes and a result out.
 *
 * A pure state object: no socket, no clock. The haggling is written as a conversation (a generator that asks for the
 * next n bytes), so that it reads in the order of the document; fed byte by byte it gives the same result. What a peer
 * sends is bounded: each option reply, and the handshake as a whole. Every failure is one sentence for a person, with
 * the server's own message in it.
 */
import { getU64, viewOf } from '../util/bytes.ts';
import { BlockError, type BlockErrorCode } from '../util/errors.ts';
import * as nbd from './constants.ts';
import { ExportInfoBuilder, type NbdExportInfo } from './export-info.ts';
import { decodeText, encodeName, printable, quote } from './text.ts';

/** bytes of one option reply: the longest are a name and a description of an export */
export const optionReplyBytesMax = 16 * 1024;
/** bytes of a whole handshake, a long list of exports included */
export const handshakeBytesMax = 16 * 1024 * 1024;
/** metadata contexts that a server may select */
export const metaContextsMax = 64;
/** bytes of what a peer sent that go into a message */
const quotedBytesMax = 48;
/** bytes of a server's message that go into ours */
const messageBytesMax = 1024;

/** One line of a server's list of exports. */
export interface NbdExportListing {
  readonly name: string;
  /** empty where the server gave none */
  readonly description: string;
}

export interface ExportWish {
  readonly exportName: string;
  /** metadata contexts to ask for; one that the server does not know is left out of the result */
  readonly contexts: readonly string[];
  /** false: do not ask for structured replies, nor for contexts */
  readonly structured: boolean;
}

/** Asks for the next so many bytes, and ends with the result. */
type Conversation<Result> = Generator<number, Result, Uint8Array>;

interface OptionError {
  readonly type: number;
  readonly message: string;
}

type Phase = 'greeting' | 'options' | 'export-name';

export class HandshakeClient<Result> {
  /** What the server said and was agreed on; null until then. */
  result: Result | null = null;
  readonly #peer: string;
  readonly #conversation: Conversation<Result>;
  #output: Uint8Array[] = [];
  #part: Uint8Array;
  #filled = 0;
  #totalBytes = 0;
  #seen: number[] = [];
  #phase: Phase = 'greeting';
  #exportName = '';

  /** A handshake that ends in the transmission phase of one export. `peer` names the server in messages. */
  static forExport(peer: string, wish: ExportWish): HandshakeClient<NbdExportInfo> {
    return new HandshakeClient(peer, (self) => self.#chooseExport(wish));
  }

  /** A handshake that asks for the list of exports, and takes its leave. */
  static forList(peer: string): HandshakeClient<NbdExportListing[]> {
    return new HandshakeClient(peer, (self) => self.#listExports());
  }

  private constructor(peer: string, begin: (self: HandshakeClient<Result>) => Conversation<Result>) {
    this.#peer = peer;
    this.#conversation = begin(this);
    this.#part = new Uint8Array(0);
    this.#advance();
  }

  /**
   * Takes what arrived and returns how much of it belongs to the handshake: all, unless it has ended (`result`).
   * @throws BlockError and then takes no more; `takeOutput` may still hold a farewell
   */
  receive(bytes: Uint8Array): number {
    let at = 0;
    while (at < bytes.length && this.result === null) {
      const count = Math.min(this.#part.length - this.#filled, bytes.length - at);
      if (this.#seen.length < quotedBytesMax) {
        this.#seen.push(...bytes.subarray(at, at + Math.min(bytes.length - at, quotedBytesMax - this.#seen.length)));
      }
      this.#part.set(bytes.subarray(at, at + count), this.#filled);
      this.#filled += count;
      this.#totalBytes += count;
      at += count;
      if (this.#totalBytes > handshakeBytesMax) {
        throw this.#broken(`its handshake is longer than ${handshakeBytesMax} bytes`);
      }
      if (this.#filled === this.#part.length) this.#advance();
    }
    return at;
  }

  /** What is to be sent now, in one piece; null if there is nothing. */
  takeOutput(): Uint8Array | null {
    const pieces = this.#output;
    if (pieces.length === 0) return null;
    this.#output = [];
    const [first] = pieces;
    if (first !== undefined && pieces.length === 1) return first;
    const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return whole;
  }

  /** The error for a connection that ended before the handshake did. */
  endedEarly(cause: Error | null): BlockError {
    const more = cause === null ? {} : { cause };
    if (this.#phase === 'greeting') {
      if (this.#totalBytes > 0) return this.#notNbd();
      const why = cause === null ? 'it closed the connection without a word' : cause.message;
      return new BlockError('connection-failed', `${this.#peer}: no NBD greeting: ${why}`, more);
    }
    if (this.#phase === 'export-name') {
      // NBD_OPT_EXPORT_NAME: a server that does not give the export "MUST terminate the session", without a reason.
      return new BlockError(
        'connection-failed',
        `${this.#peer} closed the connection when asked for export ${quote(this.#exportName)}: ` +
          'it may have no such export',
        more,
      );
    }
    const why = cause === null ? 'it closed the connection' : cause.message;
    return new BlockError('connection-failed', `${this.#peer}: the NBD handshake broke off: ${why}`, more);
  }

  /** The error for a handshake that took longer than `ms`. */
  timedOut(ms: number): BlockError {
    if (this.#phase !== 'greeting') {
      return new BlockError('timed-out', `${this.#peer} did not finish the NBD handshake within ${ms} ms`);
    }
    if (this.#totalBytes > 0) return this.#notNbd();
    return new BlockError('timed-out', `${this.#peer} sent no NBD greeting within ${ms} ms: is it an NBD server?`);
  }

  // -------------------------------------------------------------- the conversation

  /** Hands a complete part to the conversation, and makes room for the next. */
  #advance(): void {
    for (;;) {
      const next = this.#conversation.next(this.#part);
      if (next.done === true) {
        this.result = next.value;
        return;
      }
      this.#part = new Uint8Array(next.value);
      this.#filled = 0;
      if (next.value > 0) return;
    }
  }

  *#chooseExport(wish: ExportWish): Conversation<NbdExportInfo> {
    const name = encodeName(wish.exportName);
    this.#exportName = wish.exportName;
    const zeroes = yield* this.#greet();
    let structured = false;
    let contexts = new Map<string, number>();
    if (wish.structured) {
      // An error other than these two kinds of "no way" means: not here. Then simple replies do.
      structured = this.#accepted(yield* this.#ask(nbd.NBD_OPT_STRUCTURED_REPLY, new Uint8Array(0), ignoreReply));
      if (structured && wish.contexts.length > 0) contexts = yield* this.#setContexts(name, wish.contexts);
    }
    const info = new ExportInfoBuilder(wish.exportName, (what) => this.#broken(what));
    const refused = yield* this.#ask(nbd.NBD_OPT_GO, goData(name), (type, data) => info.reply(type, data));
    if (refused !== null) {
      if (refused.type !== nbd.NBD_REP_ERR_UNSUP) throw this.#refused(refused, wish.exportName);
      // "clients SHOULD be prepared to also handle NBD_REP_ERR_UNSUP by falling back to using NBD_OPT_EXPORT_NAME"
      this.#phase = 'export-name';
      this.#sendOption(nbd.NBD_OPT_EXPORT_NAME, name);
      const answer = viewOf(yield 10);
      info.setExport(getU64(answer, 0), answer.getUint16(8));
      if (zeroes) yield 124;
    }
    return info.finish(structured, contexts);
  }

  *#listExports(): Conversation<NbdExportListing[]> {
    yield* this.#greet();
    const exports: NbdExportListing[] = [];
    const refused = yield* this.#ask(nbd.NBD_OPT_LIST, new Uint8Array(0), (type, data) => {
      if (type !== nbd.NBD_REP_SERVER) throw this.#broken(`it answered the list with a reply of type ${type}`);
      const length = data.length < 4 ? -1 : viewOf(data).getUint32(0);
      if (length < 0 || length > data.length - 4 || length > nbd.NBD_STRING_BYTES_MAX) {
        throw this.#broken('an entry of its list has a wrong length');
      }
      exports.push({
        name: decodeText(data.subarray(4, 4 + length)),
        description: decodeText(data.subarray(4 + length)),
      });
    });
    if (refused !== null) throw this.#refused(refused, null);
    this.#sendOption(nbd.NBD_OPT_ABORT, new Uint8Array(0));
    return exports;
  }

  /** The greeting up to the client's flags; true if NBD_OPT_EXPORT_NAME will be answered with 124 zeroes at its end. */
  *#greet(): Conversation<boolean> {
    const magic = viewOf(yield 8);
    if (magic.getUint32(0) !== nbd.NBDMAGIC_HIGH || magic.getUint32(4) !== nbd.NBDMAGIC_LOW) throw this.#notNbd();
    const style = viewOf(yield 8);
    if (style.getUint32(0) !== nbd.IHAVEOPT_HIGH || style.getUint32(4) !== nbd.IHAVEOPT_LOW) {
      // "Oldstyle negotiation": cliserv_magic, and no way to say which export is wanted.
      const oldstyle = style.getUint32(0) === 0x0000_4202 && style.getUint32(4) === 0x8186_1253;
      if (!oldstyle) throw this.#notNbd();
      throw new BlockError('not-supported', `${this.#peer} speaks the oldstyle NBD handshake, which is not supported`);
    }
    const flags = viewOf(yield 2).getUint16(0);
    if ((flags & nbd.NBD_FLAG_FIXED_NEWSTYLE) === 0) {
      throw new BlockError(
        'not-supported',
        `${this.#peer} is an NBD server too old to be used: it does not speak the fixed newstyle handshake`,
      );
    }
    const noZeroes = (flags & nbd.NBD_FLAG_NO_ZEROES) !== 0;
    const answer = new Uint8Array(4);
    viewOf(answer).setUint32(0, nbd.NBD_FLAG_C_FIXED_NEWSTYLE | (noZeroes ? nbd.NBD_FLAG_C_NO_ZEROES : 0));
    this.#output.push(answer);
    this.#phase = 'options';
    return !noZeroes;
  }

  /** Sends an option and takes its replies until the final one; null: acknowledged, otherwise the server's error. */
  *#ask(
    option: number,
    data: Uint8Array,
    reply: (type: number, data: Uint8Array) => void,
  ): Conversation<OptionError | null> {
    this.#sendOption(option, data);
    for (;;) {
      const header = viewOf(yield 20);
      const magicIsRight =
        header.getUint32(0) === nbd.NBD_OPTS_REPLY_MAGIC_HIGH && header.getUint32(4) === nbd.NBD_OPTS_REPLY_MAGIC_LOW;
      if (!magicIsRight) throw this.#broken('an option reply has a wrong magic number');
      if (header.getUint32(8) !== option) {
        throw this.#broken(`it replied to option ${header.getUint32(8)} when option ${option} was asked`);
      }
      const type = header.getUint32(12);
      const length = header.getUint32(16);
      if (length > optionReplyBytesMax) throw this.#broken(`an option reply has ${length} bytes`);
      const payload = length === 0 ? new Uint8Array(0) : yield length;
      if (type === nbd.NBD_REP_ACK) return null;
      if (type >= nbd.NBD_REP_FLAG_ERROR) return { type, message: printable(payload, messageBytesMax) };
      reply(type, payload);
    }
  }

  /**
   * "NBD_OPT_SET_META_CONTEXT": the contexts that the server selected; none if it refuses (NBD_OPT_GO then tells why).
   */
  *#setContexts(name: Uint8Array, queries: readonly string[]): Conversation<Map<string, number>> {
    const contexts = new Map<string, number>();
    const ids = new Set<number>();
    const refused = yield* this.#ask(nbd.NBD_OPT_SET_META_CONTEXT, contextData(name, queries), (type, data) => {
      if (type !== nbd.NBD_REP_META_CONTEXT) {
        throw this.#broken(`it answered the metadata contexts with a reply of type ${type}`);
      }
      if (data.length < 5 || data.length > 4 + nbd.NBD_STRING_BYTES_MAX) {
        throw this.#broken('the name of a metadata context has a wrong length');
      }
      const id = viewOf(data).getUint32(0);
      const context = decodeText(data.subarray(4));
      if (ids.has(id) || contexts.has(context)) throw this.#broken(`it selected a metadata context twice`);
      if (ids.size >= metaContextsMax) throw this.#broken(`it selected more than ${metaContextsMax} metadata contexts`);
      ids.add(id);
      contexts.set(context, id);
    });
    return this.#accepted(refused) ? contexts : new Map();
  }

  /** True if an optional feature was acknowledged. An error that forbids every further option is thrown. */
  #accepted(refused: OptionError | null): boolean {
    if (refused === null) return true;
    const final = refused.type === nbd.NBD_REP_ERR_TLS_REQD || refused.type === nbd.NBD_REP_ERR_SHUTDOWN;
    if (final) throw this.#refused(refused, this.#exportName);
    return false;
  }

  #sendOption(option: number, data: Uint8Array): void {
    const bytes = new Uint8Array(16 + data.length);
    const view = viewOf(bytes);
    view.setUint32(0, nbd.IHAVEOPT_HIGH);
    view.setUint32(4, nbd.IHAVEOPT_LOW);
    view.setUint32(8, option);
    view.setUint32(12, data.length);
    bytes.set(data, 16);
    this.#output.push(bytes);
  }

  // -------------------------------------------------------------- errors

  /** The server said no: its words, and a soft disconnect ("Termination of the session during option haggling"). */
  #refused(error: OptionError, exportName: string | null): BlockError {
    this.#sendOption(nbd.NBD_OPT_ABORT, new Uint8Array(0));
    const known = optionErrors.get(error.type);
    const what = exportName === null ? 'to list its exports' : `export ${quote(exportName)}`;
    const reason = known?.words ?? `error ${error.type - nbd.NBD_REP_FLAG_ERROR}`;
    const words = error.message === '' ? reason : `${reason} (it says: ${error.message})`;
    return new BlockError(known?.code ?? 'connection-failed', `${this.#peer} refused ${what}: ${words}`);
  }

  /** The server broke the protocol: the connection is of no more use. */
  #broken(what: string): BlockError {
    return new BlockError('protocol-error', `${this.#peer} broke the NBD handshake: ${what}`);
  }

  #notNbd(): BlockError {
    const text = printable(Uint8Array.from(this.#seen), quotedBytesMax);
    return new BlockError('protocol-error', `${this.#peer} is not an NBD server: it sent "${text}"`);
  }
}

/** "Option reply types", errors: our code and words. */
const optionErrors = new Map<number, { code: BlockErrorCode; words: string }>([
  [nbd.NBD_REP_ERR_UNSUP, { code: 'not-supported', words: 'it does not know this option' }],
  [nbd.NBD_REP_ERR_POLICY, { code: 'access-denied', words: 'its policy forbids it' }],
  [nbd.NBD_REP_ERR_INVALID, { code: 'invalid-request', words: 'it takes the request for invalid' }],
  [nbd.NBD_REP_ERR_PLATFORM, { code: 'not-supported', words: 'not on its platform' }],
  [nbd.NBD_REP_ERR_TLS_REQD, { code: 'access-denied', words: 'it requires TLS, which is not in use here' }],
  [nbd.NBD_REP_ERR_UNKNOWN, { code: 'file-not-found', words: 'there is no such export' }],
  [nbd.NBD_REP_ERR_SHUTDOWN, { code: 'shutting-down', words: 'it is shutting down' }],
  [nbd.NBD_REP_ERR_BLOCK_SIZE_REQD, { code: 'invalid-request', words: 'it insists on its block sizes' }],
  [nbd.NBD_REP_ERR_TOO_BIG, { code: 'invalid-request', words: 'request or reply are too large for it' }],
  [nbd.NBD_REP_ERR_EXT_HEADER_REQD, { code: 'not-supported', words: 'it insists on extended headers' }],
]);

const ignoreReply = (): undefined => undefined;

/** The data of NBD_OPT_GO: "NBD_OPT_INFO and NBD_OPT_GO". */
function goData(name: Uint8Array): Uint8Array {
  const wanted = [nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, nbd.NBD_INFO_BLOCK_SIZE];
  const data = new Uint8Array(4 + name.length + 2 + 2 * wanted.length);
  const view = viewOf(data);
  view.setUint32(0, name.length);
  data.set(name, 4);
  view.setUint16(4 + name.length, wanted.length);
  wanted.forEach((type, index) => {
    view.setUint16(6 + name.length + 2 * index, type);
  });
  return data;
}

/** The data of NBD_OPT_SET_META_CONTEXT. */
function contextData(name: Uint8Array, queries: readonly string[]): Uint8Array {
  const encoded = queries.map(encodeName);
  const data = new Uint8Array(8 + name.length + encoded.reduce((sum, query) => sum + 4 + query.length, 0));
  const view = viewOf(data);
  view.setUint32(0, name.length);
  data.set(name, 4);
  let at = 4 + name.length;
  view.setUint32(at, encoded.length);
  at += 4;
  for (const query of encoded) {
    view.setUint32(at, query.length);
    data.set(query, at + 4);
    at += 4 + query.length;
  }
  return data;
}
