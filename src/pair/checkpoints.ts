/**
 * The rows of checkpoints (pair.md 20 to 22). The secondary makes and numbers them, by its clock or when the primary
 * says that everything which was answered before has arrived; a command on either side goes to the primary first.
 *
 *     clock                 S: checkpoint, then says so
 *     command, lock-step    S asks P -> P: (barrier) flush -> P tells S -> S: checkpoint, says so -> P: (writes go on)
 *
 * In lock-step what may differ is cleared by that flush, and S may go back behind it until it has the new checkpoint:
 * so from the flush until S has said the number there is no proof for a S that went back (`Proof.checkpoint`).
 */
import { beginHold, cannotHold, heldBack, holdRows } from './checkpoint-hold.ts';
import type { Checkpoint, Decision, Given, PairState, Phase, Step } from './pair-state.ts';
import { answer, goAlone, goingBackTo, plan, send } from './plans.ts';
import { beginCheckpoint, detachSecondary, makeCheckpoint } from './secondary-plans.ts';
import { type Row, row } from './table.ts';

const stay = (state: PairState): Decision => ({ state });

/** Primary: the last checkpoint of the other side, as it told. */
export function madeThere(state: PairState, number: number | null, ageMs: number, given: Given): PairState {
  const checkpoint: Checkpoint | null = number === null ? null : { number, atMs: given.wallMs - ageMs };
  return { ...state, checkpoint };
}

/** Primary: begins one that is wanted, once nothing else is under way. */
export function beginWanted(decision: Decision): Decision {
  const { state } = decision;
  const { checkpointWanted, checkpointing, phase, stopWanted, switchWanted } = state;
  if (!checkpointWanted || checkpointing || phase !== 'in-step' || state.plan !== null) return decision;
  if (stopWanted || switchWanted) return decision;
  const { lockStep } = state.self;
  const request = state.request + 1;
  const begun: PairState = {
    ...state,
    plan: 'checkpoint',
    request,
    checkpointing: true,
    checkpointWanted: false,
    askedThere: state.askedThere === 'waiting' ? 'running' : 'no',
    asked: state.asked === 'waiting' ? 'running' : state.asked,
    proof: lockStep ? goingBackTo(state.proof, null) : state.proof,
  };
  return {
    ...decision,
    state: begun,
    plan: plan(
      'checkpoint',
      lockStep ? [{ do: 'set-mode', mode: 'barrier' }] : [],
      // Behind a barrier the link bounds it, for those who wait.
      { do: 'flush-remote', proven: false, bounded: !lockStep },
      send({ type: 'checkpoint', request, asked: begun.askedThere === 'running' }),
      { do: 'await-checkpoint' },
      endBarrier(begun),
    ),
  };
}

/** Lifted before the other side has answered, a barrier would let writes into the checkpoint of some disks only. */
export function isBehindBarrier({ self, checkpointing, plan }: PairState): boolean {
  return self.lockStep && (checkpointing || plan === 'end-checkpoint');
}

/** Writers of a barrier go on. */
function endBarrier(state: PairState): Step[] {
  return isBehindBarrier(state) ? [{ do: 'set-mode', mode: 'in-sync' }] : [];
}

/** Whoever waits for a checkpoint is told when it cannot come about any more. */
export function settleAsked(decision: Decision): Decision {
  const { state } = decision;
  if (checkpointPhases.has(state.phase)) return decision;
  if (state.asked === 'no' && !state.checkpointing && !state.checkpointWanted && state.askedThere === 'no')
    return decision;
  const settled: PairState = {
    ...state,
    asked: 'no',
    holdMs: null,
    checkpointing: false,
    checkpointWanted: false,
    askedThere: 'no',
  };
  const error = state.error ?? 'the two sides are not in step any more';
  const now = state.asked === 'no' ? [] : [answer('checkpoint', error)];
  return { ...decision, state: settled, now: [...(decision.now ?? []), ...now] };
}

const checkpointPhases: ReadonlySet<Phase> = new Set(['in-step', 'following'] satisfies Phase[]);

/** The command that waited for this one is answered. */
function answerAsked(state: PairState, error: string | null): Decision {
  if (state.asked !== 'running') return { state };
  const text = `checkpoint ${state.checkpoint?.number}`;
  return {
    state: { ...state, asked: 'no', holdMs: null },
    now: [answer('checkpoint', error, error === null ? text : '')],
  };
}

const refused = (state: PairState): string => {
  if (!state.self.overlays) return 'a mirror has no checkpoints (`store: overlays` keeps them)';
  return `a checkpoint needs both sides in step (${state.self.name}: ${state.phase})`;
};

/** Nobody waits for it but those who asked. The last one stays until the other side says that it made this one. */
function late(state: PairState, error: string): Decision {
  const reason = `${error}: the last checkpoint stays, until that side has made this one after all`;
  const told = answerAsked({ ...state, checkpointing: false }, reason);
  const failed = send({ type: 'checkpoint-failed', request: state.request, reason });
  return state.askedThere === 'running' ? { ...told, now: [failed, ...(told.now ?? [])] } : told;
}

