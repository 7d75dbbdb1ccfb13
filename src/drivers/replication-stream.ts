/**
 * The stream of forwarded requests to one connection of the other side.
 *
 * A request is *placed* (its bytes are in the window, or borrowed from the caller) and then sent to the child at once,
 * in the order placed; one that finds no room, or a range that a copy holds, waits in line with all that come after it.
 * Room is what the window has and what the link carries in time (link-pace.ts): of a large request it may take a part.
 * Requests answered early are done when placed, the others when the child has answered.
 *
 * Invariants: what was sent and is not answered when the stream is abandoned is marked missing in that same call. An
 * abandoned stream answers nobody: its promises reject, and whoever waits asks again in the next mode.
 */
import type { Child } from '../block/child.ts';
import { type TakenRange, TakenRanges } from '../block/copy-target.ts';
import type { DirtyRange } from '../block/dirty-bitmap.ts';
import type { LinkPace } from '../block/link-pace.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { type BlockError, toBlockError } from '../util/errors.ts';
import { type Deferred, type Done, deferred } from '../util/later.ts';
import { type FlushOwner, ReplicationFlushes } from './replication-flushes.ts';
import type { ReplicationMarks } from './replication-marks.ts';
import { ReplicationWindow, type WindowPiece } from './replication-window.ts';

/** What a failed forward means is the filter's business: it records it, or abandons the stream in this very call. */
export interface StreamOwner {
  /** A request stands in line. */
  waitsInLine(request: Promise<void>): void;
  /** The child has answered somebody while others wait in line. */
  lineMoves(): void;
  /** All of a request was sent, and it is done when the child has answered. */
  waitsForAnswer(request: Promise<void>): void;
  forwardFailed(error: BlockError): void;
}

/** A user's write or zeroes on its way. `from` is null for zeroes. */
export interface StreamRequest {
  readonly offset: number;
  readonly length: number;
  readonly from: Uint8Array | null;
  readonly flags: WriteFlags;
  /** answered when placed: its bytes are copied into the window */
  readonly early: boolean;
}

interface WaitingRequest extends StreamRequest {
  /** the first byte not placed yet */
  at: number;
  /** pieces sent that the child has not answered; counted only where the caller's bytes are borrowed */
  pending: number;
  /** what is sent of it from now on is missing all the same */
  diverged: boolean;
  readonly done: Deferred;
}

/** One request at the child. The object and its two callbacks are used again and again. */
class Sent {
  offset = 0;
  length = 0;
  piece: WindowPiece | null = null;
  request: WaitingRequest | null = null;
  isCopy = false;
  /** bytes of a user that it carries; zeroes and copies: none */
  carried = 0;
  /** which of the two generations of writes it belongs to */
  generation = 0;
  readonly answered: () => void;
  readonly failed: (error: unknown) => void;

  constructor(stream: ReplicationStream) {
    this.answered = (): void => stream.answered(this);
    this.failed = (error: unknown): void => stream.failed(this, error);
  }
}

export class ReplicationStream implements FlushOwner {
  private readonly child: Child;
  private readonly marks: ReplicationMarks;
  private readonly owner: StreamOwner;
  private readonly pace: LinkPace;
  private readonly window: ReplicationWindow;
  private readonly sent = new Set<Sent>();
  private readonly spare: Sent[] = [];
  private line: WaitingRequest[] = [];
  private pumping = false;
  private pumpAgain = false;
  /** ranges that copies are reading from the source: writes to them wait until the copy itself was sent (pair.md 11) */
  private readonly holds = new TakenRanges();
  /** what was marked while it was held: the copy may have read it before, and proves nothing */
  private spoiled: DirtyRange[] = [];
  /** leaves ranges that are missing to the copy that will come by (mode syncing) */
  skipsMissing = false;
  private readonly flushes: ReplicationFlushes;
  private idleWaiter: Deferred | null = null;
  private down: BlockError | null = null;
  /** bytes of users' writes that were sent and are not answered */
  inFlightBytes = 0;
  /** of these, what the link must carry */
  private carriedBytes = 0;
  /** bytes of users' writes that were answered */
  forwardedBytes = 0;

