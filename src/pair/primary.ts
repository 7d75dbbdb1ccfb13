/**
 * The rows of a primary: it waits for a hello, serves, brings the other side into step, and goes on alone when it must.
 *
 *   waiting -> going-alone -> alone -> (comparing) -> attaching -> copying -> settling -> closing -> in-step
 *      \-> joining -> in-step               any of these, when the link is lost: -> alone, or -> going-alone -> alone
 */

import { madeThere } from './checkpoints.ts';
import type { Decision, Differences, Given, PairState, Phase, Session, Step } from './pair-state.ts';
import {
  answer,
  answered,
  askToSync,
  beginSync,
  canJoin,
  close,
  dropLink,
  endSync,
  goAlone,
  join,
  loseSession,
  plan,
  send,
  serveAlone,
} from './plans.ts';
import { type Row, row } from './table.ts';

/** In session, served alone, nothing offered yet: losing the session costs nothing durable. */
export const unshared = ['comparing', 'attaching', 'copying', 'settling'] as const satisfies readonly Phase[];
/** The other side may hold our generation. */
const shared = ['closing', 'in-step'] as const satisfies readonly Phase[];

const stay = (state: PairState): Decision => ({ state });

/** A target agreed: serve, and bring it into step the shortest way that is proven. */
function agreed(state: PairState, session: Session, given: Given, differs: Differences | null = null): Decision {
  const next = { ...state, session: { ...session, agreed: true } };
  if (state.phase === 'alone') return beginSync(next, next.session, differs);
  if (!canJoin(next, next.session)) return serveAlone(next, given, false);
  return { state: { ...next, phase: 'joining' }, now: [send({ type: 'attach', how: 'join', bytes: 0 })] };
}

