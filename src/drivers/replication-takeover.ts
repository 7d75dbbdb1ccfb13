/**
 * The commit of a failover (spec: replication-filter, "stop"; record-log.md 10): active and hidden go into the
 * secondary disk while the user goes on, and then the disk takes the place of the chain.
 *
 * By itself, where the overlays have epochs of their own. Where the epoch is its owner's, the disk is kept in step
 * until the owner has durably said that the overlays are empty: a crash before that repeats the commit, one after it
 * finds nothing to commit.
 */
import type { Drained, Graph } from '../block/graph-view.ts';
import { type Commit, startCommit } from '../jobs/commit.ts';
import type { JobManager } from '../jobs/job.ts';
import { BlockError } from '../util/errors.ts';
import type { SecondaryParts } from './replication-disks.ts';

export class Takeover {
  private readonly commit: Commit;
  private readonly nodeName: string;

  private constructor(commit: Commit, nodeName: string) {
    this.commit = commit;
    this.nodeName = nodeName;
  }

  /** @throws BlockError it cannot even start */
  static async begin(graph: Graph, jobs: JobManager, nodeName: string, parts: SecondaryParts): Promise<Takeover> {
    const commit = await startCommit(graph, jobs, {
      jobId: `#commit-${nodeName}`,
      top: parts.active,
      base: parts.secondary,
      filterName: `commit-top-${nodeName}`.slice(0, 255),
      completes: parts.ofGroup ? 'asked' : 'unasked',
      internal: true,
    });
    return new Takeover(commit, nodeName);
  }

  /** Resolves when it has ended, however; never rejects. */
  get ended(): Promise<void> {
    return this.commit.job.concluded;
  }

  /** Resolves when it waits for the owner of the epoch; else never. */
  get ready(): Promise<void> {
    return this.commit.ready;
  }

  /** The disk has taken the place of the chain. */
  get succeeded(): boolean {
    return this.commit.pivoted;
  }

  /** Why it did not succeed. */
  get failure(): BlockError {
    return this.commit.job.error ?? new BlockError('cancelled', 'it was cancelled');
  }

  /** Users are held and the disk is durable: the owner may now say durably that the overlays are empty. */
  async prepare(): Promise<Drained> {
    if (!this.commit.inStep) {
      throw new BlockError('wrong-state', `node '${this.nodeName}': the commit of the failover is still under way`);
    }
    return await this.commit.prepareEnd();
  }

  async complete(): Promise<void> {
    this.commit.job.complete();
    await this.ended;
  }

  async cancel(): Promise<void> {
    this.commit.job.cancelIfItCan();
    await this.ended;
  }

  info(): Record<string, unknown> {
    const info = this.commit.job.info();
    return {
      status: this.commit.inStep ? 'ready' : 'running',
      'current-progress': info['current-progress'],
      'total-progress': info['total-progress'],
    };
  }
}
