/**
 * Overlapping ranges wait for each other in the order they came; others pass. Readers (`shared`) of one range do not
 * wait for each other.
 *
 * Invariant: an entry is held once no earlier entry that conflicts with it is left, so the order of conflicting
 * requests is the order of their `acquire`. A node asks `idle` first: while nothing is held its path allocates nothing,
 * and it holds a range only for a request that turned out to take time.
 */
import type { Done } from './later.ts';

/** A range that is held, or waits. */
export interface RangeHold {
  /** Lets the next ones in. Calling it twice does no harm. */
  release(): void;
}

class Entry implements RangeHold {
  readonly lock: RangeLock;
  readonly offset: number;
  readonly end: number;
  readonly shared: boolean;
  /** how many earlier entries it waits for */
  blockers = 0;
  wake: ((hold: RangeHold) => void) | null = null;

  constructor(lock: RangeLock, offset: number, length: number, shared: boolean) {
    this.lock = lock;
    this.offset = offset;
    this.end = offset + length;
    this.shared = shared;
  }

  conflictsWith(offset: number, end: number, shared: boolean): boolean {
    return this.offset < end && offset < this.end && !(this.shared && shared);
  }

  release(): void {
    this.lock.drop(this);
  }
}

export class RangeLock {
  /** in the order they came; held ones and waiting ones */
  private entries: Entry[] = [];

  /** Nothing is held and nothing waits. */
  get idle(): boolean {
    return this.entries.length === 0;
  }

  /** Would an `acquire` of this range have to wait? */
  conflicts(offset: number, length: number, shared = false): boolean {
    const end = offset + length;
    for (const entry of this.entries) if (entry.conflictsWith(offset, end, shared)) return true;
    return false;
  }

  /** The range, now or once those before it are released. */
  acquire(offset: number, length: number, shared = false): RangeHold | Promise<RangeHold> {
    const entry = new Entry(this, offset, length, shared);
    for (const earlier of this.entries) {
      if (earlier.conflictsWith(offset, entry.end, shared)) entry.blockers += 1;
    }
    this.entries.push(entry);
    if (entry.blockers === 0) return entry;
    return new Promise((resolve) => {
      entry.wake = resolve;
    });
  }

  /**
   * Holds a range that nothing conflicts with until `work` has ended; for a request that was issued while `idle` and
   * then turned out to take time. The result is `work`'s.
   */
  holdUntil(work: Promise<void>, offset: number, length: number, shared = false): Promise<void> {
    const entry = new Entry(this, offset, length, shared);
    this.entries.push(entry);
    return releaseAfter(entry, work);
  }

  /** Issues a request in its turn: at once if nothing conflicts; the range is held until it has ended. */
  run(offset: number, length: number, shared: boolean, issue: () => Done): Done {
    if (!this.conflicts(offset, length, shared)) {
      const done = issue();
      return done === undefined ? undefined : this.holdUntil(done, offset, length, shared);
    }
    return this.runLater(offset, length, shared, issue);
  }

  /** Ends when everything that is held or waits now has been released. */
  async settled(): Promise<void> {
    const hold = await this.acquire(0, Number.MAX_SAFE_INTEGER);
    hold.release();
  }

  /** @internal for `RangeHold.release` */
  drop(entry: Entry): void {
    const index = this.entries.indexOf(entry);
    if (index < 0) return;
    this.entries.splice(index, 1);
    for (let i = index; i < this.entries.length; i += 1) {
      const later = this.entries[i];
      if (later === undefined || !later.conflictsWith(entry.offset, entry.end, entry.shared)) continue;
      later.blockers -= 1;
      if (later.blockers === 0) later.wake?.(later);
    }
  }

  private async runLater(offset: number, length: number, shared: boolean, issue: () => Done): Promise<void> {
    const hold = await this.acquire(offset, length, shared);
    try {
      await issue();
    } finally {
      hold.release();
    }
  }
}

async function releaseAfter(hold: RangeHold, work: Promise<void>): Promise<void> {
  try {
    await work;
  } finally {
    hold.release();
  }
}
