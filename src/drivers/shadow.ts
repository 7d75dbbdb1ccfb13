/**
 * `shadow`: an overlay made for checkpoints. What is written to it is appended to a record log in its `file`; an index in
 * memory says where each block stands; what the index does not have is read from `backing`.
 *
 *     index: block 7 -> position, block 9 -> zero            file: | superblock x2 | record | record | record | ...
 *
 * Invariants: the index holds blocks of the present epoch only, and only such whose record was written; emptying raises
 * the epoch, at a cost that does not depend on what the overlay held (record-log.md 8); it reads back after a crash.
 * Blocks are `granularity` bytes; a write of a part of a block takes the rest from what is read there now, under a range
 * lock (record-log.md 7).
 */
import { z } from 'zod';
import type { Child } from '../block/child.ts';
import { type DriverNode, defineDriver, type OpenContext } from '../block/driver.ts';
import type { Epochal } from '../block/epochal.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { recordKinds, recordPayloadBytesMax } from '../block/record-format.ts';
import { type LogFile, RecordLog } from '../block/record-log.ts';
import { BlockIndex } from '../util/block-index.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import { attempt, type Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';

/** In the index: the block reads as zeroes. A payload never stands at the start of the file. */
const zeroPosition = 0;
const nothing = new Uint8Array(0);
/** bytes of old records behind which an emptied overlay begins again at the start of its file */
const restartBytes = 256 * 1024 * 1024;

const reference = z.union([z.string(), z.looseObject({ driver: z.string() })]);
const optionsSchema = z.strictObject({
  file: reference.describe('the node that the record log is kept in'),
  backing: reference.nullable().default(null).describe('what shows through; null: zeroes'),
  granularity: z
    .union([z.literal(4096), z.literal(16384), z.literal(65536)])
    .default(4096)
    .describe('bytes of a block'),
  size: z.int().positive().optional().describe('bytes; default: the length of the backing'),
  volume: z.string().max(256).default('').describe('the volume it belongs to; a log of another one is refused'),
  epoch: z.int().positive().optional().describe('the epoch that its group holds; default: it has one of its own'),
  sync: z.boolean().default(true).describe('false: durable only when flushed (for tmpfs and tests)'),
  'grow-bytes': z
    .int()
    .min(65536)
    .default(16 * 1024 * 1024)
    .describe('bytes by which the file grows ahead of need'),
});
type Options = z.infer<typeof optionsSchema>;

export const shadowDriver = defineDriver<Options>({
  name: 'shadow',
  summary: 'An overlay on an append-only log, made for checkpoints: emptied at once, whole after a crash.',
  options: optionsSchema,
  async open(options, context) {
    const file = await context.attach('file', 'file', options.file);
    const backing = options.backing === null ? null : await context.attach('backing', 'backing', options.backing);
    const length = options.size ?? backing?.node.length;
    if (length === undefined) throw new BlockError('invalid-option', 'size: is needed where there is no backing');
    return await Shadow.open(options, context, file, backing, length);
  },
});

class Shadow implements DriverNode, Epochal {
  readonly length: number;
  /** its epoch is the group's: made durable by the group's owner */
  readonly belongsToGroup: boolean;
  epoch: number;
  private readonly granularity: number;
  private readonly backing: Child | null;
  private readonly lock = new RangeLock();
  private readonly readOnly: boolean;
  private log: RecordLog | null = null;
  private index = new BlockIndex();
  /** the log begins again at the start of its file before the next append */
  private restartDue = false;
  private readsUnderWay = 0;

  private constructor(options: Options, context: OpenContext, backing: Child | null, length: number) {
    this.granularity = options.granularity;
    this.backing = backing;
    this.length = length;
    this.belongsToGroup = options.epoch !== undefined;
    this.epoch = options.epoch ?? 1;
    this.readOnly = context.readOnly;
  }