export const primaryRows: readonly Row[] = [
  row(
    'waiting',
    'message target',
    'joining | going-alone',
    'with proof of a clean stop in step: connects first; else a new generation, then serves',
    (state, _, given) => (state.session === null ? stay(state) : agreed(state, state.session, given)),
  ),
  row(
    'alone',
    'message target',
    'attaching | comparing',
    'with proof, or what both sides know (pair.md 16): what may differ; a blank target: all; else by checksums',
    (state, { differs }, given) =>
      state.session === null ? stay(state) : agreed(state, state.session, given, differs),
  ),
  row('going-alone', 'message target', 'going-alone', 'the session goes on when users are answered', (state) =>
    state.session === null ? stay(state) : { state: { ...state, session: { ...state.session, agreed: true } } },
  ),
  row(
    'going-alone',
    ['done serve-alone', 'done go-alone'],
    'alone | attaching | comparing',
    'users are answered; a session that was agreed goes on',
    (state) => {
      const [pending, now]: [PairState['pending'], Step[]] =
        state.pending === 'start-alone' ? [null, [answer('start-alone', null, 'serves alone')]] : [state.pending, []];
      const next: PairState = { ...state, phase: 'alone', built: true, pending };
      if (next.session?.agreed !== true) return { state: next, now };
      const sync = beginSync(next, next.session);
      return { ...sync, now: [...now, ...(sync.now ?? [])] };
    },
  ),
  row(
    'going-alone',
    ['failed serve-alone', 'failed go-alone'],
    'going-alone',
    'nothing is answered while it cannot be made durable; tried again',
    (state, error) => {
      const told = answered({ ...state, error, session: null }, error);
      return { state: told.state, now: [...(told.now ?? []), dropLink(error), { do: 'retry-later' }] };
    },
  ),
  row('going-alone', 'retry', 'going-alone', 'the new generation is tried again', (state, _, given) =>
    goAlone({ ...state, error: null }, given, 'tried again'),
  ),

  row(
    'comparing',
    'message flushed',
    'comparing',
    'checksums of both sides are compared, what differs is marked',
    (state) => ({
      state,
      plan: plan('note', { do: 'start-compare' }),
    }),
  ),
  row(
    'comparing',
    'compared',
    'attaching',
    'now mayDiffer is proof; the other side marks itself incomplete and opens its exports',
    (state) => {
      const theirs = state.session?.theirs;
      if (theirs === undefined) return stay(state);
      const proof = { peers: [theirs.generation?.id ?? null], instance: theirs.instance, checkpoint: null };
      return {
        state: { ...state, phase: 'attaching', proof },
        plan: plan('mark', askToSync),
      };
    },
  ),
  row('attaching', 'failed mark', 'alone', 'a bitmap that cannot be marked proves nothing', (state, error) => ({
    ...loseSession({ ...state, proof: null, error }, error),
  })),
  row(
    'attaching',
    'message attached',
    'copying',
    'connects, forwards, copies what is missing',
    (state, { exports, checkpoint, fresh }) => {
      const theirs = state.session?.theirs;
      if (theirs === undefined) return stay(state);
      // Made for this sync: what may differ from the disk now may differ from it. An older one: only if that is known.
      const goesBackTo = fresh || state.proof?.checkpoint === checkpoint ? checkpoint : null;
      const proof = state.proof === null ? null : { ...state.proof, checkpoint: goesBackTo };
      return {
        state: { ...state, phase: 'copying', refusal: null, proof },
        plan: plan(
          'copy',
          { do: 'attach', exports, theirs },
          { do: 'set-mode', mode: 'syncing' },
          { do: 'start-copy', targetIsZero: theirs.blank },
        ),
      };
    },
  ),
  row(
    'copying',
    'copied',
    'settling',
    'the other side makes its disks durable before flushes wait for it',
    (state) => ({
      state: { ...state, phase: 'settling' },
      now: [send({ type: 'flush' })],
    }),
  ),
  row(
    'settling',
    'message flushed',
    'closing',
    'flushes wait for both; one flush proves; then the generation is offered',
    (state) => close(state),
  ),
  row('closing', 'message took', 'closing', 'in step is made durable', (state, { id, checkpoint }, given) =>
    id === state.record.generation?.id ? endSync(madeThere(state, checkpoint, 0, given), id, checkpoint) : stay(state),
  ),
  row('closing', 'done end-sync', 'in-step', 'from here on status says inSync', (state) => ({
    state: { ...state, phase: 'in-step', error: null, refusal: null },
  })),
  row(
    'waiting',
    'done take-back',
    'joining | going-alone',
    'the offer is durably withdrawn: as a primary that starts',
    (state, _, given) => (state.session?.agreed === true ? agreed(state, state.session, given) : stay(state)),
  ),
  row(
    'joining',
    'message attached',
    'joining',
    'connects, lifts the clean-stop mark, then serves',
    (state, { exports }) => (state.session === null ? stay(state) : join(state, exports, state.session)),
  ),
  row('joining', 'done join', 'in-step', 'both disks were equal and users are served', (state) => ({
    state: { ...state, phase: 'in-step', error: null, zeroBase: false },
  })),

  // ---- the link is lost
  row(['waiting', 'alone', 'going-alone', 'demoting'], 'link-lost', 'the same', 'no session', stay),
  row(
    'handing-over',
    'link-lost',
    'handing-over',
    'what became of the offer is known when the other side answers again',
    (state) => answered(state, `the link was lost while handing over: ${state.self.peer} may have taken it or not`),
  ),
  row(
    unshared,
    ['link-lost', 'replication-down'],
    'alone',
    'durably alone already: answers at once',
    (state, { reason }) => loseSession(state, reason),
  ),
  row(unshared, 'work-failed', 'alone', 'the session is tried anew', (state, { error }) =>
    loseSession({ ...state, error }, error),
  ),
  row(unshared, ['failed copy', 'failed note'], 'alone', 'the session is tried anew', (state, error) =>
    loseSession({ ...state, error }, error),
  ),
  row(
    shared,
    ['link-lost', 'replication-down'],
    'going-alone',
    'a new generation, then users are answered (pair.md 5, 7)',
    (state, { reason }, given) => goAlone(state, given, reason),
  ),
  row(
    'closing',
    ['failed close', 'failed end-sync'],
    'going-alone',
    'the other side may hold our generation',
    (state, error, given) => goAlone({ ...state, error }, given, error),
  ),
  row(
    'joining',
    ['link-lost', 'replication-down'],
    'waiting | going-alone',
    'before anything was opened: waits again',
    (state, { reason }, given) => leaveJoin(state, reason, given),
  ),
  row(
    'joining',
    'failed join',
    'going-alone',
    'the other side answered, but cannot be joined: a new generation, then serves',
    (state, error, given) => goAlone({ ...state, error }, given, error),
  ),
  row('alone', 'failed lose-session', 'alone', 'tried again: the link stays down until then', (state, error) => ({
    state: { ...state, error },
    now: [dropLink(error), { do: 'retry-later' }],
  })),
  row('alone', 'retry', 'alone', 'cleans up what is left of a session', (state) =>
    state.session === null ? loseSession(state, 'tried again') : stay(state),
  ),
  row(
    'in-step',
    'work-failed',
    'in-step',
    'a range that the local disk could not write or read stays marked (pair.md 8)',
    (state, { error }) => ({
      state: { ...state, error },
      now: [{ do: 'retry-later' }],
    }),
  ),
  row('in-step', 'failed note', 'in-step', 'tried again', (state, error) => ({
    state: { ...state, error },
    now: [{ do: 'retry-later' }],
  })),
  row(
    'in-step',
    ['retry', 'diverged'],
    'in-step',
    'what is marked is sent again from what the local disk reads; what is under way ends first',
    (state) =>
      state.checkpointing || state.plan !== null
        ? { state, now: [{ do: 'retry-later' }] }
        : { state, plan: plan('note', { do: 'start-copy', targetIsZero: false }) },
  ),
  row('in-step', 'copied', 'in-step', 'nothing is marked any more', (state) => ({ state: { ...state, error: null } })),
  row(
    [...unshared, ...shared, 'alone', 'waiting'],
    'message goodbye',
    'alone',
    'the other side stops: as a lost link, without the wait',
    (state, _, given) => {
      const reason = 'the other side stopped';
      if ((shared as readonly Phase[]).includes(state.phase)) return goAlone(state, given, reason);
      if ((unshared as readonly Phase[]).includes(state.phase)) return loseSession(state, reason);
      return { state: { ...state, session: null }, now: [dropLink(reason)] };
    },
  ),
];

function leaveJoin(state: PairState, reason: string, given: Given): Decision {
  if (state.plan === 'join') return goAlone(state, given, reason);
  return {
    state: { ...state, phase: 'waiting', session: null },
    plan: plan('leave-join', { do: 'detach' }, dropLink(reason)),
  };
}
