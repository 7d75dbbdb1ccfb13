/**
 * One accepted connection: the handshake first, then a session, over one stream.
 *
 * What arrives goes where the last `space` said, even if the phase changed in between (a handshake that waited for a
 * slow reader may end between two arrivals).
 */
import type { Host, HostStream, HostTimer, StreamReceiver } from '../host/host.ts';
import type { NbdExportDirectory } from './backend.ts';
import { type Agreement, HandshakeServer } from './handshake-server.ts';
import type { Session } from './session.ts';

/** how long a client may take to choose an export */
export const handshakeMsMax = 30_000;
/** how long a client that is refused may take to read why */
const partingMs = 1000;
const handshakeArrivalBytes = 8 * 1024;

/** What a connection needs of its server. */
export interface ConnectionOwner {
  readonly host: Host;
  readonly directory: NbdExportDirectory;
  /** The handshake is done. */
  begin(connection: Connection, agreed: Agreement): Session;
  /** The stream has ended. */
  ended(connection: Connection): void;
}

export class Connection implements StreamReceiver {
  readonly stream: HostStream;
  session: Session | null = null;
  readonly #owner: ConnectionOwner;
  readonly #handshake: HandshakeServer;
  /** destroys the stream of a client that takes too long */
  #timer: HostTimer;
  readonly #arrival = new Uint8Array(handshakeArrivalBytes);
  #spaceIsArrival = false;
  /** a reply that the client has not read yet */
  #blocked = false;
  #over = false;

  constructor(owner: ConnectionOwner, stream: HostStream) {
    this.#owner = owner;
    this.stream = stream;
    this.#handshake = new HandshakeServer(owner.directory);
    this.#timer = owner.host.clock.after(handshakeMsMax, () => stream.destroy());
  }

  start(): void {
    this.stream.start(this);
    this.#send(HandshakeServer.greeting());
  }

  space(): Uint8Array {
    this.#spaceIsArrival = this.session === null;
    return this.session === null ? this.#arrival : this.session.framer.space();
  }

  received(count: number): void {
    const session = this.session;
    if (session !== null && !this.#spaceIsArrival) {
      session.received(count);
      return;
    }
    const bytes = this.#arrival.subarray(0, count);
    if (session !== null) feed(session, bytes);
    else if (!this.#over) {
      this.#handshake.push(bytes);
      this.#haggle();
    }
  }

  ended(): void {
    this.#over = true;
    this.#timer.cancel();
    this.#owner.ended(this);
    this.session?.ended();
  }

  /** Works off what the client asked, one option at a time, as long as it reads the replies; the last one included. */
  #haggle(): void {
    while (!this.#blocked && !this.#over) {
      const { agreement, closed } = this.#handshake;
      if (agreement !== null) {
        this.#begin(agreement);
        return;
      }
      if (closed) {
        this.#part();
        return;
      }
      const reply = this.#handshake.step();
      if (reply === null) return;
      if (reply.length > 0) this.#send(reply);
    }
  }

  #begin(agreed: Agreement): void {
    this.#timer.cancel();
    const session = this.#owner.begin(this, agreed);
    this.session = session;
    feed(session, this.#handshake.rest());
  }

  #part(): void {
    this.#over = true;
    this.#timer.cancel();
    this.stream.end();
    this.#timer = this.#owner.host.clock.after(partingMs, () => this.stream.destroy());
  }

  #send(bytes: Uint8Array): void {
    const sent = this.stream.send(bytes);
    if (sent === undefined) return;
    this.#blocked = true;
    this.stream.pause();
    const taken = () => {
      this.#blocked = false;
      if (this.#over) return;
      this.stream.resume();
      this.#haggle();
    };
    sent.then(taken, taken);
  }
}

/** Gives a session bytes that arrived before it began. */
function feed(session: Session, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    const space = session.framer.space();
    const count = Math.min(space.length, bytes.length - at);
    space.set(bytes.subarray(at, at + count));
    at += count;
    session.received(count);
  }
}
