/**
 * Commands about jobs (QEMU: qapi/job.json, and the block-job commands of qapi/block-core.json).
 */
import { z } from 'zod';
import { defineCommand, defineEvent } from '../command.ts';
import { id, leftOut, noArguments, nodeName, nothing, size } from './common.ts';

export const jobStatus = z
  .enum([
    'undefined',
    'created',
    'running',
    'paused',
    'ready',
    'standby',
    'waiting',
    'pending',
    'aborting',
    'concluded',
    'null',
  ])
  .meta({ id: 'JobStatus' });

/** Jobs of an older QEMU were named after their device: any string is a job's name in a question about it. */
const jobId = z.string().min(1).max(255).describe('id of the job');
const byId = z.strictObject({ id: jobId });
const byDevice = z.strictObject({ device: jobId });

const progress = {
  type: z.string(),
  device: z.string().describe('id of the job'),
  len: size.describe('bytes in all'),
  offset: size.describe('bytes done'),
  speed: size.describe('bytes a second; 0: no limit'),
};

export const jobInfo = z
  .strictObject({
    id: jobId,
    type: z.string(),
    status: jobStatus,
    'current-progress': size,
    'total-progress': size,
    error: z.string().optional(),
  })
  .meta({ id: 'JobInfo' });

export const blockJobInfo = z
  .strictObject({
    ...progress,
    busy: z.boolean(),
    paused: z.boolean(),
    'io-status': z.enum(['ok', 'failed', 'nospace']),
    ready: z.boolean(),
    status: jobStatus,
    'auto-finalize': z.boolean(),
    'auto-dismiss': z.boolean(),
    error: z.string().optional(),
  })
  .meta({ id: 'BlockJobInfo' });

const errorAction = z.enum(['report', 'ignore', 'enospc', 'stop', 'auto']);

const syncOfMirror = z
  .enum(['full', 'top', 'none'])
  .describe('`full`: everything; `none`: only what is written from now on');

/** What both commands that start a mirror take. */
const mirrorMembers = {
  speed: size.optional().describe('bytes a second; 0 (default): no limit'),
  granularity: size.optional().describe('bytes a bit of the dirty bitmap stands for: a power of two (default 65536)'),
  'buf-size': size.optional().describe('bytes in flight at most'),
  'on-source-error': errorAction.optional().describe('what an I/O error does (default `report`: the job fails)'),
  'on-target-error': errorAction.optional().describe('what an I/O error does (default `report`: the job fails)'),
  'copy-mode': z.enum(['background', 'write-blocking']).optional().describe('only `background`, the default'),
  'auto-finalize': z.boolean().optional().describe('default true'),
  'auto-dismiss': z.boolean().optional().describe('default true'),
  replaces: leftOut('the target takes the place of the device, and of nothing else'),
};

/** @param node the node that the filter stands on */
function filterName(node: string): z.ZodType<string | undefined> {
  const text = `name of the filter above the ${node} while the job lives; who comes to write then uses this`;
  return nodeName.optional().describe(text);
}

