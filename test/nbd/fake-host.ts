/**
 * A host of memory: streams that a test feeds by hand and a clock that it moves. Files and randomness are not there.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { Host, HostStream, SocketAddress, StreamReceiver } from '../../src/host/host.ts';
import { type Deferred, deferred } from '../../src/util/later.ts';

/** The server's end of a connection; `arrive` and `close` are what the client does. */
export class FakeStream implements HostStream {
  readonly peer = 'fake';
  /** what the server sent */
  readonly sent: Uint8Array[] = [];
  /** true: sends are not taken until `drain` */
  stalled = false;
  ending = false;
  destroyed = false;
  paused = false;
  #receiver: StreamReceiver | null = null;
  #ended = false;
  readonly #waiting: { bytes: Uint8Array; taken: Deferred }[] = [];
  #queued = new Uint8Array(0);
  #busy = false;

  start(receiver: StreamReceiver): void {
    this.#receiver = receiver;
    this.#deliver();
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    // Not within the call, as a real stream does not.
    queueMicrotask(() => this.#deliver());
  }

  send(bytes: Uint8Array): undefined | Promise<void> {
    if (this.destroyed || this.ending) return undefined;
    if (!this.stalled) {
      this.sent.push(bytes.slice());
      return undefined;
    }
    const taken = deferred();
    this.#waiting.push({ bytes, taken });
    return taken.promise;
  }

  /** The client reads again. */
  drain(): void {
    this.stalled = false;
    for (const { bytes, taken } of this.#waiting.splice(0)) {
      this.sent.push(bytes.slice());
      taken.resolve();
    }
  }

  end(): void {
    this.ending = true;
  }

  destroy(): void {
    this.destroyed = true;
    queueMicrotask(() => this.#end(null));
  }

  /** The client sends; delivered in pieces as large as the receiver's space, at once if it is not paused. */
  arrive(bytes: Uint8Array): void {
    const queued = new Uint8Array(this.#queued.length + bytes.length);
    queued.set(this.#queued);
    queued.set(bytes, this.#queued.length);
    this.#queued = queued;
    this.#deliver();
  }

  /** The client goes, with an error or without. */
  close(error: Error | null = null): void {
    this.#end(error);
  }

  /** bytes that the server has not taken */
  get undelivered(): number {
    return this.#queued.length;
  }

  /** All that was sent, in one piece. */
  output(): Uint8Array {
    return Buffer.concat(this.sent);
  }

  #end(error: Error | null): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const { taken } of this.#waiting.splice(0)) taken.resolve();
    this.#receiver?.ended(error);
  }

  #deliver(): void {
    if (this.#receiver === null || this.#busy) return;
    this.#busy = true;
    while (!this.paused && !this.#ended && this.#queued.length > 0) {
      const space = this.#receiver.space();
      if (space.length === 0) throw new Error('the receiver gave no room');
      const count = Math.min(space.length, this.#queued.length);
      space.set(this.#queued.subarray(0, count));
      this.#queued = this.#queued.subarray(count);
      this.#receiver.received(count);
    }
    this.#busy = false;
  }
}

export class FakeHost implements Host {
  readonly files = unavailable('files') as Host['files'];
  readonly random = unavailable('random') as Host['random'];
  readonly bootId = 'fake';
  #now = 0;
  readonly #timers = new Set<{ at: number; call: () => void }>();
  readonly #accepts: ((stream: HostStream) => void)[] = [];

  readonly clock: Host['clock'] = {
    now: () => this.#now,
    wall: () => this.#now,
    after: (ms, call) => {
      const timer = { at: this.#now + ms, call };
      this.#timers.add(timer);
      return { cancel: () => void this.#timers.delete(timer) };
    },
    endOfTurn: (call) => void setImmediate(call),
  };

  readonly network: Host['network'] = {
    listen: async (address: SocketAddress, accepted) => {
      this.#accepts.push(accepted);
      return { address, close: async () => void this.#accepts.splice(this.#accepts.indexOf(accepted), 1) };
    },
    connect: () => Promise.reject(new Error('a fake host connects nowhere')),
  };

  /** A client of the first listener. */
  connect(): FakeStream {
    const stream = new FakeStream();
    this.#accepts[0]?.(stream);
    return stream;
  }

  get listening(): number {
    return this.#accepts.length;
  }

  /** timers that have neither fired nor been cancelled */
  get timers(): number {
    return this.#timers.size;
  }

  advance(ms: number): void {
    this.#now += ms;
    for (const timer of [...this.#timers]) {
      if (timer.at > this.#now) continue;
      this.#timers.delete(timer);
      timer.call();
    }
  }
}

/** Lets everything that is due in this turn and the next ones happen. */
export async function settle(): Promise<void> {
  for (let count = 0; count < 4; count += 1) await turn();
}

function unavailable(what: string): unknown {
  return new Proxy({}, { get: () => assertNever(what) });
}

function assertNever(what: string): never {
  throw new Error(`a fake host has no ${what}`);
}
