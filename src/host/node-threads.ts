/**
 * Calls of files on libuv's threads. There are few threads for the whole process, and a call on a device that hangs
 * keeps its own until the device answers: so each file has a share of them, beyond which its calls wait in line, and
 * the other files still find threads.
 */
import * as fs from 'node:fs';
import { performance } from 'node:perf_hooks';
import type { Pace } from './node-pace.ts';

/** libuv's own number of threads, unless UV_THREADPOOL_SIZE says another. */
const threadsDefault = 4;

/** The threads of this process, as the files of one host share them. */
export class ThreadPool {
  private readonly count: number;
  /** files with a call on a thread or in line */
  private busy = 0;

  constructor(count = threadCount()) {
    this.count = count;
  }

  /** How many threads one file may have now: a quarter is always left for syncs and for what else the process does. */
  get share(): number {
    return Math.max(1, Math.floor((this.count * 0.75) / Math.max(1, this.busy)));
  }

  enter(): void {
    this.busy += 1;
  }

  leave(): void {
    this.busy -= 1;
  }
}

function threadCount(): number {
  const asked = Number(process.env.UV_THREADPOOL_SIZE);
  return Number.isInteger(asked) && asked > 0 ? asked : threadsDefault;
}

interface Call {
  /** when it was asked for */
  readonly began: number;
  start(): void;
}

/** The calls of one file. */
export class FileThreads {
  private readonly fd: number;
  private readonly pool: ThreadPool;
  private readonly pace: Pace;
  /** all that have not ended, the oldest first; those in line are the last */
  private readonly calls = new Set<Call>();
  private readonly line: Call[] = [];
  private running = 0;
  private idle: PromiseWithResolvers<void> | null = null;

  constructor(fd: number, pool: ThreadPool, pace: Pace) {
    this.fd = fd;
    this.pool = pool;
    this.pace = pace;
  }

  /** Makes a call when there is a thread for it. */
  run<T>(call: () => Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const entry: Call = {
        began: performance.now(),
        start: () => {
          this.running += 1;
          const started = performance.now();
          call()
            .then(resolve, reject)
            .finally(() => {
              this.pace.tookOnThread(performance.now() - started);
              this.ended(entry);
            });
        },
      };
      if (this.calls.size === 0) this.pool.enter();
      this.calls.add(entry);
      if (this.running < this.pool.share) entry.start();
      else this.line.push(entry);
    });
  }

  /** One pread; fewer bytes come at the end of the file. */
  read(into: Uint8Array, at: number, length: number, position: number): Promise<number> {
    return this.run(
      () =>
        new Promise((resolve, reject) => {
          fs.read(this.fd, into, at, length, position, (error, count) => (error ? reject(error) : resolve(count)));
        }),
    );
  }

  /** One pwrite. */
  write(from: Uint8Array, at: number, length: number, position: number): Promise<number> {
    return this.run(
      () =>
        new Promise((resolve, reject) => {
          fs.write(this.fd, from, at, length, position, (error, count) => (error ? reject(error) : resolve(count)));
        }),
    );
  }

  /** How long the oldest call has been under way, milliseconds; 0 if there is none. */
  get oldestMs(): number {
    for (const call of this.calls) return performance.now() - call.began;
    return 0;
  }

  /** Ends when no call is under way. */
  async settled(): Promise<void> {
    if (this.calls.size === 0) return;
    this.idle ??= Promise.withResolvers();
    await this.idle.promise;
  }

  private ended(call: Call): void {
    this.running -= 1;
    this.calls.delete(call);
    while (this.line.length > 0 && this.running < this.pool.share) this.line.shift()?.start();
    if (this.calls.size > 0) return;
    this.pool.leave();
    this.idle?.resolve();
    this.idle = null;
  }
}
