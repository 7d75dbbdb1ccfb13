/**
 * The one error type of blockstep and the one table of its codes.
 *
 * A `BlockError` carries a literal `code` (what went wrong, for programs), an `errno` name (what goes on the NBD wire
 * or into an exit message) and a QMP class (what a QMP client sees). Nothing else crosses a layer's boundary as an
 * error: `toBlockError` wraps whatever Node throws at the edge where it is caught.
 */

/** Names of errno values that blockstep uses; `errnoNumbers` has their Linux numbers. */
export type Errno = keyof typeof errnoNumbers;

/** Linux errno numbers; the NBD protocol uses the same ones ("Error values"). */
export const errnoNumbers = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EMFILE: 24,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  EPIPE: 32,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  EADDRINUSE: 98,
  ECONNRESET: 104,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
} as const;

/** Error classes of QMP (QEMU's docs/interop/qmp-spec, "Error"). */
export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotFound' | 'DeviceNotActive' | 'KVMMissingCap';

interface Kind {
  readonly errno: Errno;
  readonly qmpClass: QmpErrorClass;
}

const kind = (errno: Errno, qmpClass: QmpErrorClass = 'GenericError'): Kind => ({ errno, qmpClass });

/** Every code, with its usual errno and its QMP class. `docs/reference` prints this table. */
export const blockErrorKinds = {
  /** The device or file below answered with an error; `errno` says which. */
  'io-error': kind('EIO'),
  /** No space left below; nothing was lost, the request had no effect that was acknowledged. */
  'no-space': kind('ENOSPC'),
  /** A write to something that is open read-only. */
  'read-only': kind('EPERM'),
  /** A request outside the node or not allowed by its flags. */
  'invalid-request': kind('EINVAL'),
  /** An option, argument or configuration value that is wrong; the message names the field. */
  'invalid-option': kind('EINVAL'),
  'not-supported': kind('ENOTSUP'),
  'no-memory': kind('ENOMEM'),
  'node-not-found': kind('ENOENT', 'GenericError'),
  'device-not-found': kind('ENOENT', 'DeviceNotFound'),
  /** A command failed at a QMP server that tells no code of ours (a QEMU); the message is all that is known. */
  'command-failed': kind('EIO'),
  'command-not-found': kind('ENOTSUP', 'CommandNotFound'),
  'job-not-found': kind('ENOENT', 'GenericError'),
  'job-not-active': kind('ENOENT', 'DeviceNotActive'),
  'name-in-use': kind('EEXIST'),
  /** Two users of a node want what the other forbids; the message names both. */
  'permission-conflict': kind('EBUSY'),
  'in-use': kind('EBUSY'),
  'op-blocked': kind('EBUSY'),
  /** Another process holds the file or folder; the message says who, where that is known. */
  locked: kind('EAGAIN'),
  'file-not-found': kind('ENOENT'),
  'file-exists': kind('EEXIST'),
  'access-denied': kind('EACCES'),
  'address-in-use': kind('EADDRINUSE'),
  'connection-failed': kind('ECONNREFUSED'),
  'connection-lost': kind('ESHUTDOWN'),
  /** The other side broke the protocol, or speaks another one. */
  'protocol-error': kind('EINVAL'),
  'timed-out': kind('ETIMEDOUT'),
  'shutting-down': kind('ESHUTDOWN'),
  /** A replication filter refuses I/O in its present stage (spec: replication-filter, "Stages"). */
  'wrong-stage': kind('EIO'),
  /** An operation that the present role or state of a pair does not allow. */
  'wrong-state': kind('EBUSY'),
  /** An image or a state file that is damaged, truncated or of another kind. */
  'bad-image': kind('EINVAL'),
  cancelled: kind('EINTR'),
} as const satisfies Record<string, Kind>;

export type BlockErrorCode = keyof typeof blockErrorKinds;

/** The error of every layer. `message` is one clear line that tells a person what to do where that is known. */
export class BlockError extends Error {
  override readonly name = 'BlockError';
  readonly code: BlockErrorCode;
  readonly errno: Errno;

  constructor(code: BlockErrorCode, message: string, more: { errno?: Errno; cause?: unknown } = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.code = code;
    this.errno = more.errno ?? blockErrorKinds[code].errno;
  }

  get qmpClass(): QmpErrorClass {
    return blockErrorKinds[this.code].qmpClass;
  }

  /** The number of `errno` as the NBD protocol and Linux know it. */
  get errnoNumber(): number {
    return errnoNumbers[this.errno];
  }
}

const codeOfErrno: Partial<Record<Errno, BlockErrorCode>> = {
  ENOENT: 'file-not-found',
  EEXIST: 'file-exists',
  EACCES: 'access-denied',
  EROFS: 'read-only',
  ENOSPC: 'no-space',
  ENOMEM: 'no-memory',
  EINVAL: 'invalid-request',
  ENOTSUP: 'not-supported',
  EADDRINUSE: 'address-in-use',
  ECONNREFUSED: 'connection-failed',
  ECONNRESET: 'connection-lost',
  EPIPE: 'connection-lost',
  ETIMEDOUT: 'timed-out',
};

/**
 * Wraps what was thrown (usually a Node system error) as a `BlockError`; a `BlockError` is returned as it is.
 * @param doing what was being done, put before the message, e.g. `open /a/b`
 */
export function toBlockError(thrown: unknown, doing?: string): BlockError {
  if (thrown instanceof BlockError) return thrown;
  const errno = errnoOf(thrown);
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return new BlockError((errno && codeOfErrno[errno]) ?? 'io-error', doing === undefined ? text : `${doing}: ${text}`, {
    errno: errno ?? 'EIO',
    cause: thrown,
  });
}

function errnoOf(thrown: unknown): Errno | undefined {
  if (typeof thrown !== 'object' || thrown === null || !('code' in thrown)) return undefined;
  const code = thrown.code === 'EOPNOTSUPP' ? 'ENOTSUP' : thrown.code;
  return typeof code === 'string' && code in errnoNumbers ? (code as Errno) : undefined;
}
