/**
 * The syncs of a record log: one stands for all that wait for it (record-log.md 4).
 *
 * Invariants: a sync covers what was appended and done before it began; whoever asks joins only one that has not begun;
 * after a failure none succeeds.
 */
import { attempt, type Done } from '../util/later.ts';

export class LogSync {
  /** the last sequence known durable */
  syncedTo: number;
  /** set when an append or a sync failed */
  failed: Error | null = null;
  private readonly flush: () => Done;
  private readonly fail: (error: unknown) => Error;
  private readonly pending = new Set<Promise<void>>();
  private running: Promise<void> | null = null;
  private waiting: Promise<void> | null = null;

  /**
   * @param flush makes durable what was written to the file
   * @param fail tells the log of a failure, and returns the error that sticks
   */
  constructor(flush: () => Done, fail: (error: unknown) => Error, syncedTo: number) {
    this.flush = flush;
    this.fail = fail;
    this.syncedTo = syncedTo;
  }

  /** An append that is not done yet: the next sync waits for it. */
  track(written: Promise<void>): void {
    this.pending.add(written);
    const ended = (): void => {
      this.pending.delete(written);
    };
    written.then(ended, ended);
  }

  /** Ends when the appends that are under way now have ended, well or badly. */
  underWay(): Done {
    return this.pending.size === 0 ? undefined : Promise.allSettled([...this.pending]).then(() => undefined);
  }

  /** Somebody else has made it durable up to here. */
  raise(sequence: number): void {
    this.syncedTo = Math.max(this.syncedTo, sequence);
  }

  /** @param begin called when the sync begins: tells the last sequence that it covers */
  sync(begin: () => number): Done {
    if (this.waiting !== null) return this.waiting;
    if (this.running === null) return this.begin(begin);
    const next = (): Done => this.begin(begin);
    this.waiting = this.running.then(next, next);
    return this.waiting;
  }

  private begin(begin: () => number): Done {
    this.waiting = null;
    if (this.failed !== null) throw this.failed;
    const upTo = begin();
    const appending = this.underWay();
    if (appending !== undefined) return this.run(appending.then(this.flush), upTo);
    const done = attempt(this.flush);
    if (done !== undefined) return this.run(done, upTo);
    this.raise(upTo);
    return undefined;
  }

  private run(done: Promise<void>, upTo: number): Promise<void> {
    this.running = done.then(
      () => {
        this.running = null;
        if (this.failed !== null) throw this.failed;
        this.raise(upTo);
      },
      (error: unknown) => {
        this.running = null;
        throw this.fail(error);
      },
    );
    return this.running;
  }
}
