/**
 * The copy loop of a mirror and of a sync: takes ranges of a `CopyTarget`, reads them from the source, sends them.
 *
 * Invariants: at most `inFlightMax` chunks are under way; each owns its buffer until it is done. A range is taken
 * before its status is asked and its bytes are read, so that no write can come between unnoticed. While the loop rests
 * (a user's pause, a drain of the source or target) no chunk is under way. Where source and target answer at once,
 * others have their turn after each chunk: users' requests and commands wait for no more than that.
 */
import type { CopyTarget, CopyTicket } from '../block/copy-target.ts';
import type { DirtyRange } from '../block/dirty-bitmap.ts';
import type { BlockParent } from '../block/graph-view.ts';
import { LinkPace } from '../block/link-pace.ts';
import type { BlockNode } from '../block/node.ts';
import { blockStatusOf } from '../block/status.ts';
import type { HostClock } from '../host/host.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import { type Deferred, type Done, deferred } from '../util/later.ts';
import type { JobControl, OnError } from './job.ts';

/** Most bytes of a chunk, where the granularity is not larger. */
export const chunkBytesMax = 2 ** 20;
/** Most bytes a granule may have: a chunk is at least one, and has a buffer. */
export const copyGranularityMax = 2 ** 26;
/** Bytes up to which chunks begin in one turn of the event loop, where a chunk is smaller. */
const turnBytesMin = 2 ** 18;
/** Most chunks under way. */
export const inFlightMax = 16;
/** ms before an error that is to be ignored is met again */
const ignoredErrorDelayMs = 500;
/** most ms that a speed limit lets the loop sleep in one go, so that a new limit is soon obeyed */
const speedSleepMsMax = 1000;

export interface CopyLoopOptions {
  /** the node that is read, now */
  readonly source: () => BlockNode;
  readonly target: CopyTarget;
  readonly clock: HostClock;
  readonly control: JobControl;
  /** the target reads as zeroes where nothing was copied: zeroes of the source are skipped */
  readonly targetIsZero?: boolean;
  /** bytes in flight at most; default 16 MiB */
  readonly bufferBytes?: number;
  /** users share the connection: what is in flight leaves within this time; default: nobody does */
  readonly latencyMsMax?: number;
  readonly onSourceError?: OnError;
  readonly onTargetError?: OnError;
}

export class CopyLoop {
  private readonly options: CopyLoopOptions;
  private readonly chunkBytes: number;
  private readonly inFlightMax: number;
  private readonly turnBytesMax: number;
  private readonly pace: LinkPace;
  private readonly spareBuffers: Uint8Array[] = [];
  private inFlight = 0;
  private inFlightBytes = 0;
  private copiedBytes = 0;
  private cursor = 0;
  private failure: BlockError | null = null;
  private drains = 0;
  /** bytes of the chunks that began in this turn */
  private turnBytes = 0;
  private quiet: Deferred | null = null;
  /** when the speed limit lets the next chunk start, ms of the clock */
  private nextStartMs = 0;
  /** the limit that `nextStartMs` follows from, bytes a second */
  private chargedSpeed = 0;
  /** users are held until the copy is over */
  private usersWait = false;
  /** when an error that was ignored may be met again, ms of the clock */
  private retryMs = 0;

  constructor(options: CopyLoopOptions) {
    const { granularity } = options.target;
    this.options = options;
    const bufferBytes = options.bufferBytes ?? inFlightMax * chunkBytesMax;
    const wanted = Math.min(chunkBytesMax, bufferBytes / inFlightMax);
    this.chunkBytes = Math.max(granularity, Math.floor(wanted / granularity) * granularity);
    this.turnBytesMax = Math.max(this.chunkBytes, turnBytesMin);
    this.inFlightMax = Math.min(inFlightMax, Math.max(1, Math.floor(bufferBytes / this.chunkBytes)));
    const latencyMsMax = options.latencyMsMax ?? Number.POSITIVE_INFINITY;
    this.pace = new LinkPace(options.clock, granularity, this.inFlightMax * this.chunkBytes, latencyMsMax);
  }

