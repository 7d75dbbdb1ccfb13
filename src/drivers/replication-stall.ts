/**
 * The bound on waiting for the other side (pair.md 6): no user waits longer than `stallMsMax`; then the link counts as
 * down. Slowness below that is back-pressure, not death.
 *
 * Invariant: one timer at most, armed for the one who has waited longest.
 */
import type { HostClock, HostTimer } from '../host/host.ts';

export class StallWatch {
  private readonly clock: HostClock;
  private readonly stallMsMax: number;
  private readonly stalled: () => void;
  /** since when each one waits, oldest first */
  private readonly waiting = new Map<symbol, number>();
  private timer: HostTimer | null = null;

  constructor(clock: HostClock, stallMsMax: number, stalled: () => void) {
    this.clock = clock;
    this.stallMsMax = stallMsMax;
    this.stalled = stalled;
  }

  /** Counts a wait from now until the promise has settled; gives the promise back. */
  watch(wait: Promise<void>): Promise<void> {
    const token = Symbol();
    this.waiting.set(token, this.clock.now());
    const end = (): void => {
      this.waiting.delete(token);
    };
    wait.then(end, end);
    if (this.timer === null) this.arm(this.stallMsMax);
    return wait;
  }

  close(): void {
    this.timer?.cancel();
    this.timer = null;
    this.waiting.clear();
  }

  private arm(ms: number): void {
    this.timer = this.clock.after(ms, () => {
      this.timer = null;
      const [oldest] = this.waiting.values();
      if (oldest === undefined) return;
      const leftMs = oldest + this.stallMsMax - this.clock.now();
      if (leftMs > 0) this.arm(leftMs);
      else {
        // Everybody who waits is let go by this: the next ones are counted anew.
        this.waiting.clear();
        this.stalled();
      }
    });
  }
}
