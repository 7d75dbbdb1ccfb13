/**
 * The flushes of one stream, and what each of them proves (pair.md 3 and 4).
 *
 *     requests:  g0 g0 g0 | g1 g1 g1 | g0 ...      a flush begins at each bar: a new generation
 *                          ^ goes out once all of g0 is answered, or at once to a child that keeps the order
 *
 * Invariants: at most one flush is under way and one waits, which all later ones join. Its success proves the
 * generation before it, and nothing else.
 */
import type { Child } from '../block/child.ts';
import { type BlockError, toBlockError } from '../util/errors.ts';
import { attempt, type Deferred, type Done, deferred } from '../util/later.ts';
import type { ReplicationMarks } from './replication-marks.ts';

export interface FlushOwner {
  /** In the tick of the failure, before anybody who waits for the flush hears of it. */
  flushFailed(error: BlockError): void;
  /** Nothing is under way any more. */
  flushesIdle(): void;
}

export class ReplicationFlushes {
  private readonly child: Child;
  private readonly marks: ReplicationMarks;
  private readonly owner: FlushOwner;
  /** of the requests that are sent now: 0 or 1 */
  private generation = 0;
  /** requests that the child has not answered, by generation */
  private readonly unanswered = [0, 0];
  private current: Deferred | null = null;
  private next: Deferred | null = null;
  private sent = false;
  private failure: BlockError | null = null;
  private abandoned: BlockError | null = null;

  constructor(child: Child, marks: ReplicationMarks, owner: FlushOwner) {
    this.child = child;
    this.marks = marks;
    this.owner = owner;
  }

  get idle(): boolean {
    return this.current === null;
  }

  /** A request is sent. @returns its generation, for `answered` */
  enter(): number {
    this.count(this.generation, 1);
    return this.generation;
  }

  /** A request was answered, well or not. */
  answered(generation: number): void {
    this.count(generation, -1);
    if (this.current !== null && !this.sent && this.abandoned === null) this.sendIfDue();
  }

  /** Done when the other side has made durable all that was sent before this call. */
  flush(): Done {
    if (this.current !== null) {
      this.next ??= deferred();
      return this.next.promise;
    }
    const flush = deferred();
    this.begin(flush);
    return this.current === null && this.abandoned === null && this.failure === null ? undefined : flush.promise;
  }

  /** What is under way proves nothing any more. */
  abandon(reason: BlockError): void {
    this.abandoned = reason;
    if (this.current !== null) this.marks.endProof(false);
    for (const flush of [this.current, this.next]) flush?.reject(reason);
    this.current = null;
    this.next = null;
  }

  private begin(flush: Deferred): void {
    // Its waiters hold the promise; a flush that nobody waits for must not be an unhandled rejection.
    flush.promise.catch(() => undefined);
    this.current = flush;
    this.sent = false;
    this.failure = null;
    this.marks.beginProof();
    this.generation ^= 1;
    this.sendIfDue();
  }

  private sendIfDue(): void {
    if (this.child.node.flushesInOrder !== true && (this.unanswered[this.generation ^ 1] ?? 0) > 0) return;
    this.sent = true;
    const done = attempt(() => this.child.node.flush());
    if (done === undefined) this.end(null);
    else
      done.then(
        () => this.end(null),
        (error: unknown) => this.end(toBlockError(error)),
      );
  }

  private end(error: BlockError | null): void {
    const { current, next } = this;
    if (current === null || this.abandoned !== null) return;
    this.marks.endProof(error === null);
    this.failure = error;
    this.current = null;
    this.next = null;
    if (error === null) current.resolve();
    else {
      // The other side may have dropped what it could not make durable: nothing of it counts as being there.
      if (!isLost(error)) this.marks.markUnprovenMissing();
      this.owner.flushFailed(error);
      current.reject(this.abandoned ?? error);
    }
    if (next === null) this.owner.flushesIdle();
    else if (this.abandoned === null) this.begin(next);
    else next.reject(this.abandoned);
  }

  private count(generation: number, by: number): void {
    this.unanswered[generation] = (this.unanswered[generation] ?? 0) + by;
  }
}

/** The connection broke: the other side did not say that it failed. */
function isLost(error: BlockError): boolean {
  return error.code === 'connection-lost' || error.code === 'shutting-down' || error.code === 'timed-out';
}
