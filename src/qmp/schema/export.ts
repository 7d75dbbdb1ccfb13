/**
 * Commands about exports and the NBD servers they hang on (QEMU: qapi/block-export.json).
 */
import { z } from 'zod';
import { defineCommand, defineEvent } from '../command.ts';
import { id, leftOut, noArguments, nodeName, nothing, size, socketAddress, socketAddressLegacy } from './common.ts';

/** The NBD server that is meant where none is named. */
export const defaultServer = 'nbd';

const serverName = id.optional().describe(`name of the NBD server (ours; default \`${defaultServer}\`)`);

/** An export name or description of NBD: at most 4096 bytes ("String values"). */
const nbdString = z
  .string()
  .refine((text) => new TextEncoder().encode(text).length <= 4096, 'must be at most 4096 bytes long');

const moreOfServer = {
  'tls-creds': z.string().optional().describe('not supported yet: refused'),
  'tls-authz': z.string().optional().describe('not supported yet: refused'),
  'max-connections': z
    .int()
    .min(0)
    .max(0xffff_ffff)
    .optional()
    .describe('clients at the same time; 0 (default): the limit of the server itself, 128'),
  server: serverName,
};

/** What `--nbd-server` of the storage daemon takes. */
export const nbdServerOptions = z
  .strictObject({ addr: socketAddress, ...moreOfServer })
  .meta({ id: 'NbdServerOptions' });

export const blockExportOptions = z
  .discriminatedUnion('type', [
    z.strictObject({
      type: z.literal('nbd'),
      id: id.describe('id of the export, among all exports'),
      'node-name': nodeName.describe('node that is exported'),
      writable: z.boolean().optional().describe('clients may write (default false)'),
      writethrough: z.boolean().optional().describe('a write is answered only when it is durable (default false)'),
      name: nbdString.optional().describe('name that clients ask for (default: the node name)'),
      description: nbdString.optional().describe('free text for people'),
      bitmaps: z.array(z.never()).optional().describe('none: there are no dirty bitmaps to offer'),
      'allocation-depth': z.literal(false).optional().describe('only false, the default'),
      iothread: leftOut('there are no iothreads'),
      'fixed-iothread': z.boolean().optional().describe('accepted, changes nothing'),
      server: serverName,
      ordered: z.boolean().optional().describe('offers the metadata context `blockstep:ordered` (ours; default false)'),
      'multi-conn': z
        .enum(['auto', 'on', 'off'])
        .optional()
        .describe('tells clients that several connections see one cache (ours; default auto)'),
      'on-write-error': z
        .enum(['report', 'stop'])
        .optional()
        .describe(
          '`report` (default): the client hears the error; `stop`: a write that fails with EIO or ENOSPC, and every ' +
            'later one, waits for `x-block-export-resume` (ours)',
        ),
    }),
  ])
  .meta({ id: 'BlockExportOptions' });

export const exportSchema = [
  defineCommand({
    name: 'nbd-server-start',
    summary: 'Starts an NBD server. It answers at once, and serves what `block-export-add` gives it.',
    arguments: z.strictObject({
      addr: socketAddressLegacy.describe('where it listens'),
      'more-addrs': z.array(socketAddressLegacy).max(16).optional().describe('further addresses (ours)'),
      ...moreOfServer,
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'nbd-server-stop',
    summary: 'Closes the exports of an NBD server, hanging up their clients, then the server.',
    arguments: z.strictObject({ server: serverName }),
    returns: nothing,
  }),
  defineCommand({
    name: 'query-nbd-server',
    summary: 'The NBD servers, with the ports that the system chose (ours).',
    arguments: noArguments,
    returns: z.array(
      z.strictObject({
        server: id,
        addrs: z.array(socketAddressLegacy),
        exports: size.describe('how many exports'),
        connections: size.describe('how many clients are connected to them'),
      }),
    ),
  }),
  defineCommand({
    name: 'block-export-add',
    summary: 'Exports a node.',
    arguments: blockExportOptions,
    returns: nothing,
  }),
  defineCommand({
    name: 'x-block-export-resume',
    summary:
      'Tries again the writes of an export that wait because of `on-write-error: stop`, in order. ' +
      'It returns at once; ' +
      'if one fails again, they wait on, and BLOCK_IO_ERROR comes again (ours).',
    arguments: z.strictObject({ id }),
    returns: nothing,
  }),
  defineCommand({
    name: 'block-export-del',
    summary:
      'Takes an export away. It returns when the export is gone: clients are hung up and what they asked for has ' +
      'ended. Then comes BLOCK_EXPORT_DELETED.',
    arguments: z.strictObject({
      id,
      mode: z
        .enum(['safe', 'hard'])
        .optional()
        .describe('`safe` (default): refused while a client is connected; `hard`: hangs them up'),
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'nbd-server-add',
    summary: 'Exports a node on the NBD server, as older clients say it: `block-export-add` with the name as its id.',
    arguments: z.strictObject({
      device: nodeName.describe('node that is exported'),
      name: id.optional().describe('name that clients ask for, and id of the export (default: the device)'),
      description: nbdString.optional().describe('free text for people'),
      writable: z.boolean().optional().describe('clients may write (default false)'),
      bitmap: leftOut('there are no dirty bitmaps to offer'),
      server: serverName,
    }),
    returns: nothing,
  }),
  defineCommand({
    name: 'nbd-server-remove',
    summary: 'Takes an export away by its name, as `block-export-del` does.',
    arguments: z.strictObject({ name: id, mode: z.enum(['safe', 'hard']).optional().describe('default `safe`') }),
    returns: nothing,
  }),
  defineCommand({
    name: 'query-block-exports',
    summary: 'All exports.',
    arguments: noArguments,
    returns: z.array(
      z
        .strictObject({
          id,
          type: z.literal('nbd'),
          'node-name': nodeName,
          'shutting-down': z.boolean().describe('it is being taken away'),
          name: z.string().describe('name that clients ask for (ours)'),
          server: id.describe('NBD server it hangs on (ours)'),
          writable: z.boolean().describe('(ours)'),
          connections: size.describe('clients connected (ours)'),
          stopped: z
            .strictObject({
              reason: z.string(),
              waiting: size.describe('how many writes, zeroes and discards wait'),
            })
            .optional()
            .describe('an error made its writes wait for `x-block-export-resume` (ours)'),
        })
        .meta({ id: 'BlockExportInfo' }),
    ),
  }),
  defineCommand({
    name: 'nbd-export-refuse',
    summary:
      'Refuses clients that ask for an export name, with a sentence that says why; the name is not listed (ours).',
    arguments: z.strictObject({
      name: nbdString.describe('export name that clients ask for'),
      reason: nbdString.nullable().describe('the sentence; null takes the refusal back'),
      server: serverName,
    }),
    returns: nothing,
  }),
] as const;

export const exportEvents = [
  defineEvent({
    name: 'BLOCK_EXPORT_DELETED',
    summary: 'An export is gone and its id is free.',
    data: z.strictObject({ id }),
  }),
  defineEvent({
    name: 'BLOCK_IO_ERROR',
    summary: 'A write to an export with `on-write-error: stop` failed: its writes wait for `x-block-export-resume`.',
    data: z.strictObject({
      id: id.describe('the export (ours)'),
      'node-name': nodeName,
      operation: z.literal('write'),
      action: z.literal('stop'),
      nospace: z.boolean().describe('there is no space left below'),
      reason: z.string().describe('the error, for people'),
    }),
  }),
];