const primaryCheckpoints: readonly Row[] = [
  row('in-step', 'message checkpoint-request', 'in-step', 'as a command here', (state) => ({
    state: { ...state, checkpointWanted: true, askedThere: 'waiting' },
  })),
  row('in-step', 'message checkpointed', 'in-step', 'noted', (state, { number, ageMs, request }, given) => {
    const next = madeThere(state, number, ageMs, given);
    const isOurs = state.checkpointing && request === state.request;
    return { state: isOurs && state.self.lockStep ? { ...next, proof: goingBackTo(state.proof, number) } : next };
  }),
  row('closing', 'message checkpointed', 'closing', 'noted', (state, { number, ageMs }, given) =>
    stay(madeThere(state, number, ageMs, given)),
  ),
  row('in-step', 'done checkpoint', 'in-step', 'answered', (state) =>
    answerAsked({ ...state, checkpointing: false }, null),
  ),
  row('in-step', 'message checkpoint-failed', 'in-step', 'the other side could not: writers go on', (state, failed) => {
    if (!state.checkpointing || failed.request !== state.request) return stay(state);
    const told = answerAsked({ ...state, checkpointing: false }, failed.reason);
    return { ...told, plan: plan('end-checkpoint', endBarrier(state)) };
  }),
  row(
    'in-step',
    ['failed checkpoint', 'failed end-checkpoint'],
    'in-step | going-alone',
    'the other side did not make it in time: said; in lock-step writers wait: as a link that is lost (pair.md 6)',
    (state, error, given) => (state.self.lockStep ? goAlone({ ...state, error }, given, error) : late(state, error)),
  ),
];

const secondaryCheckpoints: readonly Row[] = [
  row(
    'following',
    'checkpoint-due',
    'following',
    'makes one; in lock-step the primary is asked for it; joins one that is under way; none while one is held',
    (state, { early }) => {
      if (!state.self.overlays || state.plan !== null || (state.held !== null && !early)) return stay(state);
      return beginCheckpoint({ ...state, held: null });
    },
  ),
  row('following', 'message checkpoint', 'following', 'makes one, unless one is held', (state, { request, asked }) => {
    const next: PairState = { ...state, asked: asked && state.asked === 'waiting' ? 'running' : state.asked };
    const reason = heldBack(state);
    if (reason === null) return makeCheckpoint(next, request);
    const told = answerAsked(next, reason);
    return { ...told, now: [send({ type: 'checkpoint-failed', request, reason }), ...(told.now ?? [])] };
  }),
  row(
    'following',
    'message checkpoint-failed',
    'following',
    'the primary cannot: what was asked here',
    (state, failed) => answerAsked({ ...state, asked: state.asked === 'no' ? 'no' : 'running' }, failed.reason),
  ),
  row(
    'following',
    'checkpoint-unchanged',
    'following',
    'nothing was written: the last one is as good',
    (state, _, given) => {
      const { checkpoint } = state.record;
      return stay(checkpoint === null ? state : { ...state, checkpoint: { ...checkpoint, atMs: given.wallMs } });
    },
  ),
  row('following', 'done checkpoint', 'following', 'answered, and held if that was asked for', (state, _, given) =>
    answerAsked(beginHold({ ...state, error: null }, given.wallMs), null),
  ),
  row('following', 'failed checkpoint', 'following | detaching', 'says so; all is as before', (state, error) => {
    // There is none any more: another session begins with one.
    if (state.record.checkpoint === null) return detachSecondary({ ...state, error }, error);
    const told = answerAsked({ ...state, error }, error);
    if (state.checkpointFor === null) return told;
    const failed = send({ type: 'checkpoint-failed', request: state.checkpointFor, reason: error });
    return { ...told, now: [failed, ...(told.now ?? [])] };
  }),
  row(
    'following',
    'unsure',
    'detaching',
    'the session ends: the disks stay what the group file may say that they are, until it is written',
    (state, { error }) => detachSecondary({ ...state, error }, error),
  ),
];

const commands: readonly Row[] = [
  row('in-step', 'command checkpoint', 'in-step', 'everything answered before goes into it', (state, { holdMs }) => {
    const mirror =
      state.session?.theirs.overlays === true ? null : `${state.self.peer} is a mirror: it has no checkpoints`;
    const why = mirror ?? (holdMs === null ? null : cannotHold(state));
    if (why !== null) return { state, now: [answer('checkpoint', why)] };
    return { state: { ...state, asked: 'waiting', checkpointWanted: true } };
  }),
  row('following', 'command checkpoint', 'following', 'asks the primary', (state, { holdMs }) => {
    const mirror = state.self.overlays ? null : refused(state);
    const why = mirror ?? heldBack(state) ?? (holdMs === null ? null : cannotHold(state));
    if (why !== null) return { state, now: [answer('checkpoint', why)] };
    return { state: { ...state, asked: 'waiting', holdMs }, now: [send({ type: 'checkpoint-request' })] };
  }),
];

/** @param rest the phases in which a checkpoint is refused */
export function checkpointRows(rest: readonly Phase[]): readonly Row[] {
  return [
    ...primaryCheckpoints,
    ...secondaryCheckpoints,
    ...commands,
    ...holdRows(['in-step', ...rest]),
    row(rest, 'command checkpoint', 'the same', 'refused', (state) => ({
      state,
      now: [answer('checkpoint', refused(state))],
    })),
  ];
}
