/**
 * replication-sync: copies what the other side misses from the local disk through the replication filter, over the same
 * connection as the users' writes (pair.md 11). It concludes when nothing is missing and every copy was answered; it
 * fails when the link breaks, or at the first block that cannot be read (that stays missing).
 */
import { allPermissions, permissionBits } from '../block/child.ts';
import type { Graph, RootUse } from '../block/graph-view.ts';
import type { LinkMember } from '../block/link-group.ts';
import { stallShare } from '../block/link-pace.ts';
import { BlockError } from '../util/errors.ts';
import { CopyLoop } from './copy-loop.ts';
import type { JobBody, JobControl, JobManager } from './job.ts';

export interface SyncArguments {
  /** the node of the local disk, read below everything that replicates */
  readonly source: string;
  readonly jobId: string;
  /** the other side reads as zeroes where nothing was written yet */
  readonly targetIsZero?: boolean | undefined;
  /** bytes a second; 0: no limit */
  readonly speed?: number | undefined;
}

/** Starts the job. @throws BlockError wrong-state if the filter does not forward */
export async function startReplicationSync(
  graph: Graph,
  jobs: JobManager,
  member: LinkMember,
  args: SyncArguments,
): Promise<void> {
  const body = new SyncBody(graph, member, args);
  const job = jobs.create({ id: args.jobId, type: 'mirror', body, speed: args.speed });
  try {
    await body.open(job);
  } catch (error) {
    job.forget();
    throw error;
  }
  job.start();
}

class SyncBody implements JobBody {
  private readonly graph: Graph;
  private readonly member: LinkMember;
  private readonly args: SyncArguments;
  private source: RootUse | null = null;
  private loop: CopyLoop | null = null;

  constructor(graph: Graph, member: LinkMember, args: SyncArguments) {
    this.graph = graph;
    this.member = member;
    this.args = args;
  }

  async open(control: JobControl): Promise<void> {
    const { graph, args, member } = this;
    const target = member.copyTarget();
    const loop = new CopyLoop({
      source: () => {
        if (this.source !== null) return this.source.node;
        throw new BlockError('wrong-state', `job '${args.jobId}' has given its node back`);
      },
      target,
      clock: graph.host.clock,
      control,
      targetIsZero: args.targetIsZero ?? false,
      latencyMsMax: member.stallMsMax / stallShare,
    });
    this.source = await graph.use(args.source, loop.parent(`job "${args.jobId}"`), {
      needs: permissionBits['consistent-read'],
      shares: allPermissions & ~permissionBits.resize,
    });
    const { length } = this.source.node;
    if (length !== member.length) {
      await this.clean();
      throw new BlockError(
        'invalid-option',
        `source: '${args.source}' has ${length} bytes, '${member.nodeName}' has ${member.length}`,
      );
    }
    loop.tellProgress();
    this.loop = loop;
  }

  async run(): Promise<void> {
    await this.loop?.run();
  }

  async clean(): Promise<void> {
    await this.source?.release();
    this.source = null;
  }
}
