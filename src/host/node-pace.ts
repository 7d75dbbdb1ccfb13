/**
 * Decides whether the calls of a file are made at once or on a thread.
 *
 * While the page cache answers, a call at once takes a few microseconds and a hand-off costs ten times that; where the
 * device answers, a call at once holds up every other disk of the process. So calls are timed: each may take what the
 * cache would, what it takes beyond that is a debt, quick calls pay it off, and a debt above the limit moves the file
 * to threads. There a call at once is tried now and then, unless the device is so slow that even one would be felt.
 */
import type { RunQueue } from './node-run-queue.ts';

/** What the cache takes for a call, milliseconds: cached calls take 3 to 12 µs here, of a cold disk 40 at least. */
const quickMs = 0.03;
/** What it takes besides for each byte: 2 GB a second, which memory copies far surpass. */
const quickMsPerByte = 1 / (2 * 1024 * 1024);
/** Beyond what a busy machine adds to some calls: one stall, or some hundred reads of a cold disk. */
const debtMsMax = 20;
/** A call that took so much longer may have been off its processor: that time is asked for and not counted. */
const suspiciousMs = 0.5;
/** After so many calls it is asked for in any case, so that little of it is older than the call it is taken from. */
const askEvery = 256;
/** One call in so many is tried at once. */
const trialEvery = 64;
/** A device whose calls take longer than this is not tried. */
const trialMsMax = 1;
/** So many trials in a row have to be quick. */
const quickTrialsMin = 8;
/** Keeps the count a small integer; a multiple of both above. */
const countMask = 0xffff;

export class Pace {
  /** calls belong on a thread */
  slow = false;
  private debtMs = 0;
  private calls = 0;
  private quickTrials = 0;
  /** moving average of what calls on threads take */
  private threadMs = 0;
  private readonly queue: Pick<RunQueue, 'sinceLast'>;

  constructor(queue: Pick<RunQueue, 'sinceLast'>) {
    this.queue = queue;
    queue.sinceLast();
  }

  /** A call at once of `length` bytes has taken `ms`. */
  took(ms: number, length: number): void {
    let over = ms - quickMs - length * quickMsPerByte;
    this.calls = (this.calls + 1) & countMask;
    if (over > suspiciousMs) over = Math.max(0, over - this.queue.sinceLast());
    else if (this.calls % askEvery === 0) this.queue.sinceLast();
    if (this.slow) {
      this.quickTrials = over > 0 ? 0 : this.quickTrials + 1;
      if (this.quickTrials === quickTrialsMin) this.slow = false;
      return;
    }
    const debt = this.debtMs + over;
    this.debtMs = Math.max(debt, 0);
    if (debt > debtMsMax) this.becomeSlow(ms);
  }

  /** A call on a thread has taken `ms`. */
  tookOnThread(ms: number): void {
    this.threadMs += (ms - this.threadMs) / 8;
  }

  /** Asked for each call while slow: shall this one be made at once, to see how that goes? */
  mayTry(): boolean {
    this.calls = (this.calls + 1) & countMask;
    return this.calls % trialEvery === 0 && this.threadMs < trialMsMax;
  }

  private becomeSlow(ms: number): void {
    this.slow = true;
    this.debtMs = 0;
    this.calls = 0;
    this.quickTrials = 0;
    this.threadMs = ms;
  }
}
