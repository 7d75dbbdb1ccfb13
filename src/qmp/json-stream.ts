/**
 * The wire of QMP: a stream of bytes to JSON values, and a value to bytes (QEMU's docs/interop/qmp-spec).
 *
 * A message ends where its brackets balance; no newline is needed. What is not JSON is reported once and the stream
 * goes on ("Forcing the JSON parser into known-good state"): a byte that no JSON has, a control character for one,
 * throws away what was collected, and the next message counts. Strings may stand in single quotes, and know the escape
 * `\'`: both are rewritten on the way in, so that what is parsed is plain JSON. Fed byte by byte it gives the same
 * values.
 */

export interface JsonSink {
  value(value: unknown): void;
  /** What arrived is not JSON; a sentence for the peer. */
  error(message: string): void;
}

export interface JsonLimits {
  /** bytes of one message */
  readonly messageBytesMax: number;
  /** brackets within brackets */
  readonly depthMax: number;
}

export const jsonLimits: JsonLimits = { messageBytesMax: 16 * 1024 * 1024, depthMax: 1024 };

const stray = 0;
const space = 1;
const open = 2;
const close = 3;
const separator = 4;
const word = 5;
const quote = 6;

/** What a byte can be outside a string. */
const kinds = kindTable();

function kindTable(): Uint8Array {
  const table = new Uint8Array(256);
  const mark = (characters: string, kind: number): void => {
    for (const character of characters) table[character.charCodeAt(0)] = kind;
  };
  mark(' \t\r\n', space);
  mark('{[', open);
  mark('}]', close);
  mark(',:', separator);
  mark('0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._', word);
  mark('"\'', quote);
  return table;
}

const newline = 0x0a;
const doubleQuote = 0x22;
const singleQuote = 0x27;
const backslash = 0x5c;

const startBytes = 4096;
/** bytes that one arriving byte can add: an escaped one brings its backslash */
const appendedMax = 2;

export class JsonStream {
  readonly #sink: JsonSink;
  readonly #limits: JsonLimits;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  /** the message so far, as plain JSON */
  #text = new Uint8Array(startBytes);
  #length = 0;
  #depth = 0;
  /** the quote that the string began with; 0 outside a string */
  #quote = 0;
  #escaped: boolean = false;
  /** a fault was reported: what cannot begin a message is passed over in silence, up to the end of the line */
  #recovering: boolean = false;
  /** a message broke a limit: the rest of its line is passed over */
  #skippingLine: boolean = false;

  constructor(sink: JsonSink, limits: Partial<JsonLimits> = {}) {
    this.#sink = sink;
    this.#limits = { ...jsonLimits, ...limits };
  }

