/**
 * A backup: keeps the point in time of its start of a node in another one, by copying the old content of a block before
 * it is changed, and (`sync: full`) everything else in the background (QEMU: qapi/block-core.json, blockdev-backup).
 *
 *     parents -> copy-before-write -> device                  old content -> target
 *
 * Invariants: parents that stand below the filter (an overlay over the device that is the target) stay where they are.
 * While one of both nodes is drained the background rests. A backup with `sync: none` goes on until it is cancelled.
 */
import { allPermissions } from '../block/child.ts';
import { type CopiesBeforeWrite, copiesBeforeWrite } from '../block/copies-before-write.ts';
import type { Graph, RootUse } from '../block/graph-view.ts';
import { blockOperations, type OpBlock } from '../block/op-blockers.ts';
import { BlockError } from '../util/errors.ts';
import { type Deferred, type Done, deferred } from '../util/later.ts';
import type { Job, JobBody, JobControl, JobManager, JobOutcome } from './job.ts';

/** Arguments of `blockdev-backup`, with QMP spelling. */
export interface BackupArguments {
  readonly 'job-id'?: string | undefined;
  readonly device: string;
  readonly target: string;
  readonly sync: 'full' | 'none';
  readonly speed?: number | undefined;
  readonly 'filter-node-name'?: string | undefined;
  readonly 'auto-finalize'?: boolean | undefined;
  readonly 'auto-dismiss'?: boolean | undefined;
}

/** A backup as the code that started it sees it. */
export interface Backup {
  readonly job: Job;
  readonly copies: CopiesBeforeWrite;
}

export interface BackupHow {
  readonly jobId: string;
  readonly device: string;
  readonly target: string;
  readonly sync: 'full' | 'none';
  readonly filterName: string;
  /** bytes copied together; default 4096 */
  readonly granularity?: number | undefined;
  /** old content is durable in the target before a block is changed; default false */
  readonly durable?: boolean;
  readonly speed?: number | undefined;
  readonly autoFinalize?: boolean | undefined;
  readonly autoDismiss?: boolean | undefined;
  readonly internal?: boolean;
}

/** bytes that the background copies in one go */
const chunkBytes = 2 ** 20;

/** Starts the job; it goes on by itself. @throws BlockError, and nothing has changed then */
export async function startBackup(graph: Graph, jobs: JobManager, how: BackupHow): Promise<Backup> {
  const body = new BackupBody(graph, how);
  const job = jobs.create({
    id: how.jobId,
    type: 'backup',
    body,
    speed: how.speed,
    autoFinalize: how.autoFinalize,
    autoDismiss: how.autoDismiss,
    internal: how.internal ?? false,
  });
  if (how.internal !== true) job.keep(blocksFor(graph, how));
  try {
    const copies = await body.open(job);
    job.start();
    return { job, copies };
  } catch (error) {
    job.forget();
    throw error;
  }
}

/** A node may have several backups at a time, a target is one's own. */
function blocksFor({ blockers }: Graph, { jobId, device, target, filterName }: BackupHow): OpBlock[] {
  const reason = `job '${jobId}' works on it`;
  const others = blockOperations.filter((operation) => operation !== 'backup-source');
  return [
    blockers.block(device, others, reason),
    ...blockers.blockAll([target], reason),
    blockers.block(filterName, ['delete'], `it belongs to job '${jobId}'`),
  ];
}

/** `blockdev-backup` */
export async function startBlockdevBackup(graph: Graph, jobs: JobManager, args: BackupArguments): Promise<void> {
  const { device, target, sync } = args;
  // A node that is not there: no job is told to have been made.
  for (const name of [device, target]) graph.find(name);
  if (device === target) throw new BlockError('invalid-option', `target: '${target}' is the device itself`);
  graph.blockers.check(device, 'backup-source');
  graph.blockers.check(target, 'backup-target');
  const jobId = args['job-id'] ?? device;
  await startBackup(graph, jobs, {
    jobId,
    device,
    target,
    sync,
    filterName: args['filter-node-name'] ?? `copy-before-write-${jobId}`.slice(0, 255),
    speed: args.speed,
    autoFinalize: args['auto-finalize'],
    autoDismiss: args['auto-dismiss'],
  });
}

