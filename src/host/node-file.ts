/**
 * An open file of the machine.
 *
 * Reads and writes are one synchronous system call and answer `undefined`: while the page cache serves, that is several
 * times faster than a hand-off to a thread. Where they turn out slow (`Pace`), and always past the page cache, they are
 * made on threads and answer a promise; so do calls that change much at once, and those of a block device.
 */
import * as fs from 'node:fs';
import { performance } from 'node:perf_hooks';
import { isRange } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { FileIo, HostFile, HostFileLocks } from './host.ts';
import { deviceBlock, sizeOfDevice } from './node-device.ts';
import { DirectIo } from './node-direct.ts';
import { Pace } from './node-pace.ts';
import type { RunQueue } from './node-run-queue.ts';
import { FileThreads, type ThreadPool } from './node-threads.ts';
import {
  discardBlocks,
  dropCache,
  punchHole,
  type SystemCall,
  SystemCallError,
  type SystemCalls,
  seekData,
  seekEnd,
  seekHole,
  zeroRange,
} from './system-calls.ts';

/** A hole or zeroes of more than this is not made at once: freeing it may take long. */
const quickHoleMax = 64 * 1024 * 1024;
/** What a smaller one takes of its own, milliseconds. */
const quickHoleMs = 1;

/** What `NodeFiles` found out when it opened the file. */
export interface OpenedFile {
  readonly path: string;
  readonly kind: 'file' | 'block';
  readonly handle: fs.promises.FileHandle;
  /** the number of a block device */
  readonly device: number;
  readonly direct: boolean;
  /** all calls on threads from the beginning */
  readonly threads: boolean;
}

export class NodeFile implements HostFile {
  readonly path: string;
  readonly kind: 'file' | 'block';
  readonly blockLength: number;
  readonly locks: HostFileLocks | null;
  readonly #handle: fs.promises.FileHandle;
  readonly #device: number;
  readonly #calls: SystemCalls | null;
  /** how to read and write past the page cache, if the file was opened so */
  readonly #direct: DirectIo | null;
  readonly #pace: Pace;
  readonly #alwaysThreads: boolean;
  readonly #threads: FileThreads;
  /** those under way, the oldest first, and when they began */
  readonly #syncs = new Map<Promise<void>, number>();
  /** -1 once closed: the system may give the number to another file, which must not be written by mistake. */
  #fd: number;

  /** @throws BlockError not-supported: direct I/O without system calls */
  constructor(opened: OpenedFile, pool: ThreadPool, queue: RunQueue, calls: SystemCalls | null) {
    const { path, kind, handle } = opened;
    this.path = path;
    this.kind = kind;
    this.#handle = handle;
    this.#fd = handle.fd;
    this.#device = opened.device;
    this.#calls = calls;
    this.#pace = new Pace(queue);
    this.#threads = new FileThreads(handle.fd, pool, this.#pace);
    this.blockLength = kind === 'block' && calls !== null ? deviceBlock(handle.fd, calls) : 1;
    if (opened.direct && calls === null) throw noDirect(path, 'koffi has no binary for this machine');
    this.#direct =
      opened.direct && calls !== null
        ? new DirectIo(handle, kind === 'block' ? this.blockLength : null, this.#threads, calls)
        : null;
    this.#alwaysThreads = opened.direct || opened.threads;
    this.#pace.slow = this.#alwaysThreads;
    this.locks = calls === null ? null : this.#makeLocks(calls);
  }

  get io(): FileIo {
    const now = performance.now();
    const [sync = now] = this.#syncs.values();
    return { onThreads: this.#pace.slow, oldestMs: Math.max(this.#threads.oldestMs, now - sync) };
  }

  size(): number {
    return this.#do('size of', (fd) => {
      if (this.kind === 'file') return fs.fstatSync(fd).size;
      return this.#calls === null ? sizeOfDevice(this.#device) : (this.#calls.now(seekEnd(fd)) ?? 0);
    });
  }

