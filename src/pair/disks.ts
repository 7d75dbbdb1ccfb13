/**
 * The block graph of one side, spoken in QMP. Each method may be called again: what is there already is left as it is.
 *
 *     both           D-file <- D-local                       (the image, and a name for it)
 *     primary        D-local <- children.0 of D (quorum, fifo), D-replication <- children.1, D is what users get
 *     in a session   D-remote (nbd) <- D-replication
 *     secondary      D-local is exported to the primary as D.SESSION.INSTANCE, ordered; its overlays: `overlays.ts`
 */
import type { Host, SocketAddress } from '../host/host.ts';
import type { QmpTarget } from '../qmp/target.ts';
import { BlockError } from '../util/errors.ts';
import type { DiskConfig, PairConfig } from './config.ts';
import { PairOverlays } from './overlays.ts';
import { type Bitmaps, isEmpty, joinRanges, type Range } from './ranges.ts';

const replicationServer = 'replication';
const userServer = 'nbd';
/** ms; longer than an NBD server leaves a client that it hangs up on */
const hangUpMsMax = 1500;

/** On every node of the way: a trim frees space on both sides, only zeroes with NO_HOLE stay allocated (pair.md 9). */
const passesDiscards = { discard: 'unmap' } as const;

export class PairDisks {
  readonly overlays: PairOverlays;
  readonly #host: Host;
  readonly #engine: QmpTarget;
  readonly #config: PairConfig;
  #built = false;
  /** disks with a remote node, connected or not */
  readonly #remote = new Set<string>();
  readonly #userExports = new Set<string>();
  readonly #replicationExports = new Set<string>();
  #closing: Promise<void> | null = null;

  constructor(host: Host, engine: QmpTarget, config: PairConfig) {
    this.#host = host;
    this.#engine = engine;
    this.#config = config;
    this.overlays = new PairOverlays(host, engine, config);
  }

  get disks(): readonly DiskConfig[] {
    return this.#config.disks;
  }

  // ------------------------------------------------------------ both sides

