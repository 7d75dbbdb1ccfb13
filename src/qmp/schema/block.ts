/**
 * Commands about the graph of block nodes (QEMU: qapi/block-core.json).
 */
import { z } from 'zod';
import { defineCommand } from '../command.ts';
import { nodeName, nothing, size } from './common.ts';

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
] as const;
