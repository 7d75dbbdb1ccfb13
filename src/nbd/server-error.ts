/**
 * An error that a server replied with, as a `BlockError` (doc/proto.md, "Error values").
 */
import { BlockError, type BlockErrorCode, type Errno } from '../util/errors.ts';
import * as nbd from './constants.ts';
import type { PendingRequest } from './pending.ts';

/** NBD_ESHUTDOWN */
export const shutdownErrno = 108;

interface Known {
  readonly code: BlockErrorCode;
  readonly errno: Errno;
  readonly words: string;
}

const invalid: Known = { code: 'invalid-request', errno: 'EINVAL', words: 'invalid argument' };

const known: ReadonlyMap<number, Known> = new Map<number, Known>([
  [1, { code: 'read-only', errno: 'EPERM', words: 'operation not permitted' }],
  [5, { code: 'io-error', errno: 'EIO', words: 'input/output error' }],
  [12, { code: 'no-memory', errno: 'ENOMEM', words: 'it is out of memory' }],
  [22, invalid],
  [28, { code: 'no-space', errno: 'ENOSPC', words: 'no space left' }],
  [75, { code: 'invalid-request', errno: 'EOVERFLOW', words: 'too large' }],
  [95, { code: 'not-supported', errno: 'ENOTSUP', words: 'not supported' }],
  [shutdownErrno, { code: 'shutting-down', errno: 'ESHUTDOWN', words: 'it is shutting down' }],
]);

const commandNames: ReadonlyMap<number, string> = new Map([
  [nbd.NBD_CMD_READ, 'read'],
  [nbd.NBD_CMD_WRITE, 'write'],
  [nbd.NBD_CMD_FLUSH, 'flush'],
  [nbd.NBD_CMD_TRIM, 'discard'],
  [nbd.NBD_CMD_WRITE_ZEROES, 'write-zeroes'],
  [nbd.NBD_CMD_BLOCK_STATUS, 'block status request'],
]);

/** "The client SHOULD treat an unexpected error value as if it had been NBD_EINVAL, rather than disconnecting." */
export function serverError(peer: string, request: PendingRequest): BlockError {
  const { code, errno, words } = known.get(request.errno) ?? invalid;
  const name = commandNames.get(request.command) ?? 'request';
  const what = request.length === 0 ? name : `${name} of ${request.length} bytes at ${request.offset}`;
  const reason = request.errorMessage === '' ? words : `${words} (it says: ${request.errorMessage})`;
  return new BlockError(code, `${peer} failed a ${what}: ${reason}`, { errno });
}
