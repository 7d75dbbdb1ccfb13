/**
 * The supervisor's decisions: `decide(state, event) -> state, plan`. Pure; nothing here waits (design: style 7).
 * What a plan must make durable before what, and why, stands in `plans.ts`; the table in the files of its rows.
 */
import { settleHeld } from './checkpoint-hold.ts';
import { beginWanted, settleAsked } from './checkpoints.ts';
import { commandRows } from './commands.ts';
import { givingWayRows } from './giving-way.ts';
import { helloRows } from './hellos.ts';
import {
  type Decision,
  type Given,
  isPrimaryPhase,
  type PairEvent,
  type PairState,
  type Phase,
  phases,
} from './pair-state.ts';
import { answer, answered } from './plans.ts';
import { primaryRows } from './primary.ts';
import { secondaryRows } from './secondary.ts';
import { type EventKey, keyOf, type Row } from './table.ts';

export const pairRows: readonly Row[] = [
  ...helloRows,
  ...primaryRows,
  ...givingWayRows,
  ...secondaryRows,
  ...commandRows,
];

/** Rows by phase and column. Two rows for one place are a mistake of ours. */
const table = new Map<string, Row>();
for (const one of pairRows) {
  for (const phase of one.in) {
    for (const key of one.on) {
      const place = `${phase}: ${key}`;
      if (table.has(place)) throw new TypeError(`two rows for ${place}`);
      table.set(place, one);
    }
  }
}

/** The state after `event`, and what has to be done. An event that is in no row of the phase changes nothing. */
export function decide(state: PairState, event: PairEvent, given: Given): Decision {
  if (event.type === 'committed') {
    const { record, sequence } = event;
    const isNew = record.checkpoint !== state.record.checkpoint;
    return { state: { ...state, record, sequence, checkpoint: isNew ? record.checkpoint : state.checkpoint } };
  }
  if (event.type === 'retry' && (state.plan !== null || state.phase !== event.phase))
    return untimely(state, event.phase);
  const seen = observe(state, event);
  const { key, payload } = keyOf(event);
  const act = table.get(`${seen.phase}: ${key}`)?.act;
  const decision = act === undefined ? { state: seen } : act(seen, payload as never, given);
  const begun =
    decision.plan === undefined ? decision : { ...decision, state: { ...decision.state, plan: decision.plan.name } };
  const settled = settleAsked(settlePending(seen, goOnAtRest(beginWanted(begun), given)));
  return settleHeld(seen, settled, given);
}

/**
 * A timer that outlived its reason: whatever runs now has its own outcome. In step it is about what is marked, which no
 * other plan makes good: then it is only too early.
 */
function untimely(state: PairState, since: Phase): Decision {
  return since === 'in-step' && state.phase === since ? { state, now: [{ do: 'retry-later' }] } : { state };
}

/** What an event says of the world in every phase. */
function observe(state: PairState, event: PairEvent): PairState {
  switch (event.type) {
    case 'link-lost':
      return { ...state, session: null, connected: false };
    case 'link-refused':
      return { ...state, refusal: event.reason };
    case 'plan-done':
    case 'plan-failed':
      return { ...state, plan: null };
    default:
      return state;
  }
}

/** A stop, or a switchover, that came while something was under way. */
function goOnAtRest(decision: Decision, given: Given): Decision {
  const { state } = decision;
  const { phase, plan, stopWanted, switchWanted } = state;
  if (switchWanted && phase !== 'in-step') return { ...decision, state: { ...state, switchWanted: false } };
  if (plan !== null || !(stopWanted ? resting.has(phase) : switchWanted)) return decision;
  const event: PairEvent = stopWanted
    ? { type: 'command', command: { name: 'stop' } }
    : { type: 'message', message: { type: 'switch-request' } };
  const gone = decide({ ...state, stopWanted: false, switchWanted: false }, event, given);
  return { ...gone, now: [...(decision.now ?? []), ...(gone.now ?? [])] };
}

const resting: ReadonlySet<Phase> = new Set([
  'no-role',
  'waiting',
  'handing-over',
  'alone',
  'in-step',
  'comparing',
  'attaching',
  'copying',
  'settling',
  'detached',
  'target',
  'syncing',
  'following',
] satisfies Phase[]);

/** A switchover that this side asked for, as the primary, has ended one way or the other. */
function settlePending(before: PairState, decision: Decision): Decision {
  const { state } = decision;
  if (state.pending !== 'switch' || before.phase === state.phase) return decision;
  if (state.phase === 'detached' && before.phase === 'demoting') {
    const now = [...(decision.now ?? []), answer('switch', null, `${state.self.peer} is primary`)];
    return { ...decision, state: { ...state, pending: null }, now };
  }
  if (!notHandedOver.has(state.phase)) return decision;
  const failed = answered(
    state,
    state.error ?? 'nothing was handed over: the link was lost, or the other side refused',
  );
  return { ...decision, state: failed.state, now: [...(decision.now ?? []), ...(failed.now ?? [])] };
}

/** Phases in which this side is, or will be, the one that serves after all. */
const notHandedOver: ReadonlySet<Phase> = new Set([
  'going-alone',
  'alone',
  'waiting',
  'joining',
  'in-step',
  'stopping',
] satisfies Phase[]);

/** The table as text cells, for the docs and for tests: phase, event, next phase, what is done. */
export function transitionTable(): { phase: Phase; event: EventKey; to: string; does: string }[] {
  const cells = pairRows.flatMap((one) =>
    one.in.flatMap((phase) => one.on.map((event) => ({ phase, event, to: one.to, does: one.does }))),
  );
  const order = Object.keys(phases);
  return cells.sort((a, b) => order.indexOf(a.phase) - order.indexOf(b.phase));
}

export { isPrimaryPhase };
