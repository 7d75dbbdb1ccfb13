/**
 * The hidden and the secondary disk of a replication filter in mode secondary: how they are found and checked, and what
 * the filter holds of them while it runs (spec: replication-filter, "start" and "Options").
 *
 * Invariant: `release` gives back everything that `reopen` and `hold` took, once, in whatever state they stopped.
 */
import {
  backingOf,
  type Devices,
  findAllocated,
  nodeOfDevice,
  standsIn,
  throughFilters,
  usersAbove,
} from '../block/chain.ts';
import { type Child, permissionBits } from '../block/child.ts';
import type { CopiesBeforeWrite } from '../block/copies-before-write.ts';
import type { OpenContext } from '../block/driver.ts';
import { epochal } from '../block/epochal.ts';
import type { Graph, NodeInfo } from '../block/graph-view.ts';
import type { BlockNode } from '../block/node.ts';
import { type BlockOperation, blockOperations, type OpBlock } from '../block/op-blockers.ts';
import type { ReopenRequest } from '../block/reopen.ts';
import { type Backup, startBackup } from '../jobs/backup.ts';
import type { JobManager } from '../jobs/job.ts';
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';

/** The chain below a filter that runs: names of nodes, because those stay while jobs put filters between. */
export interface SecondaryParts {
  readonly active: string;
  readonly hidden: string;
  readonly secondary: string;
  /** bytes of the hidden disk's blocks, the least that a copy need take */
  readonly granularity: number;
  /** the overlays' epoch is their owner's: emptied by `replication-commit`, kept by a start */
  readonly ofGroup: boolean;
  /**
   * A checkpoint is to outlive a power cut: the secondary disk is durable before it is made, and old content before its
   * place is overwritten (record-log.md 8).
   */
  readonly durable: boolean;
}

const granularityDefault = 4096;

/** @throws BlockError what is not as a start needs it */
export function findParts(graph: Graph, filter: string, active: string): SecondaryParts {
  const hidden = backingOf(graph, active);
  if (hidden === null) throw new BlockError('invalid-option', `the active disk '${active}' has no backing`);
  const secondary = backingOf(graph, hidden.nodeName);
  if (secondary === null) {
    throw new BlockError('invalid-option', `the hidden disk '${hidden.nodeName}' has no backing`);
  }
  if (usersAbove(graph, secondary.nodeName, hidden.nodeName, filter).length === 0) {
    throw new BlockError('invalid-option', `the secondary disk '${secondary.nodeName}' has no export or other user`);
  }
  const lengths = [graph.find(active).node.length, hidden.node.length, secondary.node.length];
  if (new Set(lengths).size !== 1 || !lengths.every(Number.isSafeInteger)) {
    throw new BlockError('invalid-option', `active, hidden and secondary disk differ in length: ${lengths.join(', ')}`);
  }
  const upper = throughFilters(graph, active);
  const overlay = throughFilters(graph, hidden.nodeName);
  for (const one of [upper, overlay]) checkEmptiable(one);
  // A crash between the two emptyings would leave the one at another checkpoint than the other.
  if ((epochal(upper.node) === null) !== (epochal(overlay.node) === null)) {
    const text = `'${active}' and '${hidden.nodeName}' need the epoch of a group both, or neither`;
    throw new BlockError('invalid-option', text);
  }
  // A job that has them already would change them past ours, or put others in their place.
  checkFree(graph, hidden.nodeName, 'backup-target');
  checkFree(graph, secondary.nodeName, 'backup-source');
  const { granularity, sync } = overlay.options;
  return {
    active,
    hidden: hidden.nodeName,
    secondary: secondary.nodeName,
    granularity: typeof granularity === 'number' ? granularity : granularityDefault,
    ofGroup: epochal(overlay.node) !== null,
    durable: overlay.driver === 'shadow' && sync !== false,
  };
}

/** The job that has a node may have put a filter above it. @throws BlockError op-blocked */
function checkFree(graph: Graph, nodeName: string, operation: BlockOperation): void {
  graph.blockers.check(nodeName, operation);
  const { isFilter, children } = graph.find(nodeName);
  const below = isFilter ? children.find(({ role }) => role === 'filtered') : undefined;
  if (below !== undefined) checkFree(graph, below.nodeName, operation);
}

/** The node on top: a root that has the filter in its tree, or is it. @throws BlockError */
export function findTop(graph: Graph, devices: Devices, topId: string, filter: string): string {
  const { nodeName, parentNodes } = nodeOfDevice(graph, devices, topId);
  const [parent] = parentNodes;
  if (parent !== undefined) {
    throw new BlockError('invalid-option', `top-id: '${nodeName}' is no root, it stands below '${parent}'`);
  }
  if (!standsIn(graph, nodeName, filter)) {
    throw new BlockError('invalid-option', `top-id: '${filter}' is not in the tree of '${nodeName}'`);
  }
  return nodeName;
}

/**
 * The job that keeps the old content of the secondary disk in the hidden disk. Whoever used the disk stands on its
 * filter from now on: what is kept away from the one is kept away from the other.
 */
