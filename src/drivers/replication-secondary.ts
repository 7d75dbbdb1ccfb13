/**
 * The filter `replication`, mode secondary (spec: replication-filter): it stands on the active disk, shows the last
 * checkpoint plus its user's own writes, and takes the secondary disk over at a failover.
 *
 *     user -> filter -> active -> hidden -> secondary disk <- export to the primary         none, done after a stop
 *     user -> filter -> active -> hidden -> secondary disk <- copy-before-write <- export    running
 *     user -> filter -> commit-top -> active -> hidden -> secondary disk                     failover
 *     user -> filter -> secondary disk                                                       done after a failover
 *
 * Invariant: a start that fails leaves everything as it was, and whatever a start took is given back exactly once.
 * What goes through it in which stage is the table of `replication-stages.ts`; what it holds, `replication-disks.ts`.
 */
import type { Devices } from '../block/chain.ts';
import type { Child } from '../block/child.ts';
import type { DriverNode, OpenContext } from '../block/driver.ts';
import type { Drained, Graph } from '../block/graph-view.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { blockOperations, type OpBlock } from '../block/op-blockers.ts';
import {
  nextStage,
  type ReplicationGroup,
  type ReplicationInfo,
  type ReplicationMember,
  type ReplicationMode,
  type ReplicationStage,
  type StageEvent,
} from '../block/replication-group.ts';
import type { Backup } from '../jobs/backup.ts';
import type { JobManager } from '../jobs/job.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import { after, type Done } from '../util/later.ts';
import {
  emptyDisk,
  findParts,
  findTop,
  HeldDisks,
  heldBytes,
  markKept,
  type SecondaryParts,
  startKeeping,
} from './replication-disks.ts';
import { SplitWrites } from './replication-split.ts';
import { refusedInStage, stageAccess } from './replication-stages.ts';
import { Takeover } from './replication-takeover.ts';

/** What the filter needs from beside the graph. */
export interface SecondaryServices {
  readonly group: ReplicationGroup;
  readonly graph: Graph;
  readonly jobs: JobManager;
  readonly devices: Devices;
}

export class SecondaryFilter implements DriverNode, ReplicationMember {
  readonly nodeName: string;
  readonly mode: ReplicationMode = 'secondary';
  private readonly context: OpenContext;
  private readonly services: SecondaryServices;
  private readonly child: Child;
  private readonly topId: string;
  private current: ReplicationStage = 'none';
  private access = stageAccess.secondary.none;
  private error: BlockError | null = null;
  private parts: SecondaryParts | null = null;
  private readonly disks: HeldDisks;
  private topBlock: OpBlock | null = null;
  private copying: Backup | null = null;
  private takeover: Takeover | null = null;
  private split: SplitWrites | null = null;
  private drained: Drained | null = null;
  /** operations are made one after another; a close waits for the one under way */
  private lastTurn: Promise<unknown> = Promise.resolve();

  constructor(context: OpenContext, services: SecondaryServices, child: Child, topId: string) {
    this.nodeName = context.nodeName;
    this.context = context;
    this.services = services;
    this.child = child;
    this.topId = topId;
    this.disks = new HeldDisks(context, services.graph);
    services.group.join(this);
  }

  get stage(): ReplicationStage {
    return this.current;
  }

  // ------------------------------------------------------------ the block node

  get length(): number {
    return this.child.node.length;
  }

  get ordered(): boolean {
    return this.child.node.ordered !== false;
  }

