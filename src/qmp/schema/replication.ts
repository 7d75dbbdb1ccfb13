/**
 * Commands about replication: QEMU's three (qapi/migration.json), and ours for a pair's supervisor.
 */
import { z } from 'zod';
import { defineCommand, defineEvent } from '../command.ts';
import { id, noArguments, nodeName, nothing, size } from './common.ts';

export const linkMode = z
  .enum(['held', 'alone', 'syncing', 'in-sync', 'barrier', 'refusing'])
  .meta({ id: 'ReplicationLinkMode' });

const stage = z.enum(['none', 'running', 'failover', 'failover-failed', 'done']).meta({ id: 'ReplicationStage' });
const replicationMode = z.enum(['primary', 'secondary']).meta({ id: 'ReplicationMode' });
const range = z.tuple([size, size]).describe('offset and length, bytes');
const ofNode = z.strictObject({ node: nodeName.describe('a replication node') });

/** Most ranges that one command gives or gets. */
export const rangesMax = 65_536;
/** Most checksums that one command gives. */
export const checksumsMax = 65_536;
/** bytes; a block of a checksum */
export const checksumBlockMin = 512;
export const checksumBlockMax = 2 ** 26;

const member = {
  node: nodeName,
  stage,
  error: z.string().nullable().describe('the last recorded failure'),
};

export const replicationInfo = z
  .discriminatedUnion('mode', [
    z.strictObject({
      ...member,
      mode: z.literal('primary'),
      link: linkMode.nullable().describe('mode of the link group; null: the node only records errors'),
      connected: z.boolean(),
      acknowledge: z.enum(['remote', 'flush', 'local']).optional(),
      'window-bytes': size.describe('bytes sent and not answered yet'),
      'forwarded-bytes': size.describe('bytes of writes that the other side has answered, since the node was opened'),
      'missing-bytes': size.describe('bytes that the other side does not have'),
      'may-differ-bytes': size.describe('bytes that the other side has not proven durable, the missing ones included'),
      diverged: z.array(range).describe('missing because the local disk failed a write that the other side was given'),
    }),
    z.strictObject({
      ...member,
      mode: z.literal('secondary'),
      prepared: z.boolean().describe('its users are held between `replication-prepare` and what follows'),
      'hidden-bytes': size.describe('bytes held in the hidden disk: old content since the last checkpoint'),
      'active-bytes': size.describe('bytes held in the active disk: what its own user wrote'),
      commit: z
        .strictObject({
          status: z.enum(['running', 'ready']).describe('ready: its end waits for `replication-prepare`'),
          'current-progress': size,
          'total-progress': size,
        })
        .nullable()
        .describe('the commit of a failover that is under way'),
    }),
  ])
  .meta({ id: 'ReplicationInfo' });