  /** Takes what arrived. `bytes` is the caller's again afterwards. */
  push(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (this.#skippingLine) this.#skip(byte);
      else if (this.#length + appendedMax > this.#limits.messageBytesMax) {
        this.#breakLimit(`a message longer than ${this.#limits.messageBytesMax} bytes`);
        this.#skip(byte);
      } else if (this.#quote !== 0) this.#inString(byte);
      else this.#outside(byte);
    }
  }

  #outside(byte: number): void {
    const kind = kinds[byte];
    if (this.#depth === 0 && this.#length > 0 && kind !== word) this.#finish();
    switch (kind) {
      case space:
        if (byte === newline) this.#recovering = false;
        if (this.#depth > 0) this.#append(byte);
        return;
      case open:
        this.#depth += 1;
        if (this.#depth > this.#limits.depthMax) {
          this.#breakLimit(`more than ${this.#limits.depthMax} brackets within each other`);
          return;
        }
        this.#append(byte);
        return;
      case close:
        if (this.#depth === 0) {
          this.#fault('a closing bracket without its opening one');
          return;
        }
        this.#append(byte);
        this.#depth -= 1;
        if (this.#depth === 0) this.#finish();
        return;
      case separator:
        if (this.#depth === 0) this.#fault('a value is expected');
        else this.#append(byte);
        return;
      case word:
        this.#append(byte);
        return;
      case quote:
        this.#quote = byte;
        this.#append(doubleQuote);
        return;
      default:
        this.#fault(`stray byte 0x${byte.toString(16).padStart(2, '0')}`);
    }
  }

  #inString(byte: number): void {
    // A raw control character cannot stand in a string, and these bytes in no UTF-8: the peer asks for a fresh start.
    if (byte < 0x20 || byte === 0xc0 || byte === 0xc1 || byte >= 0xf5) {
      this.#fault(`byte 0x${byte.toString(16).padStart(2, '0')} in a string`);
      if (byte === newline) this.#recovering = false;
    } else if (this.#escaped) {
      this.#escaped = false;
      if (byte !== singleQuote) this.#append(backslash);
      this.#append(byte);
    } else if (byte === backslash) {
      this.#escaped = true;
    } else if (byte === this.#quote) {
      this.#quote = 0;
      this.#append(doubleQuote);
      if (this.#depth === 0) this.#finish();
    } else {
      if (byte === doubleQuote) this.#append(backslash);
      this.#append(byte);
    }
  }

  #append(byte: number): void {
    if (this.#length === this.#text.length) {
      const longer = new Uint8Array(this.#text.length * 2);
      longer.set(this.#text);
      this.#text = longer;
    }
    this.#text[this.#length] = byte;
    this.#length += 1;
  }

  /** The brackets are balanced: one message. */
  #finish(): void {
    const bytes = this.#text.subarray(0, this.#length);
    this.#reset();
    this.#recovering = false;
    let value: unknown;
    try {
      value = parse(this.#decoder.decode(bytes));
    } catch (error) {
      this.#sink.error(`JSON parse error: ${error instanceof SyntaxError ? error.message : 'not valid UTF-8'}`);
      return;
    }
    this.#sink.value(value);
  }

  /** Not JSON: what was collected is thrown away. */
  #fault(what: string): void {
    const known = this.#recovering;
    this.#reset();
    this.#recovering = true;
    if (!known) this.#sink.error(`JSON parse error: ${what}`);
  }

  #breakLimit(what: string): void {
    this.#reset();
    this.#skippingLine = true;
    this.#sink.error(`JSON limit exceeded: ${what}; the rest of the line is ignored`);
  }

  #skip(byte: number): void {
    if (byte === newline || (byte < 0x20 && kinds[byte] === stray)) this.#skippingLine = false;
  }

  #reset(): void {
    this.#length = 0;
    this.#depth = 0;
    this.#quote = 0;
    this.#escaped = false;
    // A rare long message does not hold its memory for the life of the connection.
    if (this.#text.length > 64 * 1024) this.#text = new Uint8Array(startBytes);
  }
}

/**
 * A client that counts in nanoseconds has ids beyond 2^53, and waits for the very number that it gave. So the text of
 * such an `id` is kept, in the form that `JSON.stringify` writes as it is.
 */
function parse(text: string): unknown {
  return longDigits.test(text) ? JSON.parse(text, keepLongId) : JSON.parse(text);
}

const longDigits = /\d{16}/;

function keepLongId(key: string, value: unknown, context?: { readonly source?: string }): unknown {
  const source = context?.source;
  if (key !== 'id' || source === undefined || typeof value !== 'number' || Number.isSafeInteger(value)) return value;
  return /^-?\d+$/.test(source) ? rawJson(source) : value;
}

/** Node has it, the compiler's library does not know it yet. */
const { rawJSON: rawJson } = JSON as unknown as { rawJSON(text: string): unknown };

const encoder = new TextEncoder();

/** A message as the spec wants it: ASCII, ended by CRLF. */
export function encodeMessage(message: object): Uint8Array {
  const text = JSON.stringify(message).replace(
    /[\u007f-\uffff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  return encoder.encode(`${text}\r\n`);
}

/** The member of an error that carries `BlockError.code`, between two programs of ours. */
export const errorCodeMember = '__blockstep_code';