  async openDisks(): Promise<void> {
    for (const disk of this.disks) {
      await this.#run('blockdev-add', {
        driver: 'raw',
        'node-name': `${disk.name}-local`,
        ...passesDiscards,
        // A device that grows is no longer for that: both sides have this size.
        size: disk.size,
        file: { driver: 'file', 'node-name': `${disk.name}-file`, filename: disk.file, exclusive: true },
      });
    }
  }

  /** Listens for users and for the other side. Gives the addresses with the ports that the system chose. */
  async startServers(): Promise<{ users: SocketAddress[]; replication: SocketAddress }> {
    const { nbd, replication } = this.#config.listen;
    const [first, ...more] = nbd.map(legacyAddress);
    if (first === undefined) throw new BlockError('invalid-option', 'listen.nbd: expected at least one address');
    await this.#run('nbd-server-start', { server: userServer, addr: first, 'more-addrs': more });
    await this.#run('nbd-server-start', { server: replicationServer, addr: legacyAddress(replication) });
    const servers = (await this.#run('query-nbd-server')) as { server: string; addrs: LegacyAddress[] }[];
    const addressesOf = (name: string): SocketAddress[] =>
      servers.find((one) => one.server === name)?.addrs.map(plainAddress) ?? [];
    const [own] = addressesOf(replicationServer);
    if (own === undefined) throw new BlockError('io-error', 'the engine does not say where it listens for replication');
    return { users: addressesOf(userServer), replication: own };
  }

  /**
   * Makes durable what the images hold, by the same way as users' flushes: the system tells of lost pages only once,
   * and whoever hears of it has to refuse what the page cache may show.
   */
  async flushOwn(): Promise<void> {
    for (const { name } of this.disks) await this.#run('x-blockdev-flush', { 'node-name': `${name}-local` });
  }

  /** After a flush that failed: only nodes that are opened anew can be believed (record-log.md 4). */
  async reopenDisks(): Promise<void> {
    await this.overlays.distrust();
    for (const disk of this.disks) {
      // What an earlier attempt has not opened is not there; what is still in use keeps its name, and opening fails.
      await this.#quietly('blockdev-del', { 'node-name': `${disk.name}-local` });
      await this.#quietly('blockdev-del', { 'node-name': `${disk.name}-file` });
    }
    await this.openDisks();
  }

  /** @param servers false: something hangs, and they are left to the end of the engine, which waits for nobody */
  async close(servers: boolean): Promise<void> {
    if (servers) {
      await this.#quietly('nbd-server-stop', { server: userServer });
      await this.#quietly('nbd-server-stop', { server: replicationServer });
    }
  }

  // ------------------------------------------------------------ primary

  async buildPrimary(): Promise<void> {
    if (this.#built) return;
    await this.#removePrimary();
    const { acknowledge, degraded, stallMsMax, windowBytes } = this.#config;
    for (const disk of this.disks) {
      await this.#run('blockdev-add', {
        driver: 'replication',
        'node-name': `${disk.name}-replication`,
        ...passesDiscards,
        mode: 'primary',
        file: null,
        size: disk.size,
        acknowledge,
        'window-bytes': windowBytes,
        'stall-ms-max': stallMsMax,
        'on-link-down': 'hold',
        degraded,
      });
      await this.#run('blockdev-add', {
        driver: 'quorum',
        'node-name': disk.name,
        ...passesDiscards,
        children: [this.localOf(disk.name), `${disk.name}-replication`],
        'vote-threshold': degraded === 'stop' ? 2 : 1,
        'read-pattern': 'fifo',
      });
    }
    await this.#run('xen-set-replication', { enable: true, primary: true });
    this.#built = true;
  }

  async tearPrimary(): Promise<void> {
    await this.#removePrimary();
    await this.overlays.clear();
    this.#built = false;
  }

  /** Also what an attempt that failed has left. A node that somebody still uses is an error. */
  async #removePrimary(): Promise<void> {
    await this.#quietly('xen-set-replication', { enable: false, primary: true });
    for (const disk of this.disks) {
      await this.#deleteNode(disk.name);
      await this.#deleteNode(`${disk.name}-replication`);
    }
  }

  /** The node below a primary's users. */
  localOf(disk: string): string {
    return this.overlays.localOf(disk);
  }

  async #deleteNode(nodeName: string): Promise<void> {
    try {
      await this.#run('blockdev-del', { 'node-name': nodeName });
    } catch (error) {
      if (!(error instanceof BlockError && error.code === 'node-not-found')) throw error;
    }
  }

  setMode(mode: string): Promise<unknown> {
    return this.#run('replication-set-mode', { mode });
  }

  /** Opens the writable exports of all disks. A closing under way ends first. */
  async openExports(): Promise<void> {
    await this.#closing;
    for (const disk of this.disks) {
      if (this.#userExports.has(disk.name)) continue;
      await this.#run('nbd-export-refuse', { name: disk.name, reason: null, server: userServer });
      await this.#run('block-export-add', {
        type: 'nbd',
        id: `user-${disk.name}`,
        'node-name': disk.name,
        name: disk.name,
        writable: true,
        server: userServer,
      });
      this.#userExports.add(disk.name);
    }
  }

  /** Hangs users up. Resolves when their requests have ended, which may need another mode of the replication first. */
  closeExports(): Promise<void> {
    const closing = (this.#closing ?? Promise.resolve()).then(async () => {
      const names = [...this.#userExports];
      await Promise.all(names.map((name) => this.#deleteExport(`user-${name}`, this.#userExports, name)));
    });
    const settled = closing.catch(() => undefined);
    this.#closing = settled;
    void settled.then(() => {
      if (this.#closing === settled) this.#closing = null;
    });
    return closing;
  }

  /**
   * Hangs users up, and lets those go with an error that the replication holds: only when none can hear it, because
   * above a quorum that error may count as success.
   */
  async dropUsers(): Promise<void> {
    this.closeExports().catch(() => undefined);
    await new Promise<void>((resolve) => {
      this.#host.clock.after(hangUpMsMax, resolve);
    });
    await this.setMode('refusing');
  }

  /** The words with which the users' server turns people away, by disk; not where they are shown a checkpoint. */
  async refuseUsers(words: string): Promise<void> {
    for (const disk of this.disks) {
      if (this.overlays.shows(disk.name)) continue;
      const reason = `${disk.name} ${words}`;
      await this.#run('nbd-export-refuse', { name: disk.name, reason, server: userServer });
    }
  }

  async attach(exports: Readonly<Record<string, string>>, address: SocketAddress): Promise<void> {
    for (const disk of this.disks) {
      const name = exports[disk.name];
      if (name === undefined) throw new BlockError('protocol-error', `the other side has no export for ${disk.name}`);
      this.#remote.add(disk.name);
      await this.#run('blockdev-add', {
        driver: 'nbd',
        'node-name': `${disk.name}-remote`,
        ...passesDiscards,
        server: qmpAddress(address),
        export: name,
      });
      await this.#run('replication-connect', { node: `${disk.name}-replication`, child: `${disk.name}-remote` });
    }
  }

  /** No trace of a session is left. */
  async detach(): Promise<void> {
    for (const name of [...this.#remote]) {
      await this.#quietly('replication-disconnect', { node: `${name}-replication` });
      await this.#quietly('blockdev-del', { 'node-name': `${name}-remote` });
      this.#remote.delete(name);
    }
  }

  async markAll(what: 'all' | 'unproven' | 'held'): Promise<void> {
    for (const { name } of this.disks) {
      const marked = what === 'held' ? { 'held-in': this.overlays.nodesOf(name) } : { [what]: true };
      await this.#run('replication-mark', { node: `${name}-replication`, ...marked });
    }
  }

  async markRanges(ranges: Readonly<Record<string, readonly Range[]>>): Promise<void> {
    for (const { name } of this.disks) await this.mark(name, ranges[name] ?? []);
  }

  async mark(disk: string, ranges: readonly Range[]): Promise<void> {
    if (ranges.length > 0) await this.#run('replication-mark', { node: `${disk}-replication`, ranges });
  }

  /** What is not proven to be on the other side, by disk. */
  async bitmaps(): Promise<Bitmaps> {
    const bitmaps: Bitmaps = {};
    for (const disk of this.disks) {
      const answer = await this.#run('replication-bitmap', { node: `${disk.name}-replication` });
      bitmaps[disk.name] = (answer as { 'may-differ': Range[] })['may-differ'];
    }
    return bitmaps;
  }

  /** The same with at most so many ranges a disk, joined with what lies between them. */
  async joinedBitmaps(most: number): Promise<Record<string, [number, number][]>> {
    const bitmaps = await this.bitmaps();
    return Object.fromEntries(Object.entries(bitmaps).map(([disk, ranges]) => [disk, joinRanges(ranges, most)]));
  }

  /** bytes that the other side lacks, of all disks */
  async missingBytes(): Promise<number> {
    let bytes = 0;
    for (const disk of this.disks) {
      const answer = await this.#run('replication-bitmap', { node: `${disk.name}-replication` });
      bytes += (answer as { 'missing-bytes': number })['missing-bytes'];
    }
    return bytes;
  }

  /**
   * A flush of all disks that the other side proves. `proven`: afterwards it has all that it was given, though not what
   * this side could not write or read (pair.md 8).
   */
  async flushRemote(proven: boolean): Promise<void> {
    await this.#run('replication-flush', {});
    if (!proven) return;
    for (const disk of this.disks) {
      const answer = await this.#run('replication-bitmap', { node: `${disk.name}-replication` });
      const { 'may-differ-bytes': open, 'missing-bytes': missing } = answer as Record<string, number>;
      if (open !== missing) throw new BlockError('wrong-state', `disk ${disk.name}: the other side has not proven all`);
    }
  }

  /** Are the own disks durable? `equal`: and the other side has all that they hold? */
  async proves(equal: boolean): Promise<boolean> {
    try {
      await this.flushOwn();
    } catch {
      return false;
    }
    return !equal || isEmpty(await this.bitmaps());
  }

  /** The other side's disks are known to be equal. */
  async forget(): Promise<void> {
    for (const { name } of this.disks) await this.#run('replication-forget', { node: `${name}-replication` });
  }

  // ------------------------------------------------------------ secondary

  /** Exports for one session of one life of this process. @returns the export's name by disk */
  async openReplication(session: string, instance: string): Promise<Record<string, string>> {
    const names: Record<string, string> = {};
    for (const disk of this.disks) {
      const name = `${disk.name}.${session}.${instance}`;
      await this.#run('block-export-add', {
        type: 'nbd',
        id: `replication-${disk.name}`,
        'node-name': `${disk.name}-local`,
        name,
        writable: true,
        ordered: true,
        server: replicationServer,
      });
      this.#replicationExports.add(disk.name);
      names[disk.name] = name;
    }
    return names;
  }

  /** The primary is hung up, and what it had asked for has ended: nothing old can land any more (pair.md 4, 14). */
  async closeReplication(): Promise<void> {
    const names = [...this.#replicationExports];
    await Promise.all(names.map((name) => this.#deleteExport(`replication-${name}`, this.#replicationExports, name)));
    await this.overlays.leave();
  }

  async checksums(disk: string, offset: number, length: number, block: number): Promise<string[]> {
    const answer = await this.#run('replication-checksum', { node: `${disk}-local`, offset, length, block });
    return (answer as { checksums: string[] }).checksums;
  }

  async #deleteExport(id: string, open: Set<string>, name: string): Promise<void> {
    try {
      await this.#run('block-export-del', { id, mode: 'hard' });
    } catch (error) {
      // Gone already: somebody with a QMP client of his own was here first.
      if (!String(error).includes(id)) throw error;
      const exports = (await this.#run('query-block-exports')) as { id: string }[];
      if (exports.some((one) => one.id === id)) throw error;
    }
    open.delete(name);
  }

  #run(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return this.#engine.execute(command, args);
  }

  async #quietly(command: string, args: Readonly<Record<string, unknown>>): Promise<void> {
    await this.#run(command, args).catch(() => undefined);
  }
}