export const replicationSchema = [
  defineCommand({
    name: 'xen-set-replication',
    summary: 'Starts or stops all members of the replication group.',
    arguments: z.strictObject({
      enable: z.boolean(),
      primary: z.boolean().describe('start as primary, or as secondary'),
      failover: z.boolean().optional().describe('when stopping: the secondary takes over (default false)'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'query-xen-replication-status',
    summary: 'Whether a member does not run or has recorded an error.',
    arguments: noArguments,
    returns: z.strictObject({ error: z.boolean(), desc: z.string().optional() }).meta({ id: 'ReplicationStatus' }),
  }),
  defineCommand({
    name: 'xen-colo-do-checkpoint',
    summary: 'Makes a checkpoint of all members.',
    arguments: noArguments,
    returns: nothing,
  }),
  defineCommand({
    name: 'x-colo-lost-heartbeat',
    summary: 'The other side is lost: fails over now, as `xen-set-replication` with `failover` does.',
    arguments: noArguments,
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-prepare',
    summary:
      'The first half of a checkpoint, or of the end of a failover, for whoever makes it durable: all members are ' +
      'ready and their users held, or none. `replication-commit` or `replication-abort` follows.',
    arguments: noArguments,
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-commit',
    summary:
      'The second half: the epoch is durably the group’s. All members forget the old at once, their users go on.',
    arguments: z.strictObject({ epoch: z.int().positive().describe('above the present one') }),
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-abort',
    summary: 'Instead of `replication-commit`: the users go on, all is as before `replication-prepare`.',
    arguments: noArguments,
    returns: nothing,
  }),
  defineCommand({
    name: 'query-replication',
    summary: 'All members of the replication group, newest first.',
    arguments: noArguments,
    returns: z.array(replicationInfo),
  }),
  defineCommand({
    name: 'replication-connect',
    summary: 'Gives a node with on-link-down=hold its child: the NBD client of the other side.',
    arguments: z.strictObject({ node: nodeName, child: nodeName.describe('node of the other side, equally long') }),
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-disconnect',
    summary: 'Takes the child away. Refused while the group forwards.',
    arguments: ofNode,
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-set-mode',
    summary:
      'Sets the one mode of all nodes with on-link-down=hold. `syncing`, `in-sync` and `barrier` need all of them ' +
      'connected, the last two also that none misses anything.',
    arguments: z.strictObject({ mode: linkMode }),
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-mark',
    summary: 'Marks what the other side does not have.',
    arguments: z.strictObject({
      node: nodeName,
      ranges: z.array(range).max(rangesMax).optional(),
      all: z.literal(true).optional().describe('the whole disk'),
      'held-in': z
        .array(nodeName)
        .max(16)
        .optional()
        .describe('overlays of equal length: what they hold, because going back to them changes it'),
      unproven: z.literal(true).optional().describe('all that is not proven durable there: it is another instance'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-forget',
    summary: 'Empties both bitmaps: the caller has proof that the other side equals. Refused while the group forwards.',
    arguments: ofNode,
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-sync',
    summary: 'Starts a job (type mirror) that copies what is missing, until nothing is.',
    arguments: z.strictObject({
      node: nodeName,
      source: nodeName.describe('node of the local disk'),
      'job-id': id,
      'target-is-zero': z.boolean().optional().describe('the other side reads as zeroes: zeroes need no copy'),
      speed: size.optional().describe('bytes a second; 0 (default): no limit'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-flush',
    summary: 'Flushes the other side behind everything forwarded; done when it has proven it durable.',
    arguments: z.strictObject({ node: nodeName.optional().describe('default: all with on-link-down=hold') }),
    returns: nothing,
  }),
  defineCommand({
    name: 'replication-checksum',
    summary: 'Checksums (XXH64, 16 hex digits) of blocks of any node, for a comparison of two sides.',
    arguments: z.strictObject({
      node: nodeName,
      offset: size,
      length: size,
      block: z
        .int()
        .min(checksumBlockMin)
        .max(checksumBlockMax)
        .describe('bytes a checksum; the last one may be short'),
    }),
    returns: z.strictObject({ checksums: z.array(z.string()) }),
  }),
  defineCommand({
    name: 'replication-bitmap',
    summary: 'What the other side may not have. Too many ranges are joined with what lies between them.',
    arguments: ofNode,
    returns: z
      .strictObject({ 'may-differ': z.array(range), 'missing-bytes': size, 'may-differ-bytes': size })
      .meta({ id: 'ReplicationBitmap' }),
  }),
] as const;

export const replicationEvents = [
  defineEvent({
    name: 'REPLICATION_LINK',
    summary: 'A forward failed or the connection broke: the whole group has stopped forwarding and holds its writers.',
    data: z.strictObject({ state: z.literal('down'), node: nodeName, reason: z.string() }),
  }),
  defineEvent({
    name: 'REPLICATION_STAGE',
    summary: 'A member went to another stage.',
    data: z.strictObject({ node: nodeName, mode: replicationMode, stage }),
  }),
  defineEvent({
    name: 'REPLICATION_COMMIT_READY',
    summary: 'The commit of a failover has copied everything; its end waits for `replication-prepare`.',
    data: z.strictObject({ node: nodeName }),
  }),
  defineEvent({
    name: 'REPLICATION_DIVERGED',
    summary: 'The local disk failed a write that was forwarded: the range is missing again and wants a sync.',
    data: z.strictObject({ node: nodeName, offset: size, length: size }),
  }),
];
