/**
 * The link of an `nbd` node to its server: one connection at a time, and what happens when it is lost
 * (QEMU: qapi/block-core.json, BlockdevOptionsNbd, `reconnect-delay`).
 *
 *     connected --lost--> waiting --reconnect-delay is over--> down      broken: cut on purpose, or closed; final
 *         ^                  | connected again                   | a request fails at once, and lets a new
 *         +------------------+-----------------------------------+ connection be tried behind it
 *
 * While waiting, requests are held, those that were in flight too, and issued again in the order in which they came,
 * once all that the lost connection had are back; so overlapping ones keep their order. What a reconnect cannot know:
 * whether the server kept what it had answered and not flushed, and whether a request of the old connection still takes
 * effect late. For replication neither is acceptable, so a pair uses no reconnect-delay and names its exports by
 * instance (pair.md 4).
 */
import type { Host, HostTimer } from '../host/host.ts';
import type { NbdClient } from '../nbd/client.ts';
import { BlockError, toBlockError } from '../util/errors.ts';

/** ms between attempts to connect: the first, and what doubling it leads to at most */
const retryMsMin = 100;
const retryMsMax = 5000;

/** A request, as it is issued on whatever connection stands. */
type Call<T> = (client: NbdClient) => T | Promise<T>;

interface Held {
  readonly ticket: number;
  readonly call: Call<unknown>;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
}

export interface NbdLinkOptions {
  readonly host: Host;
  /** Connects once. */
  readonly connect: () => Promise<NbdClient>;
  /** s during which requests wait for a new connection; 0: they fail at once */
  readonly reconnectDelayS: number;
  readonly lost: (error: BlockError) => void;
  readonly restored: () => void;
}

export class NbdLink {
  readonly #options: NbdLinkOptions;
  #client: NbdClient | null;
  /** why there is no connection */
  #error: BlockError | null = null;
  #lostBy = '';
  #waiting = false;
  #final = false;
  #connecting = false;
  #retryMs = retryMsMin;
  /** no attempt before this time of the clock */
  #nextAttemptAt = 0;
  #retryTimer: HostTimer | null = null;
  #deadlineTimer: HostTimer | null = null;
  #tickets = 0;
  #inCall = 0;
  #held: Held[] = [];

  constructor(client: NbdClient, options: NbdLinkOptions) {
    this.#options = options;
    this.#client = client;
    this.#listen(client);
  }

  get connected(): boolean {
    return this.#client !== null;
  }

  get error(): BlockError | null {
    return this.#error;
  }

  /** The connection, for a request that does not wait for another. @throws BlockError why there is none */
  client(): NbdClient {
    if (this.#client !== null) return this.#client;
    this.#tryAgain();
    throw this.#error ?? new BlockError('connection-lost', 'there is no connection to the NBD server');
  }

  /** Issues a request, again and again if connections are lost while `reconnect-delay` lasts. */
  run<T>(call: Call<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const held: Held = { ticket: this.#tickets, call, resolve, reject };
      this.#tickets += 1;
      if (this.#client !== null && this.#held.length === 0) this.#issue(this.#client, held);
      else if (this.#client !== null || this.#waiting) this.#held.push(held);
      else {
        this.#tryAgain();
        this.#refuse(held);
      }
    });
  }

  /** Ends the connection politely; no requests are under way. */
  async close(): Promise<void> {
    const client = this.#client;
    this.#end(new BlockError('shutting-down', 'the node is closed'));
    await client?.close();
  }

  /** Cuts it for good. */
  cut(reason: string): void {
    const client = this.#client;
    if (this.#final) return;
    this.#end(new BlockError('connection-lost', `the connection was cut: ${reason}`));
    client?.destroy(reason);
  }

  #end(error: BlockError): void {
    this.#final = true;
    this.#client = null;
    this.#error = error;
    this.#stopTimers();
    this.#waiting = false;
    this.#refuseHeld();
  }

  #listen(client: NbdClient): void {
    client.onClosed((error) => {
      if (this.#client !== client) return;
      this.#lose(error ?? new BlockError('connection-lost', 'the connection to the NBD server has ended'));
    });
  }

  #lose(error: BlockError): void {
    this.#client = null;
    this.#error = error;
    this.#lostBy = error.message;
    this.#retryMs = retryMsMin;
    this.#nextAttemptAt = 0;
    const { reconnectDelayS, host } = this.#options;
    if (reconnectDelayS > 0) {
      this.#waiting = true;
      this.#deadlineTimer = host.clock.after(reconnectDelayS * 1000, () => this.#giveUp());
      this.#attempt();
    }
    this.#options.lost(error);
  }

  /**
   * `reconnect-delay` is over: "any delayed requests and all future requests before a successful reconnect will
   * immediately fail".
   */
  #giveUp(): void {
    this.#waiting = false;
    this.#stopTimers();
    this.#refuseHeld();
  }

