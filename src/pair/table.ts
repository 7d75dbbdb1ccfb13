/**
 * The shape of the state machine's table: a row says in which phases which event does what, and why. What is in no row
 * changes nothing. The rows are code and document at once: `pair.ts` runs them, the docs print them.
 */
import type { Message, MessageOf } from './messages.ts';
import type { Command, Decision, Given, PairEvent, PairState, Phase, PlanName } from './pair-state.ts';

type PlainEvent = Exclude<PairEvent, { type: 'message' | 'command' | 'plan-done' | 'plan-failed' | 'committed' }>;

/** An event as a column: its type, and what kind of message, command or plan it is. */
export type EventKey =
  | PlainEvent['type']
  | `message ${Message['type']}`
  | `command ${Command['name']}`
  | `done ${PlanName}`
  | `failed ${PlanName}`;

/** What the function of a row gets, by its column. */
export type PayloadOf<Key extends EventKey> = Key extends `message ${infer Type extends Message['type']}`
  ? MessageOf<Type>
  : Key extends `command ${infer Name extends Command['name']}`
    ? Extract<Command, { name: Name }>
    : Key extends `done ${string}`
      ? null
      : Key extends `failed ${string}`
        ? string
        : Extract<PlainEvent, { type: Key }>;

export interface Row {
  readonly in: readonly Phase[];
  readonly on: readonly EventKey[];
  /** the phase that follows, or several */
  readonly to: string;
  readonly does: string;
  readonly act: (state: PairState, payload: never, given: Given) => Decision;
}

/** A row over one column or several whose functions get the same payload. */
export function row<Key extends EventKey>(
  phases: Phase | readonly Phase[],
  on: Key | readonly Key[],
  to: string,
  does: string,
  act: (state: PairState, payload: PayloadOf<Key>, given: Given) => Decision,
): Row {
  return {
    in: typeof phases === 'string' ? [phases] : phases,
    on: typeof on === 'string' ? [on] : on,
    to,
    does,
    act,
  };
}

export function keyOf(event: Exclude<PairEvent, { type: 'committed' }>): { key: EventKey; payload: unknown } {
  switch (event.type) {
    case 'message':
      return { key: `message ${event.message.type}`, payload: event.message };
    case 'command':
      return { key: `command ${event.command.name}`, payload: event.command };
    case 'plan-done':
      return { key: `done ${event.plan}`, payload: null };
    case 'plan-failed':
      return { key: `failed ${event.plan}`, payload: event.error };
    default:
      return { key: event.type, payload: event };
  }
}
