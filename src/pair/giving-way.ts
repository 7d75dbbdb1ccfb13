/**
 * The rows of a primary that gives way: it hands over in a switchover, becomes the target of a newer generation, or is
 * forced to stop. Invariant: nobody is told that it stopped, or hands over, while a user of it may still be answered.
 */
import { isBehindBarrier } from './checkpoints.ts';
import type { Decision, Given, PairState } from './pair-state.ts';
import {
  aloneMode,
  aloneRecord,
  answered,
  commit,
  demote,
  dropLink,
  goAlone,
  handOver,
  isShared,
  plan,
  send,
  sendAway,
} from './plans.ts';
import { unshared } from './primary.ts';
import { type Row, row } from './table.ts';

const stay = (state: PairState): Decision => ({ state });

export const givingWayRows: readonly Row[] = [
  // ---- switchover (pair.md 15)
  row(
    'in-step',
    'message switch-request',
    'switching',
    'writers are sent away, behind a barrier when that has ended',
    (state) => (isBehindBarrier(state) ? { state: { ...state, switchWanted: true } } : sendAway(state)),
  ),
  row(
    ['waiting', 'going-alone', 'alone', ...unshared, 'closing', 'joining'],
    'message switch-request',
    'the same',
    'refused: not in step',
    (state) => ({
      state,
      now: [send({ type: 'switch-refused', reason: `${state.self.name} is not in step (${state.phase})` })],
    }),
  ),
  row(
    'switching',
    'exports-closed',
    'switching',
    'both flushed, then durably handing over, then said',
    (state, _, given) => handOver(state, given),
  ),
  row(
    'switching',
    'done hand-over',
    'handing-over',
    'serves nobody until the other side has taken or refused it',
    (state) => ({
      state: { ...state, phase: 'handing-over', session: null },
    }),
  ),
  row(
    'switching',
    ['link-lost', 'replication-down'],
    'going-alone | handing-over',
    'before it was durable: alone; afterwards: waits',
    (state, { reason }, given) => leaveSwitch(state, reason, given),
  ),
  row(
    'switching',
    ['failed send-away', 'failed hand-over'],
    'going-alone | handing-over',
    'as a lost link',
    (state, error, given) => leaveSwitch({ ...state, error }, error, given),
  ),
  row(
    'handing-over',
    'message took-over',
    'demoting',
    'becomes the target of the generation that it offered',
    (state, { id }, given) => (state.record.handingOver?.id === id ? demote(state, given) : stay(state)),
  ),
  row(
    'handing-over',
    'message refused',
    'handing-over',
    'the other side can never take it any more',
    (state, { id }) =>
      state.session !== null && state.record.handingOver?.id === id
        ? { state: { ...state, session: { ...state.session, handOverRefused: true } } }
        : stay(state),
  ),
  row('handing-over', 'message target', 'waiting', 'only after a refusal: the offer is durably withdrawn', (state) =>
    state.session?.handOverRefused === true
      ? {
          state: { ...state, phase: 'waiting', session: { ...state.session, agreed: true } },
          plan: plan('take-back', commit({ handingOver: null })),
        }
      : stay(state),
  ),
  row('handing-over', ['done let-go', 'failed let-go'], 'handing-over', 'no connection is left', stay),
  row('waiting', ['failed take-back', 'failed leave-join'], 'waiting', 'the session is tried anew', (state, error) => ({
    state: { ...state, error, session: null },
    now: [dropLink(error)],
  })),

  // ---- giving way
  row('demoting', 'exports-closed', 'demoting', 'users are gone: durably a target', (state, _, given) =>
    demote(state, given),
  ),
  row('demoting', 'done demote', 'detached', 'refuses users, and waits for the primary', (state) => ({
    state: { ...state, phase: 'detached', session: null, proof: null, error: null, offered: null },
  })),
  row('demoting', ['failed demote', 'failed send-away'], 'demoting', 'tried again', (state, error) => ({
    state: { ...state, error },
    now: [{ do: 'retry-later' }],
  })),
  row('demoting', 'retry', 'demoting', 'tried again from where it failed', (state, _, given) => {
    if (!state.serving) return demote(state, given);
    const leaving = sendAway(state);
    return { ...leaving, state: { ...leaving.state, phase: 'demoting' } };
  }),
  row(
    ['in-step', 'switching'],
    'message stop-serving',
    'fencing',
    'a failover was forced: users are hung up unanswered, so that nothing is here that the other side was not given',
    fenceInStep,
  ),
  row(
    'fencing',
    'done fence-in-step',
    'waiting',
    'has said that it stopped; serves nobody until a hello says who does',
    fenced,
  ),
  row(
    'fencing',
    'failed fence-in-step',
    'fencing',
    'goes on alone to be able to answer those that wait',
    (state, error, given) => fence({ ...state, error }, given),
  ),
  row(
    ['alone', ...unshared, 'closing'],
    'message stop-serving',
    'fencing',
    'a failover was forced: users are sent away, from now on durably without the other side',
    (state, _, given) => fence(state, given),
  ),
  row(['waiting', 'handing-over'], 'message stop-serving', 'the same', 'serves nobody already', (state) => ({
    state,
    now: [send({ type: 'stopped-serving' })],
  })),
  row('fencing', 'failed fence', 'fencing', 'users are held until it is durable: tried again', (state, error) => ({
    state: { ...state, error },
    now: [{ do: 'retry-later' }],
  })),
  row('fencing', 'retry', 'fencing', 'tried again', (state, _, given) => fence(state, given)),
  row('fencing', 'exports-closed', 'fencing', 'says that it stopped', (state) => ({
    state: { ...state, serving: false },
    plan: plan('let-go', { do: 'set-mode', mode: 'held' }, { do: 'detach' }, send({ type: 'stopped-serving' })),
  })),
  row('fencing', ['done let-go', 'failed let-go'], 'waiting', 'serves nobody until a hello says who does', fenced),
];