  static async open(
    options: Options,
    context: OpenContext,
    file: Child,
    backing: Child | null,
    length: number,
  ): Promise<Shadow> {
    const shadow = new Shadow(options, context, backing, length);
    const { granularity } = options;
    shadow.log = await RecordLog.open(
      logFile(file),
      context.host.random,
      {
        where: `overlay '${context.nodeName}'`,
        volume: options.volume,
        generation: '',
        bootId: '',
        durable: options.sync,
        growBytes: options['grow-bytes'],
      },
      (header, position) => {
        if (header.epoch < shadow.epoch || (shadow.belongsToGroup && header.epoch !== shadow.epoch)) return;
        if (header.epoch > shadow.epoch) {
          shadow.epoch = header.epoch;
          shadow.index = new BlockIndex();
        }
        shadow.enter(header.offset, header.length, header.kind === recordKinds.zero ? zeroPosition : position);
      },
    );
    const { user } = shadow.log;
    const known = z.object({ granularity: z.number(), length: z.number(), epoch: z.number() }).safeParse(user);
    if (!known.success) {
      await shadow.log.setUser(shadow.userData(shadow.epoch));
      return shadow;
    }
    if (known.data.granularity !== granularity || known.data.length !== length) {
      throw new BlockError(
        'bad-image',
        `overlay '${context.nodeName}' was made for ${known.data.length} bytes in blocks of ${known.data.granularity}, ` +
          `not for ${length} in blocks of ${granularity}`,
      );
    }
    if (!shadow.belongsToGroup && known.data.epoch > shadow.epoch) {
      shadow.epoch = known.data.epoch;
      shadow.index = new BlockIndex();
    }
    return shadow;
  }

  // ---------------------------------------------------------------- reading

  read(offset: number, into: Uint8Array): Done {
    if (!this.lock.idle && this.lock.conflicts(offset, into.length, true)) {
      return this.lock.run(offset, into.length, true, () => this.readNow(offset, into));
    }
    return this.readNow(offset, into);
  }

  /** Reads run by run: blocks that stand behind each other in the log, or in the backing, are one call. */
  private readNow(offset: number, into: Uint8Array): Done {
    let waiting: Promise<void>[] | null = null;
    for (let at = 0; at < into.length; ) {
      const run = this.runAt(offset + at, into.length - at);
      const done = this.readRun(offset + at, run.position, into.subarray(at, at + run.length));
      if (done !== undefined) {
        waiting ??= [];
        waiting.push(done);
      }
      at += run.length;
    }
    if (waiting === null) return undefined;
    this.readsUnderWay += 1;
    return settleAll(waiting).finally(() => {
      this.readsUnderWay -= 1;
    });
  }

  private readRun(offset: number, position: number | undefined, into: Uint8Array): Done {
    if (position === undefined) {
      if (this.backing !== null) return readBacking(this.backing, offset, into);
    } else if (position !== zeroPosition) return this.logNow.read(position, into);
    into.fill(0);
    return undefined;
  }

  private readonly run = { length: 0, position: 0 as number | undefined };

  /** The run that begins at `offset`: how long (at most `max`), and where its bytes stand. One object, used again. */
  private runAt(offset: number, max: number): { length: number; position: number | undefined } {
    const { granularity, run } = this;
    let block = Math.floor(offset / granularity);
    const within = offset - block * granularity;
    const first = this.index.get(block);
    let length = granularity - within;
    while (length < max) {
      block += 1;
      const next = this.index.get(block);
      const follows = first === undefined || first === zeroPosition ? first : first + length + within;
      if (next !== follows) break;
      length += granularity;
    }
    run.length = Math.min(length, max);
    run.position = first === undefined || first === zeroPosition ? first : first + within;
    return run;
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    const { position, length: runLength } = this.runAt(offset, length);
    const extents: Extent[] = [];
    if (position !== undefined) {
      addExtent(extents, runLength, position === zeroPosition, true);
      return extents;
    }
    const below = this.backing?.node;
    if (below === undefined || offset >= below.length) {
      addExtent(extents, runLength, true, false);
      return extents;
    }
    const inside = Math.min(runLength, below.length - offset);
    const asOurs = (theirs: Extent[]): Extent[] => {
      // It comes from the backing: this node does not have it.
      for (const extent of theirs) addExtent(extents, extent.length, extent.zero, false);
      return extents;
    };
    const theirs = below.blockStatus(offset, inside);
    return theirs instanceof Promise ? theirs.then(asOurs) : asOurs(theirs);
  }

