/**
 * The files of one simulated process, over its machine's disk.
 *
 * Each call answers at once or later, as chance will have it, takes its effect when it answers, and may meet a fault
 * that the test has set. A call in flight when its process ends never answers; its effect may be there, partly or not.
 */
import { dirname, resolve } from 'node:path/posix';
import type { FileStat, HostFile, HostFileLocks, HostFiles, OpenHow } from '../../src/host/host.ts';
import { BlockError, type BlockErrorCode, type Errno } from '../../src/util/errors.ts';
import type { Done } from '../../src/util/later.ts';
import type { SimInode } from './disk.ts';
import type { SimProcess } from './host.ts';

export type FileOperation =
  | 'open'
  | 'stat'
  | 'list'
  | 'make-folder'
  | 'remove'
  | 'rename'
  | 'sync-folder'
  | 'read'
  | 'write'
  | 'sync'
  | 'truncate'
  | 'zero'
  | 'close';

/** What goes wrong with which file operations. */
export interface FileFault {
  readonly operation: FileOperation | 'any';
  /** whole path, or a pattern; all files without it */
  readonly path?: string | RegExp;
  /** only operations that touch these bytes */
  readonly range?: { readonly offset: number; readonly length: number };
  /** the error; without it the operation is only slow */
  readonly errno?: 'EIO' | 'ENOSPC' | 'EACCES' | 'EROFS';
  /** added to its time, simulated; such an operation never answers at once */
  readonly delayMs?: number;
  /** how many operations are spared first; default 0 */
  readonly skip?: number;
  /** how many it meets; default all */
  readonly count?: number;
}

/** A fault in force. */
export interface ActiveFault extends FileFault {
  skipped: number;
  met: number;
}

const codes: Partial<Record<Errno, BlockErrorCode>> = {
  ENOSPC: 'no-space',
  EACCES: 'access-denied',
  EROFS: 'read-only',
  ENOENT: 'file-not-found',
  EEXIST: 'file-exists',
};

export function fileError(errno: Errno, doing: string, path: string): BlockError {
  return new BlockError(codes[errno] ?? 'io-error', `${doing} ${path}: ${errno} (simulated)`, { errno });
}

export class SimFiles implements HostFiles {
  readonly #process: SimProcess;

  constructor(process: SimProcess) {
    this.#process = process;
  }

  open(path: string, how: OpenHow): Promise<HostFile> {
    const whole = resolve('/', path);
    return this.#later('open', whole, (disk) => {
      const create = how.create ?? 'never';
      let inode = disk.names.get(whole);
      if (disk.folders.has(whole)) throw new BlockError('invalid-option', `open ${path}: it is a folder`);
      if (inode !== undefined && create === 'exclusive') throw fileError('EEXIST', 'open', path);
      if (inode === undefined) {
        if (create === 'never' || !disk.folders.has(dirname(whole))) throw fileError('ENOENT', 'open', path);
        inode = disk.create(whole);
      }
      const file = new SimFile(this.#process, path, inode, how.access);
      this.#process.openFiles.add(file);
      return file;
    });
  }

  stat(path: string): Promise<FileStat | null> {
    const whole = resolve('/', path);
    return this.#later('stat', whole, (disk) => {
      if (disk.folders.has(whole)) return { kind: 'folder', size: 0, allocated: 0, modifiedMs: 0 };
      const inode = disk.names.get(whole);
      if (inode === undefined) return null;
      return { kind: 'file', size: inode.size, allocated: inode.allocated, modifiedMs: inode.modifiedMs };
    });
  }

  list(path: string): Promise<string[]> {
    const whole = resolve('/', path);
    return this.#later('list', whole, (disk) =>
      [...disk.names.keys(), ...disk.folders]
        .filter((name) => name !== '/' && dirname(name) === whole)
        .map((name) => name.slice(whole === '/' ? 1 : whole.length + 1))
        .sort((a, b) => (a < b ? -1 : 1)),
    );
  }

  makeFolder(path: string): Promise<void> {
    const whole = resolve('/', path);
    return this.#later('make-folder', whole, (disk) => {
      for (let at = whole; at !== '/'; at = dirname(at)) {
        if (disk.names.has(at)) throw fileError('EEXIST', 'make folder', path);
        disk.folders.add(at);
      }
    });
  }

  remove(path: string): Promise<void> {
    const whole = resolve('/', path);
    return this.#later('remove', whole, (disk) => {
      if (disk.names.has(whole)) disk.remove(whole);
    });
  }

  rename(from: string, to: string): Promise<void> {
    const [source, target] = [resolve('/', from), resolve('/', to)];
    return this.#later('rename', source, (disk) => {
      const inode = disk.names.get(source);
      if (inode === undefined || !disk.folders.has(dirname(target))) throw fileError('ENOENT', 'rename', from);
      disk.move(source, inode, target);
    });
  }

  /** A test sets it; nothing that is written takes from it. */
  freeBytes(): Promise<number | null> {
    return Promise.resolve(this.#process.disk.freeBytes);
  }

  syncFolder(path: string): Promise<void> {
    const whole = resolve('/', path);
    return this.#later('sync-folder', whole, (disk) => {
      if (!disk.folders.has(whole)) throw fileError('ENOENT', 'sync folder', path);
      disk.syncFolder(whole);
    });
  }

  #later<T>(operation: FileOperation, path: string, effect: (disk: SimProcess['disk']) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const fault = this.#process.begin(operation, path);
      this.#process.after(this.#process.fileDelay() + (fault?.delayMs ?? 0), () => {
        try {
          if (fault?.errno !== undefined) throw fileError(fault.errno, operation, path);
          resolve(effect(this.#process.disk));
        } catch (error) {
          reject(error);
        }
      });
    });
  }
}

