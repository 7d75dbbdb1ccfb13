/**
 * Files of the machine.
 *
 * Reads and writes are one synchronous system call and answer `undefined`: while the page cache serves, that is several
 * times faster than a hand-off to a thread. `sync`, which really waits for the disk, goes through libuv's threads.
 */
import * as fs from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isRange } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { FileStat, HostFile, HostFileLocks, HostFiles, OpenHow } from './host.ts';
import { DirectIo } from './node-direct.ts';
import { SystemCallError, type SystemCalls } from './system-calls.ts';

/** The files of this machine; without system calls (null) there are no holes and no locks. */
export class NodeFiles implements HostFiles {
  readonly #calls: SystemCalls | null;

  constructor(calls: SystemCalls | null) {
    this.#calls = calls;
  }

  open(path: string, how: OpenHow): Promise<HostFile> {
    return naming(`open ${path}`, async () => {
      // Asked before the open as well: opening a pipe would wait for its other end, opening some devices has effects.
      const there = await statOrNull(path);
      if (there !== null) kindToOpen(path, there);
      const calls = this.#calls;
      const file = await fs.promises.open(path, openFlags(how), 0o644).catch((error: unknown) => {
        throw how.direct === true && isCode(error, 'EINVAL') ? noDirect(path, 'its file system knows none') : error;
      });
      try {
        const stat = await file.stat();
        const kind = kindToOpen(path, stat);
        if (how.direct !== true) return new NodeFile(path, kind, file, stat.rdev, calls, null);
        if (calls === null) throw noDirect(path, 'koffi has no binary for this machine');
        const direct = new DirectIo(file.fd, kind === 'block' ? calls.seekEnd(file.fd) : null, calls);
        return new NodeFile(path, kind, file, stat.rdev, calls, direct);
      } catch (error) {
        await file.close();
        throw error;
      }
    });
  }

  stat(path: string): Promise<FileStat | null> {
    return naming(`stat ${path}`, async () => {
      const stat = await statOrNull(path);
      if (stat === null) return null;
      const kind = kindOf(stat);
      return {
        kind,
        size: kind === 'block' ? sizeOfDevice(stat.rdev) : stat.size,
        allocated: stat.blocks * 512,
        modifiedMs: stat.mtimeMs,
      };
    });
  }

  list(path: string): Promise<string[]> {
    return naming(`list ${path}`, async () => {
      try {
        return (await fs.promises.readdir(path)).sort();
      } catch (error) {
        if (isCode(error, 'ENOENT')) return [];
        throw error;
      }
    });
  }

  makeFolder(path: string): Promise<void> {
    return naming(`make folder ${path}`, async () => {
      const whole = resolve(path);
      const first = await fs.promises.mkdir(whole, { recursive: true });
      if (first === undefined) return;
      // Each folder that was made is a new name in its parent.
      for (let made = whole; made.length >= first.length; made = dirname(made)) await syncFolder(dirname(made));
    });
  }

  remove(path: string): Promise<void> {
    return naming(`remove ${path}`, async () => {
      try {
        await fs.promises.unlink(path);
      } catch (error) {
        if (!isCode(error, 'ENOENT')) throw error;
      }
    });
  }

  rename(from: string, to: string): Promise<void> {
    return naming(`rename ${from} to ${to}`, () => fs.promises.rename(from, to));
  }

  syncFolder(path: string): Promise<void> {
    return naming(`sync folder ${path}`, () => syncFolder(path));
  }
}

class NodeFile implements HostFile {
  readonly path: string;
  readonly kind: 'file' | 'block';
  readonly locks: HostFileLocks | null;
  readonly #handle: fs.promises.FileHandle;
  readonly #device: number;
  readonly #calls: SystemCalls | null;
  /** how to read and write past the page cache, if the file was opened so */
  readonly #direct: DirectIo | null;
  readonly #syncs = new Set<Promise<void>>();
  /** -1 once closed: the system may give the number to another file, which must not be written by mistake. */
  #fd: number;

  constructor(
    path: string,
    kind: 'file' | 'block',
    handle: fs.promises.FileHandle,
    device: number,
    calls: SystemCalls | null,
    direct: DirectIo | null,
  ) {
    this.path = path;
    this.kind = kind;
    this.#handle = handle;
    this.#fd = handle.fd;
    this.#device = device;
    this.#calls = calls;
    this.#direct = direct;
    this.locks = calls === null ? null : this.#makeLocks(calls);
  }