  /** Copies until nothing is left. Rejects with the first error that is to be reported, or `cancelled`. */
  async run(): Promise<void> {
    const { control, target } = this.options;
    try {
      for (;;) {
        if (control.pauseWanted && !this.usersWait) await this.whenQuiet();
        if (!this.usersWait) await control.pausePoint();
        else if (control.cancelled) throw new BlockError('cancelled', 'the copy was cancelled');
        if (this.failure !== null) throw this.failure;
        if (this.drains === 0) this.startChunks();
        this.tellProgress();
        if (this.inFlight === 0 && target.remainingBytes <= 0 && this.failure === null) return;
        await control.wait();
      }
    } finally {
      if (control.cancelled) target.cancel?.(new BlockError('cancelled', 'the copy was cancelled'));
      await this.whenQuiet();
      this.tellProgress();
    }
  }

  /**
   * The rest, while users are held: they wait for it. So nothing makes it rest, no pause and no speed limit, and the
   * first error is the job's, whatever is wanted of errors: who stops or tries again would hold the users for as long.
   */
  async finish(): Promise<void> {
    this.usersWait = true;
    this.retryMs = 0;
    try {
      await this.run();
    } finally {
      this.usersWait = false;
    }
  }

  /** For the job's uses of nodes: it rests while one of them is drained. */
  parent(description: string): BlockParent {
    return {
      description,
      drainBegin: (): Done => {
        this.drains += 1;
        return this.inFlight === 0 ? undefined : this.whenQuiet();
      },
      drainEnd: (): void => {
        this.drains -= 1;
        this.options.control.wake();
      },
    };
  }

  tellProgress(): void {
    const left = this.options.target.remainingBytes + this.inFlightBytes;
    this.options.control.setProgress(this.copiedBytes, this.copiedBytes + left);
  }

  private whenQuiet(): Promise<void> {
    if (this.inFlight === 0) return Promise.resolve();
    this.quiet ??= deferred();
    return this.quiet.promise;
  }

  // ------------------------------------------------------------ chunks

  private startChunks(): void {
    const speed = this.usersWait ? 0 : this.options.control.speed;
    if (speed !== this.chargedSpeed) this.nextStartMs = 0;
    this.chargedSpeed = speed;
    while (this.inFlight < this.inFlightMax && this.roomBytes() > 0 && this.failure === null) {
      if (this.turnBytes >= this.turnBytesMax) return;
      const waitMs = Math.max(this.nextStartMs, this.retryMs) - this.options.clock.now();
      if (waitMs > 0) {
        this.options.clock.after(Math.min(waitMs, speedSleepMsMax), () => this.options.control.wake());
        return;
      }
      const range = this.nextRange();
      if (range === null) return;
      this.charge(range.length);
      this.countInTurn(range.length);
      void this.copyChunk(range);
    }
  }

  private countInTurn(length: number): void {
    const { clock, control } = this.options;
    if (this.turnBytes === 0) {
      clock.endOfTurn(() => {
        this.turnBytes = 0;
        control.wake();
      });
    }
    this.turnBytes += length;
  }

  /** Bytes that the next chunk may have, in whole granules; 0: it has to wait for others. */
  private roomBytes(): number {
    const { granularity } = this.options.target;
    const room = Math.floor((this.pace.bytes - this.inFlightBytes) / granularity) * granularity;
    return Math.max(0, Math.min(this.chunkBytes, room));
  }

  private nextRange(): DirtyRange | null {
    const { target } = this.options;
    // Zeroes cost next to nothing: of a chunk that is alone, what is data is cut to the pace once that is known.
    const bytes = this.inFlight === 0 ? this.chunkBytes : this.roomBytes();
    let range = target.next(this.cursor, bytes);
    if (range === null && this.cursor > 0) range = target.next(0, bytes);
    this.cursor = range === null ? 0 : range.offset + range.length;
    return range;
  }

  /** One chunk; never rejects. */
  private async copyChunk(range: DirtyRange): Promise<void> {
    const ticket = this.options.target.take(range);
    this.inFlight += 1;
    this.inFlightBytes += range.length;
    let done = 0;
    try {
      done = await this.copyTaken(range, ticket);
    } finally {
      this.copiedBytes += done;
      this.inFlight -= 1;
      this.inFlightBytes -= range.length;
      if (this.inFlight === 0) {
        this.quiet?.resolve();
        this.quiet = null;
      }
      this.options.control.wake();
    }
  }

