/**
 * The server's side of fixed newstyle option haggling (doc/proto.md, "Handshake") as a state object: bytes in, bytes
 * out, and in the end an export or a hang-up. It knows no socket and no clock; `push` and `step` give the same result
 * however the bytes are cut.
 *
 *   flags -> options -> transmission | closed
 *
 * One `step` is one message of the client, so that whoever drives it can stop while the client does not read replies.
 */
import { putU64, viewOf } from '../util/bytes.ts';
import type { NbdExportDirectory, NbdServerExport } from './backend.ts';
import {
  IHAVEOPT_HIGH,
  IHAVEOPT_LOW,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBDMAGIC_HIGH,
  NBDMAGIC_LOW,
} from './constants.ts';
import { contextsOf, isContextQuery, listContexts, type MetaContext, selectContexts } from './meta-context.ts';
import { OptionData, OptionDataError } from './option-data.ts';
import { OptionReplies } from './option-replies.ts';
import { transmissionFlags } from './request.ts';

/** bytes of an option's data that is read; a longer one is dropped and answered ERR_TOO_BIG */
export const optionBytesMax = 64 * 1024;
/** bytes of an option's data that is dropped; beyond it the client is hung up */
export const optionDropBytesMax = 4 * 1024 * 1024;
/** options of one connection: a lister asks a few for each export */
export const optionsMax = 4096;
/** queries in one option */
export const queriesMax = 128;

const clientFlagsBytes = 4;
const optionHeaderBytes = 16;
const exportNameZeroes = 124;
const nothing = new Uint8Array(0);

/** What was agreed, for the transmission phase. */
export interface Agreement {
  readonly exported: NbdServerExport;
  readonly structured: boolean;
  readonly contexts: readonly MetaContext[];
  /** NBD_FLAG_* as announced */
  readonly flags: number;
  /** bytes, as announced */
  readonly size: number;
}

export class HandshakeServer {
  /** set once: the transmission phase begins; what `rest` returns belongs to it */
  agreement: Agreement | null = null;
  /** hang up, after the last reply was sent */
  closed = false;
  readonly #directory: NbdExportDirectory;
  #input = nothing;
  #from = 0;
  #to = 0;
  #sawFlags = false;
  #noZeroes = false;
  #structured = false;
  #contexts: { name: string; selected: readonly MetaContext[] } | null = null;
  #options = 0;
  #drop = 0;
  #dropped = 0;

  constructor(directory: NbdExportDirectory) {
    this.#directory = directory;
  }

