/**
 * The system calls that Node lacks, through koffi: holes, byte locks, block devices.
 *
 * The only file that knows koffi. Where it has no binary for this machine, `loadSystemCalls` gives null and everything
 * goes on without holes and locks. Linux on 64 bits is assumed: `long` and `off_t` are 64 bits wide, offsets are
 * numbers.
 *
 * What a call is (`punchHole(fd, ...)`) stands apart from when it is made: `now` blocks this thread, `later` makes it
 * on one of libuv's.
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

/** A call that may take time: which one, with what, and what its result means. */
export interface SystemCall<T> {
  readonly name: 'lseek' | 'fallocate' | 'ioctl' | 'posix_fadvise';
  readonly args: readonly unknown[];
  /** What it says; `errno` is 0 if it succeeded. Throws `SystemCallError`; `again`: it was interrupted. */
  result(returned: number, errno: number): T | typeof again;
}

const again = Symbol('interrupted');

export interface SystemCalls {
  /** Makes the call on this thread. */
  now<T>(call: SystemCall<T>): T;
  /** Makes the call on one of libuv's threads. */
  later<T>(call: SystemCall<T>): Promise<T>;
  /** Where bytes lie in memory, for those who need it aligned. They do not move. */
  addressOf(bytes: Uint8Array): number;
  /** F_OFD_SETLK on one byte. False: it conflicts with the lock of another open file. */
  setLock(fd: number, byte: number, type: LockType): boolean;
  /** F_OFD_GETLK: does another open file hold any lock on the byte? */
  isLocked(fd: number, byte: number): boolean;
}

// From Linux' headers: unistd.h (whence), linux/fadvise.h (advice), linux/falloc.h (modes),
// asm-generic/fcntl.h (commands, lock types), linux/fs.h.
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const POSIX_FADV_DONTNEED = 4;
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const BLKROGET = 0x125e;
const BLKSSZGET = 0x1268;
const BLKDISCARD = 0x1277;
const lockTypes: Record<LockType, number> = { shared: 0, exclusive: 1, none: 2 };
const { EACCES, EAGAIN, EBUSY, EINTR, EINVAL, ENOSYS, ENOTTY, ENXIO, EOPNOTSUPP } = constants.errno;

/** SEEK_DATA; null: there is no data at or after `offset`. EINVAL: the file cannot tell. */
export function seekData(fd: number, offset: number): SystemCall<number | null> {
  return seek('SEEK_DATA', [fd, offset, SEEK_DATA]);
}

/** SEEK_HOLE; null: `offset` is at or after the end. */
export function seekHole(fd: number, offset: number): SystemCall<number | null> {
  return seek('SEEK_HOLE', [fd, offset, SEEK_HOLE]);
}

/** SEEK_END: the size, of a block device too. */
export function seekEnd(fd: number): SystemCall<number | null> {
  return seek('SEEK_END', [fd, 0, SEEK_END]);
}

