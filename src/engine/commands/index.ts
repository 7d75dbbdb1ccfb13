/**
 * All commands of an engine: every family's definitions with the functions behind them.
 */
import type { CommandDefinition, Handlers } from '../../qmp/command.ts';
import { blockSchema } from '../../qmp/schema/block.ts';
import { controlSchema } from '../../qmp/schema/control.ts';
import { exportSchema } from '../../qmp/schema/export.ts';
import { jobSchema } from '../../qmp/schema/job.ts';
import { replicationSchema } from '../../qmp/schema/replication.ts';
import type { Engine } from '../engine.ts';
import { blockCommands } from './block.ts';
import { controlCommands } from './control.ts';
import { exportCommands } from './export.ts';
import { jobCommands } from './job.ts';
import { replicationCommands } from './replication.ts';

/** A command as the engine runs it; what it is given was checked by its definition. */
export interface Command {
  readonly definition: CommandDefinition;
  handler(args: unknown): unknown;
}

export function engineCommands(engine: Engine): ReadonlyMap<string, Command> {
  const commands = new Map<string, Command>();
  join(commands, controlSchema, controlCommands(engine));
  join(commands, blockSchema, blockCommands(engine));
  join(commands, exportSchema, exportCommands(engine));
  join(commands, jobSchema, jobCommands(engine));
  join(commands, replicationSchema, replicationCommands(engine));
  return commands;
}

function join<const Family extends readonly CommandDefinition[]>(
  commands: Map<string, Command>,
  family: Family,
  handlers: Handlers<Family>,
): void {
  const byName = handlers as Readonly<Record<string, (args: unknown) => unknown>>;
  for (const definition of family) {
    const handler = byName[definition.name];
    if (handler === undefined) throw new TypeError(`command ${definition.name} has no handler`);
    commands.set(definition.name, { definition, handler });
  }
}