  constructor(child: Child, marks: ReplicationMarks, windowBytes: number, pace: LinkPace, owner: StreamOwner) {
    this.child = child;
    this.marks = marks;
    this.owner = owner;
    this.pace = pace;
    this.window = new ReplicationWindow(windowBytes);
    this.flushes = new ReplicationFlushes(child, marks, this);
  }

  get windowBytes(): number {
    return this.window.size;
  }

  // ------------------------------------------------------------ writes

  /**
   * A write or zeroes (`from` null). Undefined: placed or done. A promise: it waits; it rejects if the stream is
   * abandoned, and then the caller's bytes are its own again and its fate is unknown.
   */
  write(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags, early: boolean): Done {
    const carried = from === null ? 0 : length;
    const free = this.line.length === 0 && this.holds.empty && this.carriedBytes + carried <= this.pace.bytes;
    if (early && free && !this.skips(offset, length) && this.place(offset, length, from, flags, null)) {
      return this.down === null ? undefined : Promise.reject(this.down);
    }
    const request = waiting({ offset, length, from, flags, early });
    const placed = this.line.length === 0 && this.advance(request);
    const { promise } = request.done;
    if (this.down !== null) {
      if (request.pending === 0) request.done.reject(this.down);
    } else if (!placed) {
      this.line.push(request);
      this.owner.waitsInLine(promise);
    } else if (early || request.pending === 0) return undefined;
    else this.owner.waitsForAnswer(promise);
    return promise;
  }

  private skips(offset: number, length: number): boolean {
    return this.skipsMissing && this.marks.anyMissing(offset, length);
  }

  /** Places as much of a request as there is room for. True: all of it. */
  private advance(request: WaitingRequest): boolean {
    const end = request.offset + request.length;
    while (request.at < end) {
      if (this.holds.overlaps(request.at, end - request.at)) return false;
      const run = this.skipsMissing ? this.marks.run(request.at, end) : { missing: false, end };
      let placedTo = run.end;
      if (!run.missing) {
        const { at, offset, from } = request;
        if (from !== null) placedTo = this.pieceEnd(at, run.end);
        if (placedTo <= at) return false;
        const bytes = from === null ? null : from.subarray(at - offset, placedTo - offset);
        if (!this.place(at, placedTo - at, bytes, request.flags, request.early ? null : request)) return false;
        if (this.down !== null) return false;
        if (request.diverged) this.marks.markDiverged(at, placedTo - at);
      }
      request.at = placedTo;
    }
    return true;
  }

  /** How far the link has room for bytes from `at` on: all, or whole pieces; `at` or less: none now. */
  private pieceEnd(at: number, end: number): number {
    const room = this.pace.bytes - this.carriedBytes;
    return end - at <= room ? end : Math.floor((at + room) / pieceBytes) * pieceBytes;
  }

  /** Sends one run, copied into the window or borrowed for `borrower`. False: no room. */
  private place(
    offset: number,
    length: number,
    from: Uint8Array | null,
    flags: WriteFlags,
    borrower: WaitingRequest | null,
  ): boolean {
    let piece: WindowPiece | null = null;
    if (borrower === null) {
      piece = from === null ? this.window.takeEmpty() : this.window.take(from);
      if (piece === null) return false;
    } else borrower.pending += 1;
    this.marks.markWritten(offset, length);
    this.inFlightBytes += length;
    const sent = this.enter(offset, length);
    sent.piece = piece;
    sent.request = borrower;
    if (from !== null) {
      sent.carried = length;
      this.carriedBytes += length;
      // How long the other side takes to make something durable says nothing about the link.
      if ((flags & writeFlags.fua) === 0) this.pace.left(sent, this.carriedBytes);
    }
    this.issue(sent, piece === null || from === null ? from : piece.bytes, flags);
    return true;
  }

  private enter(offset: number, length: number): Sent {
    const sent = this.spare.pop() ?? new Sent(this);
    sent.offset = offset;
    sent.length = length;
    sent.generation = this.flushes.enter();
    this.sent.add(sent);
    return sent;
  }

