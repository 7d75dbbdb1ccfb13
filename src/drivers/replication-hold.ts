/**
 * The link of a pair (`on-link-down: hold`): what becomes of a write or flush in each mode of the link group.
 *
 *     mode      write                                          flush
 *     held      waits for the next mode                        waits for the next mode
 *     alone     marked missing, done                           done (the local disk makes it durable)
 *     syncing   missing ranges stay marked, others forwarded   done
 *     in-sync   forwarded                                      forwarded, waits for the other side
 *     barrier   waits for the next mode                        as in-sync
 *     refusing  marked missing, fails                          fails
 *
 * With `degraded: stop` alone and syncing are to users as refusing. Whoever asks (`refusal`) is told before the local
 * disk has the request: what fails has then not happened. A request that came another way, or was held when the mode
 * became one that refuses, is marked: the local disk was given it (pair.md 7).
 *
 * Invariants: there is a stream exactly in the modes that forward. A request that the stream gave back (the link
 * broke under it) is asked again in the next mode, by the same rules: nobody hears of a broken link.
 *
 * Two decisions. *Discards* are not forwarded: the filter cannot know what the local disk made of one (pair.md 9). The
 * range is marked missing, so that a sync sends what the local disk then reads; quorum, which can ask the first child,
 * turns those that read as zeroes into zeroes instead. *Drain* (`settle`) waits for the window, not for users that are
 * held: they are in flight for whoever issued them, and only the next mode lets them go. It ends in bounded time: a
 * drain that waits for the other side counts as a user that does.
 */
import { asBreakable } from '../block/breakable.ts';
import type { Child } from '../block/child.ts';
import type { CopyTarget } from '../block/copy-target.ts';
import type { DirtyRange } from '../block/dirty-bitmap.ts';
import type { OpenContext } from '../block/driver.ts';
import {
  forwards,
  type LinkGroup,
  type LinkMember,
  type LinkMode,
  type MarkRequest,
  type ReplicationBitmap,
} from '../block/link-group.ts';
import { LinkPace, stallShare } from '../block/link-pace.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { isRange } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import { attempt, type Deferred, type Done, deferred } from '../util/later.ts';
import type { LinkOptions, ReplicationLink } from './replication-link.ts';
import type { ReplicationMarks } from './replication-marks.ts';
import { MissingBlocks } from './replication-missing.ts';
import { StallWatch } from './replication-stall.ts';
import { pieceBytes, ReplicationStream, type StreamOwner } from './replication-stream.ts';

/** A user that waits for the next mode. */
interface Parked extends DirtyRange {
  readonly again: () => Done;
  readonly done: Deferred;
}

/** How the link gets and loses its child: the driver's, because permissions are its business. */
export interface ChildDoor {
  attach(reference: string): Promise<Child>;
  detach(child: Child): Promise<void>;
}

export class HoldLink implements ReplicationLink, LinkMember, StreamOwner {
  readonly nodeName: string;
  readonly stallMsMax: number;
  private readonly context: OpenContext;
  private readonly group: LinkGroup;
  private readonly options: LinkOptions;
  private readonly door: ChildDoor;
  private readonly marks: ReplicationMarks;
  /** of those who wait for an answer */
  private readonly stall: StallWatch;
  /** of those who wait for room, or behind them */
  private readonly lineStall: StallWatch;
  private child: Child | null = null;
  /** why the connection of `child` is of no use any more; null while it is */
  private broken: string | null = null;
  private changing = false;
  private stream: ReplicationStream | null = null;
  private parked: Parked[] = [];
  private someWriters = false;
  private recorded: BlockError | null = null;
  private closed = false;
  private forwardedBefore = 0;

  constructor(context: OpenContext, group: LinkGroup, marks: ReplicationMarks, door: ChildDoor, options: LinkOptions) {
    this.nodeName = context.nodeName;
    this.stallMsMax = options.stallMsMax;
    this.context = context;
    this.group = group;
    this.options = options;
    this.door = door;
    this.marks = marks;
    const stalled = (): void => this.linkBroke(`no answer within ${options.stallMsMax} ms`);
    this.stall = new StallWatch(context.host.clock, options.stallMsMax, stalled);
    this.lineStall = new StallWatch(context.host.clock, options.stallMsMax, stalled);
  }

  // ------------------------------------------------------------ users