/** A write that has not answered yet. If its process ends now, some of it may have reached the page cache. */
export interface WriteInFlight {
  readonly inode: SimInode;
  readonly offset: number;
  readonly from: Uint8Array;
}

export class SimFile implements HostFile {
  readonly path: string;
  readonly kind = 'file';
  readonly blockLength = 1;
  readonly io = { onThreads: false, oldestMs: 0 };
  readonly locks: HostFileLocks;
  readonly #process: SimProcess;
  readonly #inode: SimInode;
  readonly #access: 'read' | 'write';
  readonly #absolute: string;
  #open = true;
  /** how many of the inode's failed syncs this file was told of */
  #failuresTold: number;

  constructor(process: SimProcess, path: string, inode: SimInode, access: 'read' | 'write') {
    this.#process = process;
    this.path = path;
    this.#absolute = resolve('/', path);
    this.#inode = inode;
    this.#access = access;
    this.#failuresTold = inode.syncFailures;
    this.locks = {
      share: (byte) => this.#lock(byte, false),
      exclude: (byte) => this.#lock(byte, true),
      release: (byte) => this.#unlock((lock) => lock.byte === byte),
      heldByOther: (byte) => inode.locks.some((lock) => lock.byte === byte && lock.holder !== this),
    };
  }

  size(): number {
    this.#check('size of');
    return this.#inode.size;
  }

