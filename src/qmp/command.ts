/**
 * A QMP command as data: its name, what it takes, what it gives back. One definition gives the handler's types, the
 * check of what a client sent, and the reference page.
 *
 * A family is a tuple of definitions (`[defineCommand({...}), ...] as const`); whoever serves it writes
 * `Handlers<typeof family>`, one function a command, typed from the schemas.
 */
import type { z } from 'zod';

export interface CommandDefinition<
  Name extends string = string,
  Arguments extends z.ZodType = z.ZodType,
  Returns extends z.ZodType = z.ZodType,
> {
  readonly name: Name;
  /** One or two sentences for the reference. */
  readonly summary: string;
  /** A strict object (a member that it does not know is refused), or a loose one where a driver checks the rest. */
  readonly arguments: Arguments;
  /** What QMP calls `return`; `nothing` of schema/common.ts where nothing is given back (`{}` on the wire). */
  readonly returns: Returns;
}

export function defineCommand<const Name extends string, Arguments extends z.ZodType, Returns extends z.ZodType>(
  definition: CommandDefinition<Name, Arguments, Returns>,
): CommandDefinition<Name, Arguments, Returns> {
  return definition;
}

/** An event as data, for the reference. */
export interface EventDefinition {
  readonly name: string;
  readonly summary: string;
  readonly data: z.ZodType;
}

export function defineEvent(definition: EventDefinition): EventDefinition {
  return definition;
}

/** The function behind one command: it gets checked arguments. */
export type Handler<Command extends CommandDefinition> = (
  args: z.output<Command['arguments']>,
) => z.input<Command['returns']> | Promise<z.input<Command['returns']>>;

/** The functions behind a family, by command name. */
export type Handlers<Family extends readonly CommandDefinition[]> = {
  readonly [Command in Family[number] as Command['name']]: Handler<Command>;
};
