/**
 * Helpers for "done now, or a promise": the answer of every I/O call of blockstep (design: "The block node contract").
 *
 * A call that could be answered at once returns `undefined` and allocates nothing; one that must wait returns a
 * promise. A throw is a completion with an error, like a rejection.
 */

/** Nothing: it is done now. A promise: it will be. */
export type Done = undefined | Promise<void>;

/** Waits where there is something to wait for, then does `next`; at once when `done` is nothing. */
export function after(done: Done, next: () => Done): Done {
  return done === undefined ? next() : done.then(next);
}

/** Calls `call` and turns a throw into a rejected promise, so that a fan-out can call every child before it looks. */
export function attempt(call: () => Done): Done {
  try {
    return call();
  } catch (error) {
    return Promise.reject(error);
  }
}

/** A promise with its two ends, for waiters that are queued. */
export interface Deferred<T = void> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}

export function deferred<T = void>(): Deferred<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  return { promise, resolve, reject };
}
