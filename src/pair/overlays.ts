/**
 * The overlays of a secondary (`store: overlays`), spoken in QMP (replication-filter.md, record-log.md 8 to 10).
 *
 *     D-local <- D-hidden <- D-active             while this side is secondary; users are shown D-active
 *     exports -> D-local <- .. D-active <- D-top  while it receives: D-top keeps old content in D-hidden
 *     user -> D-top -> commit -> D-active ..      a failover to the checkpoint, until the disk is that state
 *     user -> D-top -> D-local                    after it
 *
 * All overlays have one epoch, which is the group file's. Nothing here is durable by itself: whoever raises the epoch
 * writes it there, between `prepare` and `commit`. Each method may be called again.
 */
import type { Host } from '../host/host.ts';
import type { QmpTarget } from '../qmp/target.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import type { DiskConfig, PairConfig } from './config.ts';
import { rollBackDisk } from './roll-back.ts';

const userServer = 'nbd';
const replicationServer = 'replication';
const kinds = ['hidden', 'active'] as const;
type Kind = (typeof kinds)[number];

/** What an overlay says of itself in `query-named-block-nodes`. */
interface OverlayInfo {
  readonly 'held-bytes'?: number;
  readonly 'checkpoint-lost'?: string | null;
  readonly error?: string | null;
}

interface MemberRow {
  readonly node: string;
  readonly mode: string;
  readonly stage: string;
  readonly error: string | null;
  readonly commit?: { readonly status: string } | null;
}

export class PairOverlays {
  readonly #host: Host;
  readonly #engine: QmpTarget;
  readonly #config: PairConfig;
  readonly #exports = new Set<string>();
  #open = false;
  /** D-top stands above the overlays */
  #filters = false;
  /** a disk has failed a sync in this process, and what its checkpoint was kept in is gone */
  #unsynced = false;
  /** the disks hold still for a checkpoint */
  #prepared = false;
  /** D-top stands above the disk, which has taken their place: what a primary serves, and none of our business */
  #tookOver = false;

  constructor(host: Host, engine: QmpTarget, config: PairConfig) {
    this.#host = host;
    this.#engine = engine;
    this.#config = config;
  }

  /** The node that holds what a promoted side's users see of a disk. */
  localOf(disk: string): string {
    return this.#filters || this.#tookOver ? `${disk}-top` : `${disk}-local`;
  }

  /** Its overlays, the upper one first. */
  nodesOf(disk: string): string[] {
    return [`${disk}-active`, `${disk}-hidden`];
  }

  // ------------------------------------------------------------ overlays

  /**
   * Opens the overlays of all disks; of an epoch below this one they are empty. Those whose log failed are opened anew,
   * and shown again to users if they were.
   * @param kept there is a checkpoint that they lead back to: a file that is missing has lost it
   * @returns why the checkpoint is lost, or null
   */
  async open(epoch: number, kept: boolean): Promise<string | null> {
    const shown = this.#exports.size > 0;
    if (this.#open) {
      const infos = await this.#infos();
      const overlays = this.#disks.flatMap(({ name }) => this.nodesOf(name));
      const failed = overlays.some((node) => typeof infos.get(node)?.error === 'string');
      if (!failed) return null;
      // What is written between the two would not be kept.
      if (this.#filters) throw new BlockError('wrong-state', 'an overlay has failed: the session has to end first');
      await this.close();
    }
    const lost = await this.#addAll(kinds, epoch, kept);
    if (lost !== null) return lost;
    if (shown) await this.show();
    return null;
  }

  /** @returns why the checkpoint is lost, or null: all of these kinds are there */
  async #addAll(some: readonly Kind[], epoch: number, kept: boolean): Promise<string | null> {
    this.#open = true;
    try {
      for (const disk of this.#disks) {
        for (const kind of some) {
          const lost = await this.#add(disk, kind, epoch, kept);
          if (lost !== null) return lost;
        }
      }
    } catch (error) {
      await this.close();
      throw error;
    }
    return null;
  }

