/**
 * An image in a file (or on a block device) of the host.
 *
 * Invariants: overlapping requests take effect in the order issued, also where the host answers later (a range is held
 * only while a request is asynchronous: the cached path allocates nothing). A flush that failed stays failed until the
 * node is opened anew, because the system tells of lost pages only once. What the node may do stands in byte locks on the
 * file that other programs see (file-locks.ts).
 */
import { z } from 'zod';
import type { PermissionMask } from '../block/child.ts';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import type { HostFile } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import { after, type Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';
import { ImageLocks } from './file-locks.ts';
import { SyncQueue } from './file-sync.ts';

/** How many zeroes are written at once where the host can neither punch nor zero, bytes. */
const zeroesChunkBytes = 1024 * 1024;

export const fileDriver = defineDriver({
  name: 'file',
  summary: 'an image in a file of the host',
  options: z.strictObject({
    filename: z.string().min(1).max(4096).describe('path of the image, which must exist'),
    locking: z
      .enum(['auto', 'on', 'off'])
      .default('auto')
      .describe(
        'byte locks that keep other programs from using the image in a conflicting way; auto: where there are any',
      ),
    exclusive: z
      .boolean()
      .default(false)
      .describe('no other program may write to the image, as if a VM used it (ours)'),
    aio: z.enum(['threads', 'native', 'io_uring']).optional().describe('accepted, changes nothing'),
    'aio-max-batch': z.int().nonnegative().optional().describe('accepted, changes nothing'),
    'drop-cache': z.boolean().optional().describe('accepted, changes nothing'),
  }),
  async open(options, context): Promise<DriverNode> {
    const access = context.readOnly ? 'read' : 'write';
    const file = await context.host.files.open(options.filename, { access, direct: context.cache.direct });
    try {
      const locks = new ImageLocks(context.host, file, options.locking, options.exclusive);
      await locks.change(0, 15);
      return new FileNode(file, locks);
    } catch (error) {
      await file.close();
      throw error;
    }
  },
});

class FileNode implements DriverNode {
  length: number;
  private readonly file: HostFile;
  private readonly locks: ImageLocks;
  private readonly ranges = new RangeLock();
  private readonly syncs: SyncQueue;

  constructor(file: HostFile, locks: ImageLocks) {
    this.file = file;
    this.locks = locks;
    this.length = file.size();
    this.syncs = new SyncQueue(() => this.sync());
  }

  read(offset: number, into: Uint8Array): Done {
    if (!this.ranges.idle) return this.ranges.run(offset, into.length, true, () => this.file.read(offset, into));
    const done = this.file.read(offset, into);
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, into.length, true);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const done = this.writeInOrder(offset, from);
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.flush());
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const done = this.ranges.idle
      ? this.held(this.zero(offset, length, flags), offset, length)
      : this.ranges.run(offset, length, false, () => this.zero(offset, length, flags));
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.flush());
  }

  discard(offset: number, length: number): Done {
    if (this.ranges.idle) return this.punch(offset, length);
    return this.ranges.run(offset, length, false, () => this.punch(offset, length));
  }

  flush(): Done {
    return this.syncs.run();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.ranges.conflicts(offset, length, true) ? this.statusLater(offset, length) : this.status(offset, length);
  }

  async permissionsChanging(needs: PermissionMask, shares: PermissionMask): Promise<void> {
    await this.locks.change(needs, shares);
  }

  async settle(): Promise<void> {
    await this.ranges.settled();
  }

  async resize(length: number): Promise<void> {
    if (this.file.kind !== 'file') throw new BlockError('not-supported', `${this.file.path} is a block device`);
    await this.file.truncate(length);
    this.length = length;
  }

  async close(): Promise<void> {
    await this.file.close();
  }

  info(): Record<string, unknown> {
    const failed = this.syncs.failed;
    return {
      filename: this.file.path,
      locks: this.locks.state,
      ...(failed === null ? {} : { failed: failed.message }),
    };
  }

  private writeInOrder(offset: number, from: Uint8Array): Done {
    if (!this.ranges.idle) return this.ranges.run(offset, from.length, false, () => this.file.write(offset, from));
    return this.held(this.file.write(offset, from), offset, from.length);
  }

  private held(done: Done, offset: number, length: number): Done {
    return done === undefined ? undefined : this.ranges.holdUntil(done, offset, length);
  }

  private zero(offset: number, length: number, flags: WriteFlags): Done {
    if ((flags & writeFlags.noHole) === 0 && this.file.punchHole(offset, length)) return undefined;
    if (this.file.zeroRange(offset, length)) return undefined;
    if ((flags & writeFlags.fastZero) !== 0) {
      throw new BlockError('not-supported', `${this.file.path}: zeroes cannot be written faster than data`);
    }
    return this.writeZeroBytes(offset, length);
  }

  private async writeZeroBytes(offset: number, length: number): Promise<void> {
    const zeroes = new Uint8Array(Math.min(length, zeroesChunkBytes));
    for (let at = 0; at < length; at += zeroes.length) {
      await this.file.write(offset + at, zeroes.subarray(0, Math.min(zeroes.length, length - at)));
    }
  }

  private punch(offset: number, length: number): Done {
    // A discard is a hint: where no hole can be made, nothing happens.
    this.file.punchHole(offset, length);
    return undefined;
  }

  private async sync(): Promise<void> {
    const size = this.file.size();
    if (size < this.length) {
      throw new BlockError(
        'io-error',
        `${this.file.path} was cut to ${size} bytes by somebody else; ${this.length} bytes belong to the disk`,
      );
    }
    await this.file.sync();
  }

  private async statusLater(offset: number, length: number): Promise<Extent[]> {
    const hold = await this.ranges.acquire(offset, length, true);
    try {
      return this.status(offset, length);
    } finally {
      hold.release();
    }
  }

  /** The extent at `offset`, and the hole or data that follows it. */
  private status(offset: number, length: number): Extent[] {
    const extents: Extent[] = [];
    const end = offset + length;
    const data = this.file.seekData(offset);
    if (data === null) {
      addExtent(extents, length, false, true);
      return extents;
    }
    // Without data from `offset` on the answer is the file's size, which may have shrunk below `offset`.
    const dataStart = data < offset || data >= this.file.size() ? end : Math.min(data, end);
    addExtent(extents, dataStart - offset, true, false);
    if (dataStart < end) {
      const hole = this.file.seekHole(dataStart) ?? end;
      addExtent(extents, Math.min(Math.max(hole, dataStart + 1), end) - dataStart, false, true);
    }
    return extents;
  }
}
