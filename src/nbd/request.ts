/**
 * What a request may ask: flags against what was announced, ranges, alignment, lengths, and the error that the protocol
 * document gives for each (doc/proto.md, "Request types", "Error values"). A refused request is answered and the
 * connection goes on; what cannot be understood any more (bad magic, a payload beyond all bounds) ends in the framer.
 */

import { isRange } from '../util/bytes.ts';
import { errnoNumbers } from '../util/errors.ts';
import type { NbdServerExport } from './backend.ts';
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_PAYLOAD_BYTES_MAX,
} from './constants.ts';

/** The fields of a request's header. The cookie is opaque: two halves. */
export interface RequestHeader {
  readonly type: number;
  readonly flags: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offset: number;
  readonly length: number;
}

/** NBD_FLAG_* of an export. Structured replies are needed for the "don't fragment" flag. */
export function transmissionFlags(exported: NbdServerExport, structured: boolean): number {
  let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
  if (exported.readOnly) flags |= NBD_FLAG_READ_ONLY;
  else flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
  if (structured) flags |= NBD_FLAG_SEND_DF;
  if (exported.multiConn) flags |= NBD_FLAG_CAN_MULTI_CONN;
  return flags;
}

/** Why a request is refused: `refusals[n]` says the errno and the sentence; 0: it is not. */
export type Refusal = number;

const refusal = (errno: keyof typeof errnoNumbers, message: string) => ({ errno: errnoNumbers[errno], message });

export const refusals: readonly { readonly errno: number; readonly message: string }[] = [
  { errno: 0, message: '' },
  refusal('EINVAL', 'unknown request type'),
  refusal('EINVAL', 'a flag that does not belong to this request, or was not announced'),
  refusal('EPERM', 'the export is read-only'),
  refusal('EINVAL', 'beyond the end of the export'),
  refusal('ENOSPC', 'beyond the end of the export'),
  refusal('EINVAL', 'not aligned to the minimum block size'),
  refusal('EINVAL', `longer than the maximum payload of ${NBD_PAYLOAD_BYTES_MAX} bytes`),
  refusal('EOVERFLOW', `longer than the maximum payload of ${NBD_PAYLOAD_BYTES_MAX} bytes`),
  refusal('EINVAL', 'no metadata context was selected'),
  refusal('EINVAL', 'length 0'),
  refusal('EINVAL', 'offset and length of a flush are not 0'),
];

const unknownType = 1;
const badFlags = 2;
const readOnly = 3;
const outside = 4;
const outsideNoSpace = 5;
const unaligned = 6;
const tooLong = 7;
const tooLongOverflow = 8;
const noContext = 9;
const noLength = 10;
const notZero = 11;

/** What was agreed for a connection, ready to check requests against. */
export class RequestRules {
  readonly #exported: NbdServerExport;
  readonly #size: number;
  readonly #structured: boolean;
  readonly #hasContexts: boolean;
  readonly #alignMask: number;
  /** by request type, the flags that it may carry */
  readonly #allowed: Uint16Array;

  constructor(agreed: {
    readonly exported: NbdServerExport;
    readonly size: number;
    readonly structured: boolean;
    readonly contexts: readonly unknown[];
    readonly flags: number;
  }) {
    this.#exported = agreed.exported;
    this.#size = agreed.size;
    this.#structured = agreed.structured;
    this.#hasContexts = agreed.contexts.length > 0;
    this.#alignMask = agreed.exported.blockSizes[0] - 1;
    const has = (flag: number, then: number) => ((agreed.flags & flag) === 0 ? 0 : then);
    // "valid for all commands, provided NBD_FLAG_SEND_FUA has been negotiated" ("Command flags").
    const fua = has(NBD_FLAG_SEND_FUA, NBD_CMD_FLAG_FUA);
    this.#allowed = new Uint16Array(NBD_CMD_BLOCK_STATUS + 1).fill(fua);
    this.#allowed[NBD_CMD_READ] = fua | has(NBD_FLAG_SEND_DF, NBD_CMD_FLAG_DF);
    this.#allowed[NBD_CMD_WRITE_ZEROES] =
      fua | NBD_CMD_FLAG_NO_HOLE | has(NBD_FLAG_SEND_FAST_ZERO, NBD_CMD_FLAG_FAST_ZERO);
    this.#allowed[NBD_CMD_BLOCK_STATUS] = fua | NBD_CMD_FLAG_REQ_ONE;
  }

  check(request: RequestHeader): Refusal {
    const { type, flags, offset, length } = request;
    // A disconnect is obeyed whatever else it carries.
    if (type === NBD_CMD_DISC) return 0;
    if ((flags & ~(this.#allowed[type] ?? 0)) !== 0 && type <= NBD_CMD_BLOCK_STATUS) return badFlags;
    switch (type) {
      case NBD_CMD_READ:
        if (length > NBD_PAYLOAD_BYTES_MAX) return this.#structured ? tooLongOverflow : tooLong;
        return this.#range(offset, length, outside);
      case NBD_CMD_WRITE:
        if (this.#exported.readOnly) return readOnly;
        return this.#range(offset, length, outsideNoSpace);
      case NBD_CMD_WRITE_ZEROES:
        if (this.#exported.readOnly) return readOnly;
        return this.#range(offset, length, outsideNoSpace);
      case NBD_CMD_TRIM:
        if (this.#exported.readOnly) return readOnly;
        return this.#range(offset, length, outside);
      case NBD_CMD_FLUSH:
        return offset !== 0 || length !== 0 ? notZero : 0;
      case NBD_CMD_BLOCK_STATUS:
        if (!this.#hasContexts) return noContext;
        if (length === 0) return noLength;
        return this.#range(offset, length, outside);
      default:
        return unknownType;
    }
  }

  /** Inside what was announced and what is there now: the node below may have been replaced by a shorter one. */
  #range(offset: number, length: number, otherwise: Refusal): Refusal {
    if (!isRange(offset, length, this.#size) || offset + length > this.#exported.backend.length) return otherwise;
    // The low 32 bits suffice: a minimum block size is at most 64 KiB ("Size constraints").
    return (((offset | length) >>> 0) & this.#alignMask) === 0 ? 0 : unaligned;
  }
}

/** The flags of a write-zeroes request as flags of the backend. */
export function zeroFlags(flags: number): number {
  return (
    (flags & NBD_CMD_FLAG_FUA) |
    ((flags & NBD_CMD_FLAG_NO_HOLE) === 0 ? 0 : 2) |
    ((flags & NBD_CMD_FLAG_FAST_ZERO) === 0 ? 0 : 4)
  );
}
