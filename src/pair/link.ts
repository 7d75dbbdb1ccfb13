/**
 * The connection of two supervisors. The side with the smaller name dials, and dials again with jitter; the other one
 * listens. At most one connection counts: a newer one takes its place only after a hello that names the peer, so that a
 * stranger on the port disturbs nothing. A peer that is silent for `peerTimeoutMs` is gone.
 */
import type { Host, HostListener, HostStream, HostTimer, SocketAddress } from '../host/host.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import {
  agreeVersion,
  decodeHello,
  decodeMessage,
  encodeMessage,
  type Hello,
  type Message,
  messageBytesMax,
} from './messages.ts';

/** Strangers that have not said hello yet, at the same time. */
const strangersMax = 8;
/** bytes of a hello */
const helloBytesMax = 64 * 1024;
const redialMsMax = 2000;

export interface LinkOptions {
  readonly name: string;
  readonly peerName: string;
  /** where this side listens, if it is the one */
  readonly listen: SocketAddress;
  /** where the other side listens, if it is the one */
  readonly peer: SocketAddress;
  readonly heartbeatMs: number;
  readonly peerTimeoutMs: number;
}

export interface LinkHandlers {
  /** Our hello of this moment, and the number of the group file that it was made from. */
  hello(): { hello: Hello; sequence: number };
  /** Goes into each heartbeat. */
  inSync(): boolean;
  /** Both hellos of a connection that counts from now on. `at` is where the peer's address is seen from here. */
  onHello(mine: Hello, sequence: number, theirs: Hello): void;
  onMessage(message: Message): void;
  /** The connection that counted is gone. */
  onLost(reason: string): void;
  /** Somebody answers or calls who cannot be talked to; also: nobody answers. */
  onRefused(reason: string): void;
}

export class PeerLink {
  readonly dials: boolean;
  readonly #host: Host;
  readonly #options: LinkOptions;
  readonly #handlers: LinkHandlers;
  #listener: HostListener | null = null;
  /** the connection that counts */
  #current: Connection | null = null;
  readonly #strangers = new Set<Connection>();
  #redial: HostTimer | null = null;
  #failures = 0;
  #closed = false;

  constructor(host: Host, options: LinkOptions, handlers: LinkHandlers) {
    this.#host = host;
    this.#options = options;
    this.#handlers = handlers;
    this.dials = options.name < options.peerName;
  }

  /** Listens, or begins to dial. @throws BlockError address-in-use */
  async start(): Promise<SocketAddress | null> {
    if (this.dials) {
      this.#dial();
      return null;
    }
    this.#listener = await this.#host.network.listen(this.#options.listen, (stream) => this.#accept(stream));
    return this.#listener.address;
  }

  /** What this connection was for has come about: if it is lost, the first try to dial again comes soon. */
  succeeded(): void {
    this.#failures = 0;
  }

  /** False: there is no connection that counts. */
  send(message: Message): boolean {
    if (this.#current === null) return false;
    this.#current.send(encodeMessage(message));
    return true;
  }

  /** Ends the connection that counts; `onLost` is not called. It is dialled again after a while. */
  drop(reason: string): void {
    const current = this.#current;
    this.#current = null;
    current?.close();
    if (current !== null) this.#dialLater(reason);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#redial?.cancel();
    const current = this.#current;
    this.#current = null;
    current?.close();
    for (const stranger of this.#strangers) stranger.close();
    await this.#listener?.close();
  }

  #accept(stream: HostStream): void {
    if (this.#closed || this.#strangers.size >= strangersMax) stream.destroy();
    else this.#open(stream);
  }

  #dial(): void {
    if (this.#closed) return;
    const { peer, peerTimeoutMs } = this.#options;
    this.#host.network.connect(peer, peerTimeoutMs).then(
      (stream) => {
        if (this.#closed) stream.destroy();
        else this.#open(stream);
      },
      (error: unknown) => {
        this.#handlers.onRefused(`${this.#options.peerName} does not answer: ${toBlockError(error).message}`);
        this.#dialLater('no answer');
      },
    );
  }

  /**
   * Each failure waits longer, up to `redialMsMax`; half of a wait is chance, so that two sides do not march in step.
   */
  #dialLater(_reason: string): void {
    if (!this.dials || this.#closed || this.#current !== null) return;
    this.#redial?.cancel();
    const base = Math.min(redialMsMax, (this.#options.heartbeatMs / 4) * 2 ** Math.min(this.#failures, 10));
    this.#failures++;
    this.#redial = this.#host.clock.after(base * (0.5 + this.#host.random.fraction() / 2), () => this.#dial());
  }

  #open(stream: HostStream): void {
    const { hello, sequence } = this.#handlers.hello();
    const connection = new Connection(this.#host, stream, this.#options, {
      hello: (theirs) => this.#onHello(connection, hello, sequence, theirs),
      message: (message) => {
        if (connection === this.#current) this.#handlers.onMessage(message);
      },
      inSync: () => this.#handlers.inSync(),
      ended: (reason, strange) => this.#onEnded(connection, reason, strange),
    });
    this.#strangers.add(connection);
    connection.send(encodeMessage(hello));
  }

  #onHello(connection: Connection, mine: Hello, sequence: number, theirs: Hello): void {
    if (theirs.name !== this.#options.peerName) {
      throw new BlockError(
        'protocol-error',
        `the peer is called "${theirs.name}", expected "${this.#options.peerName}"`,
      );
    }
    this.#strangers.delete(connection);
    const earlier = this.#current;
    this.#current = null;
    earlier?.close();
    if (earlier !== null) this.#handlers.onLost('the other side connected anew');
    this.#current = connection;
    this.#handlers.onHello(mine, sequence, theirs);
  }

  #onEnded(connection: Connection, reason: string, strange: boolean): void {
    this.#strangers.delete(connection);
    if (connection === this.#current) {
      this.#current = null;
      this.#handlers.onLost(reason);
    } else if (strange) {
      this.#handlers.onRefused(reason);
    }
    this.#dialLater(reason);
  }
}

interface ConnectionHandlers {
  /** May throw: the connection then ends with that error. */
  hello(theirs: Hello): void;
  message(message: Message): void;
  inSync(): boolean;
  /** `strange`: what ended it tells something about who is there. */
  ended(reason: string, strange: boolean): void;
}

/** One stream: lines in, messages out, heartbeats. */
class Connection {
  readonly #host: Host;
  readonly #stream: HostStream;
  readonly #options: LinkOptions;
  readonly #handlers: ConnectionHandlers;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true });
  readonly #space = new Uint8Array(64 * 1024);
  #pieces: Uint8Array[] = [];
  #pieceBytes = 0;
  #greeted = false;
  #ended = false;
  #heardMs: number;
  #tickMs: number;
  #timer: HostTimer;