  read(offset: number, into: Uint8Array): Done {
    this.#check('read');
    const fault = this.#process.begin('read', this.#absolute, offset, into.length);
    return this.#soon(fault, () => {
      if (fault?.errno !== undefined) throw fileError(fault.errno, 'read', this.path);
      this.#inode.read(offset, into);
    });
  }

  write(offset: number, from: Uint8Array): Done {
    this.#checkWritable('write');
    const flight: WriteInFlight = { inode: this.#inode, offset, from };
    this.#process.writesInFlight.add(flight);
    const fault = this.#process.begin('write', this.#absolute, offset, from.length);
    return this.#soon(fault, () => {
      this.#process.writesInFlight.delete(flight);
      if (fault?.errno !== undefined) {
        // What fails may have got some way.
        this.#inode.write(offset, from.subarray(0, this.#process.random.below(from.length + 1)));
        throw fileError(fault.errno, 'write', this.path);
      }
      this.#inode.write(offset, from);
      this.#inode.modifiedMs = this.#process.clock.wall();
    });
  }

  sync(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#check('sync');
      const fault = this.#process.begin('sync', this.#absolute);
      const { disk, random } = this.#process;
      const order = disk.order;
      this.#process.after(this.#process.syncDelay() + (fault?.delayMs ?? 0), () => {
        if (fault?.errno === undefined) this.#inode.sync(order);
        else this.#inode.loseUnsynced(order, random.chance(0.5));
        const failed = this.#inode.syncFailures > this.#failuresTold;
        this.#failuresTold = this.#inode.syncFailures;
        if (failed) reject(fileError(fault?.errno ?? 'EIO', 'sync', this.path));
        else resolve();
      });
    });
  }

  dropCache(): Promise<void> {
    return new Promise((resolve) => {
      this.#check('drop cache of');
      this.#process.after(this.#process.fileDelay(), () => {
        this.#inode.dropLost();
        resolve();
      });
    });
  }

  truncate(size: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#checkWritable('truncate');
      const fault = this.#process.begin('truncate', this.#absolute);
      this.#process.after(this.#process.fileDelay() + (fault?.delayMs ?? 0), () => {
        if (fault?.errno !== undefined) reject(fileError(fault.errno, 'truncate', this.path));
        else {
          this.#inode.truncate(size);
          resolve();
        }
      });
    });
  }

  seekData(offset: number): number | null {
    this.#check('seek in');
    return this.#inode.seek(offset, 'data') ?? Number.POSITIVE_INFINITY;
  }

  seekHole(offset: number): number | null {
    this.#check('seek in');
    return this.#inode.seek(offset, 'hole') ?? Math.max(offset, this.#inode.size);
  }

  punchHole(offset: number, length: number): boolean | Promise<boolean> {
    return this.#zero(offset, length, true);
  }

  zeroRange(offset: number, length: number): boolean | Promise<boolean> {
    return this.#zero(offset, length, false);
  }

  discard(offset: number, length: number): boolean | Promise<boolean> {
    return this.punchHole(offset, length);
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      if (!this.#open) {
        resolve();
        return;
      }
      this.#process.begin('close', this.#absolute);
      if (this.#process.alive) this.release();
      this.#process.after(this.#process.fileDelay(), resolve);
    });
  }

  /** What the system does at a close, also at that of a process that is gone. */
  release(): void {
    this.#open = false;
    this.#unlock(() => true);
    this.#process.openFiles.delete(this);
  }

  #zero(offset: number, length: number, hole: boolean): boolean | Promise<boolean> {
    this.#checkWritable('zero');
    const { holes, zeroes } = this.#process.disk.knows;
    if (hole ? !holes : !zeroes) return false;
    const fault = this.#process.begin('zero', this.#absolute, offset, length);
    const done = this.#soon(fault, () => {
      if (fault?.errno !== undefined) throw fileError(fault.errno, 'zero', this.path);
      if (this.#process.alive) this.#inode.zero(offset, length, hole);
    });
    return done === undefined ? true : done.then(() => true);
  }

  #lock(byte: number, exclusive: boolean): boolean {
    this.#check('lock');
    if (!this.#process.alive) return false;
    const { locks } = this.#inode;
    const others = locks.filter((lock) => lock.byte === byte && lock.holder !== this);
    if (others.some((lock) => exclusive || lock.exclusive)) return false;
    const own = locks.find((lock) => lock.byte === byte && lock.holder === this);
    if (own === undefined) locks.push({ holder: this, byte, exclusive });
    else own.exclusive = exclusive;
    return true;
  }

  #unlock(which: (lock: SimInode['locks'][number]) => boolean): void {
    const { locks } = this.#inode;
    for (let i = locks.length - 1; i >= 0; i--) {
      const lock = locks[i];
      if (lock !== undefined && lock.holder === this && which(lock)) locks.splice(i, 1);
    }
  }

  /** Takes effect now, or later and answers then. */
  #soon(fault: FileFault | undefined, effect: () => void): Done {
    const process = this.#process;
    if (process.alive && !fault?.delayMs && process.answersAtOnce()) {
      effect();
      return undefined;
    }
    return new Promise((resolve, reject) => {
      process.after(process.fileDelay() + (fault?.delayMs ?? 0), () => {
        try {
          effect();
          resolve();
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  #check(doing: string): void {
    if (!this.#open && this.#process.alive) throw fileError('EBADF', doing, this.path);
  }

  #checkWritable(doing: string): void {
    this.#check(doing);
    if (this.#access === 'read') throw fileError('EBADF', doing, this.path);
  }
}