  read(offset: number, into: Uint8Array): Done {
    const length = into.length;
    try {
      if (!isRange(offset, length, Number.MAX_SAFE_INTEGER)) throw badOffset(offset);
      if (this.#onThread()) return this.#readOnThread(offset, into);
      const began = performance.now();
      let done = fs.readSync(this.#fd, into, 0, length, offset);
      while (done < length) {
        const count = fs.readSync(this.#fd, into, done, length - done, offset + done);
        if (count === 0) {
          into.fill(0, done); // past the end of the file
          break;
        }
        done += count;
      }
      this.#pace.took(performance.now() - began, length);
    } catch (error) {
      throw this.#wrap('read', error);
    }
    return undefined;
  }

  write(offset: number, from: Uint8Array): Done {
    const length = from.length;
    try {
      if (!isRange(offset, length, Number.MAX_SAFE_INTEGER)) throw badOffset(offset);
      if (this.#onThread()) return this.#writeOnThread(offset, from);
      const began = performance.now();
      let done = fs.writeSync(this.#fd, from, 0, length, offset);
      while (done < length) {
        const count = fs.writeSync(this.#fd, from, done, length - done, offset + done);
        if (count === 0) throw noBytesTaken();
        done += count;
      }
      this.#pace.took(performance.now() - began, length);
    } catch (error) {
      throw this.#wrap('write', error);
    }
    return undefined;
  }

  sync(): Promise<void> {
    const sync = new Promise<void>((resolve, reject) => {
      if (this.#fd < 0) throw this.#wrap('sync', undefined);
      fs.fdatasync(this.#fd, (error) => {
        this.#syncs.delete(sync);
        if (error === null) resolve();
        else reject(this.#wrap('sync', error));
      });
    });
    this.#syncs.set(sync, performance.now());
    return sync;
  }

  async dropCache(): Promise<void> {
    const calls = this.#calls;
    if (calls === null) return;
    try {
      if (this.#fd < 0) throw this.#wrap('drop cache of', undefined);
      await this.#threads.run(() => calls.later(dropCache(this.#fd)));
    } catch (error) {
      throw this.#wrap('drop cache of', error);
    }
  }

  async truncate(size: number): Promise<void> {
    try {
      if (this.#fd < 0) throw this.#wrap('truncate', undefined);
      this.#direct?.forgetSize();
      await this.#handle.truncate(size);
    } catch (error) {
      throw this.#wrap('truncate', error);
    }
  }

  seekData(offset: number): number | null | Promise<number | null> {
    return this.#seek('seek data in', seekData(this.#fd, offset), Number.POSITIVE_INFINITY);
  }

  seekHole(offset: number): number | null | Promise<number | null> {
    return this.#seek('seek hole in', seekHole(this.#fd, offset), offset);
  }

  punchHole(offset: number, length: number): boolean | Promise<boolean> {
    return this.#change('punch hole in', offset, length, punchHole(this.#fd, offset, length));
  }

  zeroRange(offset: number, length: number): boolean | Promise<boolean> {
    return this.#change('zero range of', offset, length, zeroRange(this.#fd, offset, length));
  }

  discard(offset: number, length: number): boolean | Promise<boolean> {
    if (this.kind === 'file') return this.punchHole(offset, length);
    return this.#change('discard of', offset, length, discardBlocks(this.#fd, offset, length));
  }

  async close(): Promise<void> {
    if (this.#fd < 0) return;
    this.#fd = -1;
    await Promise.allSettled([...this.#syncs.keys(), this.#threads.settled()]);
    await this.#handle.close().catch((error: unknown) => {
      throw toBlockError(error, `close ${this.path}`);
    });
  }

  // ------------------------------------------------------------ at once, or on a thread

  #onThread(): boolean {
    if (!this.#pace.slow) return false;
    if (this.#fd < 0) throw this.#wrap('use', undefined);
    return this.#alwaysThreads || !this.#pace.mayTry();
  }

  async #readOnThread(offset: number, into: Uint8Array): Promise<void> {
    try {
      if (this.#direct !== null) return await this.#direct.read(offset, into);
      for (let done = 0; done < into.length; ) {
        const count = await this.#threads.read(into, done, into.length - done, offset + done);
        if (count === 0) {
          into.fill(0, done); // past the end of the file
          break;
        }
        done += count;
      }
    } catch (error) {
      throw this.#wrap('read', error);
    }
  }

  async #writeOnThread(offset: number, from: Uint8Array): Promise<void> {
    try {
      if (this.#direct !== null) return await this.#direct.write(offset, from);
      for (let done = 0; done < from.length; ) {
        const count = await this.#threads.write(from, done, from.length - done, offset + done);
        if (count === 0) throw noBytesTaken();
        done += count;
      }
    } catch (error) {
      throw this.#wrap('write', error);
    }
  }

  /** @param none where nothing is found any more */
  #seek(doing: string, call: SystemCall<number | null>, none: number): number | null | Promise<number | null> {
    const calls = this.#calls;
    if (calls === null || this.kind === 'block') return null;
    if (this.#fd >= 0 && this.#pace.slow) {
      return this.#threads
        .run(() => calls.later(call))
        .then(
          (found) => found ?? none,
          (error: unknown) => this.#cannotSeek(doing, error),
        );
    }
    return this.#do(doing, () => {
      try {
        return calls.now(call) ?? none;
      } catch (error) {
        return this.#cannotSeek(doing, error);
      }
    });
  }

  /** Null: the file system knows no holes. */
  #cannotSeek(doing: string, error: unknown): null {
    if (error instanceof SystemCallError && (error.code === 'EINVAL' || error.code === 'ENOTSUP')) return null;
    throw this.#wrap(doing, error);
  }

  #change(doing: string, offset: number, length: number, call: SystemCall<boolean>): boolean | Promise<boolean> {
    const calls = this.#calls;
    if (calls === null) return false;
    if (length === 0) return true;
    if (this.#fd >= 0 && (this.#pace.slow || this.kind === 'block' || length > quickHoleMax)) {
      const make = (): Promise<boolean> => this.#changeOnThread(doing, call, calls);
      return this.#direct === null ? make() : this.#direct.between(offset, length, make);
    }
    const began = performance.now();
    const done = this.#do(doing, () => calls.now(call));
    this.#pace.took(Math.max(0, performance.now() - began - quickHoleMs), 0);
    return done;
  }

  async #changeOnThread(doing: string, call: SystemCall<boolean>, calls: SystemCalls): Promise<boolean> {
    try {
      return await this.#threads.run(() => calls.later(call));
    } catch (error) {
      throw this.#wrap(doing, error);
    }
  }

  #makeLocks(calls: SystemCalls): HostFileLocks {
    const set = (byte: number, type: 'shared' | 'exclusive' | 'none') =>
      this.#do('lock', (fd) => calls.setLock(fd, byte, type));
    return {
      share: (byte) => set(byte, 'shared'),
      exclude: (byte) => set(byte, 'exclusive'),
      release: (byte) => void set(byte, 'none'),
      heldByOther: (byte) => this.#do('lock', (fd) => calls.isLocked(fd, byte)),
    };
  }

  #do<T>(doing: string, call: (fd: number) => T): T {
    try {
      if (this.#fd < 0) throw this.#wrap(doing, undefined);
      return call(this.#fd);
    } catch (error) {
      throw this.#wrap(doing, error);
    }
  }

  #wrap(doing: string, error: unknown): BlockError {
    if (this.#fd < 0) return new BlockError('io-error', `${doing} ${this.path}: it is closed`, { errno: 'EBADF' });
    return toBlockError(error, `${doing} ${this.path}`);
  }
}

export function noDirect(path: string, why: string): BlockError {
  return new BlockError('not-supported', `open ${path}: no direct I/O here: ${why}`);
}

/** Node takes such an offset for "where the last call ended", which would be the wrong place without a word. */
function badOffset(offset: number): Error {
  return Object.assign(new Error(`there is no offset ${offset}`), { code: 'EINVAL' });
}

function noBytesTaken(): Error {
  return Object.assign(new Error('the system takes no bytes'), { code: 'EIO' });
}