export const jobSchema = [
  defineCommand({
    name: 'blockdev-mirror',
    summary:
      'Copies a node to another and keeps both in step; `job-complete` then puts the target in the place of the ' +
      'node, `block-job-cancel` leaves everything as it is.',
    arguments: z.strictObject({
      'job-id': id.optional().describe('id of the job (default: the device)'),
      device: nodeName.describe('node that is copied'),
      target: nodeName.describe('node that is written; not shorter than the source'),
      sync: syncOfMirror,
      ...mirrorMembers,
      'filter-node-name': filterName('source'),
      'target-is-zero': z.boolean().optional().describe('the target reads as zeroes: zeroes need no copy'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'drive-mirror',
    summary:
      'As `blockdev-mirror`, to a target that is named by its file or NBD URI; its node goes when the job has ended, ' +
      'unless it took the place of the device.',
    arguments: z.strictObject({
      'job-id': id.optional().describe('id of the job (default: the device)'),
      device: nodeName.describe('export id or node that is copied'),
      target: z.string().min(1).max(4096).describe('a raw file, or `nbd://HOST[:PORT]/EXPORT`, `nbd+unix://...`'),
      format: z.literal('raw').optional().describe('format of the target: only `raw`, the default'),
      'node-name': nodeName.optional().describe('name of the target’s node (default: made up)'),
      mode: z
        .enum(['absolute-paths', 'existing'])
        .optional()
        .describe('`absolute-paths` (default): the file is made, emptied if it is there; `existing`: it is there'),
      unmap: z.literal(true).optional().describe('only true, the default: zeroes may be holes in the target'),
      sync: syncOfMirror,
      ...mirrorMembers,
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'blockdev-backup',
    summary:
      'Keeps the point in time of its start of a node in another one: old content is copied before it is changed, ' +
      'everything else in the background, or not at all.',
    arguments: z.strictObject({
      'job-id': id.optional().describe('id of the job (default: the device)'),
      device: nodeName.describe('node whose point in time is kept'),
      target: nodeName.describe('node that is written; as long as the device'),
      sync: z.enum(['full', 'none']).describe('`none`: only what is about to change, until the job is cancelled'),
      bitmap: leftOut('there are no dirty bitmaps'),
      'bitmap-mode': leftOut('there are no dirty bitmaps'),
      compress: z.literal(false).optional().describe('only false, the default'),
      'x-perf': leftOut('`speed` is what there is'),
      speed: size.optional().describe('bytes a second in the background; 0 (default): no limit'),
      'on-source-error': z.literal('report').optional().describe('only `report`, the default: the job fails'),
      'on-target-error': z.literal('report').optional().describe('only `report`, the default: the job fails'),
      'filter-node-name': filterName('device'),
      'auto-finalize': z.boolean().optional().describe('default true'),
      'auto-dismiss': z.boolean().optional().describe('default true'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'block-commit',
    summary:
      'Copies what the overlays of a chain hold into the base below them while I/O goes on. The base then takes the ' +
      'place of the chain: at `job-complete` where the top is written, else by itself. Nobody else writes to the ' +
      'base, or uses an overlay between the two, meanwhile.',
    arguments: z.strictObject({
      'job-id': id.optional().describe('id of the job (default: the device)'),
      device: nodeName.describe('node on top of the chain'),
      'base-node': nodeName.optional().describe('node that is written (default: the lowest one)'),
      'top-node': nodeName.optional().describe('overlay whose place the base takes (default: the device)'),
      base: leftOut('give `base-node`'),
      top: leftOut('give `top-node`'),
      'backing-file': z
        .string()
        .optional()
        .describe('accepted, changes nothing: overlays do not keep the name of theirs'),
      speed: size.optional().describe('bytes a second; 0 (default): no limit'),
      'on-error': errorAction.optional().describe('what an I/O error does (default `report`: the job fails)'),
      'filter-node-name': filterName('top'),
      'auto-finalize': z.boolean().optional().describe('default true'),
      'auto-dismiss': z.boolean().optional().describe('default true'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'query-jobs',
    summary: 'All jobs.',
    arguments: noArguments,
    returns: z.array(jobInfo),
  }),
  defineCommand({
    name: 'query-block-jobs',
    summary: 'All jobs that have begun, as older clients ask for them.',
    arguments: noArguments,
    returns: z.array(blockJobInfo),
  }),
  defineCommand({ name: 'job-pause', summary: 'Pauses a job.', arguments: byId, returns: nothing }),
  defineCommand({ name: 'job-resume', summary: 'Lets a paused job go on.', arguments: byId, returns: nothing }),
  defineCommand({ name: 'job-cancel', summary: 'Ends a job as soon as it can.', arguments: byId, returns: nothing }),
  defineCommand({
    name: 'job-complete',
    summary: 'Completes a job that is ready: a mirror puts its target in the place of the node.',
    arguments: byId,
    returns: nothing,
  }),
  defineCommand({
    name: 'job-finalize',
    summary: 'Lets a pending job (made with `auto-finalize: false`) do its last step.',
    arguments: byId,
    returns: nothing,
  }),
  defineCommand({
    name: 'job-dismiss',
    summary: 'Forgets a concluded job (made with `auto-dismiss: false`).',
    arguments: byId,
    returns: nothing,
  }),
  defineCommand({
    name: 'block-job-set-speed',
    summary: 'Sets the speed limit of a job.',
    arguments: z.strictObject({ device: jobId, speed: size.describe('bytes a second; 0: no limit') }),
    returns: nothing,
  }),
  defineCommand({
    name: 'block-job-cancel',
    summary: 'Ends a job. A mirror that is ready first brings its target up to date, unless `force` is given.',
    arguments: z.strictObject({ device: jobId, force: z.boolean().optional() }),
    returns: nothing,
  }),
  defineCommand({ name: 'block-job-pause', summary: 'As `job-pause`.', arguments: byDevice, returns: nothing }),
  defineCommand({ name: 'block-job-resume', summary: 'As `job-resume`.', arguments: byDevice, returns: nothing }),
  defineCommand({ name: 'block-job-complete', summary: 'As `job-complete`.', arguments: byDevice, returns: nothing }),
  defineCommand({ name: 'block-job-finalize', summary: 'As `job-finalize`.', arguments: byId, returns: nothing }),
  defineCommand({ name: 'block-job-dismiss', summary: 'As `job-dismiss`.', arguments: byId, returns: nothing }),
] as const;

export const jobEvents = [
  defineEvent({
    name: 'JOB_STATUS_CHANGE',
    summary: 'A job went to another state.',
    data: z.strictObject({ id: jobId, status: jobStatus }),
  }),
  defineEvent({ name: 'BLOCK_JOB_READY', summary: 'A job may be completed.', data: z.strictObject(progress) }),
  defineEvent({
    name: 'BLOCK_JOB_PENDING',
    summary: 'A job waits for `job-finalize`.',
    data: z.strictObject({ type: z.string(), id: jobId }),
  }),
  defineEvent({
    name: 'BLOCK_JOB_COMPLETED',
    summary: 'A job ended, well or with an error.',
    data: z.strictObject({ ...progress, error: z.string().optional() }),
  }),
  defineEvent({ name: 'BLOCK_JOB_CANCELLED', summary: 'A job was cancelled.', data: z.strictObject(progress) }),
  defineEvent({
    name: 'BLOCK_JOB_ERROR',
    summary: 'A job met an I/O error.',
    data: z.strictObject({
      device: z.string(),
      operation: z.enum(['read', 'write']),
      action: z.enum(['ignore', 'report', 'stop']),
    }),
  }),
];
