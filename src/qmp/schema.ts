/**
 * The command schema: every family joined. It gives types, checking and the reference page; there is no other list.
 */
import type { CommandDefinition, EventDefinition } from './command.ts';
import { blockEvents, blockSchema } from './schema/block.ts';
import { controlEvents, controlSchema } from './schema/control.ts';
import { exportEvents, exportSchema } from './schema/export.ts';
import { jobEvents, jobSchema } from './schema/job.ts';
import { pairEvents, pairSchema } from './schema/pair.ts';
import { replicationEvents, replicationSchema } from './schema/replication.ts';

/** A group of commands under one heading of the reference. */
export interface CommandFamily {
  readonly title: string;
  readonly commands: readonly CommandDefinition[];
  readonly events: readonly EventDefinition[];
}

/** What an engine serves. */
export const engineFamilies: readonly CommandFamily[] = [
  { title: 'Session and process', commands: controlSchema, events: controlEvents },
  { title: 'Block nodes', commands: blockSchema, events: blockEvents },
  { title: 'Exports', commands: exportSchema, events: exportEvents },
  { title: 'Jobs', commands: jobSchema, events: jobEvents },
  { title: 'Replication', commands: replicationSchema, events: replicationEvents },
];

/** What the daemon of a pair serves beside its engine's commands. */
export const pairFamily: CommandFamily = { title: 'The pair', commands: pairSchema, events: pairEvents };