function fenced(state: PairState): Decision {
  return {
    state: { ...state, phase: 'waiting', serving: false, refusal: 'a failover was forced on the other side' },
  };
}

/** No new generation: what the other side opens descends from ours, and we return as its target (pair.md 16). */
function fenceInStep(state: PairState): Decision {
  return {
    state: { ...state, phase: 'fencing', session: null },
    plan: plan(
      'fence-in-step',
      { do: 'set-mode', mode: 'held' },
      { do: 'stop-work' },
      { do: 'refuse-users', reason: 'was forced to stop by a failover' },
      { do: 'drop-users' },
      { do: 'detach' },
      send({ type: 'stopped-serving' }),
    ),
  };
}

function fence(state: PairState, given: Given): Decision {
  return {
    state: { ...state, phase: 'fencing', session: null },
    plan: plan(
      'fence',
      { do: 'set-mode', mode: 'held' },
      commit(aloneRecord(state, given, isShared(state))),
      aloneMode,
      { do: 'stop-work' },
      { do: 'refuse-users', reason: 'was forced to stop by a failover' },
      { do: 'begin-close-exports' },
    ),
  };
}

function leaveSwitch(state: PairState, reason: string, given: Given): Decision {
  // The offer was not sent if it is not durable yet: a new generation takes it back in its own write.
  // Said, so that the other side does not take the end of this session for that of a primary that is gone.
  if (state.record.handingOver === null) {
    return { ...goAlone(state, given, reason), now: [send({ type: 'switch-refused', reason })] };
  }
  return {
    ...answered(
      { ...state, phase: 'handing-over', session: null },
      `${reason}; ${state.self.peer} may be told of the handing over when it answers again`,
    ),
    plan: plan('let-go', { do: 'set-mode', mode: 'held' }, { do: 'detach' }, dropLink(reason)),
  };
}
