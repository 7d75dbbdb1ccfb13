/**
 * The system calls that Node lacks, through koffi: holes, byte locks, the size of a block device.
 *
 * The only file that knows koffi. Where it has no binary for this machine, `loadSystemCalls` gives null and everything
 * goes on without holes and locks. Linux on 64 bits is assumed: `long` and `off_t` are 64 bits wide, offsets are numbers.
 */
import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { type Errno, errnoNumbers } from '../util/errors.ts';

/** A system call that failed, shaped as Node's own errors are: `toBlockError` reads `code`. */
export class SystemCallError extends Error {
  override readonly name = 'SystemCallError';
  readonly code: Errno | `errno ${number}`;

  constructor(call: string, errno: number) {
    const code = errnoNames.get(errno) ?? (`errno ${errno}` as const);
    super(`${code}, ${call}`);
    this.code = code;
  }
}

const errnoNames = new Map<number, Errno>(Object.entries(errnoNumbers).map(([name, n]) => [n, name as Errno]));

/** What a byte range is asked to become. */
export type LockType = 'shared' | 'exclusive' | 'none';

export interface SystemCalls {
  /** SEEK_DATA; null: there is no data at or after `offset`. Throws `SystemCallError` (EINVAL: the file cannot tell). */
  seekData(fd: number, offset: number): number | null;
  /** SEEK_HOLE; null: `offset` is at or after the end. */
  seekHole(fd: number, offset: number): number | null;
  /** SEEK_END: the size, of a block device too. */
  seekEnd(fd: number): number;
  /** fallocate(PUNCH_HOLE | KEEP_SIZE). False: the file system cannot. */
  punchHole(fd: number, offset: number, length: number): boolean;
  /** fallocate(ZERO_RANGE | KEEP_SIZE). False: the file system cannot. */
  zeroRange(fd: number, offset: number, length: number): boolean;
  /** Where bytes lie in memory, for those who need it aligned. They do not move. */
  addressOf(bytes: Uint8Array): number;
  /** F_OFD_SETLK on one byte. False: it conflicts with the lock of another open file. */
  setLock(fd: number, byte: number, type: LockType): boolean;
  /** F_OFD_GETLK: does another open file hold any lock on the byte? */
  isLocked(fd: number, byte: number): boolean;
}

// From Linux' headers: unistd.h (whence), linux/falloc.h (modes), asm-generic/fcntl.h (commands, lock types).
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const lockTypes: Record<LockType, number> = { shared: 0, exclusive: 1, none: 2 };
const { EACCES, EAGAIN, EINTR, EINVAL, ENOSYS, ENXIO, EOPNOTSUPP } = constants.errno;

interface Flock {
  l_type: number;
  l_whence: number;
  l_start: number;
  l_len: number;
  l_pid: number;
}

/** The C functions, as koffi hands them out. */
interface Functions {
  lseek(fd: number, offset: number, whence: number): number;
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  fcntl(fd: number, command: number, lock: Flock): number;
  errno(): number;
  address(bytes: Uint8Array): bigint;
}

let loaded: SystemCalls | null | undefined;

/** The system calls of this machine, or null where they cannot be reached. Loaded once a thread. */
export function loadSystemCalls(): SystemCalls | null {
  if (loaded === undefined) {
    try {
      loaded = systemCalls(loadFunctions());
    } catch {
      loaded = null; // no binary for this machine, or not Linux: the fallback of each caller is stated there
    }
  }
  return loaded;
}

function loadFunctions(): Functions {
  if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) throw new Error('not Linux on 64 bits');
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
  const library = koffi.load(null);
  const flock = koffi.struct({
    l_type: 'int16_t',
    l_whence: 'int16_t',
    l_start: 'int64_t',
    l_len: 'int64_t',
    l_pid: 'int32_t',
  });
  return {
    lseek: library.func('lseek', 'int64_t', ['int', 'int64_t', 'int']),
    fallocate: library.func('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']),
    // Variadic in C; on Linux a pointer travels there as it does for a fixed argument, on both processors.
    fcntl: library.func('fcntl', 'int', ['int', 'int', koffi.inout(koffi.pointer(flock))]),
    errno: () => koffi.errno(),
    address: (bytes) => koffi.address(bytes),
  };
}

function systemCalls(functions: Functions): SystemCalls {
  const seek = (fd: number, offset: number, whence: number, name: string): number | null => {
    const found = functions.lseek(fd, offset, whence);
    if (found >= 0) return found;
    const errno = functions.errno();
    if (errno === ENXIO) return null; // lseek(2): beyond the last byte (or the last data) of the file
    throw new SystemCallError(`lseek ${name}`, errno);
  };
  const fallocate = (fd: number, mode: number, offset: number, length: number): boolean => {
    if (length === 0) return true;
    for (;;) {
      if (functions.fallocate(fd, mode, offset, length) === 0) return true;
      const errno = functions.errno();
      if (errno === EINTR) continue;
      // EINVAL: a block device whose sectors the range does not fit, or a mode that it does not know.
      if (errno === EOPNOTSUPP || errno === ENOSYS || errno === EINVAL) return false;
      throw new SystemCallError('fallocate', errno);
    }
  };
  const lock = (byte: number, type: LockType): Flock => ({
    l_type: lockTypes[type],
    l_whence: 0,
    l_start: byte,
    l_len: 1,
    l_pid: 0,
  });
  return {
    seekData: (fd, offset) => seek(fd, offset, SEEK_DATA, 'SEEK_DATA'),
    seekHole: (fd, offset) => seek(fd, offset, SEEK_HOLE, 'SEEK_HOLE'),
    seekEnd: (fd) => seek(fd, 0, SEEK_END, 'SEEK_END') ?? 0,
    punchHole: (fd, offset, length) => fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length),
    zeroRange: (fd, offset, length) => fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length),
    addressOf: (bytes) => Number(functions.address(bytes)),
    setLock(fd, byte, type) {
      if (functions.fcntl(fd, F_OFD_SETLK, lock(byte, type)) === 0) return true;
      const errno = functions.errno();
      if (errno === EAGAIN || errno === EACCES) return false;
      throw new SystemCallError('fcntl F_OFD_SETLK', errno);
    },
    isLocked(fd, byte) {
      const asked = lock(byte, 'exclusive');
      if (functions.fcntl(fd, F_OFD_GETLK, asked) !== 0)
        throw new SystemCallError('fcntl F_OFD_GETLK', functions.errno());
      return asked.l_type !== lockTypes.none;
    },
  };
}
