/**
 * The rows of a secondary: it receives, keeps its own generation until a sync has ended, notes how far it reaches when
 * the primary goes, and becomes primary when it is told to.
 *
 *   detached -> target -> syncing -> following        a lost session: -> detaching -> detached
 *                                    following, detached -> promoting -> (a primary's) alone
 */
import type { Decision, FailoverTo, PairState, Phase, Step } from './pair-state.ts';
import { answer, answered, commit, dropLink, plan, send } from './plans.ts';
import {
  beginCheckpoint,
  detachSecondary,
  finishPromotion,
  openBeside,
  openForSync,
  openIncomplete,
  promote,
  promoted,
  reopen,
  take,
} from './secondary-plans.ts';
import { type Row, row } from './table.ts';

const inSession = ['target', 'syncing', 'following'] as const satisfies readonly Phase[];
const stay = (state: PairState): Decision => ({ state });

/** Said again and again until the primary answers that it stopped, or is gone: it may be busy when it comes. */
export const tellToStop: readonly Step[] = [send({ type: 'stop-serving' }), { do: 'retry-later' }];

/** The last commit of a session made this side clean, and it does not say yet how far it reaches (pair.md 7). */
function lacksNote({ record, asOfMs }: PairState): boolean {
  const known = asOfMs !== null || record.inStepMs !== null;
  return known && record.store === 'clean' && record.generation !== null && record.latest === null;
}

/** Why this side's data is nothing to go on with, or null (pair.md 10, 11, 15). */
export function unfit({ self, record }: PairState, to: FailoverTo): string | null {
  const disks = Object.keys(record.disks).join(', ');
  if (record.generation === null) return `${self.name} holds nothing yet (disks ${disks})`;
  if (record.store === 'incomplete') {
    return `disks ${disks} on ${self.name} are incomplete: an unfinished sync left a mixture of two states`;
  }
  if (to === 'checkpoint') return record.checkpoint === null ? `${self.name} has no checkpoint` : null;
  if (record.store === 'clean') return null;
  const back =
    record.checkpoint === null ? '' : `; \`--to checkpoint\` goes back to checkpoint ${record.checkpoint.number}`;
  return `disks ${disks} on ${self.name} are a mixture: a resync has not ended${back}`;
}

/** A mixture can be taken by force; a checkpoint that is not there cannot. */
export function canBeForced({ to }: PairState): boolean {
  return to === 'latest';
}

/** How often a follower notes that it is in step, for what it shows after a restart without a goodbye. */
export const inStepNoteMs = 60_000;