  async close(): Promise<void> {
    await this.hide();
    await this.leave();
    if (this.#open) await this.#deleteOverlays();
  }

  /** A disk failed a sync: with `sync: false` the checkpoint stood on what may be lost now. No start may show it. */
  async distrust(): Promise<void> {
    await this.close();
    if (this.#config.store !== 'overlays' || this.#config.overlays.sync) return;
    this.#unsynced = true;
    await this.remove();
  }

  async #deleteOverlays(): Promise<void> {
    for (const node of this.#disks.flatMap(({ name }) => this.nodesOf(name))) {
      await this.#quietly('blockdev-del', { 'node-name': node });
      await this.#quietly('blockdev-del', { 'node-name': `${node}-file` });
    }
    this.#open = false;
  }

  /** Puts the files aside, for somebody who may want to look at them: nobody knows what they belong to. */
  async setAside(): Promise<void> {
    const { files } = this.#host;
    let found = false;
    for (const path of this.#disks.flatMap((disk) => kinds.map((kind) => this.#path(disk, kind)))) {
      if ((await files.stat(path)) === null) continue;
      await files.rename(path, `${path}.damaged`);
      found = true;
    }
    if (found) await files.syncFolder(this.#config.overlays.folder);
  }

  /** Takes the files away: nothing in them counts. They must be closed. */
  async remove(): Promise<void> {
    const { files } = this.#host;
    for (const disk of this.#disks) for (const kind of kinds) await files.remove(this.#path(disk, kind));
  }

  async #add({ name }: DiskConfig, kind: Kind, epoch: number, kept: boolean): Promise<string | null> {
    const { files } = this.#host;
    const path = this.#path({ name }, kind);
    // Not made anew before it is durable that nothing leads back: a start that found it empty would take it for whole.
    if (kept && (await files.stat(path)) === null) return this.#unsynced ? unsyncedText : `${path} is missing`;
    await this.#makeFile(path);
    let why: string | null = null;
    try {
      await this.#addNode(name, kind, path, epoch);
    } catch (error) {
      const { code, message } = toBlockError(error);
      if (code !== 'bad-image') throw error;
      // Somebody may want to look at it; for us it holds nothing that can be believed.
      await this.#quietly('blockdev-del', { 'node-name': `${name}-${kind}-file` });
      await files.rename(path, `${path}.damaged`);
      if (kept) return message;
      await this.#makeFile(path);
      await this.#addNode(name, kind, path, epoch);
      why = message;
    }
    return why ?? (await this.#infos()).get(`${name}-${kind}`)?.['checkpoint-lost'] ?? null;
  }

  async #addNode(name: string, kind: Kind, path: string, epoch: number): Promise<void> {
    const file = `${name}-${kind}-file`;
    await this.#run('blockdev-add', { driver: 'file', 'node-name': file, filename: path, exclusive: true });
    await this.#run('blockdev-add', {
      driver: 'shadow',
      'node-name': `${name}-${kind}`,
      file,
      backing: kind === 'hidden' ? `${name}-local` : `${name}-hidden`,
      volume: this.#config.volume,
      epoch,
      sync: this.#config.overlays.sync,
    });
  }