  constructor(host: Host, stream: HostStream, options: LinkOptions, handlers: ConnectionHandlers) {
    this.#host = host;
    this.#stream = stream;
    this.#options = options;
    this.#handlers = handlers;
    this.#heardMs = host.clock.now();
    this.#tickMs = this.#heardMs;
    this.#timer = host.clock.after(options.heartbeatMs, () => this.#tick());
    stream.start({
      space: () => this.#space,
      received: (count) => this.#received(this.#space.subarray(0, count)),
      ended: (error) => this.#end(error === null ? 'the other side closed the connection' : error.message, false),
    });
  }

  send(bytes: Uint8Array): void {
    if (this.#ended) return;
    // The promise only says when the buffer is ours again: it is never used twice.
    void this.#stream.send(bytes);
  }

  /** Ends it without a word to the handlers. */
  close(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#timer.cancel();
    this.#stream.end();
  }

  #tick(): void {
    if (this.#ended) return;
    const now = this.#host.clock.now();
    const { heartbeatMs, peerTimeoutMs } = this.#options;
    // A timer that comes far too late says that this process stood still, not that the other one was silent.
    if (now - this.#tickMs > heartbeatMs + peerTimeoutMs / 2) this.#heardMs = now;
    this.#tickMs = now;
    if (now - this.#heardMs > peerTimeoutMs) {
      const what = this.#greeted ? 'was silent' : 'did not say hello';
      this.#fail(new BlockError('timed-out', `the other side ${what} for ${peerTimeoutMs} ms`));
      return;
    }
    if (this.#greeted) this.send(encodeMessage({ type: 'heartbeat', inSync: this.#handlers.inSync() }));
    this.#timer = this.#host.clock.after(heartbeatMs, () => this.#tick());
  }

  #received(bytes: Uint8Array): void {
    // A stranger has so long for its hello, however slowly it comes: else a few of them would hold all places.
    if (this.#greeted) this.#heardMs = this.#host.clock.now();
    try {
      let from = 0;
      for (let at = bytes.indexOf(10); at >= 0 && !this.#ended; at = bytes.indexOf(10, from)) {
        this.#keep(bytes.subarray(from, at));
        from = at + 1;
        this.#line(this.#takeLine());
      }
      if (!this.#ended) this.#keep(bytes.subarray(from));
    } catch (error) {
      this.#fail(toBlockError(error));
    }
  }

  /** Keeps a part of a line; the receive buffer is used again, so it is a copy. */
  #keep(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#pieces.push(bytes.slice());
    this.#pieceBytes += bytes.length;
    // Every line of ours is a JSON object: a binary protocol on this port shows with its first byte.
    if (this.#pieces[0]?.[0] !== 0x7b) this.#line(this.#takeLine());
    const max = this.#greeted ? messageBytesMax : helloBytesMax;
    if (this.#pieceBytes > max)
      throw new BlockError('protocol-error', `the peer sent a line of more than ${max} bytes`);
  }

  #takeLine(): string {
    const line = new Uint8Array(this.#pieceBytes);
    let at = 0;
    for (const piece of this.#pieces) {
      line.set(piece, at);
      at += piece.length;
    }
    this.#pieces = [];
    this.#pieceBytes = 0;
    try {
      return this.#decoder.decode(line);
    } catch {
      throw new BlockError('protocol-error', 'the peer is not a blockstep supervisor: it sent bytes that are no text');
    }
  }

  #line(line: string): void {
    if (this.#greeted) {
      this.#handlers.message(decodeMessage(line));
      return;
    }
    const theirs = decodeHello(line);
    agreeVersion(theirs.versions);
    this.#greeted = true;
    this.#heardMs = this.#host.clock.now();
    this.#handlers.hello(theirs);
  }

  #fail(error: BlockError): void {
    this.#end(error.message, true);
    this.#stream.destroy();
  }

  #end(reason: string, strange: boolean): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#timer.cancel();
    this.#handlers.ended(reason, strange);
  }
}
