/**
 * blockdev-mirror: copies a node to another, keeps both in step, and at `complete` puts the target in the node's place
 * (QEMU: qapi/block-core.json, blockdev-mirror; docs/interop/live-block-operations).
 *
 *     parents -> mirror-top (tells of writes) -> source        job reads the source, writes the target
 *     parents -> target                                        after the pivot
 *
 * Invariant: from the moment the filter stands, a byte in which the target may differ from the source is dirty or in a
 * chunk that is under way: nobody else changes the source. The pivot happens while the parents are drained and nothing
 * is either.
 */
import { allPermissions, permissionBits } from '../block/child.ts';
import { type CopyTarget, type CopyTicket, type TakenRange, TakenRanges, type WriteTap } from '../block/copy-target.ts';
import { DirtyBitmap, type DirtyRange, granularityMin } from '../block/dirty-bitmap.ts';
import type { Graph, RootUse } from '../block/graph-view.ts';
import { type BlockNode, writeFlags } from '../block/node.ts';
import { blockStatusOf } from '../block/status.ts';
import { BlockError } from '../util/errors.ts';
import { attempt, type Done } from '../util/later.ts';
import { CopyLoop, copyGranularityMax } from './copy-loop.ts';
import type { JobBody, JobControl, JobManager, JobOutcome, OnError } from './job.ts';

/** Arguments of `blockdev-mirror`, with QMP spelling. */
export interface MirrorArguments {
  readonly 'job-id'?: string | undefined;
  readonly device: string;
  readonly target: string;
  readonly sync: 'full' | 'top' | 'none';
  readonly speed?: number | undefined;
  readonly granularity?: number | undefined;
  readonly 'buf-size'?: number | undefined;
  readonly 'on-source-error'?: OnError | undefined;
  readonly 'on-target-error'?: OnError | undefined;
  readonly 'filter-node-name'?: string | undefined;
  readonly 'copy-mode'?: 'background' | 'write-blocking' | undefined;
  readonly 'target-is-zero'?: boolean | undefined;
  readonly 'auto-finalize'?: boolean | undefined;
  readonly 'auto-dismiss'?: boolean | undefined;
}

const granularityDefault = 65_536;

/** Starts the job; it goes on by itself. @throws BlockError, and nothing has changed then */
export async function startBlockdevMirror(graph: Graph, jobs: JobManager, args: MirrorArguments): Promise<void> {
  checkArguments(graph, args);
  const jobId = args['job-id'] ?? args.device;
  const body = new MirrorBody(graph, args, jobId);
  const job = jobs.create({
    id: jobId,
    type: 'mirror',
    body,
    speed: args.speed,
    autoFinalize: args['auto-finalize'],
    autoDismiss: args['auto-dismiss'],
  });
  job.keep([
    ...graph.blockers.blockAll([args.device, args.target], `job '${jobId}' works on it`),
    graph.blockers.block(body.filterName, ['delete'], `it belongs to job '${jobId}'`),
  ]);
  try {
    await body.open(job);
  } catch (error) {
    job.forget();
    throw error;
  }
  job.start();
}

function checkArguments(graph: Graph, args: MirrorArguments): void {
  const { device, target, granularity = granularityDefault } = args;
  if (!Number.isInteger(Math.log2(granularity)) || granularity < granularityMin || granularity > copyGranularityMax) {
    throw new BlockError(
      'invalid-option',
      `granularity: must be a power of two from ${granularityMin} to ${copyGranularityMax}`,
    );
  }
  if (args['copy-mode'] === 'write-blocking') {
    throw new BlockError('not-supported', 'copy-mode: only background is supported');
  }
  const source = graph.find(device).node;
  const into = graph.find(target).node;
  graph.blockers.check(device, 'mirror-source');
  graph.blockers.check(target, 'mirror-target');
  if (device === target) throw new BlockError('invalid-option', `target: '${target}' is the device itself`);
  if (into.length < source.length) {
    throw new BlockError(
      'invalid-option',
      `target: '${target}' (${into.length} bytes) is shorter than '${device}' (${source.length} bytes)`,
    );
  }
}

