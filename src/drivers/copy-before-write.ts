/**
 * `copy-before-write`: a filter that keeps a point in time of its child: before a block is changed for the first time,
 * its old content goes to `target` (replication-filter.md, "The copy-before-write job").
 *
 *     write -> | copied already? -> write                      copied: a bit for each granule
 *              | no: read old -> target, then -> write
 *
 * Invariants: a change of the child starts only when the old content of every granule that it touches is in the target;
 * where the old content cannot be read or stored, the change is not made and fails. With `sync` it is in the target
 * durably (record-log.md 8): the sync belongs here, because only here is known what waits for it, and the target joins
 * the flushes of all changes that wait into one. Overlapping changes wait for each other. A read through an overlay
 * over the child sees old content: it was issued before the change (then the child keeps the order), or it finds the
 * copy in the target. Nobody comes below the filter to change the child: who comes late uses the filter.
 */
import { z } from 'zod';
import { permissionBits } from '../block/child.ts';
import type { CopiesBeforeWrite } from '../block/copies-before-write.ts';
import { type DriverNode, defineDriver, passThrough } from '../block/driver.ts';
import { writeFlags } from '../block/node.ts';
import { Bitmap } from '../util/bitmap.ts';
import { isZero } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import { after, type Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';

/** bytes of old content that one copy takes into memory */
const copyBytesMax = 1024 * 1024;
/** bytes from which on it is asked first where the old content is zeroes: those need not be read, nor stored */
const statusBytesMin = 65_536;

const reference = z.union([z.string(), z.looseObject({ driver: z.string() })]);
const optionsSchema = z.strictObject({
  file: reference.describe('the node whose point in time is kept'),
  target: reference.describe('where old content goes; as long as the child'),
  granularity: z
    .int()
    .min(512)
    .max(64 * 1024 * 1024)
    .default(4096)
    .describe('bytes copied together, a power of two'),
  sync: z
    .boolean()
    .default(false)
    .describe('old content is durable in the target before the block is changed: the copies survive a power cut'),
});

export const copyBeforeWriteDriver = defineDriver({
  name: 'copy-before-write',
  summary: 'A filter that saves the old content of a block in another node before the first change.',
  options: optionsSchema,
  isFilter: true,
  async open(options, context): Promise<DriverNode & CopiesBeforeWrite> {
    const { 'consistent-read': read, write, resize } = permissionBits;
    const child = await context.attach('file', 'filtered', options.file, ({ needs, shares }) => ({
      needs: needs | read,
      // Who came below the filter to write would change what was not copied. As long as nobody stands above it nothing
      // is copied anyway, and those who are to stand there, or did, use the child.
      shares: needs === 0 ? shares : shares & ~(write | resize),
    }));
    const target = await context.attach('target', 'data', options.target, () => ({
      needs: write,
      // Its backing is our child, and an overlay above it reads and writes: all but its length is open to others.
      shares: read | write | permissionBits['write-unchanged'],
    }));
    if (target.node.length !== child.node.length) {
      throw new BlockError(
        'invalid-option',
        `the target has ${target.node.length} bytes, the node to copy from has ${child.node.length}`,
      );
    }
    const { granularity, sync } = options;
    const { length } = child.node;
    const lock = new RangeLock();
    const granulesMax = Math.max(1, Math.floor(copyBytesMax / granularity));
    // The bits say what was copied: so a new point in time costs what was copied since the last, not the disk's size.
    const copied = new Bitmap(Math.ceil(length / granularity));
    const copiedBytes = (): number => Math.min(copied.count * granularity, length);
    let spare: Uint8Array | null = null;

    /** Copies old content, granules `first` to `end`. The buffer is kept for the next where it was done at once. */
    const copyRun = (first: number, end: number): Done => {
      const offset = first * granularity;
      const size = Math.min(end * granularity, length) - offset;
      const buffer = spare !== null && spare.length >= size ? spare : new Uint8Array(Math.max(size, granularity));
      spare = null;
      const old = buffer.subarray(0, size);
      const store = (): Done =>
        isZero(old)
          ? target.node.writeZeroes(offset, size, writeFlags.none)
          : target.node.write(offset, old, writeFlags.none);
      const reading = child.node.read(offset, old);
      const copying = reading === undefined ? store() : reading.then(store);
      if (copying !== undefined) return sync ? copying : copying.then(() => copied.set(first, end - first));
      spare = buffer;
      if (!sync) copied.set(first, end - first);
      return undefined;
    };

    /** Stores granules `first` to `end`, which read as zeroes. */
    const zeroRun = (first: number, end: number): Done => {
      const offset = first * granularity;
      const done = target.node.writeZeroes(offset, Math.min(end * granularity, length) - offset, writeFlags.none);
      if (sync) return done;
      return after(done, () => {
        copied.set(first, end - first);
        return undefined;
      });
    };

    /** Where the granules from `first` on stop reading as zeroes, `end` at most; `first`: they do not. */
    const zeroesUntil = (first: number, end: number): number | Promise<number> => {
      const offset = first * granularity;
      const size = Math.min(end * granularity, length) - offset;
      if (size < statusBytesMin) return first;
      const until = ([extent]: readonly Extent[]): number => {
        if (extent === undefined || !extent.zero) return first;
        return extent.length >= size ? end : Math.floor((offset + extent.length) / granularity);
      };
      const extents = child.node.blockStatus(offset, size);
      return extents instanceof Promise ? extents.then(until) : until(extents);
    };

    const isCopied = (offset: number, size: number): boolean => {
      if (size === 0) return true;
      const end = Math.floor((offset + size - 1) / granularity) + 1;
      return copied.nextClear(Math.floor(offset / granularity), end) < 0;
    };

    /** Copies what is left to copy of granules `first` to `end`. */
    const copyRuns = (first: number, end: number): Done => {
      for (let at = copied.nextClear(first, end); at >= 0; ) {
        const next = copied.nextSet(at, end);
        const until = next < 0 ? end : next;
        const zeroes = zeroesUntil(at, until);
        if (typeof zeroes !== 'number') {
          const from = at;
          return zeroes.then((zeroEnd) => copyFrom(from, until, zeroEnd, end));
        }
        if (zeroes > at || until - at > granulesMax) return copyFrom(at, until, zeroes, end);
        const done = copyRun(at, until);
        if (done !== undefined) return done.then(() => copyRuns(until, end));
        at = copied.nextClear(until, end);
      }
      return undefined;
    };

    /** Copies one piece from `first` on, zeroes up to `zeroEnd`, and then the rest up to `end`. */
    const copyFrom = (first: number, runEnd: number, zeroEnd: number, end: number): Done => {
      const until = zeroEnd > first ? zeroEnd : Math.min(runEnd, first + granulesMax);
      const done = zeroEnd > first ? zeroRun(first, until) : copyRun(first, until);
      return after(done, () => copyRuns(until, end));
    };

    /** Copies what is left to copy in whole granules around the range, which is held. */
    const copyOld = (offset: number, size: number): Done => {
      const first = Math.floor(offset / granularity);
      const end = Math.ceil((offset + size) / granularity);
      if (!sync || copied.nextClear(first, end) < 0) return copyRuns(first, end);
      return after(copyRuns(first, end), () =>
        after(target.node.flush(), () => {
          copied.set(first, end - first);
          return undefined;
        }),
      );
    };

    const notSaved = (error: unknown): never => {
      const cause = toBlockError(error, 'the old content could not be saved, so the write was not made');
      throw new BlockError(cause.code, cause.message, { errno: cause.errno, cause });
    };

    /** Issues a change after the copy of what it overwrites, in its turn among overlapping ones. */
    const changing = (offset: number, size: number, change: () => Done): Done => {
      if (lock.idle && isCopied(offset, size)) return change();
      const start = Math.floor(offset / granularity) * granularity;
      const end = Math.min(Math.ceil((offset + size) / granularity) * granularity, length);
      return lock.run(start, end - start, false, () => {
        let saved: Done;
        try {
          saved = copyOld(offset, size);
        } catch (error) {
          return notSaved(error);
        }
        return saved === undefined ? change() : saved.catch(notSaved).then(change);
      });
    };

    const below = passThrough(child);
    return {
      ...below,
      get length() {
        return child.node.length;
      },
      get ordered() {
        return child.node.ordered !== false;
      },
      write: (offset, from, flags) => {
        // What is copied already and disturbs nobody takes no closure.
        if (lock.idle && isCopied(offset, from.length)) return child.node.write(offset, from, flags);
        return changing(offset, from.length, () => child.node.write(offset, from, flags));
      },
      writeZeroes: (offset, size, flags) => changing(offset, size, () => child.node.writeZeroes(offset, size, flags)),
      discard: (offset, size) => changing(offset, size, () => child.node.discard(offset, size)),
      settle: () => (lock.idle ? undefined : lock.settled()),
      saveOld: async (offset, size) => {
        const before = copied.count;
        await changing(offset, size, () => undefined);
        return (copied.count - before) * granularity;
      },
      forgetCopies: () => copied.clearAll(),
      markCopied: (offset, size) => {
        const first = Math.ceil(offset / granularity);
        const end = offset + size >= length ? copied.bits : Math.floor((offset + size) / granularity);
        if (end > first) copied.set(first, end - first);
      },
      get copiedBytes() {
        return copiedBytes();
      },
      info: () => ({ 'copied-bytes': copiedBytes(), granularity }),
    };
  },
});