  /** A request came while there is no connection: a new one is tried, not too often. */
  #tryAgain(): void {
    if (this.#options.host.clock.now() >= this.#nextAttemptAt) this.#attempt();
  }

  #attempt(): void {
    if (this.#connecting || this.#final) return;
    this.#connecting = true;
    this.#options.connect().then(
      (client) => this.#connected(client),
      (error: unknown) => this.#failed(toBlockError(error)),
    );
  }

  #connected(client: NbdClient): void {
    this.#connecting = false;
    if (this.#final) {
      void client.close();
      return;
    }
    this.#stopTimers();
    this.#client = client;
    this.#error = null;
    this.#waiting = false;
    this.#listen(client);
    this.#options.restored();
    this.#release();
  }

  #failed(error: BlockError): void {
    this.#connecting = false;
    if (this.#final) return;
    this.#error = new BlockError('connection-lost', `${this.#lostBy}; ${error.message}`, { cause: error });
    this.#nextAttemptAt = this.#options.host.clock.now() + this.#retryMs;
    if (this.#waiting) this.#retryTimer = this.#options.host.clock.after(this.#retryMs, () => this.#attempt());
    this.#retryMs = Math.min(2 * this.#retryMs, retryMsMax);
  }

  #stopTimers(): void {
    this.#retryTimer?.cancel();
    this.#deadlineTimer?.cancel();
    this.#retryTimer = null;
    this.#deadlineTimer = null;
  }

  #issue(client: NbdClient, held: Held): void {
    this.#inCall += 1;
    const done = (value: unknown): void => {
      this.#inCall -= 1;
      held.resolve(value as never);
      this.#release();
    };
    const failed = (error: unknown): void => {
      this.#inCall -= 1;
      const lost = error instanceof BlockError && (error.code === 'connection-lost' || error.code === 'shutting-down');
      if (!lost) held.reject(error);
      else if (this.#waiting || (this.#client !== null && this.#client !== client)) this.#held.push(held);
      // A server that is shutting down has said so to one request before its connection has ended.
      else if (this.#client === client && this.#options.reconnectDelayS > 0) this.#held.push(held);
      else held.reject(error);
      this.#release();
    };
    try {
      const result = held.call(client);
      if (result instanceof Promise) result.then(done, failed);
      else done(result);
    } catch (error) {
      failed(error);
    }
  }

  /** Issues what is held, in the order in which it came, once nothing of the lost connection is still to come back. */
  #release(): void {
    const client = this.#client;
    if (client === null || client.error !== null || this.#held.length === 0 || this.#inCall > 0) return;
    const held = this.#held.sort((a, b) => a.ticket - b.ticket);
    this.#held = [];
    for (const one of held) this.#issue(client, one);
  }

  #refuseHeld(): void {
    for (const held of this.#held.splice(0)) this.#refuse(held);
  }

  #refuse(held: Held): void {
    held.reject(this.#error ?? new BlockError('connection-lost', 'there is no connection to the NBD server'));
  }
}
