/**
 * Errors of the backend as errors of the protocol.
 */
import { type BlockError, errnoNumbers } from '../util/errors.ts';

/** The errno that goes on the wire, of the set in "Error values". */
export function wireErrno(error: BlockError, fastZero: boolean): number {
  switch (error.errno) {
    case 'EPERM':
    case 'EACCES':
    case 'EROFS':
      return errnoNumbers.EPERM;
    case 'ENOMEM':
    case 'EINVAL':
    case 'ENOSPC':
    case 'EOVERFLOW':
      return errnoNumbers[error.errno];
    case 'EFBIG':
      return errnoNumbers.ENOSPC;
    case 'ENOTSUP':
      // "SHOULD NOT return NBD_ENOTSUP except as documented in response to" a fast zero.
      return fastZero ? errnoNumbers.ENOTSUP : errnoNumbers.EINVAL;
    case 'ESHUTDOWN':
      // It makes a client leave for good: only for a shutdown of ours, not for a connection lost below.
      return error.code === 'shutting-down' ? errnoNumbers.ESHUTDOWN : errnoNumbers.EIO;
    default:
      return errnoNumbers.EIO;
  }
}