export const secondaryRows: readonly Row[] = [
  row(inSession, 'message flush', 'the same', 'makes its disks durable and says so', (state) => ({
    state,
    plan: plan('flush-own', { do: 'flush-own' }, send({ type: 'flushed' })),
  })),
  row(
    'target',
    'message attach',
    'syncing',
    'a sync: durably `incomplete` first, or `resync` beside a checkpoint; a join: has all; then its exports open',
    (state, { how, bytes }, given) => openForSync(state, how, bytes, given),
  ),
  row('syncing', 'done open-keeping', 'syncing', 'durably `resync` beside the checkpoint; exports open', (state) =>
    openBeside(state),
  ),
  row(
    'syncing',
    'failed open-keeping',
    'syncing | detaching',
    'what does not fit, or is lost, is given up; with `resync: keep-checkpoint` the resync is refused (pair.md 11)',
    (state, error) =>
      state.self.keepCheckpoint ? detachSecondary({ ...state, error }, error) : openIncomplete({ ...state, error }),
  ),
  row(
    'syncing',
    'message sync-end',
    'syncing',
    'flushes, then lifts the mark and takes the generation in one write',
    (state, message, given) => take(state, message.generation, message.ancestors, given),
  ),
  row(
    'syncing',
    'message in-step',
    'following',
    'a flush that the primary answers is durable here',
    (state, _, given) => {
      const next: PairState = { ...state, phase: 'following', asOfMs: given.wallMs, error: null, checkpointFor: null };
      return state.self.overlays && state.record.checkpoint === null ? beginCheckpoint(next) : stay(next);
    },
  ),
  row(
    'following',
    'message heartbeat',
    'following',
    'notes now and then that it is in step',
    (state, { inSync }, given) => {
      if (!inSync) return stay(state);
      const asOfMs = given.wallMs - state.self.behindMs;
      const next = { ...state, asOfMs };
      if (state.plan !== null || asOfMs - (state.record.inStepMs ?? 0) < inStepNoteMs) return { state: next };
      return { state: next, plan: plan('note', commit({ inStepMs: asOfMs })) };
    },
  ),
  row(
    inSession,
    'message goodbye',
    'detaching',
    'the primary stopped: what that means for a failover is noted',
    (state, { clean }, given) => {
      const whole = clean && state.phase === 'following';
      const latest = {
        asOfMs: whole ? given.wallMs : (state.asOfMs ?? state.record.inStepMs ?? given.wallMs),
        goodbye: whole,
      };
      const keeps = state.record.store === 'clean' && state.record.generation !== null;
      return {
        // It serves nobody any more: a failover need not wait until its connection has ended.
        state: { ...state, phase: 'detaching', session: null, connected: false },
        plan: plan(
          'detach-secondary',
          { do: 'close-replication' },
          { do: 'flush-own' },
          keeps ? [commit({ latest })] : [],
          send({ type: 'goodbye-noted' }),
        ),
      };
    },
  ),

  // ---- the session ends
  row(
    inSession,
    'link-lost',
    'detaching',
    'closes its exports, makes its disks durable, notes how far they reach',
    (state, { reason }) => detachSecondary(state, reason),
  ),
  row(
    inSession,
    ['failed become-target', 'failed open-for-sync', 'failed take', 'failed flush-own', 'failed note'],
    'detaching',
    'says what failed; the session is tried anew',
    (state, error) => detachSecondary({ ...state, error }, error),
  ),
  row(
    'detaching',
    'done detach-secondary',
    'detached | promoting',
    'a failover that waited goes on',
    (state, _, given) => {
      // What the session was writing when it ended is durable by now, and may have changed what this side is.
      if (lacksNote(state)) return detachSecondary(state, 'the session ended');
      const next: PairState = { ...state, phase: 'detached' };
      const why = state.pending === 'failover' ? unfit(state, state.to) : null;
      if (why !== null && !(state.forced && canBeForced(state))) {
        return answered(next, `${why}; \`--force\` takes it nevertheless`);
      }
      if (state.pending === 'failover') return promote(next, given, null);
      return answered(next, 'the primary went away during the switchover: `failover` makes this side primary');
    },
  ),
  row(
    'detaching',
    'failed detach-secondary',
    'detaching',
    'a disk that could not be flushed is opened anew and counts as another life',
    (state, error) => ({
      state: { ...state, error },
      plan: reopen(state, error),
    }),
  ),
  row('detaching', 'done reopen', 'detached', 'waits for the primary', (state) =>
    answered({ ...state, phase: 'detached' }, state.error ?? 'the disks failed'),
  ),
  row('detaching', 'failed reopen', 'detached', 'tried again with the next session', (state, error) => {
    const told = answered({ ...state, error, phase: 'detached' }, error);
    return { ...told, now: [...(told.now ?? []), dropLink(error)] };
  }),
  row(['detaching', 'promoting'], 'link-lost', 'the same', 'no session', stay),
  row(
    'detached',
    'link-lost',
    'detached | promoting',
    'a forced failover need not wait for a primary that is gone',
    (state, _, given) => (state.pending === 'failover' ? promote(state, given, null) : stay(state)),
  ),
  row(
    ['detached', 'target', 'syncing', 'following'],
    'retry',
    'the same',
    'a forced failover: a primary that was busy is told again to stop',
    (state) => (state.pending === 'failover' && state.forced ? { state, now: tellToStop } : stay(state)),
  ),

  // ---- it becomes primary (pair.md 14, 15)
  row(
    'following',
    'message hand-over',
    'promoting',
    'takes the offered generation durably, then serves',
    (state, { generation, equal }, given) =>
      state.record.refused.includes(generation.id) ? stay(state) : promote(state, given, generation, equal),
  ),
  row('following', 'message switch-refused', 'following', 'says why', (state, { reason }) => answered(state, reason)),
  row(
    ['target', 'syncing', 'following', 'detached'],
    'message stopped-serving',
    'promoting',
    'a forced failover goes on',
    (state, _, given) => (state.pending === 'failover' && state.forced ? promote(state, given, null) : stay(state)),
  ),
  row('promoting', 'promoted', 'promoting', 'serves; what it shows is still on its way into the disks', (state) =>
    promoted({ ...state, serving: true, built: true, error: null, refusal: null }),
  ),
  row('promoting', ['done promote', 'done keep'], 'alone', 'serves', (state) => ({
    state: {
      ...state,
      phase: 'alone',
      serving: true,
      session: null,
      pending: null,
      forced: false,
      built: true,
      error: null,
      refusal: null,
    },
    ...(state.pending === null ? {} : { now: [answer(state.pending, null, `${state.self.name} is primary`)] }),
  })),
  row(
    'promoting',
    ['failed promote', 'failed keep'],
    'detaching | promoting',
    'before the durable write: nothing happened; after it: finished, however often it takes',
    (state, error) => {
      const begun = state.record.promoting !== null;
      const next: PairState = { ...state, error, pending: null, forced: false };
      const now: Step[] = state.pending === null ? [] : [answer(state.pending, error)];
      if (begun) return { state: next, now: [...now, { do: 'retry-later' }] };
      if (state.record.role === 'primary')
        return { state: { ...next, phase: state.serving ? 'alone' : 'waiting' }, now };
      const detached: PairState = { ...next, serving: false, session: null };
      if (state.record.role === 'none')
        return { state: { ...detached, phase: 'no-role' }, now: [...now, dropLink(error)] };
      return { state: { ...detached, phase: 'detaching' }, plan: reopen(state, error), now };
    },
  ),
  row('promoting', 'retry', 'promoting', 'finished (pair.md 14)', (state) => ({
    state,
    plan: plan('promote', finishPromotion(state, state.record.promoting ?? 'latest')),
  })),
];