  /** What the server says first. */
  static greeting(): Uint8Array {
    const bytes = new Uint8Array(18);
    const view = viewOf(bytes);
    view.setUint32(0, NBDMAGIC_HIGH);
    view.setUint32(4, NBDMAGIC_LOW);
    view.setUint32(8, IHAVEOPT_HIGH);
    view.setUint32(12, IHAVEOPT_LOW);
    view.setUint16(16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    return bytes;
  }

  /** Takes bytes of the client (copied: a handshake is short). */
  push(bytes: Uint8Array): void {
    if (this.#to + bytes.length > this.#input.length) {
      const grown = new Uint8Array(Math.max(1024, (this.#to - this.#from + bytes.length) * 2));
      grown.set(this.#input.subarray(this.#from, this.#to));
      this.#input = grown;
      this.#to -= this.#from;
      this.#from = 0;
    }
    this.#input.set(bytes, this.#to);
    this.#to += bytes.length;
  }

  /** What was pushed and not used: after an agreement, the first requests. */
  rest(): Uint8Array {
    return this.#input.subarray(this.#from, this.#to);
  }

  /** Works off one message: the reply (perhaps empty). Null: more bytes are needed, or the handshake is over. */
  step(): Uint8Array | null {
    if (this.closed || this.agreement !== null) return null;
    if (this.#drop > 0) return this.#dropMore();
    const rest = this.rest();
    const view = viewOf(rest);
    if (!this.#sawFlags) return rest.length < clientFlagsBytes ? null : this.#clientFlags(view.getUint32(0));
    if (rest.length < optionHeaderBytes) return null;
    if (view.getUint32(0) !== IHAVEOPT_HIGH || view.getUint32(4) !== IHAVEOPT_LOW) return this.#hangUp();
    const option = view.getUint32(8);
    const length = view.getUint32(12);
    if (length > optionBytesMax) return this.#beginDrop(option, length);
    if (rest.length < optionHeaderBytes + length) return null;
    this.#from += optionHeaderBytes + length;
    this.#options += 1;
    if (this.#options > optionsMax) return this.#hangUp();
    return this.#option(option, rest.subarray(optionHeaderBytes, optionHeaderBytes + length));
  }

  #hangUp(): Uint8Array {
    this.closed = true;
    return nothing;
  }

  /** "the server MUST drop the TCP connection if the client sets an unknown flag" */
  #clientFlags(flags: number): Uint8Array {
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) return this.#hangUp();
    this.#from += clientFlagsBytes;
    this.#sawFlags = true;
    this.#noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0;
    return nothing;
  }

  /** An export name has no error reply, and who sends megabytes of option is no client: both are hung up. */
  #beginDrop(option: number, length: number): Uint8Array | null {
    this.#options += 1;
    if (option === NBD_OPT_EXPORT_NAME || length > optionDropBytesMax || this.#options > optionsMax) {
      return this.#hangUp();
    }
    this.#from += optionHeaderBytes;
    this.#drop = length;
    this.#dropped = option;
    return this.#dropMore();
  }

  #dropMore(): Uint8Array | null {
    const count = Math.min(this.#drop, this.#to - this.#from);
    this.#from += count;
    this.#drop -= count;
    if (this.#from === this.#to) {
      this.#from = 0;
      this.#to = 0;
    }
    if (this.#drop > 0) return null;
    // "Issuing this command replaces all previously-set metadata contexts (including when this command fails)".
    if (this.#dropped === NBD_OPT_SET_META_CONTEXT) this.#contexts = null;
    const message = `an option of more than ${optionBytesMax} bytes is not taken`;
    return new OptionReplies(this.#dropped).error(NBD_REP_ERR_TOO_BIG, message).bytes();
  }

  #option(option: number, data: Uint8Array): Uint8Array {
    const replies = new OptionReplies(option);
    try {
      switch (option) {
        case NBD_OPT_EXPORT_NAME:
          return this.#exportName(data);
        case NBD_OPT_ABORT:
          this.closed = true;
          replies.ack();
          break;
        case NBD_OPT_LIST:
          this.#list(replies, data);
          break;
        case NBD_OPT_INFO:
        case NBD_OPT_GO:
          this.#info(replies, data, option === NBD_OPT_GO);
          break;
        case NBD_OPT_STRUCTURED_REPLY:
          this.#structuredReply(replies, data);
          break;
        case NBD_OPT_LIST_META_CONTEXT:
        case NBD_OPT_SET_META_CONTEXT:
          this.#metaContext(replies, data, option === NBD_OPT_SET_META_CONTEXT);
          break;
        default:
          replies.error(NBD_REP_ERR_UNSUP, `option ${option} is not supported`);
      }
    } catch (error) {
      if (!(error instanceof OptionDataError)) throw error;
      if (option === NBD_OPT_EXPORT_NAME) return this.#hangUp();
      replies.error(NBD_REP_ERR_INVALID, error.message);
    }
    return replies.bytes();
  }

  /** "If the server is unwilling to allow the export, it MUST terminate the session": there is no error reply. */
  #exportName(data: Uint8Array): Uint8Array {
    const name = new OptionData(data).string(data.length, 'export name');
    const exported = this.#directory.find(name);
    if (exported === null || 'refused' in exported) return this.#hangUp();
    const agreement = this.#agree(exported, name);
    const bytes = new Uint8Array(10 + (this.#noZeroes ? 0 : exportNameZeroes));
    const view = viewOf(bytes);
    putU64(view, 0, agreement.size);
    view.setUint16(8, agreement.flags);
    this.agreement = agreement;
    return bytes;
  }

  #list(replies: OptionReplies, data: Uint8Array): void {
    new OptionData(data).end();
    for (const { name, description } of this.#directory.list()) replies.server(name, description);
    replies.ack();
  }

  #structuredReply(replies: OptionReplies, data: Uint8Array): void {
    new OptionData(data).end();
    this.#structured = true;
    this.#contexts = null;
    replies.ack();
  }

  #info(replies: OptionReplies, data: Uint8Array, go: boolean): void {
    const fields = new OptionData(data);
    const name = fields.string(fields.u32('length of the export name'), 'export name');
    const wanted = new Set<number>();
    for (let left = fields.u16('number of information requests'); left > 0; left -= 1) {
      wanted.add(fields.u16('information requests'));
    }
    fields.end();
    const exported = this.#find(replies, name);
    if (exported === null) return;
    const agreement = this.#agree(exported, name);
    replies.infoExport(agreement.size, agreement.flags);
    if (wanted.has(NBD_INFO_NAME)) replies.infoText(NBD_INFO_NAME, exported.name);
    if (wanted.has(NBD_INFO_DESCRIPTION)) replies.infoText(NBD_INFO_DESCRIPTION, exported.description);
    // "The server MUST send this info if it is requested", and SHOULD where the constraints are not the default ones.
    if (wanted.has(NBD_INFO_BLOCK_SIZE) || exported.blockSizes[0] > 1) replies.infoBlockSize(exported.blockSizes);
    replies.ack();
    if (go) this.agreement = agreement;
  }

  #metaContext(replies: OptionReplies, data: Uint8Array, set: boolean): void {
    if (set) {
      this.#contexts = null;
      if (!this.#structured)
        throw new OptionDataError('metadata contexts need structured replies: negotiate them first');
    }
    const fields = new OptionData(data);
    const name = fields.string(fields.u32('length of the export name'), 'export name');
    const count = fields.u32('number of queries');
    if (count > queriesMax) {
      replies.error(NBD_REP_ERR_TOO_BIG, `more than ${queriesMax} queries in one option`);
      return;
    }
    const queries: string[] = [];
    for (let index = 0; index < count; index += 1) {
      const query = fields.string(fields.u32('length of a query'), 'query');
      if (!isContextQuery(query)) throw new OptionDataError(`the query "${query}" has no namespace and colon`);
      queries.push(query);
    }
    fields.end();
    const exported = this.#find(replies, name);
    if (exported === null) return;
    const available = contextsOf(exported);
    if (set) {
      const selected = selectContexts(available, queries);
      for (const context of selected) replies.metaContext(context, context.id);
      this.#contexts = { name, selected };
    } else {
      // "The metadata context ID in these replies is reserved and SHOULD be set to zero".
      for (const context of listContexts(available, queries)) replies.metaContext(context, 0);
    }
    replies.ack();
  }

  #find(replies: OptionReplies, name: string): NbdServerExport | null {
    const exported = this.#directory.find(name);
    if (exported === null) {
      replies.error(NBD_REP_ERR_UNKNOWN, name === '' ? 'there is no default export' : `there is no export "${name}"`);
      return null;
    }
    if ('refused' in exported) {
      replies.error(NBD_REP_ERR_POLICY, exported.refused);
      return null;
    }
    return exported;
  }

  /** Contexts count only if they were selected for the very name that is now chosen ("NBD_OPT_SET_META_CONTEXT"). */
  #agree(exported: NbdServerExport, name: string): Agreement {
    return {
      exported,
      structured: this.#structured,
      contexts: this.#contexts?.name === name ? this.#contexts.selected : [],
      flags: transmissionFlags(exported, this.#structured),
      size: exported.backend.length,
    };
  }
}
