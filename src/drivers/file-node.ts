/**
 * The operations of an image in a file or on a block device of the host: what the drivers `file` and `host_device`
 * share.
 *
 * Invariants: overlapping requests take effect in the order issued, also where the host answers later (a range is held
 * only while a request is asynchronous: the cached path allocates nothing). After a flush that failed every request
 * fails until the node is opened anew: the system tells of lost pages only once, and its page cache may show what the
 * disk does not hold. What the node may do stands in byte locks on the file that other programs see (file-locks.ts).
 */
import type { PermissionMask } from '../block/child.ts';
import type { DriverNode, Reopening } from '../block/driver.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import type { Host, HostFile } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import { after, type Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';
import type { ImageLocks } from './file-locks.ts';
import { SyncQueue } from './file-sync.ts';

/** How many zeroes are written at once where the host can neither punch nor zero, bytes. */
const zeroesChunkBytes = 1024 * 1024;

/** Extents that one block status tells of: a system call finds half of one. */
const statusExtentsMax = 32;

/** What an image is opened with. */
export interface FileParts {
  readonly host: Host;
  readonly file: HostFile;
  readonly locks: ImageLocks;
  readonly readOnly: boolean;
  /** Opens the file once more. */
  openAgain(readOnly: boolean): Promise<HostFile>;
}

export class FileNode implements DriverNode {
  length: number;
  private readonly host: Host;
  private file: HostFile;
  private readonly locks: ImageLocks;
  private readOnly: boolean;
  private readonly openAgain: (readOnly: boolean) => Promise<HostFile>;
  private readonly ranges = new RangeLock();
  private readonly syncs: SyncQueue;

  constructor(parts: FileParts) {
    this.host = parts.host;
    this.file = parts.file;
    this.locks = parts.locks;
    this.readOnly = parts.readOnly;
    this.openAgain = parts.openAgain;
    this.length = this.file.size();
    this.syncs = new SyncQueue(() => this.sync());
  }

  /** The file as long as it can be believed. @throws BlockError `io-error`: a sync has failed */
  private get trusted(): HostFile {
    if (this.syncs.failed !== null) throw this.syncs.failed;
    return this.file;
  }

