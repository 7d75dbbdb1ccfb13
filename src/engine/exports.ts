/**
 * The NBD servers of an engine and the exports that hang on them.
 *
 * Invariant: an export's id, and its name on its server, are taken from the moment that its making begins until it is
 * gone, so two commands at the same time cannot both have them.
 */
import type { Devices } from '../block/chain.ts';
import type { Graph } from '../block/graph-view.ts';
import type { Host, SocketAddress } from '../host/host.ts';
import type { NbdExportDirectory, NbdServerExport } from '../nbd/backend.ts';
import { NbdServer } from '../nbd/server.ts';
import { defaultServer } from '../qmp/schema/export.ts';
import { BlockError } from '../util/errors.ts';
import type { ExportStats } from './export-stats.ts';
import { NbdExport } from './nbd-export.ts';
import type { Stop } from './stopping-backend.ts';

export interface ServerStart {
  readonly server?: string | undefined;
  readonly addresses: readonly SocketAddress[];
  /** 0 or absent: the server's own limit */
  readonly connectionsMax?: number | undefined;
}

export interface ExportAdd {
  readonly id: string;
  readonly nodeName: string;
  readonly name?: string | undefined;
  readonly description?: string | undefined;
  readonly writable?: boolean | undefined;
  readonly writethrough?: boolean | undefined;
  readonly server?: string | undefined;
  readonly ordered?: boolean | undefined;
  readonly multiConn?: 'auto' | 'on' | 'off' | undefined;
  /** `stop`: a write that fails waits for `resume` */
  readonly onWriteError?: 'report' | 'stop' | undefined;
}

interface Entry {
  readonly add: ExportAdd;
  readonly name: string;
  readonly server: ServerEntry;
  readonly opening: Promise<NbdExport>;
  /** null while it is being made */
  export: NbdExport | null;
  /** the end of it, once that has begun */
  closing: Promise<void> | null;
}

/** An export as status commands tell it. */
export interface ExportInfo {
  readonly id: string;
  readonly nodeName: string;
  readonly name: string;
  readonly server: string;
  readonly writable: boolean;
  readonly shuttingDown: boolean;
  readonly connections: number;
  readonly stats: ExportStats;
  /** why its writes wait; null: they do not */
  readonly stop: Stop | null;
}

export interface ServerInfo {
  readonly server: string;
  readonly addresses: readonly SocketAddress[];
  readonly exports: number;
  readonly connections: number;
}

export const exportLimits = {
  /** NBD servers of an engine */
  serversMax: 16,
  /** exports of an engine */
  exportsMax: 1024,
  /** names of one server that are refused with a sentence */
  refusalsMax: 1024,
} as const;

/** One server, and what it answers a client that names an export. */
class ServerEntry implements NbdExportDirectory {
  readonly name: string;
  readonly nbd: NbdServer;
  /** one client at a time: several connections are never announced */
  readonly single: boolean;
  readonly entries = new Map<string, Entry>();
  readonly refusals = new Map<string, string>();
  addresses: readonly SocketAddress[] = [];
  state: 'starting' | 'running' | 'stopping' = 'starting';

  constructor(name: string, host: Host, connectionsMax: number | undefined) {
    this.name = name;
    this.single = connectionsMax === 1;
    this.nbd = new NbdServer(host, this, connectionsMax ? { connectionsMax } : {});
  }

  list(): readonly NbdServerExport[] {
    const listed: NbdServerExport[] = [];
    for (const entry of this.entries.values()) {
      if (isOpen(entry) && !this.refusals.has(entry.name)) listed.push(entry.export);
    }
    return listed;
  }

  find(name: string): NbdServerExport | { readonly refused: string } | null {
    const refused = this.refusals.get(name);
    if (refused !== undefined) return { refused };
    const entry = this.entries.get(name);
    return entry !== undefined && isOpen(entry) ? entry.export : null;
  }

  get connections(): number {
    let count = 0;
    for (const name of this.entries.keys()) count += this.nbd.connections(name);
    return count;
  }
}

function isMade(entry: Entry): entry is Entry & { readonly export: NbdExport } {
  return entry.export !== null;
}

function isOpen(entry: Entry): entry is Entry & { readonly export: NbdExport } {
  return isMade(entry) && entry.closing === null;
}

export class ExportList implements Devices {
  readonly #host: Host;
  readonly #graph: Graph;
  readonly #emit: (event: string, data: Record<string, unknown>) => void;
  readonly #servers = new Map<string, ServerEntry>();
  readonly #entries = new Map<string, Entry>();

  constructor(host: Host, graph: Graph, emit: (event: string, data: Record<string, unknown>) => void) {
    this.#host = host;
    this.#graph = graph;
    this.#emit = emit;
  }

