/**
 * A commit: copies what the overlays of a chain hold into the base below them, while I/O goes on, and then puts the
 * base in the place of the chain (QEMU: qapi/block-core.json, block-commit).
 *
 *     parents -> commit-top -> top -> ... -> base             job reads the top, writes the base
 *     parents -> base                                          after the pivot
 *
 * Invariant: what is written meanwhile reaches the top and, where the base is up to date, the base (`CommitWrites`).
 * The base is durable before it takes the place of the chain. The overlays keep their content. Nobody else changes the
 * top, writes to the base or uses what lies between; in a failover the manager sees to it.
 */
import { backingOf, findAllocated, overlaysAbove } from '../block/chain.ts';
import { allPermissions, permissionBits } from '../block/child.ts';
import { type CommitTap, CommitWrites } from '../block/commit-writes.ts';
import type { BlockParent, Drained, Graph, NodeInfo, RootUse } from '../block/graph-view.ts';
import type { BlockNode } from '../block/node.ts';
import { BlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import { CopyLoop } from './copy-loop.ts';
import type { Job, JobBody, JobControl, JobManager, JobOutcome, OnError } from './job.ts';

/** Arguments of `block-commit`, with QMP spelling. */
export interface BlockCommitArguments {
  readonly 'job-id'?: string | undefined;
  readonly device: string;
  readonly 'base-node'?: string | undefined;
  readonly 'top-node'?: string | undefined;
  readonly speed?: number | undefined;
  readonly 'on-error'?: OnError | undefined;
  readonly 'filter-node-name'?: string | undefined;
  readonly 'auto-finalize'?: boolean | undefined;
  readonly 'auto-dismiss'?: boolean | undefined;
}

/** bytes; the blocks of our overlays */
const granularity = 4096;
/** ms in which nothing is copied yet: the first requests of those who start it are not held up */
const usersFirstMs = 10;

/** bytes under way at most: small chunks, because the users of both disks wait for a chunk */
const copyBytes = 4 * 2 ** 20;

/** A commit as the code that started it sees it. */
export interface Commit {
  readonly job: Job;
  /** Every write reaches the base as well, from now on until the end; the last step may be made. */
  readonly inStep: boolean;
  /** The base has taken the place of the chain. */
  readonly pivoted: boolean;
  /** Resolves when it is in step for the first time; never if it ends before, or completes unasked. */
  readonly ready: Promise<void>;
  /** Holds the users of the chain and makes the base durable: the chain may be emptied until the users go on. */
  prepareEnd(): Promise<Drained>;
}

export interface CommitHow {
  readonly jobId: string;
  /** the overlay whose place the base takes */
  readonly top: string;
  readonly base: string;
  readonly filterName: string;
  /** `asked`: it is ready at some time and completes when told; `unasked`: by itself */
  readonly completes: 'asked' | 'unasked';
  readonly speed?: number | undefined;
  readonly onError?: OnError | undefined;
  readonly autoFinalize?: boolean | undefined;
  readonly autoDismiss?: boolean | undefined;
  readonly internal?: boolean;
}

/** Starts the job; it goes on by itself. @throws BlockError, and nothing has changed then */
export async function startCommit(graph: Graph, jobs: JobManager, how: CommitHow): Promise<Commit> {
  const body = new CommitBody(graph, how);
  const job = jobs.create({
    id: how.jobId,
    type: 'commit',
    body,
    speed: how.speed,
    autoFinalize: how.autoFinalize,
    autoDismiss: how.autoDismiss,
    internal: how.internal ?? false,
  });
  if (how.internal !== true) {
    job.keep([
      ...graph.blockers.blockAll(body.nodeNames, `job '${job.id}' works on it`),
      graph.blockers.block(how.filterName, ['delete'], `it belongs to job '${job.id}'`),
    ]);
  }
  try {
    await body.open(job);
  } catch (error) {
    job.forget();
    throw error;
  }
  job.start();
  return {
    job,
    // The dirty part only shrinks: once ready, a write that is under way to the base changes nothing.
    get inStep(): boolean {
      return job.status === 'ready';
    },
    get pivoted(): boolean {
      return body.pivoted;
    },
    ready: body.ready.promise,
    prepareEnd: () => body.prepareEnd(),
  };
}

/** `block-commit`. A commit of what nobody writes to completes unasked, as QEMU's does. */
export async function startBlockCommit(graph: Graph, jobs: JobManager, args: BlockCommitArguments): Promise<void> {
  const { device } = args;
  const top = args['top-node'] ?? topOf(graph, device);
  const base = args['base-node'] ?? bottomOf(graph, top);
  overlaysAbove(graph, device, top);
  graph.blockers.check(device, 'commit-source');
  graph.blockers.check(top, 'commit-source');
  graph.blockers.check(base, 'commit-target');
  const jobId = args['job-id'] ?? device;
  const isActive = top === topOf(graph, device);
  await startCommit(graph, jobs, {
    jobId,
    top,
    base,
    filterName: args['filter-node-name'] ?? `commit-top-${jobId}`.slice(0, 255),
    completes: isActive ? 'asked' : 'unasked',
    speed: args.speed,
    onError: args['on-error'],
    autoFinalize: args['auto-finalize'],
    autoDismiss: args['auto-dismiss'],
  });
}

/** The overlay at or below a device whose place the base would take: filters above it stay. */
function topOf(graph: Graph, device: string): string {
  for (let info = graph.find(device); ; ) {
    const below = info.isFilter ? info.children.find(({ role }) => role === 'filtered') : undefined;
    if (below === undefined) return info.nodeName;
    info = graph.find(below.nodeName);
  }
}

function bottomOf(graph: Graph, top: string): string {
  let bottom = top;
  for (let below = backingOf(graph, top); below !== null; below = backingOf(graph, bottom)) bottom = below.nodeName;
  if (bottom === top) throw new BlockError('invalid-option', `node '${top}' has no backing to commit into`);
  return bottom;
}

class CommitBody implements JobBody {
  readonly ready = deferred();
  private readonly graph: Graph;
  private readonly how: CommitHow;
  private readonly overlays: readonly NodeInfo[];
  private source: RootUse | null = null;
  private base: RootUse | null = null;
  private writes: CommitWrites | null = null;
  private loop: CopyLoop | null = null;
  private filterStands = false;
  /** closes the filter that the pivot has taken out; null: there was none */
  private closeFilter: (() => Promise<void>) | null = null;
  /** the overlays between top and base, held so that nobody else uses them */
  private readonly between: RootUse[] = [];
  /** the base was read-only before */
  private reopened = false;

  constructor(graph: Graph, how: CommitHow) {
    const { top, base } = how;
    this.graph = graph;
    this.how = how;
    const overlays = overlaysAbove(graph, top, base);
    if (overlays.length === 0) throw new BlockError('invalid-option', `'${top}' is the base itself`);
    const above = graph.find(top).node.length;
    const below = graph.find(base).node.length;
    if (above !== below) {
      throw new BlockError('invalid-option', `'${top}' has ${above} bytes, its base '${base}' has ${below}`);
    }
    this.overlays = overlays;
  }

  /** The chain, from the top to the base. */
  get nodeNames(): readonly string[] {
    return [...this.overlays.map(({ nodeName }) => nodeName), this.how.base];
  }

  get inStep(): boolean {
    return this.writes?.inStep === true;
  }

  get pivoted(): boolean {
    return this.closeFilter !== null;
  }

  /** Takes the nodes and puts the filter above the top. Takes everything back if it fails. */
  async open(control: JobControl): Promise<void> {
    const { graph, how } = this;
    const { top, base, filterName } = how;
    const { 'consistent-read': read, write, resize, 'write-unchanged': unchanged } = permissionBits;
    const writes = new CommitWrites(
      graph.find(top).node.length,
      granularity,
      () => this.held(this.base),
      () => control.wake(),
    );
    this.writes = writes;
    this.loop = new CopyLoop({
      source: () => this.held(this.source),
      target: writes,
      clock: graph.host.clock,
      control,
      bufferBytes: copyBytes,
      onSourceError: how.onError ?? 'report',
      onTargetError: how.onError ?? 'report',
    });
    const parent = this.loop.parent(`job "${how.jobId}"`);
    try {
      if (graph.find(base).readOnly) {
        await graph.reopen([{ nodeName: base, readOnly: false }]);
        this.reopened = true;
      }
      // In a failover others hold the disks as well: the manager has taken the export away (replication-filter).
      const writers = how.internal === true ? write : 0;
      this.base = await graph.use(base, parent, { needs: read | write, shares: read | unchanged | writers });
      const { readOnly } = graph.find(top);
      const filter = await graph.add({
        driver: 'commit-top',
        'node-name': filterName,
        file: top,
        'read-only': readOnly,
        discard: 'unmap',
      });
      this.filterStands = true;
      (filter.node as unknown as CommitTap).follow(writes);
      await graph.insertAbove(top, filterName);
      if (how.internal !== true) await this.holdBetween(parent);
      this.source = await graph.use(top, parent, { needs: 0, shares: allPermissions & ~resize });
    } catch (error) {
      await this.clean('failed').catch(() => undefined);
      throw error;
    }
  }

  /** A write there would be in no copy, and a read would find what the commit has put below it. */
  private async holdBetween(parent: BlockParent): Promise<void> {
    const shares = permissionBits['write-unchanged'];
    for (const { nodeName } of this.overlays.slice(1)) {
      this.between.push(await this.graph.use(nodeName, parent, { needs: 0, shares, sharesBelow: allPermissions }));
    }
  }

  async run(control: JobControl): Promise<void> {
    // Whoever started it is answered first, and users go on: after a failover they have waited long enough.
    await this.usersFirst();
    await this.markAllocated(control);
    await this.loop?.run();
    this.checkBase();
    if (this.how.completes === 'unasked') return;
    control.becomeReady();
    this.ready.resolve();
    while (control.ending === null) {
      await control.wait();
      await control.pausePoint();
      this.checkBase();
    }
  }

  /** The pivot: whoever used the top uses the base from now on. */
  async prepare(ending: 'complete' | 'leave' | null): Promise<void> {
    if (ending === 'leave') return;
    const drained = await this.prepareEnd();
    try {
      // Our own use would stand in the way of what the parents need.
      await this.base?.setPermissions({ needs: permissionBits['consistent-read'], shares: allPermissions });
      // In one change: who came to the filter or the top between two would stay there.
      this.closeFilter = await this.graph.takeOut(this.how.filterName, this.how.base);
      this.filterStands = false;
    } finally {
      drained.end();
    }
  }

  async prepareEnd(): Promise<Drained> {
    const drained = await this.graph.drain(this.how.filterName);
    try {
      this.checkBase();
      if (!this.inStep) throw new BlockError('wrong-state', `job '${this.how.jobId}' has not copied everything yet`);
      await this.flushBase();
      return drained;
    } catch (error) {
      drained.end();
      throw error;
    }
  }

  /** A failed one ends the commit: the system may have lost what was copied, and another one would succeed. */
  private async flushBase(): Promise<void> {
    try {
      await this.held(this.base).flush();
    } catch (error) {
      this.writes?.fail(error);
      throw error;
    }
  }

  /** Takes the filter out and gives the nodes back, whatever went before; the first failure is thrown at the end. */
  async clean(_outcome: JobOutcome): Promise<void> {
    const { graph, how } = this;
    const steps: (() => Promise<void>)[] = [];
    if (this.filterStands) steps.push(async () => await (await graph.takeOut(how.filterName))());
    if (this.closeFilter !== null) steps.push(this.closeFilter);
    steps.push(async () => await this.source?.release());
    for (const use of this.between) steps.push(() => use.release());
    steps.push(async () => await this.base?.release());
    if (this.reopened) steps.push(() => this.restoreBase());
    this.filterStands = false;
    this.reopened = false;
    let first: unknown;
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        first ??= error;
      }
    }
    this.source = null;
    this.base = null;
    if (first !== undefined) throw first;
  }

  /** Read-only again, unless somebody writes to it by now: it may have become the top. */
  private async restoreBase(): Promise<void> {
    await this.graph.reopen([{ nodeName: this.how.base, readOnly: true }]).catch(() => undefined);
  }

  private checkBase(): void {
    const failure = this.writes?.failure ?? null;
    if (failure !== null) throw failure;
  }

  private held(use: RootUse | null): BlockNode {
    if (use === null) throw new BlockError('wrong-state', `job '${this.how.jobId}' has given its nodes back`);
    return use.node;
  }

  /** What is in an overlay has to be copied. Writes that come meanwhile go to both, or are copied once more. */
  private async markAllocated(control: JobControl): Promise<void> {
    const { dirty } = this.writes ?? {};
    if (dirty === undefined) return;
    const pause = async (): Promise<void> => {
      await this.othersTurn();
      await control.pausePoint();
    };
    await findAllocated(
      this.overlays.map(({ node }) => node),
      dirty.length,
      pause,
      (offset, length) => dirty.mark(offset, length),
    );
  }

  private usersFirst(): Promise<void> {
    return new Promise((resolve) => void this.graph.host.clock.after(usersFirstMs, resolve));
  }

  private othersTurn(): Promise<void> {
    return new Promise((resolve) => this.graph.host.clock.endOfTurn(resolve));
  }
}
