/**
 * Commands about the graph of block nodes (QEMU: qapi/block-core.json).
 */
import { z } from 'zod';
import { defineCommand, defineEvent } from '../command.ts';
import { noArguments, nodeName, nothing, size } from './common.ts';

/** What every driver takes is the graph's; the rest is checked by the driver itself, which names the field too. */
export const blockdevOptions = z
  .looseObject({
    driver: z.string().min(1).max(255).describe('name of the driver; the options of each are listed below'),
    'node-name': nodeName.describe('name of the new node'),
  })
  .meta({ id: 'BlockdevOptions' });

export const imageInfo = z
  .strictObject({
    filename: z.string().describe('the file where there is one, else `json:` and the options'),
    format: z.string(),
    'virtual-size': size.describe('bytes that the node offers'),
    'actual-size': size.optional().describe('bytes taken on the disk, where that is known'),
    'backing-filename': z.string().optional(),
  })
  .meta({ id: 'ImageInfo' });

export const blockDeviceInfo = z
  .strictObject({
    file: z.string().describe('the file where there is one, else `json:` and the options'),
    'node-name': nodeName,
    ro: z.boolean(),
    drv: z.string(),
    backing_file: z.string().optional(),
    backing_file_depth: z.int().min(0).describe('nodes in the backing chain below this one'),
    children: z
      .array(z.strictObject({ child: z.string(), 'node-name': nodeName }).meta({ id: 'BlockdevChild' }))
      .describe('the children, in order'),
    active: z.boolean(),
    encrypted: z.boolean(),
    detect_zeroes: z.enum(['off', 'on', 'unmap']),
    bps: z.int(),
    bps_rd: z.int(),
    bps_wr: z.int(),
    iops: z.int(),
    iops_rd: z.int(),
    iops_wr: z.int(),
    image: imageInfo,
    cache: z.strictObject({ writeback: z.boolean(), direct: z.boolean(), 'no-flush': z.boolean() }),
    write_threshold: z.int(),
    parents: z.array(z.string()).describe('who stands above, in words (ours)'),
    info: z.record(z.string(), z.unknown()).optional().describe('what the driver tells of itself (ours)'),
  })
  .meta({ id: 'BlockDeviceInfo' });

export const blockInfo = z
  .strictObject({
    device: z.string().describe('id of the export: what stands on a node here as a guest’s device does in QEMU'),
    type: z.literal('unknown'),
    removable: z.boolean(),
    locked: z.boolean(),
    inserted: blockDeviceInfo.describe('the node below it'),
  })
  .meta({ id: 'BlockInfo' });

const counter = z.int().min(0);
export const blockStats = z
  .strictObject({
    device: z.string().describe('id of the export'),
    'node-name': nodeName,
    stats: z
      .strictObject({
        rd_bytes: counter,
        wr_bytes: counter.describe('zeroes included'),
        unmap_bytes: counter,
        rd_operations: counter,
        wr_operations: counter,
        flush_operations: counter,
        unmap_operations: counter,
        wr_highest_offset: counter.describe('end of the highest byte written'),
        rd_total_time_ns: counter.describe('not measured: 0, as are all members below'),
        wr_total_time_ns: counter,
        flush_total_time_ns: counter,
        unmap_total_time_ns: counter,
        rd_merged: counter,
        wr_merged: counter,
        unmap_merged: counter,
        failed_rd_operations: counter,
        failed_wr_operations: counter,
        failed_flush_operations: counter,
        failed_unmap_operations: counter,
        invalid_rd_operations: counter,
        invalid_wr_operations: counter,
        invalid_flush_operations: counter,
        invalid_unmap_operations: counter,
        account_invalid: z.boolean(),
        account_failed: z.boolean(),
        timed_stats: z.array(z.never()),
      })
      .meta({ id: 'BlockDeviceStats' }),
  })
  .meta({ id: 'BlockStats' });

export const blockSchema = [
  defineCommand({
    name: 'blockdev-add',
    summary: 'Makes a block node, and the nodes that its options describe in place.',
    arguments: blockdevOptions,
    returns: nothing,
  }),
  defineCommand({
    name: 'blockdev-del',
    summary: 'Closes a node. Refused while it has a parent, naming it.',
    arguments: z.strictObject({ 'node-name': nodeName }),
    returns: nothing,
  }),
  defineCommand({
    name: 'blockdev-reopen',
    summary:
      'Changes options of nodes under their users, all or none: here `read-only`. Each is given whole, as to ' +
      '`blockdev-add`; what is left out has its default, and any other difference is refused.',
    arguments: z.strictObject({ options: z.array(blockdevOptions).min(1).max(256) }),
    returns: nothing,
  }),
  defineCommand({
    name: 'x-blockdev-flush',
    summary: 'Makes durable what a node holds, as the flush of a client does: one that fails counts for all (ours).',
    arguments: z.strictObject({ 'node-name': nodeName }),
    returns: nothing,
  }),
  defineCommand({
    name: 'x-blockdev-change',
    summary: 'Gives a node (a quorum) one more child, or takes one away: exactly one of `child` and `node`.',
    arguments: z.strictObject({
      parent: nodeName,
      child: z.string().min(1).max(255).optional().describe('name of the child to take away: `children.1`'),
      node: nodeName.optional().describe('node that becomes a child'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'block_resize',
    summary: 'Changes the length of a node where its driver can.',
    arguments: z.strictObject({
      device: z.string().min(1).max(255).optional().describe('the same as `node-name`, as older clients say it'),
      'node-name': nodeName.optional(),
      size: size.describe('the new length in bytes'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'query-named-block-nodes',
    summary: 'All nodes. Limits of rate, which this engine has none of, are told as 0 (unlimited).',
    arguments: z.strictObject({
      flat: z.boolean().optional().describe('leaves backing images out of `image`; they are never in it'),
    }),
    returns: z.array(blockDeviceInfo),
  }),
  defineCommand({
    name: 'query-block',
    summary: 'What stands on the nodes: here every export, with the node below it.',
    arguments: noArguments,
    returns: z.array(blockInfo),
  }),
  defineCommand({
    name: 'query-blockstats',
    summary: 'What the clients of each export have asked for.',
    arguments: z.strictObject({
      'query-nodes': z.boolean().optional().describe('nodes instead of exports; nodes count nothing'),
    }),
    returns: z.array(blockStats),
  }),
] as const;

const sectors = {
  'sector-num': z.int().min(0).describe('the first one, of 512 bytes'),
  'sectors-count': z.int().min(0),
};

export const blockEvents = [
  defineEvent({
    name: 'QUORUM_REPORT_BAD',
    summary: 'A child of a quorum failed a request, or was outvoted.',
    data: z.strictObject({
      type: z.enum(['read', 'write', 'flush']),
      'node-name': z.string().describe('the child'),
      ...sectors,
      error: z.string().optional().describe('none: it was outvoted'),
    }),
  }),
  defineEvent({
    name: 'QUORUM_FAILURE',
    summary: 'Too few children of a quorum succeeded or agreed: the request failed.',
    data: z.strictObject({ reference: nodeName.describe('the quorum'), ...sectors }),
  }),
  defineEvent({
    name: 'NBD_CONNECTION_LOST',
    summary: 'A node of driver `nbd` lost its server; it connects again by itself (ours).',
    data: z.strictObject({ 'node-name': nodeName, reason: z.string() }),
  }),
  defineEvent({
    name: 'NBD_CONNECTION_RESTORED',
    summary: 'It is connected again (ours).',
    data: z.strictObject({ 'node-name': nodeName }),
  }),
];
