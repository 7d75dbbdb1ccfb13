/**
 * Connects to an NBD server and leads the handshake over the stream, with one time limit on both.
 *
 * The stream changes hands in the same call in which the handshake ends, so that not a byte falls between.
 */
import type { Host, HostStream, SocketAddress, StreamReceiver } from '../host/host.ts';
import { type BlockError, toBlockError } from '../util/errors.ts';
import type { HandshakeClient } from './handshake-client.ts';

/** ms for connecting and shaking hands together */
export const handshakeMsDefault = 5000;
const handshakeBufferBytes = 16 * 1024;

/** How messages name a server. */
export function describeServer(address: SocketAddress): string {
  if (address.type === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/**
 * @param handOver takes the stream with the handshake's result, and returns who receives from now on; null: nobody, the
 *   stream is ended
 * @throws BlockError connection-failed, timed-out, or what the handshake found wrong
 */
export async function dial<Result>(
  host: Host,
  address: SocketAddress,
  timeoutMs: number,
  handshake: HandshakeClient<Result>,
  handOver: (stream: HostStream, result: Result) => StreamReceiver | null,
): Promise<void> {
  const beganAt = host.clock.now();
  const stream = await host.network.connect(address, timeoutMs).catch((error: unknown) => {
    throw toBlockError(error, `cannot connect to ${describeServer(address)}`);
  });
  const leftMs = Math.max(1, timeoutMs - (host.clock.now() - beganAt));
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const timer = host.clock.after(leftMs, () => receiver.fail(handshake.timedOut(timeoutMs), false));
  const receiver = new HandshakeReceiver(stream, handshake, handOver, (error) => {
    timer.cancel();
    if (error === null) resolve();
    else reject(error);
  });
  stream.start(receiver);
  await promise;
}

class HandshakeReceiver<Result> implements StreamReceiver {
  readonly #stream: HostStream;
  readonly #handshake: HandshakeClient<Result>;
  readonly #handOver: (stream: HostStream, result: Result) => StreamReceiver | null;
  readonly #finished: (error: BlockError | null) => void;
  readonly #buffer = new Uint8Array(handshakeBufferBytes);
  #next: StreamReceiver | null = null;
  #over = false;

  constructor(
    stream: HostStream,
    handshake: HandshakeClient<Result>,
    handOver: (stream: HostStream, result: Result) => StreamReceiver | null,
    finished: (error: BlockError | null) => void,
  ) {
    this.#stream = stream;
    this.#handshake = handshake;
    this.#handOver = handOver;
    this.#finished = finished;
  }

  space(): Uint8Array {
    return this.#next?.space() ?? this.#buffer;
  }

  received(count: number): void {
    if (this.#next !== null) this.#next.received(count);
    else if (!this.#over) this.#converse(count);
  }

  #converse(count: number): void {
    try {
      const taken = this.#handshake.receive(this.#buffer.subarray(0, count));
      this.#send();
      if (this.#handshake.result === null) return;
      this.#over = true;
      this.#next = this.#handOver(this.#stream, this.#handshake.result);
      this.#finished(null);
      if (this.#next === null) this.#stream.end();
      else this.#passOn(this.#buffer.subarray(taken, count));
    } catch (error) {
      this.fail(toBlockError(error), true);
    }
  }

  ended(error: Error | null): void {
    if (this.#next !== null) this.#next.ended(error);
    if (this.#over) return;
    this.#over = true;
    this.#finished(this.#handshake.endedEarly(error));
    this.#stream.destroy();
  }

  /** Ends it with an error; `farewell`: what the handshake has left to say (NBD_OPT_ABORT) goes out before. */
  fail(error: BlockError, farewell: boolean): void {
    if (this.#over) return;
    this.#over = true;
    if (farewell && error.code !== 'protocol-error') {
      this.#send();
      this.#stream.end();
    } else {
      this.#stream.destroy();
    }
    this.#finished(error);
  }

  #send(): void {
    const output = this.#handshake.takeOutput();
    // The buffer is not used again, so nothing waits for the stream to have taken it.
    if (output !== null) void this.#stream.send(output);
  }

  /** Bytes that came behind the handshake: a server has nothing to say yet, but its replies are judged elsewhere. */
  #passOn(rest: Uint8Array): void {
    let at = 0;
    while (at < rest.length && this.#next !== null) {
      const space = this.#next.space();
      const count = Math.min(space.length, rest.length - at);
      space.set(rest.subarray(at, at + count));
      at += count;
      this.#next.received(count);
    }
  }
}