/** fallocate(PUNCH_HOLE | KEEP_SIZE). False: the file system or the device cannot. */
export function punchHole(fd: number, offset: number, length: number): SystemCall<boolean> {
  return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

/** fallocate(ZERO_RANGE | KEEP_SIZE). False: the file system or the device cannot. */
export function zeroRange(fd: number, offset: number, length: number): SystemCall<boolean> {
  return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
}

/** BLKDISCARD of a block device. False: it knows no discard, or not of such a range. */
export function discardBlocks(fd: number, offset: number, length: number): SystemCall<boolean> {
  const range = BigUint64Array.of(BigInt(offset), BigInt(length));
  return { name: 'ioctl', args: [fd, BLKDISCARD, range], result: unlessUnable('ioctl BLKDISCARD') };
}

/** BLKSSZGET: the logical block of a block device, bytes, is put into `into`. */
export function logicalBlock(fd: number, into: Int32Array): SystemCall<boolean> {
  return { name: 'ioctl', args: [fd, BLKSSZGET, into], result: unlessUnable('ioctl BLKSSZGET') };
}

/** BLKROGET: whether a block device is read-only, 1 or 0, is put into `into`. */
export function isReadOnly(fd: number, into: Int32Array): SystemCall<boolean> {
  return { name: 'ioctl', args: [fd, BLKROGET, into], result: unlessUnable('ioctl BLKROGET') };
}

/** posix_fadvise(DONTNEED) on all of a file: its pages in the cache are forgotten, those not written yet excepted. */
export function dropCache(fd: number): SystemCall<void> {
  return {
    name: 'posix_fadvise',
    args: [fd, 0, 0, POSIX_FADV_DONTNEED],
    result(returned) {
      // It returns the error, as POSIX has it for this function, and leaves errno alone.
      if (returned !== 0) throw new SystemCallError('posix_fadvise', returned);
    },
  };
}

function seek(name: string, args: readonly number[]): SystemCall<number | null> {
  return {
    name: 'lseek',
    args,
    result(returned, errno) {
      if (errno === 0) return returned;
      if (errno === ENXIO) return null; // lseek(2): beyond the last byte (or the last data) of the file
      throw new SystemCallError(`lseek ${name}`, errno);
    },
  };
}

function fallocate(fd: number, mode: number, offset: number, length: number): SystemCall<boolean> {
  return { name: 'fallocate', args: [fd, mode, offset, length], result: unlessUnable('fallocate') };
}

const unable: ReadonlySet<number> = new Set([EOPNOTSUPP, ENOSYS, EINVAL, ENOTTY, EBUSY]);

/** True, or false where it is not to be had here. */
function unlessUnable(name: string): SystemCall<boolean>['result'] {
  return (_returned, errno) => {
    if (errno === 0) return true;
    if (errno === EINTR) return again;
    // EINVAL: a block device whose sectors the range does not fit, or a mode that it does not know; EBUSY: one that
    // somebody else has claimed, whose cached pages cannot be dropped.
    if (unable.has(errno)) return false;
    throw new SystemCallError(name, errno);
  };
}

interface Flock {
  l_type: number;
  l_whence: number;
  l_start: number;
  l_len: number;
  l_pid: number;
}

/** A C function as koffi hands it out. */
interface NativeFunction {
  (...args: readonly unknown[]): number;
  async(...args: readonly unknown[]): void;
}

interface Functions extends Record<SystemCall<unknown>['name'], NativeFunction> {
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
    posix_fadvise: library.func('posix_fadvise', 'int', ['int', 'int64_t', 'int64_t', 'int']),
    // Variadic in C; on Linux a pointer travels there as it does for a fixed argument, on both processors.
    fcntl: library.func('fcntl', 'int', ['int', 'int', koffi.inout(koffi.pointer(flock))]),
    ioctl: library.func('ioctl', 'int', ['int', 'unsigned long', 'void *']),
    errno: () => koffi.errno(),
    address: (bytes) => koffi.address(bytes),
  };
}

function systemCalls(functions: Functions): SystemCalls {
  const lock = (byte: number, type: LockType): Flock => ({
    l_type: lockTypes[type],
    l_whence: 0,
    l_start: byte,
    l_len: 1,
    l_pid: 0,
  });
  const judge = <T>(call: SystemCall<T>, returned: number): T | typeof again =>
    call.result(returned, returned < 0 ? functions.errno() : 0);
  return {
    now(call) {
      for (;;) {
        const result = judge(call, functions[call.name](...call.args));
        if (result !== again) return result;
      }
    },
    later: (call) =>
      new Promise((resolve, reject) => {
        const make = (): void => {
          functions[call.name].async(...call.args, (error: Error | null, returned: number) => {
            try {
              if (error !== null) throw error;
              const result = judge(call, returned);
              if (result === again) make();
              else resolve(result);
            } catch (thrown) {
              reject(thrown);
            }
          });
        };
        make();
      }),
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
