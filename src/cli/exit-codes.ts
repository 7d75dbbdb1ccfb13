/**
 * What the `blockstep` command's exit codes mean: one table, printed in docs/failures.md and kept in step by a test.
 */
import { BlockError, type BlockErrorCode } from '../util/errors.ts';

export const exitCodes = {
  ok: { code: 0, meaning: 'done; for `run` and `demo`: stopped cleanly' },
  failure: { code: 1, meaning: 'something else went wrong; the line on stderr says what' },
  usage: { code: 2, meaning: 'a wrong argument, or a configuration file with an error; the message has file and line' },
  folderInUse: { code: 3, meaning: 'another process holds the data folder or the disk image; the message says who' },
  addressInUse: { code: 4, meaning: 'an address to listen on is taken by another program' },
  disk: { code: 5, meaning: 'a disk image or state file is missing, damaged, not writable or of another size' },
  noSpace: { code: 6, meaning: 'no space left on the device below' },
  notReached: { code: 7, meaning: 'no daemon answered, or the connection to it was lost' },
  refused: {
    code: 8,
    meaning: 'the pair refuses this in its present state; the message says why and what can be done',
  },
} as const;

export type ExitName = keyof typeof exitCodes;

const namesOfErrors: Partial<Record<BlockErrorCode, ExitName>> = {
  'invalid-option': 'usage',
  'invalid-request': 'usage',
  'name-in-use': 'usage',
  locked: 'folderInUse',
  'in-use': 'folderInUse',
  'address-in-use': 'addressInUse',
  'file-not-found': 'disk',
  'file-exists': 'disk',
  'access-denied': 'disk',
  'read-only': 'disk',
  'bad-image': 'disk',
  'io-error': 'disk',
  'no-space': 'noSpace',
  'connection-failed': 'notReached',
  'connection-lost': 'notReached',
  'timed-out': 'notReached',
  'wrong-state': 'refused',
  'wrong-stage': 'refused',
  'op-blocked': 'refused',
};

/** The exit code that belongs to an error. */
export function exitCodeOf(error: unknown): number {
  return exitCodes[(error instanceof BlockError ? namesOfErrors[error.code] : undefined) ?? 'failure'].code;
}