class MirrorBody implements JobBody {
  private readonly graph: Graph;
  private readonly args: MirrorArguments;
  readonly filterName: string;
  private readonly jobId: string;
  private readonly dirty: DirtyBitmap;
  private source: RootUse | null = null;
  private target: RootUse | null = null;
  private loop: CopyLoop | null = null;
  private filterStands = false;
  /** closes the filter that the pivot has taken out */
  private closeFilter: (() => Promise<void>) | null = null;

  constructor(graph: Graph, args: MirrorArguments, jobId: string) {
    this.graph = graph;
    this.args = args;
    this.jobId = jobId;
    this.filterName = args['filter-node-name'] ?? `mirror-top-${jobId}`.slice(0, 255);
    this.dirty = new DirtyBitmap(graph.find(args.device).node.length, args.granularity ?? granularityDefault);
  }

  /** Takes the nodes and puts the filter above the source. Takes everything back if it fails. */
  async open(control: JobControl): Promise<void> {
    const { graph, args } = this;
    this.loop = this.makeLoop(control);
    const parent = this.loop.parent(`job "${this.jobId}"`);
    try {
      this.target = await graph.use(args.target, parent, {
        needs: permissionBits['consistent-read'] | permissionBits.write,
        shares: permissionBits['consistent-read'] | permissionBits['write-unchanged'],
      });
      await this.addFilter(control);
      await graph.insertAbove(args.device, this.filterName);
      this.source = await graph.use(args.device, parent, {
        needs: permissionBits['consistent-read'],
        shares: allPermissions & ~permissionBits.resize,
      });
    } catch (error) {
      await this.clean('failed').catch(() => undefined);
      throw error;
    }
  }

  private async addFilter(control: JobControl): Promise<void> {
    const { readOnly } = this.graph.find(this.args.device);
    const filter = await this.graph.add({
      driver: 'mirror-top',
      'node-name': this.filterName,
      file: this.args.device,
      'read-only': readOnly,
      discard: 'unmap',
    });
    this.filterStands = true;
    const tap = filter.node as typeof filter.node & WriteTap;
    tap.tapWrites((offset, length) => {
      this.dirty.mark(offset, length);
      control.wake();
    });
  }

  async run(control: JobControl): Promise<void> {
    await this.markFirst();
    const loop = this.openLoop();
    for (;;) {
      await loop.run();
      control.becomeReady();
      if (control.ending !== null) break;
      await control.wait();
      await control.pausePoint();
    }
    if (control.ending === 'leave') await this.catchUp();
  }

  /** The pivot. The source keeps its content; whoever used it uses the target from now on. */
  async prepare(ending: 'complete' | 'leave' | null): Promise<void> {
    if (ending !== 'complete') return;
    const drained = await this.graph.drain(this.filterName);
    try {
      await this.copyRest();
      // Our own use would forbid the parents to write.
      await this.target?.release();
      this.target = null;
      // In one change: who came to the filter or the source between two would stay there.
      this.closeFilter = await this.graph.takeOut(this.filterName, this.args.target);
      this.filterStands = false;
    } finally {
      drained.end();
    }
  }

