/**
 * The filter `replication`, mode primary (spec: replication-filter): it forwards writes to the other side and is never
 * read. It stands beside the primary disk as a child of a `quorum`.
 *
 *     stage      read   write                                                 flush
 *     none       EIO    EIO                                                   to the child
 *     running    EIO    to the child; a failure is recorded, success given    to the child
 *     done       EIO    EIO                                                   to the child
 *
 * With `on-link-down: hold` (a pair) the mode of the link group rules writes and flushes in `none` and `running`
 * (`replication-hold.ts` has its table): the group holds everybody until a supervisor decides, so nothing passes by
 * unseen before `start`. In `done` a write fails there too, and is marked.
 *
 * The parts: `-hold` and `-link` what a link means to users, `-stream` the forwarding, `-window` its memory, `-flushes`
 * what is proven, `-marks` the bitmaps, `-missing` what a sync copies, `-stall` the bound on waiting.
 */
import { z } from 'zod';
import type { Devices } from '../block/chain.ts';
import { type Child, type PermissionMask, permissionBits } from '../block/child.ts';
import { granularityMax, granularityMin } from '../block/dirty-bitmap.ts';
import { type ChildPermissions, type DriverNode, defineDriver, type OpenContext } from '../block/driver.ts';
import type { Graph } from '../block/graph-view.ts';
import type { WriteFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import {
  nextStage,
  type ReplicationGroup,
  type ReplicationInfo,
  type ReplicationMember,
  type ReplicationMode,
  type ReplicationStage,
  type StageEvent,
} from '../block/replication-group.ts';
import type { JobManager } from '../jobs/job.ts';
import { BlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import { HoldLink } from './replication-hold.ts';
import { type LinkOptions, RecordLink, type ReplicationLink } from './replication-link.ts';
import { ReplicationMarks } from './replication-marks.ts';
import { SecondaryFilter } from './replication-secondary.ts';
import { refusedInStage } from './replication-stages.ts';

/** Bytes that one filter's window may have. */
export const windowBytesMax = 2 ** 30;

const options = z.strictObject({
  mode: z.enum(['primary', 'secondary']).describe('the side that this filter is on'),
  file: nodeReference.nullable().describe('the other side; null (with on-link-down=hold): not connected yet (ours)'),
  size: z.int().min(0).optional().describe('bytes of the disk; needed where file is null (ours)'),
  'top-id': z.string().optional().describe('mode secondary: the node on top of the secondary graph'),
  acknowledge: z
    .enum(['remote', 'flush', 'local'])
    .default('remote')
    .describe('what an answer to the user means (ours)'),
  'window-bytes': z
    .int()
    .min(4096)
    .max(windowBytesMax)
    .default(16 * 2 ** 20)
    .describe('bytes that may be answered before the other side has them (ours)'),
  'stall-ms-max': z.int().min(1).default(2000).describe('longest wait for the other side, with hold (ours)'),
  granularity: z
    .int()
    .min(granularityMin)
    .max(granularityMax)
    .refine((value) => Number.isInteger(Math.log2(value)), 'must be a power of two')
    .default(65_536)
    .describe('bytes a bit of the bitmaps stands for (ours)'),
  'on-link-down': z
    .enum(['record', 'hold'])
    .default('record')
    .describe('record the error and go on, or hold all writers until a supervisor decides (ours)'),
  degraded: z
    .enum(['continue', 'stop'])
    .default('continue')
    .describe('stop, with hold: while the two are not in sync writes and flushes fail (ours)'),
});

type Options = z.output<typeof options>;

/** The secondary's export, a file or NBD client below, may be used by others, but keeps its length. */
const childPermissions: ChildPermissions = (_parents, readOnly) => ({
  needs: permissionBits['consistent-read'] | (readOnly ? 0 : permissionBits.write),
  shares: permissionBits['consistent-read'] | permissionBits.write | permissionBits['write-unchanged'],
});

export const replicationDriver = defineDriver<Options>({
  name: 'replication',
  summary: 'forwards writes to the other side of a pair',
  options,
  isFilter: true,
  async open(given, context): Promise<DriverNode> {
    checkOptions(given);
    const group = context.service<ReplicationGroup>('replication-group');
    if (given.mode === 'secondary') return await openSecondary(given, context, group);
    const attach = (reference: Options['file'] & {}): Promise<Child> =>
      context.attach('file', 'filtered', reference, childPermissions);
    const file = given.file === null ? null : await attach(given.file);
    const length = file?.node.length ?? given.size ?? 0;
    if (given.size !== undefined && length !== given.size) {
      throw new BlockError('invalid-option', `size: the child has ${length} bytes, not ${given.size}`);
    }
    const marks = new ReplicationMarks(length, given.granularity);
    const linkOptions: LinkOptions = {
      acknowledge: given.acknowledge,
      windowBytes: given['window-bytes'],
      stallMsMax: given['stall-ms-max'],
      degraded: given.degraded,
    };
    if (given['on-link-down'] === 'record' && file !== null) {
      return new PrimaryFilter(
        context,
        group,
        marks,
        given,
        new RecordLink(context.host.clock, file, marks, linkOptions),
        () => file,
      );
    }
    let child: Child | null = null;
    const door = {
      attach: async (reference: string): Promise<Child> => (child = await attach(reference)),
      detach: async (gone: Child): Promise<void> => {
        child = null;
        await context.detach(gone);
      },
    };
    const link = new HoldLink(context, group.links, marks, door, linkOptions);
    group.links.join(link);
    if (file !== null) {
      child = file;
      link.took(file);
    }
    return new PrimaryFilter(context, group, marks, given, link, () => child);
  },
});

async function openSecondary(given: Options, context: OpenContext, group: ReplicationGroup): Promise<DriverNode> {
  if (given.file === null) throw new BlockError('invalid-option', 'file: is required in mode secondary');
  if (given['top-id'] === undefined) throw new BlockError('invalid-option', 'top-id: is required in mode secondary');
  const services = {
    group,
    graph: context.service<Graph>('graph'),
    jobs: context.service<JobManager>('jobs'),
    devices: context.service<Devices>('devices'),
  };
  const active = await context.attach('file', 'filtered', given.file, childPermissions);
  return new SecondaryFilter(context, services, active, given['top-id']);
}

function checkOptions(given: Options): void {
  if (given.mode === 'secondary') return;
  if (given['top-id'] !== undefined) throw new BlockError('invalid-option', 'top-id: only for mode secondary');
  if (given.file !== null) return;
  if (given['on-link-down'] !== 'hold') throw new BlockError('invalid-option', 'file: null needs on-link-down=hold');
  if (given.size === undefined) throw new BlockError('invalid-option', 'size: is needed where file is null');
}

class PrimaryFilter implements DriverNode, ReplicationMember {
  readonly nodeName: string;
  readonly mode: ReplicationMode = 'primary';
  stage: ReplicationStage = 'none';
  private readonly context: OpenContext;
  private readonly group: ReplicationGroup;
  private readonly marks: ReplicationMarks;
  private readonly options: Options;
  private readonly link: ReplicationLink;
  private readonly child: () => Child | null;

  constructor(
    context: OpenContext,
    group: ReplicationGroup,
    marks: ReplicationMarks,
    given: Options,
    link: ReplicationLink,
    child: () => Child | null,
  ) {
    this.nodeName = context.nodeName;
    this.context = context;
    this.group = group;
    this.marks = marks;
    this.options = given;
    this.link = link;
    this.child = child;
    group.join(this);
  }

  // ------------------------------------------------------------ the block node

  get length(): number {
    return this.child()?.node.length ?? this.marks.length;
  }

  read(): Done {
    throw new BlockError('wrong-stage', `node '${this.nodeName}' only forwards writes`);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    this.checkWritable(offset, from.length);
    return this.link.write(offset, from.length, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    this.checkWritable(offset, length);
    return this.link.write(offset, length, null, flags);
  }

  discard(offset: number, length: number): Done {
    this.checkWritable(offset, length);
    return this.link.discard(offset, length);
  }

  flush(): Done {
    return this.link.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    const child = this.child();
    return child === null ? [{ length, zero: false, allocated: false }] : child.node.blockStatus(offset, length);
  }

  settle(): Done {
    return this.link.settle();
  }

  get refusal(): BlockError | null {
    return this.link.refusal;
  }

  siblingFailed(offset: number, length: number): void {
    this.link.siblingFailed(offset, length);
  }

  permissionsChanging(needs: PermissionMask): Done {
    this.link.writersChanged((needs & permissionBits.write) !== 0);
    return undefined;
  }

  async close(): Promise<void> {
    if (this.link instanceof HoldLink) this.group.links.leave(this.link);
    this.group.leave(this);
    this.link.close();
    if (this.stage !== 'done') this.move('close');
  }

  private checkWritable(offset: number, length: number): void {
    if (this.stage === 'running') return;
    const holds = this.options['on-link-down'] === 'hold';
    if (holds && this.stage === 'none') return;
    // The local disk may have it all the same.
    if (holds) this.marks.markMissing(offset, length);
    throw refusedInStage(this.nodeName, this.stage);
  }

  // ------------------------------------------------------------ the member

  async start(mode: ReplicationMode): Promise<void> {
    if (mode !== this.mode) {
      throw new BlockError('invalid-request', `node '${this.nodeName}' is ${this.mode}, it cannot start as ${mode}`);
    }
    this.move('start');
    this.link.clearError();
  }

  async prepare(): Promise<void> {
    // A primary has nothing of its own to make ready: the secondary's store takes the checkpoint.
  }

  checkpoint(): Done {
    // Success in every stage (spec: "checkpoint").
    return undefined;
  }

  unprepare(): void {
    // Nobody is held.
  }

  getError(): void {
    if (this.stage !== 'running') throw refusedInStage(this.nodeName, this.stage);
    if (this.link.error !== null) throw this.link.error;
  }

  async stop(failover: boolean): Promise<void> {
    // A primary has nothing to fail over to: it is done either way.
    nextStage(this.nodeName, this.stage, failover ? 'failover' : 'stop');
    this.move('stop');
    this.link.clearError();
  }

  info(): ReplicationInfo {
    return {
      node: this.nodeName,
      mode: this.mode,
      stage: this.stage,
      acknowledge: this.options.acknowledge,
      error: this.link.error?.message ?? null,
      'missing-bytes': this.marks.missingBytes,
      'may-differ-bytes': this.marks.mayDifferBytes,
      diverged: this.marks.divergedRanges(),
      ...this.link.info(),
    };
  }

  private move(event: StageEvent): void {
    this.stage = nextStage(this.nodeName, this.stage, event);
    this.context.emit('REPLICATION_STAGE', { node: this.nodeName, mode: this.mode, stage: this.stage });
  }
}