  size(): number {
    return this.#do('size of', (fd) => {
      if (this.kind === 'file') return fs.fstatSync(fd).size;
      return this.#calls === null ? sizeOfDevice(this.#device) : this.#calls.seekEnd(fd);
    });
  }

  read(offset: number, into: Uint8Array): Done {
    const length = into.length;
    try {
      if (!isRange(offset, length, Number.MAX_SAFE_INTEGER)) throw badOffset(offset);
      if (this.#direct !== null) return this.#direct.read(offset, into);
      let done = fs.readSync(this.#fd, into, 0, length, offset);
      while (done < length) {
        const count = fs.readSync(this.#fd, into, done, length - done, offset + done);
        if (count === 0) {
          into.fill(0, done); // past the end of the file
          break;
        }
        done += count;
      }
    } catch (error) {
      throw this.#wrap('read', error);
    }
    return undefined;
  }

  write(offset: number, from: Uint8Array): Done {
    const length = from.length;
    try {
      if (!isRange(offset, length, Number.MAX_SAFE_INTEGER)) throw badOffset(offset);
      if (this.#direct !== null) return this.#direct.write(offset, from);
      let done = fs.writeSync(this.#fd, from, 0, length, offset);
      while (done < length) {
        const count = fs.writeSync(this.#fd, from, done, length - done, offset + done);
        if (count === 0) throw new BlockError('io-error', `write ${this.path}: the system takes no bytes`);
        done += count;
      }
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
    this.#syncs.add(sync);
    return sync;
  }

  async truncate(size: number): Promise<void> {
    try {
      if (this.#fd < 0) throw this.#wrap('truncate', undefined);
      await this.#handle.truncate(size);
    } catch (error) {
      throw this.#wrap('truncate', error);
    }
  }

  seekData(offset: number): number | null {
    return this.#seek(offset, 'seekData');
  }

  seekHole(offset: number): number | null {
    return this.#seek(offset, 'seekHole');
  }

  #seek(offset: number, way: 'seekData' | 'seekHole'): number | null {
    const calls = this.#calls;
    if (calls === null) return null;
    return this.#do(way, (fd) => {
      try {
        return calls[way](fd, offset) ?? this.size();
      } catch (error) {
        if (isCode(error, 'EINVAL') || isCode(error, 'ENOTSUP')) return null;
        throw error;
      }
    });
  }

  punchHole(offset: number, length: number): boolean {
    const calls = this.#calls;
    if (calls === null) return false;
    return this.#do('punch hole in', (fd) => calls.punchHole(fd, offset, length));
  }

  zeroRange(offset: number, length: number): boolean {
    const calls = this.#calls;
    if (calls === null) return false;
    return this.#do('zero range of', (fd) => calls.zeroRange(fd, offset, length));
  }

  async close(): Promise<void> {
    if (this.#fd < 0) return;
    this.#fd = -1;
    await Promise.allSettled(this.#syncs);
    await naming(`close ${this.path}`, () => this.#handle.close());
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

function noDirect(path: string, why: string): BlockError {
  return new BlockError('not-supported', `open ${path}: no direct I/O here: ${why}`);
}

/** Node takes such an offset for "where the last call ended", which would be the wrong place without a word. */
function badOffset(offset: number): Error {
  return Object.assign(new Error(`there is no offset ${offset}`), { code: 'EINVAL' });
}

function openFlags(how: OpenHow): number {
  const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_DIRECT } = fs.constants;
  const create = how.create ?? 'never';
  return (
    (how.access === 'read' ? O_RDONLY : O_RDWR) |
    (create === 'never' ? 0 : O_CREAT) |
    (create === 'exclusive' ? O_EXCL : 0) |
    (how.direct === true ? O_DIRECT : 0)
  );
}

function kindOf(stat: fs.Stats): FileStat['kind'] {
  if (stat.isFile()) return 'file';
  if (stat.isBlockDevice()) return 'block';
  return stat.isDirectory() ? 'folder' : 'other';
}

function kindToOpen(path: string, stat: fs.Stats): 'file' | 'block' {
  const kind = kindOf(stat);
  if (kind === 'file' || kind === 'block') return kind;
  const what = kind === 'folder' ? 'a folder' : 'a socket, pipe or character device';
  throw new BlockError('invalid-option', `open ${path}: it is ${what}, not a file or a block device`);
}

/** Of a device that is not open; the kernel tells it in units of 512 bytes whatever the device's sectors are. */
function sizeOfDevice(device: number): number {
  const major = Math.floor(device / 256) % 4096;
  const minor = (device % 256) + Math.floor(device / 1_048_576) * 256;
  return Number(fs.readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'latin1')) * 512;
}

async function statOrNull(path: string): Promise<fs.Stats | null> {
  try {
    return await fs.promises.stat(path);
  } catch (error) {
    if (isCode(error, 'ENOENT') || isCode(error, 'ENOTDIR')) return null;
    throw error;
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await fs.promises.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

async function naming<T>(doing: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw toBlockError(error, doing);
  }
}

function isCode(error: unknown, code: string): boolean {
  return (error instanceof Error || error instanceof SystemCallError) && 'code' in error && error.code === code;
}