  /** Takes the filter out and gives the nodes back, whatever went before; the first failure is thrown at the end. */
  async clean(_outcome: JobOutcome): Promise<void> {
    const { graph, filterName, closeFilter } = this;
    const steps: (() => Promise<void>)[] = [];
    if (this.filterStands) {
      steps.push(async () => {
        (graph.find(filterName).node as unknown as WriteTap).tapWrites(null);
        await (await graph.takeOut(filterName))();
      });
    }
    if (closeFilter !== null) steps.push(closeFilter);
    steps.push(async () => await this.target?.release());
    steps.push(async () => await this.source?.release());
    this.filterStands = false;
    this.closeFilter = null;
    let first: unknown;
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        first ??= error;
      }
    }
    this.target = null;
    this.source = null;
    if (first !== undefined) throw first;
  }

  private makeLoop(control: JobControl): CopyLoop {
    const { args } = this;
    return new CopyLoop({
      source: () => this.held(this.source),
      target: new DirtyTarget(this.dirty, () => this.held(this.target)),
      clock: this.graph.host.clock,
      control,
      targetIsZero: args['target-is-zero'] ?? false,
      ...(args['buf-size'] ? { bufferBytes: args['buf-size'] } : {}),
      onSourceError: args['on-source-error'] ?? 'report',
      onTargetError: args['on-target-error'] ?? 'report',
    });
  }

  private held(use: RootUse | null): BlockNode {
    if (use === null) throw new BlockError('wrong-state', `job '${this.jobId}' has given its nodes back`);
    return use.node;
  }

  private openLoop(): CopyLoop {
    if (this.loop === null) throw new BlockError('wrong-state', `job '${this.jobId}' is not open`);
    return this.loop;
  }

  private async markFirst(): Promise<void> {
    if (this.args.sync === 'full') this.dirty.markAll();
    if (this.args.sync !== 'top' || this.source === null) return;
    const { node } = this.source;
    for (let at = 0; at < this.dirty.length; ) {
      for (const extent of await blockStatusOf(node, at, this.dirty.length - at)) {
        if (extent.allocated) this.dirty.mark(at, extent.length);
        at += extent.length;
      }
    }
  }

  /** Brings the target to one moment of the source, durably. */
  private async catchUp(): Promise<void> {
    const drained = await this.graph.drain(this.filterName);
    try {
      await this.copyRest();
    } finally {
      drained.end();
    }
  }

  private async copyRest(): Promise<void> {
    await this.openLoop().finish();
    await this.target?.node.flush();
  }
}

/** A dirty bitmap over a target node. A range stays taken until its chunk is done: two copies of it never overlap. */
class DirtyTarget implements CopyTarget {
  private readonly dirty: DirtyBitmap;
  private readonly node: () => BlockNode;
  private readonly taken = new TakenRanges();
  /** what was written to the target */
  private readonly sent: DirtyBitmap;

  constructor(dirty: DirtyBitmap, node: () => BlockNode) {
    this.dirty = dirty;
    this.node = node;
    this.sent = new DirtyBitmap(dirty.length, dirty.granularity);
  }

  get granularity(): number {
    return this.dirty.granularity;
  }

  get remainingBytes(): number {
    return this.dirty.bytes;
  }

  next(from: number, lengthMax: number): DirtyRange | null {
    const range = this.taken.nextFree(from, (at) => this.dirty.next(at));
    return range === null ? null : { offset: range.offset, length: Math.min(range.length, lengthMax) };
  }

  take(range: DirtyRange): CopyTicket {
    const { dirty, taken } = this;
    const held = taken.add(range);
    dirty.clear(range.offset, range.length);
    const giveBack = (): void => {
      taken.delete(held);
      dirty.mark(held.offset, held.length);
    };
    return {
      trim: (length: number): void => {
        dirty.mark(range.offset + length, held.length - length);
        held.length = length;
      },
      send: (bytes: Uint8Array | null): Done => this.send(held, bytes, giveBack),
      skipZeroes: (): Done => {
        if (this.sent.any(held.offset, held.length)) return this.send(held, null, giveBack);
        taken.delete(held);
        return undefined;
      },
      giveBack,
    };
  }

  flush(): Done {
    return this.node().flush();
  }

  private async send(held: TakenRange, bytes: Uint8Array | null, giveBack: () => void): Promise<void> {
    this.sent.mark(held.offset, held.length);
    try {
      await attempt(() =>
        bytes === null
          ? this.node().writeZeroes(held.offset, held.length, writeFlags.none)
          : this.node().write(held.offset, bytes, writeFlags.none),
      );
    } catch (error) {
      giveBack();
      throw error;
    }
    this.taken.delete(held);
  }
}