export async function startKeeping(
  graph: Graph,
  jobs: JobManager,
  filter: string,
  parts: SecondaryParts,
  reason: string,
): Promise<Backup> {
  const filterName = `copy-before-write-${filter}`.slice(0, 255);
  const backup = await startBackup(graph, jobs, {
    jobId: `#replication-${filter}`,
    device: parts.secondary,
    target: parts.hidden,
    sync: 'none',
    filterName,
    granularity: parts.granularity,
    durable: parts.durable,
    internal: true,
  });
  // The block goes with the node.
  graph.blockers.block(filterName, blockOperations, reason);
  return backup;
}

function checkEmptiable({ node, nodeName }: NodeInfo): void {
  if (node.makeEmpty === undefined && epochal(node) === null) {
    throw new BlockError('not-supported', `the overlay '${nodeName}' cannot be emptied`);
  }
}

/** @param epoch for an overlay whose epoch is its owner's; not given: only one that has its own can be emptied */
export function emptyDisk(graph: Graph, nodeName: string, epoch: number | undefined): Done {
  const { node } = throughFilters(graph, nodeName);
  const overlay = epochal(node);
  if (overlay === null) {
    if (node.makeEmpty === undefined) throw new BlockError('not-supported', `'${nodeName}' cannot be emptied any more`);
    return node.makeEmpty();
  }
  if (epoch === undefined) {
    const text = `the epoch of '${nodeName}' is its owner's: use replication-prepare and replication-commit`;
    throw new BlockError('wrong-state', text);
  }
  overlay.emptyAt(epoch);
  return undefined;
}

/** Bytes that an overlay holds, as it tells; 0 where it does not. */
export function heldBytes(graph: Graph, nodeName: string): number {
  const bytes = throughFilters(graph, nodeName).node.info?.()['held-bytes'];
  return typeof bytes === 'number' ? bytes : 0;
}

/** What a hidden disk was kept with holds old content already (record-log.md 9). */
export async function markKept(graph: Graph, parts: SecondaryParts, copies: CopiesBeforeWrite): Promise<void> {
  const { node } = throughFilters(graph, parts.hidden);
  const pause = (): Promise<void> => new Promise((resolve) => graph.host.clock.endOfTurn(resolve));
  await findAllocated([node], node.length, pause, (offset, length) => copies.markCopied(offset, length));
}

export class HeldDisks {
  private readonly context: OpenContext;
  private readonly graph: Graph;
  private before: ReopenRequest[] = [];
  private children: { readonly hidden: Child; readonly secondary: Child } | null = null;
  private blocks: OpBlock[] = [];

  constructor(context: OpenContext, graph: Graph) {
    this.context = context;
    this.graph = graph;
  }

  /** The secondary disk, for writes that go past the overlays. */
  get secondary(): BlockNode {
    if (this.children === null) throw new BlockError('wrong-state', 'the secondary disk is not held');
    return this.children.secondary.node;
  }

  /** Makes both writable, or neither; what they were is remembered. */
  async reopen({ hidden, secondary }: SecondaryParts): Promise<void> {
    const readOnly = [hidden, secondary].filter((name) => this.graph.find(name).readOnly);
    if (readOnly.length === 0) return;
    await this.graph.reopen(readOnly.map((nodeName) => ({ nodeName, readOnly: false })));
    this.before = readOnly.map((nodeName) => ({ nodeName, readOnly: true }));
  }

  /** Keeps commands away from both and holds them, where that is not done already. */
  async hold({ hidden, secondary }: SecondaryParts, reason: string): Promise<void> {
    if (this.blocks.length === 0) {
      this.blocks = [hidden, secondary].map((name) => this.graph.blockers.block(name, blockOperations, reason));
    }
    if (this.children !== null) return;
    const attached = await this.attach('hidden', hidden);
    try {
      this.children = { hidden: attached, secondary: await this.attach('secondary', secondary) };
    } catch (error) {
      await this.context.detach(attached);
      throw error;
    }
  }

  unblock(): void {
    for (const block of this.blocks) block.lift();
    this.blocks = [];
  }

  /** @param how restore: both become what they were before `reopen` */
  async release(how: { readonly restore: boolean }): Promise<void> {
    this.unblock();
    const { children, before } = this;
    this.children = null;
    this.before = [];
    // What a driver below says to less being done with it changes nothing: the edges are gone.
    await (children && this.context.detach(children.secondary).catch(() => undefined));
    await (children && this.context.detach(children.hidden).catch(() => undefined));
    // One that another user has to write to by now stays as it is.
    if (how.restore && before.length > 0) await this.graph.reopen(before).catch(() => undefined);
  }

  private attach(name: string, nodeName: string): Promise<Child> {
    const { 'consistent-read': read, write, 'write-unchanged': unchanged } = permissionBits;
    return this.context.attach(name, 'data', nodeName, (_parents, readOnly) => ({
      needs: read | (readOnly ? 0 : write),
      shares: read | write | unchanged,
    }));
  }
}