  // ---------------------------------------------------------------- writing

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const done = this.exclusively(offset, from.length, () => this.writeNow(offset, from));
    return (flags & writeFlags.fua) === 0 ? done : this.thenSync(done);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const done = this.exclusively(offset, length, () => this.zeroNow(offset, length));
    return (flags & writeFlags.fua) === 0 ? done : this.thenSync(done);
  }

  /** What was given up here stays: an overlay has no way to say "nobody cares". */
  discard(): Done {
    return undefined;
  }

  flush(): Done {
    return this.logNow.sync();
  }

  private thenSync(done: Done): Done {
    return done === undefined ? this.logNow.sync() : done.then(() => this.logNow.sync());
  }

  /** Issues a change of whole blocks around the range, after overlapping ones. */
  private exclusively(offset: number, length: number, issue: () => Done): Done {
    if (this.readOnly) throw new BlockError('read-only', 'the overlay is open read-only');
    if (this.restartDue) this.restart();
    const { granularity } = this;
    const start = Math.floor(offset / granularity) * granularity;
    const end = Math.ceil((offset + length) / granularity) * granularity;
    return this.lock.run(start, end - start, false, issue);
  }

  private writeNow(offset: number, from: Uint8Array): Done {
    return this.byBlocks(offset, from.length, (at, length, whole) =>
      whole
        ? this.appendData(at, from.subarray(at - offset, at - offset + length))
        : this.appendPart(at, from.subarray(at - offset, at - offset + length)),
    );
  }

  private zeroNow(offset: number, length: number): Done {
    return this.byBlocks(offset, length, (at, part, whole) =>
      whole ? this.appendZeroes(at, part) : this.appendPart(at, new Uint8Array(part)),
    );
  }

  /** Splits a range into the part of a block at its start, whole blocks, and the part at its end. */
  private byBlocks(offset: number, length: number, issue: (at: number, length: number, whole: boolean) => Done): Done {
    const { granularity } = this;
    const end = offset + length;
    let waiting: Promise<void>[] | null = null;
    for (let at = offset; at < end; ) {
      const blockEnd = Math.min(Math.floor(at / granularity) * granularity + granularity, this.length);
      const isWhole = at % granularity === 0 && end >= blockEnd;
      const lastWhole = end === this.length ? end : Math.floor(end / granularity) * granularity;
      const until = isWhole ? Math.min(lastWhole, at + recordPayloadBytesMax) : Math.min(end, blockEnd);
      const part = at;
      const done = attempt(() => issue(part, until - part, isWhole));
      if (done !== undefined) {
        waiting ??= [];
        waiting.push(done);
      }
      at = until;
    }
    return waiting === null ? undefined : settleAll(waiting);
  }

  private appendData(offset: number, from: Uint8Array): Done {
    return this.append(recordKinds.data, offset, from.length, from);
  }

  private appendZeroes(offset: number, length: number): Done {
    return this.append(recordKinds.zero, offset, length, nothing);
  }

  private append(
    kind: (typeof recordKinds)['data' | 'zero'],
    offset: number,
    length: number,
    payload: Uint8Array,
  ): Done {
    const log = this.logNow;
    const done = log.append(kind, this.epoch, offset, length, payload);
    const position = kind === recordKinds.zero ? zeroPosition : log.appendedAt;
    if (done === undefined) return void this.enter(offset, length, position);
    return done.then(() => this.enter(offset, length, position));
  }

  /** A part of one block: the rest is what reads there now; the range lock is held. */
  private appendPart(offset: number, from: Uint8Array): Done {
    const { granularity } = this;
    const start = Math.floor(offset / granularity) * granularity;
    const block = new Uint8Array(Math.min(granularity, this.length - start));
    const done = this.readNow(start, block);
    if (done === undefined) {
      block.set(from, offset - start);
      return this.appendData(start, block);
    }
    return done.then(() => {
      block.set(from, offset - start);
      return this.appendData(start, block);
    });
  }

  private enter(offset: number, length: number, position: number): void {
    const { granularity, index } = this;
    const first = Math.floor(offset / granularity);
    const count = Math.ceil(length / granularity);
    for (let i = 0; i < count; i++) {
      index.set(first + i, position === zeroPosition ? zeroPosition : position + i * granularity);
    }
  }

  // ---------------------------------------------------------------- emptying and the rest

  /** Raises the overlay's own epoch. Nothing is under way in this node: its caller has drained it. */
  async makeEmpty(): Promise<void> {
    if (this.belongsToGroup) {
      throw new BlockError('wrong-state', 'the overlay belongs to a group: it is emptied together with the others');
    }
    const log = this.logNow;
    const user = this.userData(this.epoch + 1);
    if (log.usedBytes > restartBytes && this.readsUnderWay === 0) await log.restart(user);
    else await log.setUser(user);
    this.forget(this.epoch + 1);
  }

  emptyAt(epoch: number): void {
    if (epoch <= this.epoch) throw new BlockError('invalid-request', `epoch ${epoch} is not above ${this.epoch}`);
    this.forget(epoch);
    this.restartDue = this.logNow.usedBytes > restartBytes;
  }

  private forget(epoch: number): void {
    this.epoch = epoch;
    this.index = new BlockIndex();
  }

  private userData(epoch: number): { granularity: number; length: number; epoch: number } {
    return { granularity: this.granularity, length: this.length, epoch };
  }

  /** The space of what was emptied is used anew, before the next append and once no old position is read any more. */
  private restart(): void {
    if (this.readsUnderWay > 0) return;
    this.restartDue = false;
    const restarted = this.lock.run(0, Number.MAX_SAFE_INTEGER, false, () =>
      this.logNow.restart(this.userData(this.epoch)),
    );
    // A failure sticks to the log: the append that waits behind this fails with it.
    restarted?.catch(() => undefined);
  }

  async settle(): Promise<void> {
    if (!this.lock.idle) await this.lock.settled();
  }

  async close(): Promise<void> {
    await this.log?.close();
  }

  info(): Record<string, unknown> {
    return {
      epoch: this.epoch,
      'held-bytes': this.index.size * this.granularity,
      'log-bytes': this.log?.usedBytes ?? 0,
      'index-bytes': this.index.bytes,
      error: this.log?.failed?.message ?? null,
    };
  }

  private get logNow(): RecordLog {
    if (this.log === null) throw new BlockError('wrong-state', 'the overlay is not open');
    return this.log;
  }
}

