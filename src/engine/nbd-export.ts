/**
 * An NBD export over a block node: the life of an export, and nothing of its requests (those are `nbd/session.ts`).
 *
 * It is a parent of the node like any other: it needs permissions, its sessions are held while the graph drains the
 * node, and it goes only when nothing of it is in flight. Each request asks for the node anew, because the graph may
 * put another one there under running clients.
 */
import { type PermissionMask, permissionBits } from '../block/child.ts';
import type { BlockParent, Graph, RootUse } from '../block/graph-view.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import type { NbdBackend, NbdServerExport } from '../nbd/backend.ts';
import { NBD_PAYLOAD_BYTES_MAX, NBD_STRING_BYTES_MAX } from '../nbd/constants.ts';
import type { NbdServer } from '../nbd/server.ts';
import { BlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import { ExportStats } from './export-stats.ts';
import { type Stop, StoppingBackend } from './stopping-backend.ts';

export interface NbdExportOptions {
  /** the export's id in QMP */
  readonly id: string;
  /** what clients ask for; at most 4096 bytes of UTF-8 */
  readonly name: string;
  /** default: empty */
  readonly description?: string;
  readonly graph: Graph;
  readonly nodeName: string;
  readonly writable: boolean;
  readonly server: NbdServer;
  /** a write is durable when it is answered (QEMU's `writethrough`); default false */
  readonly writethrough?: boolean;
  /** default: true, unless `ordered`: the node's flush covers the writes of all connections */
  readonly multiConn?: boolean;
  /** announces `blockstep:ordered` (pair.md 3); default false */
  readonly ordered?: boolean;
  /** writes that fail wait for `resume`, and this is told why; without it, the client hears the error */
  readonly stopped?: (error: BlockError) => void;
}

/** What a writable export lets others do: all but resize, like QEMU's. */
const shared: PermissionMask =
  permissionBits['consistent-read'] | permissionBits.write | permissionBits['write-unchanged'];
const blockSizes: readonly [number, number, number] = [1, 4096, NBD_PAYLOAD_BYTES_MAX];

export class NbdExport implements NbdServerExport {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly readOnly: boolean;
  readonly multiConn: boolean;
  readonly ordered: boolean;
  readonly blockSizes = blockSizes;
  readonly backend: NbdBackend;
  readonly server: NbdServer;
  readonly stats: ExportStats;
  readonly #root: NodeBackend;
  readonly #parent: ExportParent;
  readonly #stopping: StoppingBackend | null;
  #closing: Promise<void> | null = null;

  private constructor(options: NbdExportOptions, root: NodeBackend, parent: ExportParent) {
    this.id = options.id;
    this.name = options.name;
    this.description = options.description ?? '';
    this.readOnly = !options.writable;
    this.ordered = options.ordered ?? false;
    this.multiConn = options.multiConn ?? !this.ordered;
    this.server = options.server;
    this.#stopping = options.stopped === undefined ? null : new StoppingBackend(root, options.stopped);
    this.backend = this.#stopping ?? root;
    this.stats = root.stats;
    this.#root = root;
    this.#parent = parent;
    parent.stopping = this.#stopping;
  }

  /**
   * Takes the node for the export. Whoever calls lists it in the server's directory afterwards.
   * @throws BlockError invalid-option, node-not-found, permission-conflict, read-only
   */
  static async open(options: NbdExportOptions): Promise<NbdExport> {
    checkText('name', options.name);
    checkText('description', options.description ?? '');
    const { node, readOnly } = options.graph.find(options.nodeName);
    if (options.writable && readOnly) {
      throw new BlockError('read-only', `node "${options.nodeName}" is read-only: it has no writable export`);
    }
    if (options.ordered === true && node.ordered === false) {
      const text = `node "${options.nodeName}" keeps no order of requests: its export cannot be ordered`;
      throw new BlockError('invalid-option', text);
    }
    if (options.ordered === true && options.stopped !== undefined) {
      throw new BlockError('invalid-option', 'on-write-error: an ordered export reports errors');
    }
    const parent = new ExportParent(options);
    const needs = permissionBits['consistent-read'] | (options.writable ? permissionBits.write : 0);
    const use = await options.graph.use(options.nodeName, parent, { needs, shares: shared });
    return new NbdExport(options, new NodeBackend(use, options.writethrough === true), parent);
  }

  /** The node below it now: a job may have put a filter there, or another node. */
  get nodeName(): string {
    return this.#root.nodeName;
  }

  /** Why its writes wait; null: they do not. */
  get stop(): Stop | null {
    return this.#stopping?.stop ?? null;
  }

  /** Tries again the writes that wait. */
  resume(): void {
    this.#stopping?.resume();
  }

  /** Hangs its clients up, waits for their requests, gives the node back. Take it out of the directory before. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const hungUp = this.server.hangUp(this.name);
    this.#stopping?.giveUp();
    await hungUp;
    await this.#root.release();
    this.#parent.release();
  }
}

/** The export as the graph sees it (a class of its own, because an export's `description` is for its clients). */
class ExportParent implements BlockParent {
  readonly description: string;
  stopping: StoppingBackend | null = null;
  readonly #server: NbdServer;
  readonly #name: string;
  #drains = 0;
  #released = false;

  constructor(options: NbdExportOptions) {
    this.description = `export "${options.id}"`;
    this.#server = options.server;
    this.#name = options.name;
  }

  drainBegin(): Done {
    if (this.#released) return undefined;
    this.#drains += 1;
    const noneAsked = this.#server.pause(this.#name);
    // Of a stopped export clients may have requests that are not in flight in the node.
    return this.stopping === null ? noneAsked : this.stopping.drainBegin();
  }

  drainEnd(): void {
    if (this.#released) return;
    this.#drains -= 1;
    this.stopping?.drainEnd();
    this.#server.resume(this.#name);
  }

  /** The node is given back: a drain that is under way holds the name no longer. */
  release(): void {
    while (this.#drains > 0) this.drainEnd();
    this.#released = true;
  }
}

/** The node that stands below the export now, as the backend of its sessions. */
class NodeBackend implements NbdBackend {
  readonly stats = new ExportStats();
  readonly #use: RootUse;
  readonly #writethrough: WriteFlags;

  constructor(use: RootUse, writethrough: boolean) {
    this.#use = use;
    this.#writethrough = writethrough ? writeFlags.fua : writeFlags.none;
  }

  get nodeName(): string {
    return this.#use.nodeName;
  }

  get length(): number {
    return this.#use.node.length;
  }

  read(offset: number, into: Uint8Array): Done {
    this.stats.read(into.length);
    return this.#use.node.read(offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    this.stats.written(offset, from.length);
    return this.#use.node.write(offset, from, flags | this.#writethrough);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    this.stats.written(offset, length);
    return this.#use.node.writeZeroes(offset, length, flags | this.#writethrough);
  }

  discard(offset: number, length: number): Done {
    this.stats.discarded(length);
    return this.#use.node.discard(offset, length);
  }

  flush(): Done {
    this.stats.flushes += 1;
    return this.#use.node.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.#use.node.blockStatus(offset, length);
  }

  release(): Promise<void> {
    return this.#use.release();
  }
}

function checkText(what: string, text: string): void {
  const bytes = new TextEncoder().encode(text).length;
  if (bytes > NBD_STRING_BYTES_MAX || text.includes('\0')) {
    throw new BlockError('invalid-option', `${what}: at most ${NBD_STRING_BYTES_MAX} bytes, and no NUL character`);
  }
}
