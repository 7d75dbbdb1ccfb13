/**
 * What an NBD server announces of an export: gathered from the replies to NBD_OPT_GO, or from NBD_OPT_EXPORT_NAME, and
 * checked as a whole (doc/proto.md, "NBD_REP_INFO" and "Size constraints").
 */
import { getU64, viewOf } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import * as nbd from './constants.ts';
import { decodeText, quote } from './text.ts';

/** What the server announced of an export, and what was agreed on. */
export interface NbdExportInfo {
  /** bytes */
  readonly size: number;
  readonly readOnly: boolean;
  /** transmission flags (`NBD_FLAG_*`) */
  readonly flags: number;
  /** the protocol's defaults where the server named none */
  readonly blockSizes: NbdBlockSizes;
  /** metadata contexts that the server selected: name to id */
  readonly contexts: ReadonlyMap<string, number>;
  readonly structured: boolean;
  /** `blockstep:ordered` was agreed on (pair.md 3) */
  readonly ordered: boolean;
  /** the server's canonical name of the export; the one asked for where it gave none */
  readonly name: string;
  /** empty where it gave none */
  readonly description: string;
}

/** "Size constraints", all in bytes. */
export interface NbdBlockSizes {
  /** offsets and lengths are multiples of it */
  readonly minimum: number;
  readonly preferred: number;
  /** of a payload */
  readonly maximum: number;
}

const defaultBlockSizes: NbdBlockSizes = { minimum: 1, preferred: 4096, maximum: nbd.NBD_PAYLOAD_BYTES_MAX };
const minimumBlockSizeMax = 65_536;

export class ExportInfoBuilder {
  readonly #broken: (what: string) => BlockError;
  #name: string;
  #description = '';
  #size = -1;
  #flags = 0;
  #blockSizes = defaultBlockSizes;

  /** `broken` makes the error for a peer that broke the protocol. */
  constructor(exportName: string, broken: (what: string) => BlockError) {
    this.#name = exportName;
    this.#broken = broken;
  }

  /** One reply to NBD_OPT_GO that is neither the last one nor an error. */
  reply(type: number, data: Uint8Array): void {
    if (type !== nbd.NBD_REP_INFO) throw this.#broken(`it answered NBD_OPT_GO with a reply of type ${type}`);
    if (data.length < 2) throw this.#broken('an information reply has a wrong length');
    const view = viewOf(data);
    switch (view.getUint16(0)) {
      case nbd.NBD_INFO_EXPORT:
        if (data.length !== 12) throw this.#broken('NBD_INFO_EXPORT has a wrong length');
        this.setExport(getU64(view, 2), view.getUint16(10));
        break;
      case nbd.NBD_INFO_NAME:
        this.#name = decodeText(data.subarray(2));
        break;
      case nbd.NBD_INFO_DESCRIPTION:
        this.#description = decodeText(data.subarray(2));
        break;
      case nbd.NBD_INFO_BLOCK_SIZE:
        if (data.length !== 14) throw this.#broken('NBD_INFO_BLOCK_SIZE has a wrong length');
        this.#setBlockSizes({ minimum: view.getUint32(2), preferred: view.getUint32(6), maximum: view.getUint32(10) });
        break;
      default: // "The client MUST ignore information replies it does not understand."
    }
  }

  setExport(size: number, flags: number): void {
    if (!Number.isSafeInteger(size)) {
      throw new BlockError('not-supported', `export ${quote(this.#name)} is larger than 2^53 bytes (8 PiB)`);
    }
    this.#size = size;
    this.#flags = flags;
  }

  finish(structured: boolean, contexts: ReadonlyMap<string, number>): NbdExportInfo {
    if (this.#size < 0) throw this.#broken('it acknowledged NBD_OPT_GO without NBD_INFO_EXPORT');
    return {
      size: this.#size,
      readOnly: (this.#flags & nbd.NBD_FLAG_READ_ONLY) !== 0,
      flags: this.#flags,
      blockSizes: this.#blockSizes,
      contexts,
      structured,
      ordered: contexts.has(nbd.NBD_META_BLOCKSTEP_ORDERED),
      name: this.#name,
      description: this.#description,
    };
  }

  /**
   * A preferred size below 512 breaks a MUST of the document, but harms nobody: taken as it is. The others would leave
   * bytes that no request can reach, or no length that may be sent.
   */
  #setBlockSizes(sizes: NbdBlockSizes): void {
    const { minimum, preferred, maximum } = sizes;
    const right =
      isPowerOfTwo(minimum) && minimum <= minimumBlockSizeMax && isPowerOfTwo(preferred) && preferred >= minimum;
    if (!right || maximum < minimum) {
      throw this.#broken(
        `its block sizes make no sense (minimum ${minimum}, preferred ${preferred}, maximum ${maximum})`,
      );
    }
    this.#blockSizes = sizes;
  }
}

const isPowerOfTwo = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));
