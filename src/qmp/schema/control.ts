/**
 * Commands about the session and the process (QEMU: qapi/control.json, qapi/misc.json).
 */
import { z } from 'zod';
import { defineCommand, defineEvent } from '../command.ts';
import { noArguments, nothing } from './common.ts';

export const versionInfo = z
  .strictObject({
    qemu: z
      .strictObject({ major: z.int(), minor: z.int(), micro: z.int() })
      .describe('the QEMU whose command shapes are followed'),
    package: z.string().describe('name and version of this program'),
  })
  .meta({ id: 'VersionInfo' });

export const capabilities = defineCommand({
  name: 'qmp_capabilities',
  summary: 'Ends the negotiation that a connection begins with; every other command is refused before it.',
  arguments: z.strictObject({
    enable: z.array(z.string()).max(16).optional().describe('capabilities to enable; there are none'),
  }),
  returns: nothing,
});

export const controlSchema = [
  capabilities,
  defineCommand({
    name: 'query-version',
    summary: 'Which program answers.',
    arguments: noArguments,
    returns: versionInfo,
  }),
  defineCommand({
    name: 'query-commands',
    summary: 'The names of all commands.',
    arguments: noArguments,
    returns: z.array(z.strictObject({ name: z.string() })),
  }),
  defineCommand({
    name: 'query-status',
    summary: 'What `stop` and `cont` said last; the engine itself runs whenever it answers.',
    arguments: noArguments,
    returns: z.strictObject({ status: z.enum(['running', 'paused']), running: z.boolean(), singlestep: z.boolean() }),
  }),
  defineCommand({
    name: 'stop',
    summary:
      'Flushes all nodes, as QEMU does when it stops its machine. There is no machine here: exports and jobs go on, ' +
      'and whoever drives one stops its users.',
    arguments: noArguments,
    returns: nothing,
  }),
  defineCommand({
    name: 'cont',
    summary: 'Takes `stop` back, and tries writes again that wait because of an error (`x-block-export-resume`).',
    arguments: noArguments,
    returns: nothing,
  }),
  defineCommand({
    name: 'human-monitor-command',
    summary:
      'Two lines of the monitor for people, for managers of replication: `drive_add -n buddy OPTIONS` makes a node ' +
      '(`driver=replication,mode=primary,file.driver=nbd,file.host=...,file.port=...,node-name=...`), `drive_del ' +
      'NAME` takes it away. The answer is what the monitor prints: nothing, or what went wrong.',
    arguments: z.strictObject({
      'command-line': z.string().max(65_536),
      'cpu-index': z.int().optional().describe('means nothing here'),
    }),
    returns: z.string(),
  }),
  defineCommand({
    name: 'quit',
    summary: 'Stops cleanly: exports are closed, jobs cancelled, nodes flushed and closed, then the process ends.',
    arguments: noArguments,
    returns: nothing,
  }),
] as const;

export const controlEvents = [
  defineEvent({ name: 'STOP', summary: '`stop` was given.', data: z.strictObject({}) }),
  defineEvent({ name: 'RESUME', summary: '`cont` was given after a `stop`.', data: z.strictObject({}) }),
  defineEvent({
    name: 'SHUTDOWN',
    summary: 'A clean stop begins.',
    data: z.strictObject({ guest: z.boolean(), reason: z.enum(['host-qmp-quit', 'host-signal']) }),
  }),
];
