/**
 * The engine: graph, jobs, exports and the commands over them as one object. It knows nothing of hosts, roles or
 * configuration files; whoever holds it speaks QMP to it (`QmpTarget`), in the same thread or through a server.
 *
 * Invariant: arguments are checked by the schema before a handler sees them, and nothing but a `BlockError` comes out.
 */
import type { DriverDefinition } from '../block/driver.ts';
import { BlockGraph } from '../block/graph.ts';
import type { Graph } from '../block/graph-view.ts';
import { DriverRegistry } from '../block/registry.ts';
import { ReplicationGroup } from '../block/replication-group.ts';
import type { Host } from '../host/host.ts';
import { JobManager } from '../jobs/job.ts';
import { check } from '../qmp/check.ts';
import type { QmpEvent, QmpTarget } from '../qmp/target.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import { type Command, engineCommands } from './commands/index.ts';
import { ExportList } from './exports.ts';

/** ms; longer than an NBD server leaves a client that it hangs up on */
const heldUsersMs = 1500;

export interface EngineOptions {
  /** for messages; default `engine` */
  readonly name?: string;
}

export class Engine implements QmpTarget {
  readonly host: Host;
  readonly name: string;
  readonly drivers: DriverRegistry;
  readonly graph: Graph;
  readonly jobs: JobManager;
  readonly exports: ExportList;
  readonly replicationGroup = new ReplicationGroup();
  /** Resolves when somebody gave the command `quit`: whoever owns the engine then closes it. */
  readonly quit: Promise<void>;
  readonly #quit = deferred();
  readonly #commands: ReadonlyMap<string, Command>;
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #closing: Promise<void> | null = null;

  constructor(host: Host, drivers: readonly DriverDefinition[], options: EngineOptions = {}) {
    const emit = (event: string, data: Record<string, unknown>): void => this.emit(event, data);
    const services = new Map<string, unknown>();
    this.host = host;
    this.name = options.name ?? 'engine';
    this.quit = this.#quit.promise;
    this.drivers = new DriverRegistry(drivers);
    this.jobs = new JobManager(emit);
    this.graph = new BlockGraph(host, this.drivers, services, emit);
    this.exports = new ExportList(host, this.graph, emit);
    services.set('replication-group', this.replicationGroup).set('jobs', this.jobs).set('graph', this.graph);
    services.set('devices', this.exports);
    this.#commands = engineCommands(this);
  }

  /** The names of all commands, a family after the other. */
  get commandNames(): readonly string[] {
    return [...this.#commands.keys()];
  }

  async execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    const found = this.#commands.get(command);
    if (found === undefined) throw new BlockError('command-not-found', `there is no command "${command}"`);
    if (this.#closing !== null) throw new BlockError('shutting-down', `${this.name} is stopping`);
    const checked = check(found.definition.arguments, args, 'arguments');
    try {
      return (await found.handler(checked)) ?? {};
    } catch (thrown) {
      throw toBlockError(thrown, command);
    }
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Tells an event to everybody who listens, with the time. */
  emit(event: string, data: Record<string, unknown>): void {
    const wallMs = this.host.clock.wall();
    const seconds = Math.floor(wallMs / 1000);
    const timestamp = { seconds, microseconds: Math.floor((wallMs - seconds * 1000) * 1000) };
    for (const listener of [...this.#listeners]) listener({ event, data, timestamp });
  }

  /** Tells that a clean stop begins and asks for it; see `quit`. */
  requestQuit(reason: 'host-qmp-quit' | 'host-signal'): void {
    this.emit('SHUTDOWN', { guest: false, reason });
    this.#quit.resolve();
  }

  /**
   * Stops cleanly: exports, jobs, then nodes, flushed. Everything is closed even where a step fails; the first failure
   * is thrown then. Calling it again gives the same promise.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    let first: BlockError | null = null;
    const steps = [() => this.#closeExports(), () => this.jobs.close(), () => this.flush(), () => this.graph.close()];
    for (const step of steps) {
      try {
        await step();
      } catch (thrown) {
        first ??= toBlockError(thrown);
      }
    }
    if (first !== null) throw first;
  }

  /**
   * Users that a replication group holds are let go only when their connections are gone: no answer of theirs may be
   * heard, because no new generation was opened before it (pair.md 7).
   */
  async #closeExports(): Promise<void> {
    const timer = this.host.clock.after(heldUsersMs, () => this.replicationGroup.links.shutDown());
    try {
      await this.exports.close();
    } finally {
      timer.cancel();
    }
  }

  /**
   * Flushes from the tops of the graph, all of them, then throws the first failure: what users wrote is durable after a
   * clean stop, also without their flush.
   */
  async flush(): Promise<void> {
    let first: unknown;
    for (const { node, readOnly, parents, nodeName } of this.graph.list()) {
      if (readOnly || parents.length > 0) continue;
      try {
        await node.flush();
      } catch (thrown) {
        first ??= toBlockError(thrown, `flush node '${nodeName}'`);
      }
    }
    if (first !== undefined) throw first;
  }
}