/** The backing may be shorter than the overlay: behind its end there are zeroes. */
function readBacking(backing: Child, offset: number, into: Uint8Array): Done {
  const inside = Math.max(0, Math.min(into.length, backing.node.length - offset));
  into.fill(0, inside);
  return inside === 0 ? undefined : backing.node.read(offset, into.subarray(0, inside));
}

/** All of them, then the first error: a request's buffer is in use until its last part has ended. */
async function settleAll(parts: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(parts);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

function logFile(child: Child): LogFile {
  // What is still being filled with zeroes is not there yet: an append into it would be overwritten.
  let ready = child.node.length;
  return {
    get length() {
      return ready;
    },
    read: (offset, into) => child.node.read(offset, into),
    write: (offset, from) => child.node.write(offset, from, writeFlags.none),
    flush: () => child.node.flush(),
    async grow(length) {
      const old = ready;
      if (child.node.resize === undefined) {
        throw new BlockError(
          'no-space',
          `node '${child.nodeName}' is full and cannot grow: ${length} bytes are needed`,
        );
      }
      await child.node.resize(length);
      // Written once, so that later writes change no metadata of the file (record-log.md 5).
      const zeroes = new Uint8Array(1024 * 1024);
      for (let at = old; at < length; at += zeroes.length) {
        await child.node.write(at, zeroes.subarray(0, Math.min(zeroes.length, length - at)), writeFlags.none);
      }
      ready = length;
    },
  };
}
