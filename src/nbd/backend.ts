/**
 * What an NBD server serves: the operations of one export. A block node has the same shape, so an export is thin over
 * it; the library knows no graph. Ranges and flags were checked against `length` and `readOnly` before a call.
 */
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

/** Flags of `write` and `writeZeroes`: 1 FUA, 2 NO_HOLE, 4 FAST_ZERO, or-ed (the values of the block layer). */
export type BackendFlags = number;

export interface NbdBackend {
  /** bytes */
  readonly length: number;
  read(offset: number, into: Uint8Array): Done;
  write(offset: number, from: Uint8Array, flags: BackendFlags): Done;
  writeZeroes(offset: number, length: number, flags: BackendFlags): Done;
  discard(offset: number, length: number): Done;
  flush(): Done;
  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]>;
}

/** An export as the server announces it. */
export interface NbdServerExport {
  /** at most 4096 bytes of UTF-8 */
  readonly name: string;
  readonly description: string;
  readonly backend: NbdBackend;
  readonly readOnly: boolean;
  /** several connections see one cache: a flush on one covers the writes answered on all */
  readonly multiConn: boolean;
  /** announces `blockstep:ordered` (pair.md 3) */
  readonly ordered: boolean;
  /** minimum, preferred, maximum block size in bytes */
  readonly blockSizes: readonly [number, number, number];
}

/** What the server asks when a client names an export. */
export interface NbdExportDirectory {
  /** The names that are listed. */
  list(): readonly NbdServerExport[];
  /**
   * The export, or a sentence why this name is refused (NBD_REP_ERR_POLICY), or null: there is none
   * (NBD_REP_ERR_UNKNOWN).
   */
  find(name: string): NbdServerExport | { readonly refused: string } | null;
}