  write(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done {
    switch (this.userMode) {
      case 'held':
      case 'barrier':
        return this.park(offset, length, () => this.write(offset, length, from, flags));
      case 'alone':
        this.marks.markMissing(offset, length);
        return undefined;
      case 'syncing':
      case 'in-sync':
        return this.forward(offset, length, from, flags);
      case 'refusing':
        throw this.refuse(offset, length);
    }
  }

  discard(offset: number, length: number): Done {
    switch (this.userMode) {
      case 'held':
      case 'barrier':
        return this.park(offset, length, () => this.discard(offset, length));
      case 'refusing':
        throw this.refuse(offset, length);
      case 'in-sync':
        this.diverged(offset, length);
        return undefined;
      default:
        this.markUnsent(offset, length);
        return undefined;
    }
  }

  flush(): Done {
    switch (this.userMode) {
      case 'held':
        // With nobody above who writes this is the graph closing: there is no promise to keep.
        return this.someWriters ? this.park(0, 0, () => this.flush()) : undefined;
      case 'alone':
      case 'syncing':
        return undefined;
      case 'barrier':
      case 'in-sync': {
        if (this.options.acknowledge === 'local') return undefined;
        const done = this.openStream().flush();
        return done === undefined ? undefined : this.stall.watch(done).catch(() => this.flush());
      }
      case 'refusing':
        throw this.refuse(0, 0);
    }
  }

  /** The mode of the group, as users feel it. */
  private get userMode(): LinkMode {
    const { mode } = this.group;
    return this.options.degraded === 'stop' && (mode === 'alone' || mode === 'syncing') ? 'refusing' : mode;
  }

  private forward(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done {
    const stream = this.openStream();
    // While not in sync, and where only the local side counts, nobody waits for the other side.
    const waits = this.group.mode === 'in-sync' && this.options.acknowledge !== 'local';
    const fua = waits && (flags & writeFlags.fua) !== 0;
    const fits = from === null || length <= stream.windowBytes;
    const early = fits && !fua && !(waits && this.options.acknowledge === 'remote');
    const sentFlags = (flags & writeFlags.noHole) | (fua ? writeFlags.fua : 0);
    const done = stream.write(offset, length, from, sentFlags, early);
    if (done === undefined) return undefined;
    // The wait is bounded; if the link breaks under it, the write is asked again in the next mode.
    const placed = done.catch(() => this.write(offset, length, from, flags));
    // It stood in line, and the two may be in sync by now: then its answer means more than what was asked of it here.
    const owes = !waits && ((flags & writeFlags.fua) !== 0 || this.options.acknowledge === 'remote');
    return owes ? placed.then(() => this.flush()) : placed;
  }

  waitsInLine(request: Promise<void>): void {
    void this.lineStall.watch(request);
  }

  lineMoves(): void {
    this.lineStall.moved();
  }

  waitsForAnswer(request: Promise<void>): void {
    this.lineStall.forget(request);
    void this.stall.watch(request);
  }

  private park(offset: number, length: number, again: () => Done): Done {
    if (this.closed) throw new BlockError('shutting-down', `node '${this.nodeName}' is closed`);
    const done = deferred();
    this.parked.push({ offset, length, again, done });
    return done.promise;
  }

  get refusal(): BlockError | null {
    if (this.userMode !== 'refusing') return null;
    const why = forwards(this.group.mode) ? 'not in sync yet' : 'away';
    return new BlockError('wrong-state', `node '${this.nodeName}': the other side is ${why}, and writes are refused`);
  }

  /** The local disk has it and the other side does not, nor does a copy that may have read the range before. */
  private markUnsent(offset: number, length: number): void {
    this.marks.markMissing(offset, length);
    this.stream?.spoil(offset, length);
  }

  /** The local disk was given it, whatever the user hears. */
  private refuse(offset: number, length: number): BlockError | null {
    if (length > 0) this.markUnsent(offset, length);
    return this.refusal;
  }

  settle(): Done {
    const done = this.stream?.settle();
    return done === undefined ? undefined : this.lineStall.watch(done);
  }

  siblingFailed(offset: number, length: number): void {
    this.diverged(offset, length);
  }

  writersChanged(some: boolean): void {
    this.someWriters = some;
  }

  /** The other side was given what the local disk does not have: sent again from what that reads (pair.md 8). */
  private diverged(offset: number, length: number): void {
    const news = this.marks.markDiverged(offset, length);
    this.stream?.diverge(offset, length);
    if (news && forwards(this.group.mode)) {
      this.context.emit('REPLICATION_DIVERGED', { node: this.nodeName, offset, length });
    }
  }

  // ------------------------------------------------------------ the link

  get connected(): boolean {
    return this.child !== null && this.broken === null && !this.changing;
  }

  get length(): number {
    return this.marks.length;
  }

  get missingBytes(): number {
    return this.marks.missingBytes;
  }

  get error(): BlockError | null {
    return this.recorded;
  }

  clearError(): void {
    this.recorded = null;
  }

  /** In the tick of the first failure all members of the group leave forwarding (pair.md 5). */
  forwardFailed(error: BlockError): void {
    this.linkBroke(error.message);
  }

  /** The connection is cut, so that a peer that hangs lets go of what it was given. */
  private linkBroke(reason: string): void {
    const { child } = this;
    if (this.broken !== null || child === null) return;
    this.broken = reason;
    this.recorded = new BlockError('connection-lost', `node '${this.nodeName}': ${reason}`);
    this.group.linkDown();
    asBreakable(child.node)?.breakConnection(reason);
    this.context.emit('REPLICATION_LINK', { state: 'down', node: this.nodeName, reason });
  }

  enter(mode: LinkMode): void {
    if (!forwards(mode)) {
      const { stream } = this;
      this.stream = null;
      if (stream === null) return;
      stream.abandon(this.recorded ?? new BlockError('connection-lost', `node '${this.nodeName}' is ${mode}`));
      this.forwardedBefore += stream.forwardedBytes;
      return;
    }
    if (this.stream === null && this.child !== null) {
      const { stallMsMax, windowBytes } = this.options;
      const pace = new LinkPace(this.context.host.clock, pieceBytes, windowBytes, stallMsMax / stallShare);
      this.stream = new ReplicationStream(this.child, this.marks, windowBytes, pace, this);
    }
    if (this.stream !== null) this.stream.skipsMissing = mode === 'syncing';
  }

  resume(): void {
    if (this.group.mode === 'held' || this.group.mode === 'barrier') return;
    const { parked } = this;
    this.parked = [];
    for (const { again, done } of parked) {
      const result = attempt(again);
      if (result === undefined) done.resolve();
      else result.then(done.resolve, done.reject);
    }
  }

  private openStream(): ReplicationStream {
    if (this.stream !== null) return this.stream;
    throw new BlockError('wrong-state', `node '${this.nodeName}' is ${this.group.mode} without a connection`);
  }

  // ------------------------------------------------------------ the supervisor's commands

  async connect(reference: string): Promise<void> {
    if (this.child !== null || this.changing) {
      throw new BlockError('wrong-state', `node '${this.nodeName}' has a connection already`);
    }
    this.changing = true;
    try {
      const child = await this.door.attach(reference);
      if (child.node.length !== this.marks.length) {
        const lengths = `${child.node.length} bytes, '${this.nodeName}' has ${this.marks.length}`;
        await this.door.detach(child);
        throw new BlockError('invalid-option', `node '${reference}' has ${lengths}: both sides must be equally long`);
      }
      this.took(child);
    } finally {
      this.changing = false;
    }
  }

  /** The child is ours. */
  took(child: Child): void {
    this.child = child;
    this.broken = null;
    this.recorded = null;
    asBreakable(child.node)?.onBroken((error) => {
      if (this.child === child) this.linkBroke(error.message);
    });
  }

  /**
   * The connection is cut, never ended politely: nothing that was sent on it may land after what the next one sends
   * (pair.md 4), and a peer that hangs must not keep its node from being deleted.
   */
  async disconnect(): Promise<void> {
    const { child } = this;
    if (forwards(this.group.mode)) {
      throw new BlockError('wrong-state', `node '${this.nodeName}' is ${this.group.mode}: set another mode first`);
    }
    if (this.changing) throw new BlockError('wrong-state', `node '${this.nodeName}' is being connected`);
    if (child === null) return;
    this.changing = true;
    try {
      this.child = null;
      asBreakable(child.node)?.breakConnection('disconnected');
      await this.door.detach(child);
    } finally {
      this.changing = false;
    }
  }

  mark(what: MarkRequest): void {
    const { marks } = this;
    for (const [offset, length] of what.ranges ?? []) {
      if (isRange(offset, length, marks.length)) continue;
      throw new BlockError(
        'invalid-request',
        `[${offset}, ${length}] is outside of the ${marks.length} bytes of the disk`,
      );
    }
    for (const [offset, length] of what.ranges ?? []) marks.markMissing(offset, length);
    if (what.unproven === true) marks.markUnprovenMissing();
    if (what.all === true) marks.markAllMissing();
  }

  /** Refused while requests are under way, or while writes are marked: the proof would be older than they are. */
  forget(): void {
    const { mode } = this.group;
    if (forwards(mode)) throw new BlockError('wrong-state', `node '${this.nodeName}' is ${mode}: writes are under way`);
    this.marks.clearAll();
  }

  proveDurable(): Done {
    const { mode } = this.group;
    if (!forwards(mode))
      throw new BlockError('wrong-state', `node '${this.nodeName}' is ${mode}: nothing is forwarded`);
    const done = this.openStream().flush();
    // Behind a barrier users wait for it (pair.md 6).
    return done === undefined || mode !== 'barrier' ? done : this.stall.watch(done);
  }

  bitmap(): ReplicationBitmap {
    const waiting = [...this.parked, ...(this.stream?.waiting() ?? [])];
    return this.marks.bitmap(waiting.filter(({ length }) => length > 0));
  }

  copyTarget(): CopyTarget {
    const { mode } = this.group;
    if (!forwards(mode)) throw new BlockError('wrong-state', `node '${this.nodeName}' is ${mode}: it cannot be synced`);
    return new MissingBlocks(this.openStream(), this.marks);
  }

  // ------------------------------------------------------------ ends

  close(): void {
    this.closed = true;
    this.stall.close();
    this.lineStall.close();
    const reason = new BlockError('shutting-down', `node '${this.nodeName}' is closed`);
    this.stream?.abandon(reason);
    this.stream = null;
    for (const { done } of this.parked) done.reject(reason);
    this.parked = [];
    this.child = null;
  }

  info(): Record<string, unknown> {
    return {
      link: this.group.mode,
      connected: this.connected,
      'window-bytes': this.stream?.inFlightBytes ?? 0,
      'forwarded-bytes': this.forwardedBefore + (this.stream?.forwardedBytes ?? 0),
    };
  }
}