  /** The bytes that are done: all that was taken, less what was trimmed; 0 if it failed. */
  private async copyTaken(range: DirtyRange, ticket: CopyTicket): Promise<number> {
    const { targetIsZero } = this.options;
    const buffer = this.spareBuffers.pop() ?? new Uint8Array(this.chunkBytes);
    let chunk: Chunk;
    try {
      chunk = await this.readChunk(range, ticket, buffer);
    } catch (thrown) {
      ticket.giveBack();
      this.spareBuffers.push(buffer);
      if (!this.options.control.cancelled) this.failed('read', toBlockError(thrown), range);
      return 0;
    }
    this.charge((chunk.zero ? 0 : chunk.length) - range.length);
    try {
      if (chunk.zero && targetIsZero === true) await ticket.skipZeroes();
      else await this.send(ticket, chunk, buffer);
    } catch (thrown) {
      // The buffer is left to whoever may still read it.
      if (!this.options.control.cancelled) this.failed('write', toBlockError(thrown), range);
      return 0;
    }
    this.spareBuffers.push(buffer);
    return chunk.length;
  }

  private async send(ticket: CopyTicket, chunk: Chunk, buffer: Uint8Array): Promise<void> {
    if (chunk.zero) return await ticket.send(null);
    this.pace.left(ticket, this.inFlightBytes);
    try {
      await ticket.send(buffer.subarray(0, chunk.length));
    } finally {
      this.pace.answered(ticket);
    }
  }

  private async readChunk(range: DirtyRange, ticket: CopyTicket, buffer: Uint8Array): Promise<Chunk> {
    const { source, control } = this.options;
    const chunk = this.paced(this.chunkOf(range, await blockStatusOf(source(), range.offset, range.length)));
    if (chunk.length < range.length) {
      ticket.trim(chunk.length);
      if (this.cursor === range.offset + range.length) this.cursor = range.offset + chunk.length;
    }
    if (!chunk.zero) {
      const read = source().read(range.offset, buffer.subarray(0, chunk.length));
      if (read !== undefined) await read;
    }
    if (control.cancelled) throw new BlockError('cancelled', 'the copy was cancelled');
    return chunk;
  }

  private paced(chunk: Chunk): Chunk {
    const { granularity } = this.options.target;
    const most = Math.floor(this.pace.bytes / granularity) * granularity;
    return chunk.zero || chunk.length <= most ? chunk : { zero: false, length: most };
  }

  /** The first run of granules that are all zero, or of which none is. */
  private chunkOf(range: DirtyRange, extents: readonly Extent[]): Chunk {
    const { granularity } = this.options.target;
    let at = 0;
    let zero: boolean | null = null;
    for (const extent of extents) {
      const end = at + extent.length;
      const last = end >= range.length;
      // Whole granules of zeroes only: a granule that is partly zero is data.
      const zeroFrom = Math.ceil(at / granularity) * granularity;
      const zeroTo = last ? range.length : Math.floor(end / granularity) * granularity;
      if (extent.zero && zeroTo > zeroFrom) {
        if (zeroFrom > 0) return { zero: false, length: zeroFrom };
        zero = true;
        if (zeroTo < range.length) return { zero: true, length: zeroTo };
      }
      at = end;
    }
    return { zero: zero === true && at >= range.length, length: range.length };
  }

  private failed(operation: 'read' | 'write', error: BlockError, { offset, length }: DirtyRange): void {
    const { control, onSourceError, onTargetError, clock } = this.options;
    const wanted = (operation === 'read' ? onSourceError : onTargetError) ?? 'report';
    const policy = this.usersWait ? 'report' : wanted;
    const action = control.ioError(operation, error, policy);
    const { code, errno, message } = error;
    const where = `${operation} of ${length} bytes at ${offset}: ${message}`;
    if (action === 'report') this.failure ??= new BlockError(code, where, { errno, cause: error });
    else if (action === 'ignore') this.retryMs = clock.now() + ignoredErrorDelayMs;
  }

  /** Called when a chunk starts, and with what it did not use (a negative length): zeroes cost next to nothing. */
  private charge(length: number): void {
    const speed = this.chargedSpeed;
    if (speed === 0) return;
    const from = length > 0 ? Math.max(this.nextStartMs, this.options.clock.now()) : this.nextStartMs;
    this.nextStartMs = from + (length / speed) * 1000;
  }
}

interface Chunk {
  readonly zero: boolean;
  /** bytes */
  readonly length: number;
}
