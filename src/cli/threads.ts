/** The threads on which this process waits for slow disks: their number is fixed when the first is needed. */

/**
 * Enough that several disks may hang at once while the others find threads; a thread that waits costs a few KiB. libuv
 * takes 1024 at most.
 */
const threadCount = 64;

/** To be called before any file is touched asynchronously. UV_THREADPOOL_SIZE, if it is given, stands. */
export function reserveThreads(): void {
  process.env.UV_THREADPOOL_SIZE ??= String(threadCount);
}
