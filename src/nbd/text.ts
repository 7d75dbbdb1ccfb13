/**
 * Strings of the NBD protocol (doc/proto.md, "Conventions"): UTF-8, no NUL, at most 4096 bytes; and what a peer sent,
 * made fit to print.
 */
import { BlockError } from '../util/errors.ts';
import { NBD_STRING_BYTES_MAX } from './constants.ts';

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** The bytes of an export or context name. @throws BlockError invalid-option: it cannot be said in the protocol */
export function encodeName(name: string): Uint8Array {
  const bytes = encoder.encode(name);
  if (bytes.length > NBD_STRING_BYTES_MAX) {
    throw new BlockError('invalid-option', `a name has ${bytes.length} bytes: NBD allows ${NBD_STRING_BYTES_MAX}`);
  }
  if (name.includes('\0')) throw new BlockError('invalid-option', `the name ${quote(name)} contains a NUL`);
  if (!name.isWellFormed()) throw new BlockError('invalid-option', `the name ${quote(name)} is not valid Unicode`);
  return bytes;
}

/** The string in `bytes`; bytes that are not UTF-8 become U+FFFD, so such a name cannot be asked for again. */
export function decodeText(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** What a peer sent, for one line of a message: no control characters, at most `bytesMax` bytes of it. */
export function printable(bytes: Uint8Array, bytesMax: number): string {
  const text = decodeText(bytes.subarray(0, bytesMax))
    .replaceAll(/\s+/gu, ' ')
    .replaceAll(/\p{C}|\ufffd/gu, '.')
    .trim();
  return bytes.length > bytesMax ? `${text}...` : text;
}

/** A name in a message: quoted, escaped, never longer than a line. */
export function quote(name: string): string {
  return JSON.stringify(name.length > 256 ? `${name.slice(0, 256)}...` : name);
}