  /** Starts a server on all addresses or on none. */
  async startServer(start: ServerStart): Promise<void> {
    const name = start.server ?? defaultServer;
    if (this.#servers.has(name)) throw new BlockError('in-use', `NBD server "${name}" is already running`);
    if (this.#servers.size >= exportLimits.serversMax) {
      throw new BlockError('in-use', `there are ${exportLimits.serversMax} NBD servers already`);
    }
    const server = new ServerEntry(name, this.#host, start.connectionsMax);
    this.#servers.set(name, server);
    try {
      const addresses: SocketAddress[] = [];
      for (const address of start.addresses) addresses.push(await server.nbd.listen(address));
      server.addresses = addresses;
      server.state = 'running';
    } catch (error) {
      await server.nbd.close();
      this.#servers.delete(name);
      throw error;
    }
  }

  /** Closes the server's exports, hanging up their clients, then the server. */
  async stopServer(name: string = defaultServer): Promise<void> {
    const server = this.#server(name);
    server.state = 'stopping';
    try {
      await Promise.all([...server.entries.values()].map((entry) => this.#close(entry)));
      await server.nbd.close();
    } finally {
      this.#servers.delete(name);
    }
  }

  async add(add: ExportAdd): Promise<void> {
    const server = this.#server(add.server ?? defaultServer);
    const name = add.name ?? add.nodeName;
    if (this.#entries.has(add.id))
      throw new BlockError('name-in-use', `there is already an export with id "${add.id}"`);
    if (server.entries.has(name)) {
      throw new BlockError('name-in-use', `NBD server "${server.name}" already has an export named "${name}"`);
    }
    if (this.#entries.size >= exportLimits.exportsMax) {
      throw new BlockError('in-use', `there are ${exportLimits.exportsMax} exports already`);
    }
    const entry: Entry = { add, name, server, opening: this.#open(add, name, server), export: null, closing: null };
    this.#enter(entry);
    try {
      entry.export = await entry.opening;
    } catch (error) {
      this.#leave(entry);
      throw error;
    }
    // Its server was stopped meanwhile, and waits for this.
    if (entry.closing !== null) throw new BlockError('shutting-down', `NBD server "${server.name}" is being stopped`);
  }

  /** Tries again the writes of an export that wait because of an error. */
  resume(id: string): void {
    this.#made(id).export.resume();
  }

  /** The same for all exports. */
  resumeAll(): void {
    for (const entry of this.#entries.values()) entry.export?.resume();
  }

  /** Resolves when the export is gone: its clients are hung up and their requests have ended. */
  async remove(id: string, mode: 'safe' | 'hard' = 'safe'): Promise<void> {
    const entry = this.#made(id);
    const connections = entry.server.nbd.connections(entry.name);
    if (mode === 'safe' && connections > 0 && entry.closing === null) {
      throw new BlockError('in-use', `export "${id}" has ${connections} client(s); mode "hard" hangs them up`);
    }
    await this.#close(entry);
  }

  /** Refuses clients that ask for the name, with a sentence; null takes it back. */
  refuse(name: string, reason: string | null, serverName: string = defaultServer): void {
    const { refusals } = this.#server(serverName);
    if (reason === null) {
      refusals.delete(name);
      return;
    }
    if (!refusals.has(name) && refusals.size >= exportLimits.refusalsMax) {
      throw new BlockError('in-use', `${exportLimits.refusalsMax} names are refused already`);
    }
    refusals.set(name, reason);
  }

  list(): ExportInfo[] {
    return [...this.#entries.values()].flatMap(({ add, name, server, closing, export: exported }) =>
      exported === null
        ? []
        : {
            id: add.id,
            nodeName: exported.nodeName,
            name,
            server: server.name,
            writable: add.writable ?? false,
            shuttingDown: closing !== null,
            connections: server.nbd.connections(name),
            stats: exported.stats,
            stop: exported.stop,
          },
    );
  }

  /** An export of that id, else of that name on any server. */
  nodeOf(device: string): string | null {
    const entries = [...this.#entries.values()];
    const found = this.#entries.get(device) ?? entries.find(({ name }) => name === device);
    return found?.export?.nodeName ?? null;
  }

  servers(): ServerInfo[] {
    return [...this.#servers.values()]
      .filter((server) => server.state !== 'starting')
      .map((server) => ({
        server: server.name,
        addresses: server.addresses,
        exports: server.entries.size,
        connections: server.connections,
      }));
  }

  /** Closes all exports, then all servers. */
  async close(): Promise<void> {
    const results = await Promise.allSettled([...this.#servers.keys()].map((name) => this.stopServer(name)));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  #server(name: string): ServerEntry {
    const server = this.#servers.get(name);
    if (server?.state !== 'running') throw new BlockError('wrong-state', `NBD server "${name}" is not running`);
    return server;
  }

  #made(id: string): Entry & { readonly export: NbdExport } {
    const entry = this.#entries.get(id);
    if (entry === undefined || !isMade(entry)) {
      throw new BlockError('node-not-found', `there is no export with id "${id}"`);
    }
    return entry;
  }

  #open(add: ExportAdd, name: string, server: ServerEntry): Promise<NbdExport> {
    const multiConn = server.single || add.multiConn === 'off' ? false : add.multiConn === 'on' ? true : undefined;
    return NbdExport.open({
      id: add.id,
      name,
      description: add.description ?? '',
      graph: this.#graph,
      nodeName: add.nodeName,
      writable: add.writable ?? false,
      writethrough: add.writethrough ?? false,
      server: server.nbd,
      ordered: add.ordered ?? false,
      ...(multiConn === undefined ? {} : { multiConn }),
      ...(add.onWriteError === 'stop' ? { stopped: (error: BlockError) => this.#tellStop(add, error) } : {}),
    });
  }

  #tellStop(add: ExportAdd, error: BlockError): void {
    this.#emit('BLOCK_IO_ERROR', {
      id: add.id,
      'node-name': this.nodeOf(add.id) ?? add.nodeName,
      operation: 'write',
      action: 'stop',
      nospace: error.code === 'no-space',
      reason: error.message,
    });
  }

  #close(entry: Entry): Promise<void> {
    entry.closing ??= this.#finish(entry);
    return entry.closing;
  }

  async #finish(entry: Entry): Promise<void> {
    const exported = await entry.opening.catch(() => null);
    if (exported === null) return;
    try {
      await exported.close();
    } finally {
      this.#leave(entry);
      this.#emit('BLOCK_EXPORT_DELETED', { id: entry.add.id });
    }
  }

  #enter(entry: Entry): void {
    this.#entries.set(entry.add.id, entry);
    entry.server.entries.set(entry.name, entry);
  }

  #leave(entry: Entry): void {
    this.#entries.delete(entry.add.id);
    entry.server.entries.delete(entry.name);
  }
}