  async #makeFile(path: string): Promise<void> {
    const { files } = this.#host;
    const { folder } = this.#config.overlays;
    if ((await files.stat(path)) === null) {
      await files.makeFolder(folder);
      await (await files.open(path, { access: 'write', create: 'if-missing' })).close();
    }
    // Also a name that was found: the process that made it may have been killed before it was durable.
    await files.syncFolder(folder);
  }

  // ------------------------------------------------------------ receiving, checkpoints

  /** From now on old content is kept before the disk is changed. The disks are exported. */
  async keep(): Promise<void> {
    if (this.#filters) return;
    this.#filters = true;
    try {
      await this.#addTops();
      await this.#run('xen-set-replication', { enable: true, primary: false });
    } catch (error) {
      // All of it or nothing: the next try begins anew.
      await this.leave();
      throw error;
    }
  }

  async #addTops(): Promise<void> {
    for (const { name } of this.#disks) {
      await this.#run('blockdev-add', {
        driver: 'replication',
        'node-name': `${name}-top`,
        mode: 'secondary',
        file: `${name}-active`,
        'top-id': `${name}-top`,
      });
    }
  }

  /** Old content is not kept any more; nothing is emptied. */
  async leave(): Promise<void> {
    if (!this.#filters) return;
    await this.#quietly('xen-set-replication', { enable: false, primary: false });
    await this.#deleteTops();
    this.#filters = false;
    this.#prepared = false;
  }

  /** Nothing is left above the disks: what was promoted to a checkpoint serves nobody any more. */
  async clear(): Promise<void> {
    await this.close();
    if (!this.#tookOver) return;
    await this.#deleteTops();
    this.#tookOver = false;
  }

  async #deleteTops(): Promise<void> {
    for (const { name } of this.#disks) await this.#quietly('blockdev-del', { 'node-name': `${name}-top` });
  }

  /**
   * All disks prepare, `makeDurable` writes the new epoch, all forget the old in one tick (pair.md 22). A failure
   * before that leaves everything as it was. `takeBack`: what was not made durable may be found all the same; until
   * this has written over it the disks hold still, to the next try or the end of the session.
   */
  async checkpoint(epoch: number, makeDurable: () => Promise<void>, takeBack: () => Promise<void>): Promise<void> {
    // Without the filters the round would have no members, and succeed.
    if (!this.#filters)
      throw new BlockError('wrong-state', 'old content is not kept now: there is nothing to go back to');
    if (!this.#prepared) await this.#run('replication-prepare');
    this.#prepared = true;
    try {
      await makeDurable();
    } catch (error) {
      await takeBack();
      this.#prepared = false;
      await this.#run('replication-abort');
      throw error;
    }
    this.#prepared = false;
    await this.#run('replication-commit', { epoch });
  }

  /** bytes held, hidden and active, by disk */
  async heldBytes(): Promise<Map<string, { hidden: number; active: number }>> {
    const infos = await this.#infos();
    const of = (node: string): number => infos.get(node)?.['held-bytes'] ?? 0;
    return new Map(
      this.#disks.map(({ name }) => [name, { hidden: of(`${name}-hidden`), active: of(`${name}-active`) }]),
    );
  }

  /** @throws BlockError no-space: what a sync of so many bytes leaves to keep may not fit */
  async checkSpace(bytes: number): Promise<void> {
    const { folder } = this.#config.overlays;
    await this.#host.files.makeFolder(folder);
    const free = await this.#host.files.freeBytes(folder);
    const wanted = Math.ceil(bytes * recordOverhead);
    if (free === null || wanted <= free) return;
    throw new BlockError(
      'no-space',
      `the last checkpoint cannot be kept: the resync may need ${wanted} bytes in ${folder}, where ${free} are free`,
    );
  }

  // ------------------------------------------------------------ what users see

  /** Users are shown the last checkpoint; in lock-step they may write beside it (pair.md 17). */
  async show(): Promise<void> {
    for (const { name } of this.#disks) {
      if (this.#exports.has(name)) continue;
      await this.#run('nbd-export-refuse', { name, reason: null, server: userServer });
      await this.#run('block-export-add', {
        type: 'nbd',
        id: `view-${name}`,
        'node-name': `${name}-active`,
        name,
        writable: this.#config.mode === 'lock-step',
        server: userServer,
      });
      this.#exports.add(name);
    }
  }

  shows(disk: string): boolean {
    return this.#exports.has(disk);
  }

  /** They are hung up. */
  async hide(): Promise<void> {
    await Promise.all(
      [...this.#exports].map(async (name) => {
        await this.#quietly('block-export-del', { id: `view-${name}`, mode: 'hard' });
        this.#exports.delete(name);
      }),
    );
  }

  // ------------------------------------------------------------ going back

  /**
   * Makes the disks what they were at the checkpoint: hidden's blocks go into them, durably; the active overlays are
   * dropped. Hidden keeps them, so that it can be repeated. The overlays are closed before and after.
   * @returns why the checkpoint is lost, or null; then no disk was touched
   */
  async rollBack(epoch: number): Promise<string | null> {
    const lost = await this.#addAll(['hidden'], epoch, true);
    if (lost === null) for (const { name } of this.#disks) await rollBackDisk(this.#engine, name);
    await this.close();
    if (lost === null) await this.dropActive();
    return lost;
  }

  /** Made anew: what the view's user wrote is gone, and may not be found lost. The overlays are closed. */
  async dropActive(): Promise<void> {
    for (const disk of this.#disks) {
      const path = this.#path(disk, 'active');
      await this.#host.files.remove(path);
      await this.#makeFile(path);
    }
  }

  // ------------------------------------------------------------ a failover to the checkpoint

  /** The chosen state is what `localOf` shows from now on, while it goes into the disks (pair.md 14 c). */
  async beginTakeover(): Promise<void> {
    const before = await this.#members();
    if (!before.some(({ stage }) => stage === 'failover')) await this.#takeOver();
    const failed = (await this.#members()).find(({ stage }) => stage === 'failover-failed');
    if (failed !== undefined) throw failedTakeover(failed);
  }

  async #takeOver(): Promise<void> {
    const exports: string[] = [];
    try {
      // The filter takes only a disk that is served to somebody. Nobody knows this name.
      for (const { name } of this.#disks) {
        const id = `takeover-${name}`;
        await this.#run('block-export-add', {
          type: 'nbd',
          id,
          'node-name': `${name}-local`,
          name: `${name}.takeover`,
          writable: false,
          server: replicationServer,
        });
        exports.push(id);
      }
      await this.keep();
    } finally {
      for (const id of exports) await this.#quietly('block-export-del', { id, mode: 'hard' });
    }
    await this.#run('xen-set-replication', { enable: false, primary: false, failover: true });
  }

  /** Waits until everything is in the disks; then `makeDurable` writes the new epoch, and the overlays are gone. */
  async endTakeover(epoch: number, makeDurable: () => Promise<void>, takeBack: () => Promise<void>): Promise<void> {
    let changed = deferred();
    const unsubscribe = this.#engine.subscribe(({ event }) => {
      if (event === 'REPLICATION_COMMIT_READY' || event === 'REPLICATION_STAGE') changed.resolve();
    });
    try {
      for (;;) {
        const members = await this.#members();
        const failed = members.find(({ stage }) => stage === 'failover-failed');
        if (failed !== undefined) throw failedTakeover(failed);
        if (members.every(({ commit }) => commit?.status === 'ready')) break;
        await changed.promise;
        changed = deferred();
      }
    } finally {
      unsubscribe();
    }
    await this.checkpoint(epoch, makeDurable, takeBack);
    await this.#deleteOverlays();
    this.#filters = false;
    this.#tookOver = true;
    await this.remove();
  }

  // ------------------------------------------------------------ the rest

  get #disks(): readonly DiskConfig[] {
    return this.#config.disks;
  }

  #path(disk: Pick<DiskConfig, 'name'>, kind: Kind): string {
    return `${this.#config.overlays.folder}/${disk.name}.${kind}`;
  }

  /** The filters in mode secondary. */
  async #members(): Promise<MemberRow[]> {
    const rows = (await this.#run('query-replication')) as MemberRow[];
    return rows.filter(({ mode }) => mode === 'secondary');
  }

  async #infos(): Promise<Map<string, OverlayInfo>> {
    const nodes = (await this.#run('query-named-block-nodes')) as { 'node-name': string; info?: OverlayInfo }[];
    return new Map(nodes.map((node) => [node['node-name'], node.info ?? {}]));
  }

  #run(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return this.#engine.execute(command, args);
  }

  async #quietly(command: string, args: Readonly<Record<string, unknown>>): Promise<void> {
    await this.#run(command, args).catch(() => undefined);
  }
}

/** A record of 4 KiB with its header, and the start of a new block after each sync: bytes of log for a byte kept. */
const recordOverhead = 1.05;
const unsyncedText = 'a disk failed a sync, and with overlays.sync: false the checkpoint was not made durable before';

function failedTakeover({ node, error }: MemberRow): BlockError {
  const why = error ?? 'no reason is known';
  return new BlockError('io-error', `${node}: going back to the checkpoint failed: ${why}; start this side again`);
}
