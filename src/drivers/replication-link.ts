/**
 * The two ways of a primary's filter to treat its link; `replication.ts` asks one of them for every request.
 *
 * `RecordLink` (here): a graph built by hand. A failed forward is recorded, nothing more (pair.md 5, last sentence).
 * `HoldLink` (replication-hold.ts): a pair. A failed forward holds all writers until the supervisor decides.
 */
import type { Child } from '../block/child.ts';
import { LinkPace } from '../block/link-pace.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import type { HostClock } from '../host/host.ts';
import type { BlockError } from '../util/errors.ts';
import { after, type Done } from '../util/later.ts';
import type { ReplicationMarks } from './replication-marks.ts';
import { ReplicationStream, type StreamOwner } from './replication-stream.ts';

/** What an answer to the user means (design: "Forwarding, and what an acknowledgement means"). */
export type Acknowledge = 'remote' | 'flush' | 'local';

/** What becomes of users while the two are not in sync (pair.md 7). */
export type Degraded = 'continue' | 'stop';

export interface LinkOptions {
  readonly acknowledge: Acknowledge;
  /** bytes */
  readonly windowBytes: number;
  readonly stallMsMax: number;
  /** without the other side users go on, or are refused until it is in sync */
  readonly degraded: Degraded;
}

/** What the filter asks of its link. `from` is null for zeroes. */
export interface ReplicationLink {
  write(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done;
  discard(offset: number, length: number): Done;
  flush(): Done;
  /** Ends when nothing that was answered early is still under way. */
  settle(): Done;
  siblingFailed(offset: number, length: number): void;
  /** Whether somebody above writes. */
  writersChanged(some: boolean): void;
  /** Why every write and flush fails now; null: they may be tried. */
  readonly refusal: BlockError | null;
  /** The last failure; kept until `clearError`. */
  readonly error: BlockError | null;
  clearError(): void;
  close(): void;
  info(): Record<string, unknown>;
}

/**
 * A write answered before the other side has it, or only then.
 * FUA "is a write, then a flush" (spec: replication-filter): the write's failure is recorded, the flush's returned.
 */
export class RecordLink implements ReplicationLink, StreamOwner {
  readonly refusal = null;
  private readonly acknowledge: Acknowledge;
  private readonly marks: ReplicationMarks;
  private readonly stream: ReplicationStream;
  private recorded: BlockError | null = null;

  constructor(clock: HostClock, child: Child, marks: ReplicationMarks, options: LinkOptions) {
    this.acknowledge = options.acknowledge;
    this.marks = marks;
    // Nobody's wait is bounded here: users may have under way what they like.
    const pace = new LinkPace(clock, 0, Number.MAX_SAFE_INTEGER, Number.POSITIVE_INFINITY);
    this.stream = new ReplicationStream(child, marks, options.windowBytes, pace, this);
  }

  get error(): BlockError | null {
    return this.recorded;
  }

  clearError(): void {
    this.recorded = null;
  }

  forwardFailed(error: BlockError): void {
    this.recorded = error;
  }

  waitsInLine(): void {
    // Nobody's wait is bounded.
  }

  lineMoves(): void {
    // The same.
  }

  waitsForAnswer(): void {
    // The same.
  }

  write(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done {
    const fua = (flags & writeFlags.fua) !== 0;
    const sentFlags = flags & writeFlags.noHole;
    // Too large for the window: it borrows the writer's bytes, and the writer waits.
    const fits = from === null || length <= this.stream.windowBytes;
    const done = this.stream.write(offset, length, from, sentFlags, this.acknowledge !== 'remote' && fits);
    return fua ? after(done, () => this.flush()) : done;
  }

  /** Dropped, as QEMU does: the content is undefined afterwards, on both sides. The range may differ from now on. */
  discard(offset: number, length: number): Done {
    this.marks.markMissing(offset, length);
    return undefined;
  }

  flush(): Done {
    switch (this.acknowledge) {
      case 'remote':
        return this.stream.flush();
      case 'flush':
        // Recorded by `forwardFailed`; the user has success.
        return this.stream.flush()?.catch(() => undefined);
      case 'local':
        this.stream.flush()?.catch(() => undefined);
        return undefined;
    }
  }

  settle(): Done {
    return this.stream.settle();
  }

  siblingFailed(offset: number, length: number): void {
    this.marks.markDiverged(offset, length);
  }

  writersChanged(): void {
    // Nobody is held here, so it does not matter who writes.
  }

  close(): void {
    // What was answered early has been settled by the graph; the stream goes with the filter.
  }

  info(): Record<string, unknown> {
    return {
      link: null,
      connected: true,
      'window-bytes': this.stream.inFlightBytes,
      'forwarded-bytes': this.stream.forwardedBytes,
    };
  }
}
