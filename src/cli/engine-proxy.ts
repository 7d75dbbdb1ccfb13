/**
 * The engine in its own thread, seen from the main thread: a `QmpTarget` like any other.
 *
 * Every command is answered: if the thread ends, those that wait are rejected with `shutting-down`, and so is every
 * later one; `ended` then says why.
 */
import { Worker } from 'node:worker_threads';
import type { QmpEvent, QmpTarget } from '../qmp/target.ts';
import { BlockError } from '../util/errors.ts';
import { type Deferred, deferred } from '../util/later.ts';
import { arrivedError, type EngineThreadData, type FromEngine, type ToEngine } from './engine-messages.ts';

/** As this file is named, so is its neighbour: `.ts` from the checkout, `.js` from `dist`. */
const workerFile = new URL(
  `./engine-worker${import.meta.url.slice(import.meta.url.lastIndexOf('.'))}`,
  import.meta.url,
);

export class EngineProxy implements QmpTarget {
  /** Resolves when the thread has ended: null after `close`, else why. */
  readonly ended: Promise<BlockError | null>;
  private readonly worker: Worker;
  private readonly waiting = new Map<number, Deferred<unknown>>();
  private readonly listeners = new Set<(event: QmpEvent) => void>();
  private readonly ready = deferred();
  private readonly closed = deferred();
  private nextId = 1;
  private closing = false;
  private failure: BlockError | null = null;

  /** Starts the thread; resolves when the engine takes commands. */
  static async start(data: EngineThreadData, file: URL = workerFile): Promise<EngineProxy> {
    const proxy = new EngineProxy(new Worker(file, { workerData: data, name: 'engine' }));
    await proxy.ready.promise;
    return proxy;
  }

  private constructor(worker: Worker) {
    this.worker = worker;
    // Each of them may end before anybody waits for it.
    this.ready.promise.catch(() => undefined);
    this.closed.promise.catch(() => undefined);
    worker.on('message', (message: FromEngine) => this.arrived(message));
    worker.on('error', (error: Error) => {
      // Whatever it was: to those who wait it is an engine that is gone, and not an error of their disk.
      this.failure = new BlockError('shutting-down', `the engine died: ${error.message}`, { cause: error });
    });
    this.ended = new Promise((resolve) => {
      worker.on('exit', () => resolve(this.exited()));
    });
  }

  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.failure !== null || this.closing) return Promise.reject(this.gone());
    const id = this.nextId;
    this.nextId += 1;
    const answer = deferred<unknown>();
    this.waiting.set(id, answer);
    this.say({ kind: 'execute', id, command, args });
    return answer.promise;
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Closes the engine (exports, jobs, nodes) and ends the thread. */
  async close(): Promise<void> {
    if (!this.closing) {
      this.closing = true;
      if (this.failure === null) this.say({ kind: 'close' });
    }
    await this.closed.promise;
    await this.ended;
  }

  private say(message: ToEngine): void {
    this.worker.postMessage(message);
  }

  private arrived(message: FromEngine): void {
    if (message.kind === 'ready') this.ready.resolve();
    else if (message.kind === 'event') for (const listener of [...this.listeners]) listener(message.event);
    else if (message.kind === 'closed') {
      if (message.error === null) this.closed.resolve();
      else this.closed.reject(arrivedError(message.error));
    } else {
      const answer = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      if (message.kind === 'result') answer?.resolve(message.result);
      else answer?.reject(arrivedError(message.error));
    }
  }

  private exited(): BlockError | null {
    if (this.failure === null && !this.closing) this.failure = new BlockError('shutting-down', 'the engine ended');
    const gone = this.gone();
    this.ready.reject(gone);
    this.closed.reject(gone);
    for (const answer of this.waiting.values()) answer.reject(gone);
    this.waiting.clear();
    return this.failure;
  }

  private gone(): BlockError {
    return this.failure ?? new BlockError('shutting-down', 'the engine is closing');
  }
}
