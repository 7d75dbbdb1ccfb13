/** Names and opening of the files of the machine; an open one is a `NodeFile`. */
import * as fs from 'node:fs';
import { dirname, resolve } from 'node:path';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { FileStat, HostFile, HostFiles, OpenHow } from './host.ts';
import { isReadOnlyDevice, sizeOfDevice } from './node-device.ts';
import { NodeFile, noDirect } from './node-file.ts';
import { RunQueue } from './node-run-queue.ts';
import { ThreadPool } from './node-threads.ts';
import type { SystemCalls } from './system-calls.ts';

/** The files of this machine; without system calls (null) there are no holes and no locks. */
export class NodeFiles implements HostFiles {
  readonly #calls: SystemCalls | null;
  readonly #pool = new ThreadPool();
  readonly #queue = new RunQueue();

  constructor(calls: SystemCalls | null) {
    this.#calls = calls;
  }

  open(path: string, how: OpenHow): Promise<HostFile> {
    return naming(`open ${path}`, async () => {
      // Asked before the open as well: opening a pipe would wait for its other end, opening some devices has effects.
      const there = await statOrNull(path);
      const before = there === null ? 'file' : kindToOpen(path, there);
      const direct = how.direct === true;
      const handle = await fs.promises.open(path, openFlags(how, before), 0o644).catch((error: unknown) => {
        if (direct && isCode(error, 'EINVAL')) throw noDirect(path, 'its file system knows none');
        if (before === 'block' && isCode(error, 'EBUSY')) throw claimed(path, error);
        throw error;
      });
      try {
        const stat = await handle.stat();
        const kind = kindToOpen(path, stat);
        if (kind === 'block' && how.access === 'write' && this.#calls !== null) {
          if (isReadOnlyDevice(handle.fd, this.#calls)) throw new BlockError('read-only', `${path}: read-only device`);
        }
        const opened = { path, kind, handle, device: stat.rdev, direct, threads: how.threads === true };
        return new NodeFile(opened, this.#pool, this.#queue, this.#calls);
      } catch (error) {
        await handle.close();
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

  freeBytes(folder: string): Promise<number | null> {
    return naming(`space of ${folder}`, async () => {
      const { bavail, bsize } = await fs.promises.statfs(folder);
      return bavail * bsize;
    });
  }

  syncFolder(path: string): Promise<void> {
    return naming(`sync folder ${path}`, () => syncFolder(path));
  }
}

function openFlags(how: OpenHow, kind: 'file' | 'block'): number {
  const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_DIRECT } = fs.constants;
  const create = how.create ?? 'never';
  const claim = how.claim === true && kind === 'block';
  return (
    (how.access === 'read' ? O_RDONLY : O_RDWR) |
    (create === 'never' || claim ? 0 : O_CREAT) |
    (create === 'exclusive' || claim ? O_EXCL : 0) |
    (how.direct === true ? O_DIRECT : 0)
  );
}

function claimed(path: string, cause: unknown): BlockError {
  const who = 'it is mounted, part of another device, or another program has claimed it';
  return new BlockError('locked', `open ${path}: the device is in use: ${who}`, { errno: 'EBUSY', cause });
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
  return error instanceof Error && 'code' in error && error.code === code;
}
