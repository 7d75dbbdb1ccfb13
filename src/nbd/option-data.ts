/**
 * Decodes the data of an option that a client sent. Every length was chosen by the client: each is checked against what
 * is there, and `invalid` says in words what is wrong.
 */
import { viewOf } from '../util/bytes.ts';
import { NBD_STRING_BYTES_MAX } from './constants.ts';

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** What is wrong with the data of an option. */
export class OptionDataError extends Error {}

/** A cursor over the data of one option. */
export class OptionData {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  u16(what: string): number {
    this.#need(2, what);
    this.#at += 2;
    return this.#view.getUint16(this.#at - 2);
  }

  u32(what: string): number {
    this.#need(4, what);
    this.#at += 4;
    return this.#view.getUint32(this.#at - 4);
  }

  /** A string of `length` bytes ("Conventions": UTF-8, no NUL, at most 4096 bytes). */
  string(length: number, what: string): string {
    if (length > NBD_STRING_BYTES_MAX) {
      throw new OptionDataError(`the ${what} is longer than ${NBD_STRING_BYTES_MAX} bytes`);
    }
    this.#need(length, what);
    const from = this.#at;
    this.#at += length;
    let text: string;
    try {
      text = decoder.decode(this.#bytes.subarray(from, this.#at));
    } catch {
      throw new OptionDataError(`the ${what} is not UTF-8`);
    }
    if (text.includes('\0')) throw new OptionDataError(`the ${what} contains a NUL character`);
    return text;
  }

  /** Nothing may follow. */
  end(): void {
    if (this.left > 0) throw new OptionDataError(`${this.left} bytes more than the option has fields`);
  }

  #need(bytes: number, what: string): void {
    if (this.left < bytes) throw new OptionDataError(`the option ends within the ${what}`);
  }
}
