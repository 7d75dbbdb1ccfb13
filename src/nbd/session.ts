/**
 * The transmission phase of one connection: requests from the framer through the backend to the reply writer.
 *
 * A batch is worked off in one go: what the backend answers at once is answered in the batch's one send, and nothing is
 * allocated for it. A request that the backend answers later keeps its memory and is counted as in flight. Requests are
 * issued only while `#mayIssue` says so: not while the export is drained, a limit is reached or the client does not
 * read; then the socket is not read either, and what has arrived waits uncut in the framer.
 *
 * Ordered sessions (`blockstep:ordered`, pair.md 3): a flush is issued only after every earlier request has ended, and
 * once a request that changes something has failed, every later request fails.
 */
import type { Host, HostStream, HostTimer } from '../host/host.ts';
import { BlockError, errnoNumbers, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import { after, type Done, deferred } from '../util/later.ts';
import type { NbdBackend, NbdServerExport } from './backend.ts';
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from './constants.ts';
import { Framer } from './framer.ts';
import type { Agreement } from './handshake-server.ts';
import { descriptorsOf, hasOrdered, isAllocation, type MetaContext } from './meta-context.ts';
import { extentsMax, type Piece, ReplyWriter } from './reply-writer.ts';
import { RequestRules, refusals, zeroFlags } from './request.ts';
import type { Slab, SlabPool } from './slab.ts';
import { wireErrno } from './wire-errno.ts';

/** requests that one connection may have in flight */
export const inflightMax = 256;
/** bytes of reads and writes in flight on one connection; one request may go beyond it */
export const inflightBytesMax = 64 * 1024 * 1024;
/** how long a client that is hung up may take until its last replies are sent */
const hangUpMs = 1000;
/** how long a client that said goodbye may take to read its last replies */
const goodbyeMs = 30_000;

/** A request that the backend answers later: what its reply needs. */
interface Pending {
  readonly type: number;
  readonly flags: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offset: number;
  readonly length: number;
  /** bytes that count against the limit */
  readonly bytes: number;
  /** of a read */
  readonly piece: Piece | null;
  /** of a write: what its payload lies in */
  readonly payload: Slab | null;
}

export class Session {
  readonly exported: NbdServerExport;
  readonly framer: Framer;
  readonly #backend: NbdBackend;
  readonly #contexts: readonly MetaContext[];
  readonly #ordered: boolean;
  readonly #host: Host;
  readonly #stream: HostStream;
  readonly #pool: SlabPool;
  readonly #writer: ReplyWriter;
  readonly #gone: (session: Session) => void;
  #inflight = 0;
  #inflightBytes = 0;
  #pauses = 0;
  #working = false;
  #reading = true;
  /** no request is issued any more: the client said goodbye, broke the protocol, or is hung up */
  #leaving = false;
  #parted = false;
  /** destroys the stream of a client that does not go */
  #limit: HostTimer | null = null;
  #ended = false;
  /** ordered: a flush that waits for what is in flight; the framer's fields tell of it */
  #flushWaits = false;
  /** ordered: a request that changes something has failed */
  #poisoned = false;
  #turnAsked = false;
  readonly #endOfTurn: () => void;
  #idle: { readonly promise: Promise<void>; resolve(): void } | null = null;

  constructor(host: Host, stream: HostStream, pool: SlabPool, agreed: Agreement, gone: (session: Session) => void) {
    const rules = new RequestRules(agreed);
    this.exported = agreed.exported;
    this.framer = new Framer(pool, (request) => rules.check(request));
    this.#backend = agreed.exported.backend;
    this.#contexts = agreed.contexts;
    this.#ordered = hasOrdered(agreed.contexts);
    this.#host = host;
    this.#stream = stream;
    this.#pool = pool;
    this.#gone = gone;
    this.#endOfTurn = () => {
      this.#turnAsked = false;
      this.#work();
    };
    this.#writer = new ReplyWriter(
      pool,
      agreed.structured,
      (bytes) => stream.send(bytes),
      () => this.#work(),
    );
  }

  /** `count` bytes stand in the framer's last space. */
  received(count: number): void {
    this.framer.received(count);
    this.#work();
  }

  /** Issues no request until `resume`; nests. Done when none is in flight. */
  pause(): Done {
    this.#pauses += 1;
    return this.whenIdle();
  }

  resume(): void {
    this.#pauses -= 1;
    if (this.#pauses === 0) this.#work();
  }

  /** Done when nothing is in flight; a request within whose call this is asked counts. */
  whenIdle(): Done {
    if (this.#inflight === 0 && !this.#working) return undefined;
    this.#idle ??= deferred();
    return this.#idle.promise;
  }

  /**
   * Issues no more requests and hangs the client up. The replies of what is in flight are still sent, if that takes no
   * longer than `hangUpMs`. Done when nothing is in flight.
   */
  hangUp(): Done {
    if (!this.#leaving) {
      this.#leaving = true;
      this.#work();
    }
    if (!this.#ended) this.#destroyAfter(hangUpMs);
    return this.whenIdle();
  }

  /** The stream has ended; what is in flight goes on, and nobody hears of it. */
  ended(): void {
    this.#ended = true;
    this.#leaving = true;
    this.#limit?.cancel();
    this.#mayBeGone();
  }

  #mayIssue(): boolean {
    return (
      !this.#leaving &&
      this.#pauses === 0 &&
      this.#writer.unsent === 0 &&
      this.#inflight < inflightMax &&
      this.#inflightBytes < inflightBytesMax &&
      !(this.#flushWaits && this.#inflight > 0)
    );
  }

  #work(): void {
    if (this.#working || this.#ended) return;
    this.#working = true;
    if (this.#flushWaits && this.#mayIssue()) {
      this.#flushWaits = false;
      this.#flush();
    }
    while (this.#mayIssue() && this.framer.next()) this.#issue();
    this.#writer.flush();
    this.#working = false;
    this.#mayBeIdle();
    if (this.#ended) {
      this.#mayBeGone();
      return;
    }
    if (this.framer.broken !== null) this.#leaving = true;
    if (this.#leaving && this.#inflight === 0) this.#part();
    this.#adjustReading();
  }

  #adjustReading(): void {
    const read = this.#mayIssue();
    if (read === this.#reading || this.#ended) return;
    this.#reading = read;
    if (read) this.#stream.resume();
    else this.#stream.pause();
  }

  /** Every request is answered. */
  #part(): void {
    if (this.#parted) return;
    this.#parted = true;
    this.#stream.end();
    if (this.#limit === null) this.#destroyAfter(goodbyeMs);
  }

  #destroyAfter(ms: number): void {
    this.#limit?.cancel();
    this.#limit = this.#host.clock.after(ms, () => this.#stream.destroy());
  }

  /** Not in the middle of work: a stream may end within the call that sends on it. */
  #mayBeGone(): void {
    if (!this.#ended || this.#inflight > 0 || this.#working) return;
    this.framer.close();
    this.#writer.close();
    this.#gone(this);
  }

  #issue(): void {
    const { type, refusal } = this.framer;
    if (refusal !== 0) {
      this.#refuse(refusal);
      return;
    }
    if (this.#poisoned && type !== NBD_CMD_DISC) {
      this.#fail(earlierFailed());
      return;
    }
    switch (type) {
      case NBD_CMD_READ:
        this.#read();
        break;
      case NBD_CMD_WRITE:
        this.#write();
        break;
      case NBD_CMD_DISC:
        this.#leaving = true;
        break;
      case NBD_CMD_FLUSH:
        if (this.#ordered && this.#inflight > 0) this.#flushWaits = true;
        else this.#flush();
        break;
      case NBD_CMD_BLOCK_STATUS:
        this.#blockStatus();
        break;
      default:
        this.#change(type);
    }
  }

  #read(): void {
    const { cookieHigh, cookieLow, offset, length } = this.framer;
    if (length === 0) {
      this.#writer.doneEmpty(cookieHigh, cookieLow);
      return;
    }
    const into = this.#writer.place(length);
    let done: Done;
    try {
      done = this.#backend.read(offset, into);
    } catch (error) {
      this.#writer.giveUp();
      this.#fail(error);
      return;
    }
    if (done === undefined) this.#writer.finishRead(cookieHigh, cookieLow, offset, length);
    else this.#wait(done, this.#pending(length, this.#writer.detach(length), null));
  }

  #write(): void {
    const { cookieHigh, cookieLow, offset, length, flags } = this.framer;
    let done: Done;
    try {
      // NBD_CMD_FLAG_FUA is the block layer's bit as well.
      done = length === 0 ? undefined : this.#backend.write(offset, this.framer.payload(), flags);
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (done === undefined) this.#writer.done(cookieHigh, cookieLow);
    else this.#wait(done, this.#pending(length, null, this.framer.holdPayload()));
  }

  /** Write-zeroes and trim: no payload. */
  #change(type: number): void {
    const { cookieHigh, cookieLow, offset, length, flags } = this.framer;
    let done: Done;
    try {
      if (length === 0) done = undefined;
      else if (type === NBD_CMD_WRITE_ZEROES) done = this.#backend.writeZeroes(offset, length, zeroFlags(flags));
      else done = this.#trim(offset, length, flags);
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (done === undefined) this.#writer.done(cookieHigh, cookieLow);
    else this.#wait(done, this.#pending(0, null, null));
  }

  /** "until all write operations associated with that command have been completed and persisted" (NBD_CMD_FLAG_FUA). */
  #trim(offset: number, length: number, flags: number): Done {
    const done = this.#backend.discard(offset, length);
    if ((flags & NBD_CMD_FLAG_FUA) === 0) return done;
    return after(done, () => this.#backend.flush());
  }

  #flush(): void {
    const { cookieHigh, cookieLow } = this.framer;
    let done: Done;
    try {
      if (this.#poisoned) throw earlierFailed();
      done = this.#backend.flush();
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (done === undefined) this.#writer.done(cookieHigh, cookieLow);
    else this.#wait(done, this.#pending(0, null, null));
  }

  #blockStatus(): void {
    const { offset, length } = this.framer;
    const pending = this.#pending(0, null, null);
    try {
      // `base:allocation` alone asks the backend: our own context has no status.
      const extents = this.#contexts.some(isAllocation) ? this.#backend.blockStatus(offset, length) : [];
      if (Array.isArray(extents)) this.#status(pending, extents);
      else
        this.#wait(
          extents.then((found) => this.#statusLater(pending, found)),
          pending,
        );
    } catch (error) {
      this.#fail(error);
    }
  }

  #statusLater(pending: Pending, extents: readonly Extent[]): void {
    if (!this.#ended) this.#status(pending, extents);
  }

  /** One chunk for each context ("NBD_REPLY_TYPE_BLOCK_STATUS"). */
  #status(pending: Pending, extents: readonly Extent[]): void {
    const most = (pending.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : extentsMax;
    for (const [index, context] of this.#contexts.entries()) {
      const descriptors = descriptorsOf(context, extents, pending.length, most);
      const last = index === this.#contexts.length - 1;
      this.#writer.blockStatus(pending.cookieHigh, pending.cookieLow, context.id, descriptors, last);
    }
  }

  #pending(bytes: number, piece: Piece | null, payload: Slab | null): Pending {
    const { type, flags, cookieHigh, cookieLow, offset, length } = this.framer;
    return { type, flags, cookieHigh, cookieLow, offset, length, bytes, piece, payload };
  }

  #wait(done: Promise<void>, pending: Pending): void {
    this.#inflight += 1;
    this.#inflightBytes += pending.bytes;
    done.then(
      () => this.#end(pending, null),
      (error: unknown) => this.#end(pending, toBlockError(error)),
    );
  }

  /** A request that was in flight has ended. */
  #end(pending: Pending, error: BlockError | null): void {
    this.#inflight -= 1;
    this.#inflightBytes -= pending.bytes;
    if (pending.payload !== null) this.#pool.release(pending.payload);
    this.#working = true;
    if (error !== null) this.#failed(pending, error);
    else if (pending.piece !== null) this.#finishRead(pending, pending.piece);
    else if (!this.#ended && pending.type !== NBD_CMD_BLOCK_STATUS) {
      this.#writer.done(pending.cookieHigh, pending.cookieLow);
    }
    this.#working = false;
    this.#mayBeIdle();
    if (this.#ended) this.#mayBeGone();
    else this.#askTurn();
  }

  #mayBeIdle(): void {
    if (this.#idle === null || this.#inflight > 0) return;
    this.#idle.resolve();
    this.#idle = null;
  }

  #finishRead(pending: Pending, piece: Piece): void {
    if (this.#ended) this.#writer.dropPiece(piece);
    else this.#writer.finishPiece(piece, pending.cookieHigh, pending.cookieLow, pending.offset, pending.length);
  }

  #failed(pending: Pending, error: BlockError): void {
    if (pending.piece !== null) this.#writer.dropPiece(pending.piece);
    this.#noteFailure(pending.type);
    if (!this.#ended) this.#replyError(pending, error);
  }

  /** Late replies of one turn leave together. */
  #askTurn(): void {
    if (this.#turnAsked) return;
    this.#turnAsked = true;
    this.#host.clock.endOfTurn(this.#endOfTurn);
  }

  /** The request that the framer tells of has failed at once. */
  #fail(thrown: unknown): void {
    this.#noteFailure(this.framer.type);
    this.#replyError(this.framer, toBlockError(thrown));
  }

  #refuse(refusal: number): void {
    const { errno, message } = refusals[refusal] ?? { errno: errnoNumbers.EINVAL, message: 'refused' };
    this.#noteFailure(this.framer.type);
    this.#writer.error(this.framer.cookieHigh, this.framer.cookieLow, errno, message);
  }

  #replyError(request: Pick<Pending, 'cookieHigh' | 'cookieLow' | 'type' | 'flags'>, error: BlockError): void {
    const fastZero = request.type === NBD_CMD_WRITE_ZEROES && (request.flags & NBD_CMD_FLAG_FAST_ZERO) !== 0;
    this.#writer.error(request.cookieHigh, request.cookieLow, wireErrno(error, fastZero), error.message);
  }

  /** A read or a status that fails takes nothing from what a flush covers. */
  #noteFailure(type: number): void {
    if (!this.#ordered) return;
    if (type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES || type === NBD_CMD_TRIM || type === NBD_CMD_FLUSH) {
      this.#poisoned = true;
    }
  }
}

function earlierFailed(): BlockError {
  return new BlockError('io-error', 'an earlier request of this ordered connection failed: connect again');
}