  read(offset: number, into: Uint8Array): Done {
    if (this.access.read === 'refused') throw refusedInStage(this.nodeName, this.current);
    return this.split === null ? this.child.node.read(offset, into) : this.split.read(offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    if (this.access.write === 'refused') throw refusedInStage(this.nodeName, this.current);
    if (this.split === null) return this.child.node.write(offset, from, flags);
    return this.thenFlush(this.split.write(offset, from.length, from, flags), flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    if (this.access.write === 'refused') throw refusedInStage(this.nodeName, this.current);
    if (this.split === null) return this.child.node.writeZeroes(offset, length, flags);
    return this.thenFlush(this.split.write(offset, length, null, flags), flags);
  }

  /** Succeeds without effect: what an overlay gave up would show what lies below it. */
  discard(): Done {
    return undefined;
  }

  /** After a failed failover writes go to two places, and a flush has to cover both. */
  flush(): Done {
    return this.split === null ? this.child.node.flush() : this.split.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.child.node.blockStatus(offset, length);
  }

  settle(): Done {
    return this.split?.settle();
  }

  private thenFlush(done: Done, flags: WriteFlags): Done {
    return (flags & writeFlags.fua) === 0 ? done : after(done, () => this.flush());
  }

  async close(): Promise<void> {
    await this.inTurn(() => this.closeNow()).catch(() => undefined);
  }

  private async closeNow(): Promise<void> {
    const { group } = this.services;
    group.leave(this);
    this.unprepare();
    const { current } = this;
    try {
      if (current === 'running') return await this.stopCleanly();
      if (current === 'failover') await this.cancelTakeover();
    } finally {
      this.topBlock?.lift();
      await this.disks.release({ restore: current === 'running' });
      if (this.stage !== 'done') this.move('close');
    }
  }

  // ------------------------------------------------------------ start

  start(mode: ReplicationMode): Promise<void> {
    return this.inTurn(async () => {
      if (mode !== this.mode) {
        throw new BlockError('invalid-request', `node '${this.nodeName}' is ${this.mode}, it cannot start as ${mode}`);
      }
      nextStage(this.nodeName, this.current, 'start');
      try {
        const { ofGroup } = await this.take();
        // The owner of a group's epoch decides whether what was kept over a restart is still wanted (record-log.md 9).
        if (!ofGroup) await this.firstCheckpoint();
      } catch (error) {
        await this.giveBack();
        this.parts = null;
        throw error;
      }
      this.error = null;
      this.move('start');
    });
  }

  /** Everything that a running replication holds, in the order of the spec. */
  private async take(): Promise<SecondaryParts> {
    const { graph, devices } = this.services;
    const parts = findParts(graph, this.nodeName, this.child.nodeName);
    this.parts = parts;
    await this.disks.reopen(parts);
    const top = findTop(graph, devices, this.topId, this.nodeName);
    const reason = `replication '${this.nodeName}' is running`;
    this.topBlock = graph.blockers.block(top, blockOperations, reason);
    await this.disks.hold(parts, reason);
    await this.startCopying(parts, reason);
    return parts;
  }

  private async firstCheckpoint(): Promise<void> {
    const drained = await this.holdUsers();
    try {
      await this.empty();
    } finally {
      drained.end();
    }
  }

  /**
   * What was kept over a restart is old content already (record-log.md 9). Writers are held until the job knows of it:
   * else it would copy the content of now over that of the checkpoint.
   */
  private async startCopying(parts: SecondaryParts, reason: string): Promise<void> {
    const { graph, jobs } = this.services;
    const drained = await graph.drain(parts.secondary);
    try {
      const copying = await startKeeping(graph, jobs, this.nodeName, parts, reason);
      this.copying = copying;
      void copying.job.concluded.then(() => this.inTurn(() => this.copyingEnded(copying)).catch(() => undefined));
      if (parts.ofGroup) await markKept(graph, parts, copying.copies);
    } finally {
      drained.end();
    }
  }

  /** Undoes `take`, as far as it came. */
  private async giveBack(): Promise<void> {
    await this.endCopying().catch(() => undefined);
    this.topBlock?.lift();
    this.topBlock = null;
    await this.disks.release({ restore: true });
  }

  private async endCopying(): Promise<void> {
    const { copying } = this;
    this.copying = null;
    if (copying === null) return;
    copying.job.cancelIfItCan();
    await copying.job.concluded;
  }

  /** The job has ended by itself: whoever ends it takes it away first. */
  private async copyingEnded(copying: Backup): Promise<void> {
    if (this.copying !== copying) return;
    this.copying = null;
    const why = copying.job.error?.message ?? 'it was cancelled';
    this.error = new BlockError('io-error', `node '${this.nodeName}': old content is not kept any more: ${why}`);
    this.topBlock?.lift();
    await this.disks.release({ restore: true });
  }

  // ------------------------------------------------------------ checkpoint

  prepare(): Promise<void> {
    return this.inTurn(async () => {
      if (this.drained !== null) throw new BlockError('wrong-state', `node '${this.nodeName}' is prepared already`);
      if (this.current === 'failover') {
        if (this.takeover === null) throw refusedInStage(this.nodeName, this.current);
        this.drained = await this.takeover.prepare();
        return;
      }
      if (this.current !== 'running') throw refusedInStage(this.nodeName, this.current);
      if (this.copying === null) {
        throw new BlockError('wrong-state', `node '${this.nodeName}': old content is not kept any more`);
      }
      this.drained = await this.holdUsers();
    });
  }

  /**
   * A copy that landed after the emptying would show old content; what the disk might lose to a power cut would be
   * missing in the checkpoint, and the one before is gone by then (record-log.md 8).
   */
  private async holdUsers(): Promise<Drained> {
    const { graph } = this.services;
    const { secondary, durable } = this.partsNow();
    const drained = await graph.drain(secondary);
    try {
      if (durable) await graph.find(secondary).node.flush();
    } catch (error) {
      drained.end();
      throw error;
    }
    return drained;
  }

  checkpoint(epoch?: number): Done {
    if (this.current === 'failover') return this.takeOver(epoch);
    let done: Done;
    try {
      done = this.empty(epoch);
    } catch (error) {
      this.unprepare();
      throw error;
    }
    if (done !== undefined) return done.finally(() => this.unprepare());
    this.unprepare();
    return undefined;
  }

  unprepare(): void {
    const { drained } = this;
    this.drained = null;
    drained?.end();
  }

  /**
   * The active disk is emptied, then the hidden disk; users are held. The job forgets what it has copied only then:
   * were the hidden disk still full, a second copy of a block would put newer content over that of the checkpoint.
   */
  private empty(epoch?: number): Done {
    const { graph } = this.services;
    const { active, hidden } = this.partsNow();
    const emptied = after(emptyDisk(graph, active, epoch), () => emptyDisk(graph, hidden, epoch));
    return after(emptied, () => {
      this.copying?.copies.forgetCopies();
      return undefined;
    });
  }

  // ------------------------------------------------------------ get_error, stop

  getError(): void {
    if (this.current !== 'running') throw refusedInStage(this.nodeName, this.current);
    if (this.error !== null) throw this.error;
  }

  stop(failover: boolean): Promise<void> {
    return this.inTurn(async () => {
      nextStage(this.nodeName, this.current, failover ? 'failover' : 'stop');
      this.unprepare();
      if (failover) await this.failOver();
      else await this.stopCleanly();
    });
  }

  private async stopCleanly(): Promise<void> {
    await this.giveBack();
    this.error = null;
    this.move('stop');
  }

  private async failOver(): Promise<void> {
    const parts = this.partsNow();
    const reason = `the failover of '${this.nodeName}' is under way`;
    const { graph, jobs } = this.services;
    try {
      await this.endCopying();
      this.move('failover');
      this.topBlock?.lift();
      this.topBlock = null;
      // The job may have ended before, and what it held with it.
      await this.disks.reopen(parts);
      await this.disks.hold(parts, reason);
      this.takeover = await Takeover.begin(graph, jobs, this.nodeName, parts);
    } catch (error) {
      if (this.current === 'running') this.move('failover');
      await this.takeoverFailed(toBlockError(error));
      throw error;
    }
    const { takeover } = this;
    void takeover.ended.then(() => this.inTurn(() => this.takeoverEnded(takeover)).catch(() => undefined));
    void takeover.ready.then(() => this.context.emit('REPLICATION_COMMIT_READY', { node: this.nodeName }));
  }

  private async takeoverEnded(takeover: Takeover): Promise<void> {
    if (this.takeover !== takeover) return;
    this.takeover = null;
    this.unprepare();
    if (!takeover.succeeded) return await this.takeoverFailed(takeover.failure);
    await this.disks.release({ restore: false });
    this.error = null;
    this.parts = null;
    this.move('commit-done');
  }

  /** Users are held for the change: a write under way may be about to allocate what a later one asks the status of. */
  private async takeoverFailed(error: BlockError): Promise<void> {
    const { active, hidden } = this.partsNow();
    const { graph } = this.services;
    const drained = await graph.drain(active);
    this.error = new BlockError(error.code, `the commit of the failover failed: ${error.message}`, { cause: error });
    const overlays = [graph.find(active).node, graph.find(hidden).node];
    this.split = new SplitWrites(this.child, overlays, () => this.disks.secondary);
    this.disks.unblock();
    this.move('commit-failed');
    drained.end();
  }

  private async cancelTakeover(): Promise<void> {
    const { takeover } = this;
    this.takeover = null;
    await takeover?.cancel();
    // It was too late to cancel it.
    if (takeover?.succeeded === true) this.move('commit-done');
  }

  /** The owner has made the end durable: the overlays are empty from now on, and the disk takes their place. */
  private takeOver(epoch: number | undefined): Done {
    const { takeover } = this;
    try {
      if (takeover === null) throw refusedInStage(this.nodeName, this.current);
      // At once for overlays of a group: all members do it in one tick.
      const emptied = epoch === undefined ? undefined : this.empty(epoch);
      return after(emptied, () => this.completeTakeover(takeover));
    } catch (error) {
      this.unprepare();
      throw error;
    }
  }

  private async completeTakeover(takeover: Takeover): Promise<void> {
    await takeover.complete();
    await this.lastTurn;
    if (this.error !== null) throw this.error;
  }

  // ------------------------------------------------------------ the rest

  info(): ReplicationInfo {
    const { graph } = this.services;
    const { parts, takeover } = this;
    return {
      node: this.nodeName,
      mode: this.mode,
      stage: this.current,
      error: this.error?.message ?? null,
      prepared: this.drained !== null,
      'hidden-bytes': parts === null ? 0 : heldBytes(graph, parts.hidden),
      'active-bytes': parts === null ? 0 : heldBytes(graph, parts.active),
      commit: takeover?.info() ?? null,
    };
  }

  private partsNow(): SecondaryParts {
    if (this.parts === null) throw refusedInStage(this.nodeName, this.current);
    return this.parts;
  }

  private move(event: StageEvent): void {
    const before = this.current;
    this.current = nextStage(this.nodeName, before, event);
    if (this.current === before) return;
    this.access = stageAccess.secondary[this.current];
    this.context.emit('REPLICATION_STAGE', { node: this.nodeName, mode: this.mode, stage: this.current });
  }

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.lastTurn.then(work);
    this.lastTurn = turn.catch(() => undefined);
    return turn;
  }
}
