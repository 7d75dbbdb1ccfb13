/**
 * A checkpoint that is held: the secondary makes no other one for a time, so that a backup, which reads it for long,
 * reads one moment. Only a standby holds; in lock-step nobody but the user makes checkpoints.
 *
 * A hold begins in the same decision in which its checkpoint is there: no other one fits in between. It ends with its
 * time, on command, when space becomes short (the copy is worth more than the backup), and with the session, whose
 * end brings checkpoints of its own. It is nothing durable: a start holds nothing. Whoever releases it hears whether
 * it lasted until then.
 */
import type { Decision, Given, Held, PairState, Phase } from './pair-state.ts';
import { answer, send } from './plans.ts';
import { type Row, row } from './table.ts';

/** Why no checkpoint is made now, or null. */
export function heldBack({ held, self }: PairState): string | null {
  if (held === null) return null;
  const until = new Date(held.untilMs).toISOString();
  return `checkpoint ${held.number} is held on ${self.name} until ${until}; \`checkpoint --release\` ends that`;
}

/** Why this side cannot hold one though it may make one, or null. */
export function cannotHold({ self, phase }: PairState): string | null {
  if (self.lockStep) return 'in lock-step a checkpoint lasts until you make the next one: there is nothing to hold';
  if (phase === 'in-step') return `a checkpoint is held where it is: run it on ${self.peer}`;
  return null;
}

/** The checkpoint that was made for a command is there, and held if it asked for that. */
export function beginHold(state: PairState, wallMs: number): PairState {
  const { asked, holdMs, checkpoint } = state;
  if (asked !== 'running' || holdMs === null || checkpoint === null) return state;
  return { ...state, held: { number: checkpoint.number, untilMs: wallMs + holdMs } };
}

/** A hold does not outlive the session, and the primary is told of it: that side is asked for its status as well. */
export function settleHeld(before: PairState, decision: Decision, { wallMs }: Given): Decision {
  const { phase, session } = decision.state;
  const held = phase === 'following' ? decision.state.held : null;
  const heldThere = phase === 'in-step' ? decision.state.heldThere : null;
  const state = { ...decision.state, held, heldThere };
  const isTold = phase === 'following' && (session?.theirs.versions.max ?? 0) >= 2;
  if (held === before.held || !isTold) return { ...decision, state };
  const told = held === null ? null : { number: held.number, forMs: Math.max(0, held.untilMs - wallMs) };
  return { ...decision, state, now: [...(decision.now ?? []), send({ type: 'held', held: told })] };
}

const released = ({ number }: Held): string => `checkpoint ${number} was held until now`;

/** @param rest every phase but `following` */
export function holdRows(rest: readonly Phase[]): readonly Row[] {
  const nothing = answer('release', 'no checkpoint is held: what was read meanwhile may be of several moments');
  return [
    row('following', 'hold-over', 'following', 'its time is over', (state) => ({ state: { ...state, held: null } })),
    row('following', 'command release', 'following', 'the next checkpoint may be made', (state) =>
      state.held === null
        ? { state, now: [nothing] }
        : { state: { ...state, held: null }, now: [answer('release', null, released(state.held))] },
    ),
    row('in-step', 'message held', 'in-step', 'noted', (state, { held }, { wallMs }) => ({
      state: {
        ...state,
        heldThere: held === null ? null : { number: held.number, untilMs: wallMs + held.forMs },
      },
    })),
    row(rest, 'command release', 'the same', 'nothing is held', (state) => ({ state, now: [nothing] })),
  ];
}
