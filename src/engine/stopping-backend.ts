/**
 * An export whose writes wait when the disk fails them (`on-write-error: stop`), instead of failing: what a full file
 * system refuses is tried again when somebody has made room and says so.
 *
 * From the first failure on, that change and every later one wait, in the order of their arrival; reads and flushes go
 * on (a flush covers only what was answered). `resume` tries them one after the other: a failure stops it again.
 * Changes that were in flight together with the one that failed were not ordered, as NBD has it, and so it is with
 * ordered sessions out of the question.
 *
 * Invariant: what waits is not in flight in the node, so a drain does not wait for it, and nothing of it is issued
 * until the drain has ended.
 */
import type { BackendFlags, NbdBackend } from '../nbd/backend.ts';
import { type BlockError, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import { type Deferred, type Done, deferred } from '../util/later.ts';

/** A change that waits. */
interface Held {
  readonly issue: () => Done;
  readonly done: Deferred;
}

/** Why an export is stopped. */
export interface Stop {
  readonly error: BlockError;
  /** changes that wait */
  readonly waiting: number;
}

export class StoppingBackend implements NbdBackend {
  readonly #below: NbdBackend;
  readonly #stopped: (error: BlockError) => void;
  readonly #held: Held[] = [];
  #error: BlockError | null = null;
  /** requests in flight in the node */
  #inflight = 0;
  #quiet: Deferred | null = null;
  #drains = 0;
  /** somebody said that it may be tried again */
  #resumed = false;
  #trying = false;
  #closed = false;

  /** @param stopped called at every failure that makes the export wait, or wait on */
  constructor(below: NbdBackend, stopped: (error: BlockError) => void) {
    this.#below = below;
    this.#stopped = stopped;
  }

  get length(): number {
    return this.#below.length;
  }

  get stop(): Stop | null {
    return this.#error === null ? null : { error: this.#error, waiting: this.#held.length };
  }

  read(offset: number, into: Uint8Array): Done {
    return this.#count(() => this.#below.read(offset, into));
  }

  flush(): Done {
    return this.#count(() => this.#below.flush());
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.#count(() => this.#below.blockStatus(offset, length));
  }

  write(offset: number, from: Uint8Array, flags: BackendFlags): Done {
    return this.#change(() => this.#below.write(offset, from, flags));
  }

  writeZeroes(offset: number, length: number, flags: BackendFlags): Done {
    return this.#change(() => this.#below.writeZeroes(offset, length, flags));
  }

  discard(offset: number, length: number): Done {
    return this.#change(() => this.#below.discard(offset, length));
  }

  /** Tries again what waits. Does nothing if nothing waits. */
  resume(): void {
    if (this.#error === null) return;
    this.#resumed = true;
    void this.#tryAgain();
  }

  /** No change that waits is issued until `drainEnd`; nests. Done when nothing is in flight in the node. */
  drainBegin(): Done {
    this.#drains += 1;
    if (this.#inflight === 0) return undefined;
    this.#quiet ??= deferred();
    return this.#quiet.promise;
  }

  drainEnd(): void {
    this.#drains -= 1;
    if (this.#resumed) void this.#tryAgain();
  }

  /**
   * What waits fails with the error that stopped it, and nothing waits from now on: the export goes. What is being
   * tried is answered by the node, which still has its bytes.
   */
  giveUp(): void {
    this.#closed = true;
    for (const { done } of this.#held.splice(this.#trying ? 1 : 0)) done.reject(this.#error);
    this.#error = null;
  }

  #change(issue: () => Done): Done {
    if (this.#error !== null) return this.#hold(issue);
    try {
      return this.#count(issue)?.catch((thrown: unknown) => this.#failed(thrown, issue));
    } catch (thrown) {
      return this.#failed(thrown, issue);
    }
  }

  #hold(issue: () => Done): Promise<void> {
    const done = deferred();
    this.#held.push({ issue, done });
    return done.promise;
  }

  #failed(thrown: unknown, issue: () => Done): Promise<void> {
    const error = toBlockError(thrown);
    if (this.#closed || !mayBeMended(error)) throw error;
    const held = this.#hold(issue);
    if (this.#error === null) this.#stopWith(error);
    return held;
  }

  #stopWith(error: BlockError): void {
    this.#error = error;
    this.#resumed = false;
    this.#stopped(error);
  }

  /** One after the other, in order; whatever comes meanwhile waits behind them. */
  async #tryAgain(): Promise<void> {
    if (this.#trying) return;
    this.#trying = true;
    try {
      for (let held = this.#next(); held !== undefined; held = this.#next()) {
        const error = await this.#try(held.issue);
        if (error !== null && mayBeMended(error) && !this.#closed) {
          this.#stopWith(error);
          return;
        }
        this.#held.shift();
        if (error === null) held.done.resolve();
        else held.done.reject(error);
      }
      if (this.#held.length === 0) this.#error = null;
    } finally {
      this.#trying = false;
    }
  }

  #next(): Held | undefined {
    return this.#drains > 0 ? undefined : this.#held[0];
  }

  async #try(issue: () => Done): Promise<BlockError | null> {
    try {
      await this.#count(issue);
      return null;
    } catch (thrown) {
      return toBlockError(thrown);
    }
  }

  #count<T extends Done | Extent[] | Promise<Extent[]>>(issue: () => T): T {
    this.#inflight += 1;
    let result: T;
    try {
      result = issue();
    } catch (thrown) {
      this.#ended();
      throw thrown;
    }
    if (result instanceof Promise) return result.finally(() => this.#ended()) as T;
    this.#ended();
    return result;
  }

  #ended(): void {
    this.#inflight -= 1;
    if (this.#inflight > 0) return;
    this.#quiet?.resolve();
    this.#quiet = null;
  }
}

/** Room can be made and a cable put back; what is refused for other reasons is refused the next time as well. */
function mayBeMended(error: BlockError): boolean {
  return error.code === 'no-space' || error.code === 'io-error';
}