// ---------------------------------------------------------------- addresses

type QmpAddress =
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string; readonly port: string };
type LegacyAddress =
  | { readonly type: 'unix'; readonly data: { readonly path: string } }
  | { readonly type: 'inet'; readonly data: { readonly host: string; readonly port: string } };

function qmpAddress(address: SocketAddress): QmpAddress {
  return address.type === 'unix' ? address : { type: 'inet', host: address.host, port: String(address.port) };
}

function legacyAddress(address: SocketAddress): LegacyAddress {
  if (address.type === 'unix') return { type: 'unix', data: { path: address.path } };
  return { type: 'inet', data: { host: address.host, port: String(address.port) } };
}

function plainAddress(address: LegacyAddress): SocketAddress {
  if (address.type === 'unix') return { type: 'unix', path: address.data.path };
  return { type: 'inet', host: address.data.host, port: Number(address.data.port) };
}

/** NBD URI of a disk for users (the NBD project's uri.md). */
export function diskUri(address: SocketAddress, disk: string): string {
  if (address.type === 'unix') return `nbd+unix:///${disk}?socket=${encodeURIComponent(address.path)}`;
  const host = address.host.includes(':') ? `[${address.host}]` : address.host;
  return `nbd://${host}:${address.port}/${disk}`;
}