  private issue(sent: Sent, bytes: Uint8Array | null, flags: WriteFlags): void {
    const { node } = this.child;
    let done: Done;
    try {
      done =
        bytes === null
          ? node.writeZeroes(sent.offset, sent.length, flags)
          : node.write(sent.offset, bytes, flags & ~writeFlags.noHole);
    } catch (error) {
      this.failed(sent, error);
      return;
    }
    if (done === undefined) this.answered(sent);
    else done.then(sent.answered, sent.failed);
  }

  // ------------------------------------------------------------ answers

  /** @internal the child has a request */
  answered(sent: Sent): void {
    if (!sent.isCopy) this.forwardedBytes += sent.length;
    this.leave(sent);
  }

  /** @internal the child failed a request; the first failure reaches the owner in this tick (pair.md 5) */
  failed(sent: Sent, thrown: unknown): void {
    if (this.down === null) {
      this.marks.markMissing(sent.offset, sent.length);
      this.owner.forwardFailed(toBlockError(thrown));
    }
    this.leave(sent);
  }

  /** A request is over for the child: its memory is free, and whoever waited for it goes on. */
  private leave(sent: Sent): void {
    const { piece, request, generation } = sent;
    this.sent.delete(sent);
    if (!sent.isCopy) this.inFlightBytes -= sent.length;
    this.carriedBytes -= sent.carried;
    this.pace.answered(sent);
    sent.carried = 0;
    sent.piece = null;
    sent.request = null;
    sent.isCopy = false;
    if (this.spare.length < spareMax) this.spare.push(sent);
    if (piece !== null) this.window.giveBack(piece);
    if (request !== null) {
      request.pending -= 1;
      if (request.pending === 0) this.settleBorrower(request);
    }
    if (this.down !== null) return;
    this.flushes.answered(generation);
    if (this.line.length > 0) this.owner.lineMoves();
    this.pump();
    this.wakeIdle();
  }

  private settleBorrower(request: WaitingRequest): void {
    if (this.down !== null) request.done.reject(this.down);
    else if (request.at === request.offset + request.length) request.done.resolve();
  }

  /** Room or a held range became free: those in line go on in their order. */
  private pump(): void {
    // A child that answers at once brings us here again while the first in line is being placed.
    this.pumpAgain = true;
    if (this.pumping) return;
    this.pumping = true;
    while (this.pumpAgain) {
      this.pumpAgain = false;
      this.pumpOnce();
    }
    this.pumping = false;
  }

  private pumpOnce(): void {
    while (this.line.length > 0 && this.down === null) {
      const request = this.line[0];
      // A failure inside of `advance` abandons the stream, and with it the line.
      if (request === undefined || !this.advance(request)) return;
      this.line.shift();
      if (request.early || request.pending === 0) request.done.resolve();
      else this.owner.waitsForAnswer(request.done.promise);
    }
  }

  // ------------------------------------------------------------ copies

  /** Writes to the range wait from now on. */
  hold(range: DirtyRange): TakenRange {
    return this.holds.add(range);
  }

  /** The copy takes less: writes to the rest go on. */
  trim(hold: TakenRange, length: number): void {
    hold.length = length;
    this.pump();
  }

  /** Nothing is sent; the range stays missing. */
  release(hold: TakenRange): void {
    if (!this.holds.delete(hold)) return;
    if (this.spoiled.length > 0)
      this.spoiled = this.spoiled.filter((one) => this.holds.overlaps(one.offset, one.length));
    this.pump();
  }

  /** The other side has the held range already. */
  skip(hold: TakenRange): Done {
    if (this.down !== null) throw this.down;
    this.marks.markPresent(hold.offset, hold.length);
    this.markSpoiled(hold);
    this.release(hold);
    return undefined;
  }