class BackupBody implements JobBody {
  private readonly graph: Graph;
  private readonly how: BackupHow;
  private copies: CopiesBeforeWrite | null = null;
  private readonly length: number;
  /** the background as a user of the filter, to be held with the others */
  private use: RootUse | null = null;
  private drains = 0;
  private busy = false;
  private quiet: Deferred | null = null;

  constructor(graph: Graph, how: BackupHow) {
    this.graph = graph;
    this.how = how;
    this.length = graph.find(how.device).node.length;
  }

  /** Puts the filter above the device. Takes it back if it fails. */
  async open(control: JobControl): Promise<CopiesBeforeWrite> {
    const { graph, how } = this;
    const filter = await graph.add({
      driver: 'copy-before-write',
      'node-name': how.filterName,
      file: how.device,
      target: how.target,
      discard: 'unmap',
      sync: how.durable ?? false,
      ...(how.granularity === undefined ? {} : { granularity: how.granularity }),
    });
    this.copies = copiesBeforeWrite(filter.node);
    try {
      if (this.copies === null) throw new BlockError('not-supported', 'the filter does not copy before writes');
      if (how.sync === 'full') this.use = await this.holdBackground(control);
      await graph.insertAbove(how.device, how.filterName);
    } catch (error) {
      await this.clean('failed').catch(() => undefined);
      throw error;
    }
    return this.copies;
  }

  async run(control: JobControl): Promise<void> {
    control.setProgress(0, this.length);
    if (this.how.sync === 'full') return await this.copyAll(control);
    for (;;) {
      await control.pausePoint();
      await control.wait();
    }
  }

  async clean(_outcome: JobOutcome): Promise<void> {
    const { graph, how } = this;
    if (this.copies === null) return;
    this.copies = null;
    try {
      await this.use?.release();
    } finally {
      await (await graph.takeOut(how.filterName))();
    }
  }

  private async copyAll(control: JobControl): Promise<void> {
    const { clock } = this.graph.host;
    for (let at = 0; at < this.length; at += chunkBytes) {
      await control.pausePoint();
      const length = Math.min(chunkBytes, this.length - at);
      const copied = await this.issue(control, async () => (await this.copies?.saveOld(at, length)) ?? 0);
      control.setProgress(at + length, this.length);
      const restMs = control.speed === 0 ? 0 : (copied / control.speed) * 1000;
      if (restMs > 0) {
        clock.after(restMs, () => control.wake());
        await control.wait();
      } else await new Promise<void>((resolve) => clock.endOfTurn(resolve));
    }
    await this.issue(control, async () => await this.graph.find(this.how.target).node.flush());
  }

  private holdBackground(control: JobControl): Promise<RootUse> {
    const parent = {
      description: `job "${this.how.jobId}"`,
      drainBegin: (): Done => {
        this.drains += 1;
        if (!this.busy) return undefined;
        this.quiet ??= deferred();
        return this.quiet.promise;
      },
      drainEnd: (): void => {
        this.drains -= 1;
        control.wake();
      },
    };
    // The filter itself reads and writes.
    return this.graph.use(this.how.filterName, parent, { needs: 0, shares: allPermissions });
  }

  /** Does a piece of the work, unless it has to rest. @throws BlockError cancelled */
  private async issue<T>(control: JobControl, work: () => Promise<T>): Promise<T> {
    while (this.drains > 0) {
      await control.wait();
      await control.pausePoint();
    }
    this.busy = true;
    try {
      return await work();
    } finally {
      this.busy = false;
      this.quiet?.resolve();
      this.quiet = null;
    }
  }
}
