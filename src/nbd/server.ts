/**
 * The NBD server: listeners, connections, and for each export the sessions that use it.
 *
 * An export is known by its canonical name. While it is hung up, no session begins on it; while it is paused, sessions
 * begin but issue nothing. A session counts until its stream has ended and nothing of it is in flight, so that what
 * `hangUp` waits for includes the requests of clients that vanished.
 */
import type { Host, HostListener, HostStream, SocketAddress } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { NbdExportDirectory } from './backend.ts';
import { Connection, type ConnectionOwner } from './connection.ts';
import type { Agreement } from './handshake-server.ts';
import { Session } from './session.ts';
import { SlabPool } from './slab.ts';

/** connections at once, if the options do not say */
export const connectionsMaxDefault = 128;

/** The sessions of one export name. */
interface Served {
  readonly sessions: Set<Session>;
  pauses: number;
  hangUps: number;
}

export class NbdServer implements ConnectionOwner {
  readonly host: Host;
  readonly directory: NbdExportDirectory;
  readonly #connectionsMax: number;
  readonly #pool = new SlabPool();
  readonly #listeners: HostListener[] = [];
  readonly #connections = new Set<Connection>();
  readonly #served = new Map<string, Served>();
  #closed = false;

  constructor(host: Host, directory: NbdExportDirectory, options: { readonly connectionsMax?: number } = {}) {
    this.host = host;
    this.directory = directory;
    this.#connectionsMax = options.connectionsMax ?? connectionsMaxDefault;
  }

  /** Listens; several calls: several addresses, one set of exports. Resolves with the address that the system chose. */
  async listen(address: SocketAddress): Promise<SocketAddress> {
    if (this.#closed) throw new BlockError('shutting-down', 'the NBD server is closed');
    const listener = await this.host.network.listen(address, (stream) => this.#accept(stream));
    if (this.#closed) {
      await listener.close();
      throw new BlockError('shutting-down', 'the NBD server was closed');
    }
    this.#listeners.push(listener);
    return listener.address;
  }

  /** Issues no new request of the export, hangs its clients up; done when none of their requests is in flight. */
  async hangUp(exportName: string): Promise<void> {
    const served = this.#find(exportName);
    served.hangUps += 1;
    try {
      await Promise.all(Array.from(served.sessions, (session) => session.hangUp()));
    } finally {
      served.hangUps -= 1;
      this.#forget(exportName, served);
    }
  }

  /** For a drain: issues no new request of the export; done when none is in flight. Nests. */
  pause(exportName: string): Done {
    const served = this.#find(exportName);
    served.pauses += 1;
    const waits: Promise<void>[] = [];
    for (const session of served.sessions) {
      const idle = session.pause();
      if (idle !== undefined) waits.push(idle);
    }
    return waits.length === 0 ? undefined : Promise.all(waits).then(() => undefined);
  }

  /** Ends one `pause`. */
  resume(exportName: string): void {
    const served = this.#served.get(exportName);
    if (served === undefined || served.pauses === 0) return;
    served.pauses -= 1;
    for (const session of served.sessions) session.resume();
    this.#forget(exportName, served);
  }

  /** Sessions of the export, those included whose client is gone and whose requests have not ended. */
  connections(exportName: string): number {
    return this.#served.get(exportName)?.sessions.size ?? 0;
  }

  /** Bytes of buffers that connections hold now. */
  get bufferBytes(): number {
    return this.#pool.takenBytes;
  }

  /** Stops listening, hangs everybody up; done when nothing is in flight. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all(this.#listeners.splice(0).map((listener) => listener.close()));
    for (const connection of this.#connections) {
      if (connection.session === null) connection.stream.destroy();
    }
    await Promise.all(Array.from(this.#served.keys(), (name) => this.hangUp(name)));
  }

  /** @internal for connections */
  begin(connection: Connection, agreed: Agreement): Session {
    const { name } = agreed.exported;
    const served = this.#find(name);
    const session = new Session(this.host, connection.stream, this.#pool, agreed, (gone) => {
      served.sessions.delete(gone);
      this.#connections.delete(connection);
      this.#forget(name, served);
    });
    served.sessions.add(session);
    // A pause of a session that has issued nothing is done at once.
    for (let count = 0; count < served.pauses; count += 1) void session.pause();
    // What the client chose may be gone if it was slow to read the answer; its requests must not reach the node.
    const gone = this.directory.find(name) !== agreed.exported;
    if (gone || served.hangUps > 0 || this.#closed) void session.hangUp();
    return session;
  }

  /** @internal for connections; one with a session keeps its place until the requests of that have ended */
  ended(connection: Connection): void {
    if (connection.session === null) this.#connections.delete(connection);
  }

  #accept(stream: HostStream): void {
    if (this.#closed || this.#connections.size >= this.#connectionsMax) {
      stream.destroy();
      return;
    }
    const connection = new Connection(this, stream);
    this.#connections.add(connection);
    connection.start();
  }

  #find(name: string): Served {
    let served = this.#served.get(name);
    if (served === undefined) {
      served = { sessions: new Set(), pauses: 0, hangUps: 0 };
      this.#served.set(name, served);
    }
    return served;
  }

  #forget(name: string, served: Served): void {
    if (served.sessions.size === 0 && served.pauses === 0 && served.hangUps === 0) this.#served.delete(name);
  }
}