  /**
   * Sends what a copy has read (null: zeroes) from the held range, which is then like any written range. A rejection
   * may come while the child still has the bytes: the caller must not use that memory again.
   */
  copy(hold: TakenRange, bytes: Uint8Array | null, flags: WriteFlags): Done {
    if (this.down !== null) throw this.down;
    const { offset, length } = hold;
    const request = waiting({ offset, length, from: bytes, flags, early: false });
    request.at = offset + length;
    request.pending = 1;
    this.marks.markCopied(offset, length);
    this.markSpoiled(hold);
    const sent = this.enter(offset, length);
    sent.request = request;
    sent.isCopy = true;
    this.issue(sent, bytes, flags);
    this.release(hold);
    return request.done.promise;
  }

  /** The writes in line: the local disk has them, nothing of them was sent. */
  waiting(): readonly DirtyRange[] {
    return this.line;
  }

  /** A range was marked for what is not sent here: a copy that is reading there leaves the mark. */
  spoil(offset: number, length: number): void {
    if (this.holds.overlaps(offset, length)) this.spoiled.push({ offset, length });
  }

  /**
   * The local disk failed a write: nothing of it that still waits in line is sent after its range was marked. Others in
   * the range (it failed a flush) are sent, and leave the mark; so does a copy that is reading there.
   */
  diverge(offset: number, length: number): void {
    this.spoil(offset, length);
    for (const request of this.line) {
      if (request.offset >= offset + length || offset >= request.offset + request.length) continue;
      if (request.offset === offset && request.length === length) request.at = offset + length;
      else request.diverged = true;
    }
    this.pump();
  }

  private markSpoiled(hold: TakenRange): void {
    for (const { offset, length } of this.spoiled) {
      if (offset < hold.offset + hold.length && hold.offset < offset + length) this.marks.markDiverged(offset, length);
    }
  }

  /** The first missing range at or after `from` that no copy holds; null: none. */
  nextMissing(from: number): DirtyRange | null {
    return this.holds.nextFree(from, (at) => this.marks.nextMissing(at));
  }

  get heldBytes(): number {
    return this.holds.bytes;
  }

  // ------------------------------------------------------------ flushes

  /** Done when the other side has made durable all that was placed before this call. */
  flush(): Done {
    return this.flushes.flush();
  }

  /** @internal */
  flushFailed(error: BlockError): void {
    this.owner.forwardFailed(error);
  }

  /** @internal */
  flushesIdle(): void {
    this.wakeIdle();
  }

  // ------------------------------------------------------------ ends

  /** Whoever copies goes away: it hears no more of what it has sent, which is answered to the stream alone. */
  dropCopies(reason: BlockError): void {
    for (const { isCopy, request } of this.sent) if (isCopy) request?.done.reject(reason);
  }

  /**
   * Ends when every write that was sent has been answered. Those in line are their callers' business, and so are
   * copies, which a sync goes on with for as long as it likes.
   */
  settle(): Done {
    if (this.down !== null || (this.inFlightBytes === 0 && this.flushes.idle)) return undefined;
    this.idleWaiter ??= deferred();
    return this.idleWaiter.promise;
  }

  private wakeIdle(): void {
    if (this.idleWaiter === null || this.settle() === undefined) {
      this.idleWaiter?.resolve();
      this.idleWaiter = null;
    }
  }

  /**
   * The end of the stream: what is not answered is missing from now on, whatever becomes of it. Nobody is answered in
   * this call. Borrowed bytes go back to their owners when the child has let them go.
   */
  abandon(reason: BlockError): void {
    if (this.down !== null) return;
    this.down = reason;
    for (const { offset, length } of this.sent) this.marks.markMissing(offset, length);
    this.dropCopies(reason);
    this.flushes.abandon(reason);
    for (const request of this.line) if (request.pending === 0) request.done.reject(reason);
    this.line = [];
    this.holds.clear();
    this.idleWaiter?.resolve();
    this.idleWaiter = null;
  }
}

function waiting(asked: StreamRequest): WaitingRequest {
  return { ...asked, at: asked.offset, pending: 0, diverged: false, done: deferred() };
}

/** Of a write for which the link has no room as a whole: whole pieces of this many bytes, where the disk has them. */
export const pieceBytes = 65_536;

/** `Sent` objects kept for later use. */
const spareMax = 1024;
