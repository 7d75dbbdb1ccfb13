/**
 * The bound on waiting for the other side (pair.md 6): no user waits longer than `stallMsMax`; then the link counts as
 * down. Slowness below that is back-pressure, not death: whoever stands in a line waits for those before it, and for
 * the other side only since the line moved last.
 *
 * Only the other side can stall: if this process stood still (it was stopped, its machine was), the answers of that
 * time lie unread, and timers come before what is to be read. So whoever has waited too long is looked at twice: what
 * has arrived is read in between, and a timer that came far too late leaves the other side a short grace as well.
 *
 * Invariant: one look at most is to come, at the one who has waited longest.
 */
import type { HostClock, HostTimer } from '../host/host.ts';

/** What a process that stood still leaves for an answer after it goes on, as a part of `stallMsMax`. */
const gracePart = 1 / 4;

const uncancelled: HostTimer = { cancel: () => undefined };

export class StallWatch {
  private readonly clock: HostClock;
  private readonly stallMsMax: number;
  private readonly stalled: () => void;
  /** since when each one waits, oldest first */
  private readonly waiting = new Map<Promise<void>, number>();
  /** the look that is to come */
  private timer: HostTimer | null = null;
  /** nobody waits for longer than since then */
  private movedMs = Number.NEGATIVE_INFINITY;

  constructor(clock: HostClock, stallMsMax: number, stalled: () => void) {
    this.clock = clock;
    this.stallMsMax = stallMsMax;
    this.stalled = stalled;
  }

  /** Counts a wait from now until the promise has settled; gives the promise back. Who joins changes nothing. */
  watch(wait: Promise<void>): Promise<void> {
    if (this.waiting.has(wait)) return wait;
    this.waiting.set(wait, this.clock.now());
    const end = (): void => this.forget(wait);
    wait.then(end, end);
    if (this.timer === null) this.arm(this.stallMsMax);
    return wait;
  }

  /** It goes on waiting, for something else. */
  forget(wait: Promise<void>): void {
    this.waiting.delete(wait);
  }

  /** The line of those who wait has moved. */
  moved(): void {
    this.movedMs = this.clock.now();
  }

  close(): void {
    this.timer?.cancel();
    this.timer = null;
    this.waiting.clear();
  }

  private arm(ms: number): void {
    const dueMs = this.clock.now() + ms;
    this.timer = this.clock.after(ms, () => {
      if (this.someoneIsLate()) this.lookAgain(this.clock.now() - dueMs);
    });
  }

  private lookAgain(lateMs: number): void {
    const graceMs = this.stallMsMax * gracePart;
    const look = (): void => {
      if (!this.someoneIsLate()) return;
      // Everybody who waits is let go by this: the next ones are counted anew.
      this.timer = null;
      this.waiting.clear();
      this.stalled();
    };
    if (lateMs > graceMs) {
      this.timer = this.clock.after(graceMs, look);
    } else {
      this.timer = uncancelled;
      this.clock.endOfTurn(look);
    }
  }

  /** If nobody is, the next look is at the one who has waited longest now. */
  private someoneIsLate(): boolean {
    this.timer = null;
    const [oldest] = this.waiting.values();
    if (oldest === undefined) return false;
    const leftMs = Math.max(oldest, this.movedMs) + this.stallMsMax - this.clock.now();
    if (leftMs > 0) this.arm(leftMs);
    return leftMs <= 0;
  }
}
