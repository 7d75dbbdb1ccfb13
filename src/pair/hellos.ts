/**
 * The rows that begin: a start, and a hello (pair.md 13). A hello decides only in a phase at rest, and only if our own
 * was made from the group file as it is now: else the connection is dropped and both say hello again.
 */
import { madeThere } from './checkpoints.ts';
import { judge } from './judge.ts';
import type { Hello } from './messages.ts';
import type { Decision, Given, PairState, Phase, Session } from './pair-state.ts';
import { commit, demote, dropLink, peerOf, plan, sendAway } from './plans.ts';
import { becomeTarget, detachSecondary, finishPromotion } from './secondary-plans.ts';
import { type Row, row } from './table.ts';

/** Phases in which nothing is under way: a hello may decide. */
export const restingPhases = [
  'waiting',
  'alone',
  'handing-over',
  'detached',
  'no-role',
] as const satisfies readonly Phase[];

const busyPhases = [
  'starting',
  'going-alone',
  'comparing',
  'attaching',
  'copying',
  'settling',
  'closing',
  'joining',
  'in-step',
  'switching',
  'demoting',
  'fencing',
  'target',
  'syncing',
  'following',
  'detaching',
  'promoting',
  'stopping',
  'stopped',
] as const satisfies readonly Phase[];

type HelloEvent = { readonly mine: Hello; readonly sequence: number; readonly theirs: Hello };

function onHello(state: PairState, event: HelloEvent, given: Given): Decision {
  if (state.plan !== null || event.sequence !== state.sequence) {
    return { state: { ...state, connected: false }, now: [dropLink('this side changed meanwhile')] };
  }
  const next: PairState = { ...state, peer: event.theirs, connected: true, noPrimary: false };
  const outcome = judge(event.mine, event.theirs);
  switch (outcome.kind) {
    case 'source': {
      const session: Session = { theirs: event.theirs, agreed: false, handOverRefused: false };
      const { checkpoint } = event.theirs;
      const seen = madeThere(next, checkpoint?.number ?? null, checkpoint?.ageMs ?? 0, given);
      return { state: { ...seen, session } };
    }
    case 'target':
      return onTarget(next, event.theirs, given);
    case 'split-brain':
      return onSplitBrain({ ...next, refusal: outcome.reason }, event.theirs, given);
    case 'no-primary':
      return { state: { ...next, refusal: outcome.reason, noPrimary: true } };
    case 'refused':
      return { state: { ...next, refusal: outcome.reason } };
  }
}

function onTarget(state: PairState, theirs: Hello, given: Given): Decision {
  if (state.record.role !== 'primary') return becomeTarget(state, theirs);
  if (!state.serving) return demote(state, given);
  const leaving = sendAway(state);
  return { ...leaving, state: { ...leaving.state, phase: 'demoting' } };
}

function onSplitBrain(state: PairState, theirs: Hello, given: Given): Decision {
  const other = theirs.generation?.id ?? null;
  if (state.record.splitBrain?.other === other) return { state };
  const splitBrain = { sinceMs: state.record.splitBrain?.sinceMs ?? given.wallMs, other };
  return { state, plan: plan('note', commit({ splitBrain, peer: peerOf(state) })) };
}

function onStart(state: PairState): Decision {
  const { record } = state;
  switch (record.role) {
    case 'none':
      return { state: { ...state, phase: 'no-role' } };
    case 'primary':
      if (record.promoting !== null) {
        return {
          state: { ...state, phase: 'promoting' },
          plan: plan('promote', finishPromotion(state, record.promoting)),
        };
      }
      return { state: { ...state, phase: record.handingOver === null ? 'waiting' : 'handing-over' } };
    case 'secondary':
      // A life that ended without a goodbye: how far this side reaches is made durable before anybody asks.
      return detachSecondary(state, 'start');
  }
}

export const helloRows: readonly Row[] = [
  row(
    'starting',
    'started',
    'no-role | waiting | handing-over | detached | promoting',
    'as the group file says; a promotion that had begun is finished',
    onStart,
  ),
  row(
    restingPhases,
    'hello',
    'the same | target | demoting',
    'both come to the same outcome; a target says so, and only then the source acts',
    onHello,
  ),
  row(busyPhases, 'hello', 'the same', 'dropped: said again when this side is at rest', (state) => ({
    state,
    now: [dropLink('this side is busy')],
  })),
  row('no-role', 'link-lost', 'no-role', 'no session', (state) => ({ state })),
  row([...restingPhases, 'target', 'syncing', 'following'], ['done note'], 'the same', 'noted', (state) => ({ state })),
  row(restingPhases, 'failed note', 'the same', 'says that it could not be noted', (state, error) => ({
    state: { ...state, error },
  })),
];