  read(offset: number, into: Uint8Array): Done {
    if (!this.ranges.idle) return this.ranges.run(offset, into.length, true, () => this.readNow(offset, into));
    const done = this.readNow(offset, into);
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, into.length, true);
  }

  private readNow(offset: number, into: Uint8Array): Done {
    const done = this.trusted.read(offset, into);
    return done === undefined ? undefined : this.stillTrusted(done);
  }

  /** What a read that took time has seen may be what stood there before writes that the system dropped meanwhile. */
  private async stillTrusted(done: Promise<void>): Promise<void> {
    await done;
    if (this.syncs.failed !== null) throw this.syncs.failed;
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const done = this.writeInOrder(offset, from);
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.flush());
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const done = this.inOrder(offset, length, () => this.zero(offset, length, flags));
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.flush());
  }

  discard(offset: number, length: number): Done {
    return this.inOrder(offset, length, () => this.discardBlocks(offset, length));
  }

  flush(): Done {
    return this.syncs.run();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    if (!this.ranges.conflicts(offset, length, true)) return this.status(offset, length);
    return this.statusInOrder(offset, length);
  }

  async permissionsChanging(needs: PermissionMask, shares: PermissionMask): Promise<void> {
    await this.locks.change(needs, shares);
    // A device that has grown is as long for those who come from now on.
    if (this.file.kind === 'block') this.length = Math.max(this.length, this.file.size());
  }

  async reopen(readOnly: boolean, anew: boolean): Promise<Reopening | undefined> {
    const heals = anew && this.syncs.failed !== null;
    const before = this.file;
    if (readOnly === this.readOnly && !heals) return undefined;
    // A device that is claimed can be opened only once: there the same descriptor has to show that it works.
    const same = readOnly === this.readOnly && before.kind === 'block';
    const file = same ? before : await this.openAgain(readOnly);
    const abort = async (): Promise<void> => {
      if (!same) await file.close();
    };
    try {
      if (heals) await this.prove(file);
    } catch (error) {
      await abort();
      throw error;
    }
    return {
      commit: () => {
        if (!same) this.moveTo(file);
        this.readOnly = readOnly;
        if (heals) this.syncs.failed = null;
      },
      abort,
    };
  }

  private moveTo(file: HostFile): void {
    const old = this.file;
    this.locks.moveTo(file);
    this.file = file;
    // Nothing is under way on it, and every flush was answered: nobody waits for what its close says.
    old.close().catch(() => undefined);
  }

  /** What is read from now on is on the disk. @throws BlockError: it cannot be synced even now, or is still cut */
  private async prove(file: HostFile): Promise<void> {
    await file.sync();
    await file.dropCache();
    this.checkLength(file);
  }

  settle(): Done {
    return this.ranges.idle ? undefined : this.ranges.settled();
  }

  async resize(length: number): Promise<void> {
    const file = this.trusted;
    if (file.kind === 'file') await file.truncate(length);
    else if (length > file.size()) {
      throw new BlockError('invalid-option', `size: device ${file.path} has only ${file.size()} bytes`);
    }
    this.length = length;
  }

  async close(): Promise<void> {
    // Who opens it next sees what is on the disk.
    if (this.syncs.failed !== null) await this.file.dropCache().catch(() => undefined);
    await this.file.close();
  }

  info(): Record<string, unknown> {
    const { onThreads, oldestMs } = this.file.io;
    const failed = this.syncs.failed;
    return {
      filename: this.file.path,
      locks: this.locks.state,
      io: onThreads ? 'async' : 'sync',
      'stalled-ms': Math.round(oldestMs),
      ...(failed === null ? {} : { failed: failed.message }),
    };
  }

  // ------------------------------------------------------------ order

  private writeInOrder(offset: number, from: Uint8Array): Done {
    if (!this.ranges.idle) return this.ranges.run(offset, from.length, false, () => this.trusted.write(offset, from));
    const done = this.trusted.write(offset, from);
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, from.length);
  }

  private inOrder(offset: number, length: number, issue: () => Done): Done {
    return this.ranges.run(offset, length, false, issue);
  }

  // ------------------------------------------------------------ zeroes and holes

  private zero(offset: number, length: number, flags: WriteFlags): Done {
    const { blockLength } = this.trusted;
    const start = Math.ceil(offset / blockLength) * blockLength;
    const end = Math.floor((offset + length) / blockLength) * blockLength;
    if (end <= start) return this.zeroSlowly(offset, length, flags);
    if (start === offset && end === offset + length) return this.zeroBlocks(start, end, flags);
    return this.zeroWithEdges(offset, offset + length, start, end, flags);
  }

  /** Whole blocks of a device are zeroed as such, the parts at the ends are written. */
  private async zeroWithEdges(from: number, to: number, start: number, end: number, flags: WriteFlags): Promise<void> {
    await this.zeroBlocks(start, end, flags);
    await this.writeZeroBytes(from, start - from);
    await this.writeZeroBytes(end, to - end);
  }

  private zeroBlocks(start: number, end: number, flags: WriteFlags): Done {
    if ((flags & writeFlags.noHole) !== 0) return this.zeroAllocated(start, end, flags);
    const punched = this.file.punchHole(start, end - start);
    if (punched === true) return undefined;
    if (punched === false) return this.zeroAllocated(start, end, flags);
    return punched.then((done) => (done ? undefined : this.zeroAllocated(start, end, flags)));
  }

  private zeroAllocated(start: number, end: number, flags: WriteFlags): Done {
    // A device may write what it is asked to zero: that is not fast.
    if (this.file.kind === 'block' && (flags & writeFlags.fastZero) !== 0) throw this.notFast();
    const zeroed = this.file.zeroRange(start, end - start);
    if (zeroed === true) return undefined;
    if (zeroed === false) return this.zeroSlowly(start, end - start, flags);
    return zeroed.then((done) => (done ? undefined : this.zeroSlowly(start, end - start, flags)));
  }

  private zeroSlowly(offset: number, length: number, flags: WriteFlags): Done {
    if ((flags & writeFlags.fastZero) !== 0) throw this.notFast();
    return this.writeZeroBytes(offset, length);
  }

  private notFast(): BlockError {
    return new BlockError('not-supported', `${this.file.path}: zeroes cannot be written faster than data`);
  }

  private async writeZeroBytes(offset: number, length: number): Promise<void> {
    const zeroes = new Uint8Array(Math.min(length, zeroesChunkBytes));
    for (let at = 0; at < length; at += zeroes.length) {
      // Other requests have their turn between the pieces of what may be gigabytes.
      if (at > 0) await new Promise<void>((resolve) => this.host.clock.endOfTurn(resolve));
      await this.trusted.write(offset + at, zeroes.subarray(0, Math.min(zeroes.length, length - at)));
    }
  }

  /** A hint: where it cannot be followed, and for parts of blocks, nothing happens. */
  private discardBlocks(offset: number, length: number): Done {
    const { blockLength } = this.trusted;
    const start = Math.ceil(offset / blockLength) * blockLength;
    const end = Math.floor((offset + length) / blockLength) * blockLength;
    if (end <= start) return undefined;
    const discarded = this.file.discard(start, end - start);
    return typeof discarded === 'boolean' ? undefined : discarded.then(() => undefined);
  }

  // ------------------------------------------------------------ durable

  private async sync(): Promise<void> {
    await this.file.sync();
    this.checkLength(this.file);
  }

  private checkLength(file: HostFile): void {
    const size = file.size();
    if (size >= this.length) return;
    const text = `${file.path} was cut to ${size} bytes by somebody else; ${this.length} bytes belong to the disk`;
    throw new BlockError('io-error', text);
  }

  // ------------------------------------------------------------ block status

  private async statusInOrder(offset: number, length: number): Promise<Extent[]> {
    const hold = await this.ranges.acquire(offset, length, true);
    try {
      return await this.status(offset, length);
    } finally {
      hold.release();
    }
  }

  /** Holes and data from `offset` on, as many as are found quickly. */
  private status(offset: number, length: number): Extent[] | Promise<Extent[]> {
    const file = this.trusted;
    const extents: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end && extents.length < statusExtentsMax; ) {
      const data = file.seekData(at);
      if (data instanceof Promise) return this.statusLater(extents, at, end, data);
      const from = addHole(extents, at, end, data);
      const hole = from < end ? file.seekHole(from) : null;
      if (hole instanceof Promise) return this.dataLater(extents, from, end, hole);
      at = addData(extents, from, end, hole);
    }
    return extents;
  }

  private async statusLater(
    extents: Extent[],
    at: number,
    end: number,
    data: Promise<number | null>,
  ): Promise<Extent[]> {
    const from = addHole(extents, at, end, await data);
    if (from < end) await this.dataLater(extents, from, end, this.file.seekHole(from));
    return extents;
  }

  private async dataLater(
    extents: Extent[],
    from: number,
    end: number,
    hole: number | null | Promise<number | null>,
  ): Promise<Extent[]> {
    addData(extents, from, end, await hole);
    return extents;
  }
}

/** Adds the hole before the data that was found, and returns where that begins. */
function addHole(extents: Extent[], at: number, end: number, data: number | null): number {
  const from = Math.min(data ?? at, end);
  addExtent(extents, from - at, true, false);
  return from;
}

/**
 * Adds the data before the hole that was found, and returns where that begins. A hole where data was is a change
 * meanwhile.
 */
function addData(extents: Extent[], from: number, end: number, hole: number | null): number {
  const to = Math.min(Math.max(hole ?? end, from + 1), end);
  addExtent(extents, to - from, false, true);
  return to;
}
