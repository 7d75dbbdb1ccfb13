/**
 * Encodes option replies (doc/proto.md, "Fixed newstyle negotiation"): a list of replies becomes one piece of bytes.
 */
import { putU64, viewOf } from '../util/bytes.ts';
import {
  NBD_INFO_BLOCK_SIZE,
  type NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  type NBD_INFO_NAME,
  NBD_OPTS_REPLY_MAGIC_HIGH,
  NBD_OPTS_REPLY_MAGIC_LOW,
  NBD_REP_ACK,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  NBD_STRING_BYTES_MAX,
} from './constants.ts';
import type { MetaContext } from './meta-context.ts';

const headerBytes = 20;
const encoder = new TextEncoder();

/** UTF-8 of at most `NBD_STRING_BYTES_MAX` bytes, cut between characters. */
export function encodeString(text: string): Uint8Array {
  const into = new Uint8Array(Math.min(text.length * 3, NBD_STRING_BYTES_MAX));
  return into.subarray(0, encoder.encodeInto(text, into).written);
}

/** The replies to one option, in the order they were added. */
export class OptionReplies {
  readonly #option: number;
  readonly #parts: Uint8Array[] = [];

  constructor(option: number) {
    this.#option = option;
  }

  #add(type: number, dataBytes: number): { part: Uint8Array; view: DataView } {
    const part = new Uint8Array(headerBytes + dataBytes);
    const view = viewOf(part);
    view.setUint32(0, NBD_OPTS_REPLY_MAGIC_HIGH);
    view.setUint32(4, NBD_OPTS_REPLY_MAGIC_LOW);
    view.setUint32(8, this.#option);
    view.setUint32(12, type);
    view.setUint32(16, dataBytes);
    this.#parts.push(part);
    return { part, view };
  }

  ack(): this {
    this.#add(NBD_REP_ACK, 0);
    return this;
  }

  /** An error with a sentence that a person reads. */
  error(type: number, message: string): this {
    const text = encodeString(message);
    this.#add(type, text.length).part.set(text, headerBytes);
    return this;
  }

  server(name: string, description: string): this {
    const nameText = encodeString(name);
    const descriptionText = encodeString(description);
    const { part, view } = this.#add(NBD_REP_SERVER, 4 + nameText.length + descriptionText.length);
    view.setUint32(headerBytes, nameText.length);
    part.set(nameText, headerBytes + 4);
    part.set(descriptionText, headerBytes + 4 + nameText.length);
    return this;
  }

  infoExport(size: number, flags: number): this {
    const { view } = this.#add(NBD_REP_INFO, 12);
    view.setUint16(headerBytes, NBD_INFO_EXPORT);
    putU64(view, headerBytes + 2, size);
    view.setUint16(headerBytes + 10, flags);
    return this;
  }

  infoText(type: typeof NBD_INFO_NAME | typeof NBD_INFO_DESCRIPTION, text: string): this {
    const encoded = encodeString(text);
    const { part, view } = this.#add(NBD_REP_INFO, 2 + encoded.length);
    view.setUint16(headerBytes, type);
    part.set(encoded, headerBytes + 2);
    return this;
  }

  infoBlockSize(sizes: readonly [number, number, number]): this {
    const { view } = this.#add(NBD_REP_INFO, 14);
    view.setUint16(headerBytes, NBD_INFO_BLOCK_SIZE);
    for (const [index, size] of sizes.entries()) view.setUint32(headerBytes + 2 + index * 4, size);
    return this;
  }

  metaContext(context: MetaContext, id: number): this {
    const name = encodeString(context.name);
    const { part, view } = this.#add(NBD_REP_META_CONTEXT, 4 + name.length);
    view.setUint32(headerBytes, id);
    part.set(name, headerBytes + 4);
    return this;
  }

  bytes(): Uint8Array {
    const whole = new Uint8Array(this.#parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of this.#parts) {
      whole.set(part, at);
      at += part.length;
    }
    return whole;
  }
}
