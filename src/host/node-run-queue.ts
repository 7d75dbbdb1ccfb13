/**
 * How long this thread has waited for a processor, as Linux counts it. A call that took long while the thread stood in
 * the run queue says nothing about the disk.
 */
import * as fs from 'node:fs';

export class RunQueue {
  /** -1: the kernel does not tell; undefined: not opened yet */
  private fd: number | undefined;
  private readonly text = Buffer.alloc(128);
  private lastMs = 0;

  /** Milliseconds of waiting since this was asked last (at first: since the thread began); 0 where it is not told. */
  sinceLast(): number {
    this.fd ??= open();
    if (this.fd < 0) return 0;
    const length = fs.readSync(this.fd, this.text, 0, this.text.length, 0);
    // Three numbers: ns on a processor, ns in the run queue, how many times (Documentation/scheduler/sched-stats).
    const waitedMs = Number(this.text.toString('latin1', 0, length).split(' ')[1]) / 1_000_000;
    const since = waitedMs - this.lastMs;
    this.lastMs = waitedMs;
    return Number.isNaN(since) ? 0 : since;
  }
}

function open(): number {
  try {
    return fs.openSync('/proc/thread-self/schedstat', 'r');
  } catch {
    return -1;
  }
}
