/**
 * The plans of a secondary: how it begins to receive, takes a generation, ends a session, becomes primary. What is
 * durable stands before what depends on it, and the comment at each plan says what would be lost otherwise.
 */
import { addRefused, type Generation, type GroupRecord, joinAncestors, openGeneration } from './generation.ts';
import type { Decision, FailoverTo, Given, PairState, Plan, Session, Step } from './pair-state.ts';
import { aloneMode, answer, commit, dropLink, peerOf, plan, send } from './plans.ts';

const checkpoint = (change: Partial<GroupRecord>, atMs: number | null = null): Step => ({
  do: 'checkpoint',
  change,
  ifChanged: false,
  atMs,
});

/** These steps, where this side keeps checkpoints. */
const onOverlays = ({ self }: PairState, ...steps: readonly Step[]): readonly Step[] => (self.overlays ? steps : []);

/** What makes the overlays of all disks empty, in the write that it is a part of (record-log.md 8). */
function emptied(state: PairState): Partial<GroupRecord> {
  return { epoch: state.record.epoch + 1, checkpoint: null, rolledBack: false };
}

/** An older connection's requests have ended before a new session may bring any (pair.md 4). */
export function becomeTarget(state: PairState, theirs: Session['theirs']): Decision {
  const offered = theirs.handingOver;
  const refuse = offered !== null && offered.id !== state.record.generation?.id ? offered.id : null;
  return {
    state: { ...state, phase: 'target', session: { theirs, agreed: true, handOverRefused: false }, refusal: null },
    plan: plan(
      'become-target',
      { do: 'close-replication' },
      // Durable before it is said: the other side serves again on the strength of it (pair.md 15).
      refuse === null
        ? []
        : [commit({ refused: addRefused(state.record, refuse) }), send({ type: 'refused', id: refuse })],
      { do: 'refuse-users', reason: null },
      { do: 'agree' },
    ),
  };
}

// ---------------------------------------------------------------- receiving

/** The exports open, for a sync of `bytes` or for a join; what is durable before, each says itself. */
export function openForSync(state: PairState, how: 'sync' | 'join', bytes: number, given: Given): Decision {
  const { record, self } = state;
  const next: PairState = { ...state, phase: 'syncing', asOfMs: null };
  if (how === 'join') return joinOpened(next, given);
  // What a person's decision made void is nothing to go back to (pair.md 13).
  const own = record.generation?.id;
  const theirs = state.session?.theirs;
  const descends = own !== undefined && (theirs?.generation?.id === own || theirs?.ancestors.includes(own) === true);
  const keepsData = self.overlays && record.store !== 'incomplete' && descends;
  return keepsData ? openKeeping(next, bytes) : openIncomplete(next);
}

/** Both disks are equal. What is kept goes on to lead to the last checkpoint. */
function joinOpened(state: PairState, given: Given): Decision {
  const { lockStep } = state.self;
  return {
    state,
    plan: plan(
      'open-for-sync',
      { do: 'close-replication' },
      onOverlays(state, { do: 'open-overlays' }),
      // Before the primary may go on beyond a goodbye.
      commit({ inStepMs: given.wallMs, latest: null, rolledBack: false, lockStep, peer: peerOf(state) }),
      { do: 'open-replication' },
      onOverlays(state, { do: 'keep-old' }),
      { do: 'announce', fresh: false },
    ),
  };
}

/** Can the last checkpoint be kept? Only a failure of this gives it up; one of the steps that follow is tried again. */
function openKeeping(state: PairState, bytes: number): Decision {
  const keeping = plan(
    'open-keeping',
    { do: 'close-replication' },
    { do: 'open-overlays' },
    { do: 'check-space', bytes },
  );
  return { state, plan: keeping };
}

/**
 * A resync beside the last checkpoint (pair.md 11). A standby's is a new one, of the state that is found, and as old as
 * that: it is consistent, and nothing has to be kept for an older one. In lock-step the last one stays: the state that
 * is found belongs to no state of a machine. While `resync` stands the disk is a mixture, and the checkpoint stays.
 */
export function openBeside(state: PairState): Decision {
  const { record, self } = state;
  const change: Partial<GroupRecord> = {
    role: 'secondary',
    store: 'resync',
    latest: null,
    splitBrain: null,
    rolledBack: false,
    peer: peerOf(state),
  };
  const keepsLast = record.store === 'resync' || (self.lockStep && record.checkpoint !== null);
  return {
    state,
    plan: plan(
      'open-for-sync',
      { do: 'open-replication' },
      { do: 'keep-old' },
      // Before the first byte that makes the disk a mixture.
      keepsLast ? commit(change) : checkpoint(change, record.latest?.asOfMs ?? record.inStepMs),
      { do: 'show-view' },
      { do: 'announce', fresh: !keepsLast },
    ),
  };
}

/** There is no checkpoint, or it is given up: the disk is written directly (pair.md 10, 11). */
export function openIncomplete(state: PairState): Decision {
  return {
    state,
    plan: plan(
      'open-for-sync',
      { do: 'close-replication' },
      onOverlays(state, { do: 'hide-view' }, { do: 'refuse-users', reason: null }),
      // Before the first byte that makes the disk a mixture.
      commit({
        ...emptied(state),
        role: 'secondary',
        store: 'incomplete',
        splitBrain: null,
        latest: null,
        peer: peerOf(state),
      }),
      onOverlays(state, { do: 'drop-overlays' }),
      { do: 'open-replication' },
      { do: 'announce', fresh: false },
    ),
  };
}

/**
 * pair.md 13: all disks flushed, then mark lifted and id taken in one write, then said. With overlays that write is a
 * checkpoint: the closing one of a resync, or the first.
 */
export function take(state: PairState, generation: Generation, ancestors: readonly string[], given: Given): Decision {
  const own = state.record.generation?.id;
  const foreign = own !== undefined && own !== generation.id && !ancestors.includes(own);
  const change: Partial<GroupRecord> = {
    generation,
    // The own earlier id goes along where a person's decision made this side's data void.
    ancestors: joinAncestors(ancestors, foreign ? [own] : []),
    store: 'clean',
    lockStep: state.self.lockStep,
    latest: null,
    splitBrain: null,
    inStepMs: given.wallMs,
    peer: { name: state.self.peer, generation },
  };
  const { overlays, durable } = state.self;
  return {
    state,
    plan: plan(
      'take',
      // Writers wait behind a barrier: what a checkpoint flushes by itself is not flushed twice.
      durable ? [] : [{ do: 'flush-own' }],
      overlays ? [{ do: 'open-overlays' }, { do: 'keep-old' }, checkpoint(change)] : [commit(change)],
      send({ type: 'took', id: generation.id, checkpoint: overlays ? state.record.checkpoints + 1 : null }),
      onOverlays(state, { do: 'show-view' }),
    ),
  };
}

/**
 * One write makes it true for all disks (pair.md 22); then it is said, and shown if it is the first. `request`: the
 * primary's that it answers.
 */
export function makeCheckpoint(state: PairState, request: number | null): Decision {
  return {
    state: { ...state, checkpointFor: request },
    plan: plan(
      'checkpoint',
      { do: 'checkpoint', change: {}, ifChanged: request === null, atMs: null },
      { do: 'tell-checkpoint', request },
      { do: 'show-view' },
    ),
  };
}

/** By itself; in lock-step only the primary knows when all machines hold still (pair.md 21). */
export function beginCheckpoint(state: PairState): Decision {
  return state.self.lockStep ? { state, now: [send({ type: 'checkpoint-request' })] } : makeCheckpoint(state, null);
}

/** A session ended without a goodbye. The disks are made durable, and how far they reach is noted (pair.md 7). */
export function detachSecondary(state: PairState, reason: string): Decision {
  const asOfMs = state.asOfMs ?? state.record.inStepMs;
  const note =
    state.record.store === 'clean' &&
    state.record.generation !== null &&
    state.record.latest === null &&
    asOfMs !== null
      ? [commit({ latest: { asOfMs, goodbye: false } })]
      : [];
  return {
    // A link that is dropped is not told of as lost: without this a primary that dies now would seem to be there.
    state: { ...state, phase: 'detaching', session: null, connected: false },
    plan: plan('detach-secondary', { do: 'close-replication' }, { do: 'flush-own' }, note, dropLink(reason)),
  };
}

/**
 * Opens the disks anew if one of them has failed: what was not made durable is lost, and so this is another life
 * (pair.md 4). The checkpoint is whole: what changed since stands in the overlays, all else was durable before. (With
 * `sync: false` it was not, and the checkpoint is given up.)
 */
export function reopen(state: PairState, error: string): Plan {
  const kept = state.record.checkpoint !== null;
  return plan(
    'reopen',
    { do: 'close-replication' },
    { do: 'reopen-disks' },
    kept ? onOverlays(state, { do: 'open-overlays' }, { do: 'show-view' }) : [],
    dropLink(error),
  );
}

// ---------------------------------------------------------------- becoming primary

/**
 * pair.md 14. `offered`: the generation of a switchover, which is to the latest; `equal`: its two disks are.
 */
export function promote(state: PairState, given: Given, offered: Generation | null, equal = true): Decision {
  const { record } = state;
  const to: FailoverTo = offered === null ? state.to : 'latest';
  // A mixture descends from nothing. While `resync` stands only the latest is one.
  const unfinished = record.store === 'incomplete' || (record.store === 'resync' && to === 'latest');
  const base = unfinished ? { ...record, ancestors: [], generation: null } : record;
  const opened = openGeneration({ ...base, peer: null }, offered?.id ?? given.id, {
    ids: [],
    number: record.generation?.number ?? 0,
  });
  const change: Partial<GroupRecord> = {
    ...opened,
    role: 'primary',
    store: 'clean',
    promoting: to,
    aloneSince: given.wallMs,
    latest: null,
    splitBrain: null,
    cleanStop: null,
    peer: peerOf(state),
  };
  const next: PairState = {
    ...state,
    phase: 'promoting',
    // After a failover nothing is known of the other disk (pair.md 12, 16).
    proof:
      offered === null || !equal ? null : { peers: [record.generation?.id ?? null], instance: null, checkpoint: null },
    promotedFrom:
      unfinished || record.generation === null
        ? null
        : { id: record.generation.id, wentBack: record.rolledBack ? (record.checkpoint?.number ?? null) : null },
    offered: null,
    zeroBase: false,
  };
  return {
    state: next,
    plan: plan(
      'promote',
      { do: 'close-replication' },
      onOverlays(state, { do: 'hide-view' }),
      { do: 'flush-own' },
      // The latest write is what the disks hold: what leads back from it is emptied in the same write.
      commit(to === 'latest' ? { ...change, ...emptied(state) } : change),
      offered === null ? [] : [send({ type: 'took-over', id: offered.id })],
      finishPromotion(next, to),
    ),
  };
}

/** Steps (c) and (d) of a promotion; a start repeats them. */
export function finishPromotion(state: PairState, to: FailoverTo): Step[] {
  const serve: Step[] = [{ do: 'build-primary' }, aloneMode, { do: 'open-exports' }];
  const gone = dropLink('this side is primary now');
  if (to === 'latest') {
    return [...onOverlays(state, { do: 'drop-overlays' }), ...serve, commit({ promoting: null }), gone];
  }
  return [
    { do: 'open-overlays' },
    { do: 'begin-takeover' },
    { do: 'build-primary' },
    { do: 'mark', what: 'held' },
    ...serve,
    { do: 'promoted' },
    // Users are served; a crash before this write repeats all of it (record-log.md 10).
    { do: 'end-takeover', change: { promoting: null } },
    gone,
  ];
}

/** `resolve --keep` on the side that is kept: one write decides it, whether the other side is there or not. */
export function keep(state: PairState, given: Given): Decision {
  const { record } = state;
  const other = state.peer;
  const ids = [other?.generation?.id ?? record.splitBrain?.other ?? record.peer?.generation?.id ?? null];
  // What the other side holds has no name that this generation could descend from: then it is said by its side's.
  const nameless = ids[0] === null || (state.connected && other?.generation === null);
  const number = other?.generation?.number ?? record.peer?.generation?.number ?? 0;
  // The disk of an unfinished resync is a mixture, a follower's in lock-step no state of a machine: then it is the
  // checkpoint that is kept.
  const goesBack = record.store === 'resync' || (state.self.lockStep && record.checkpoint !== null);
  const to: FailoverTo = record.role === 'secondary' && goesBack ? 'checkpoint' : 'latest';
  const change: Partial<GroupRecord> = {
    ...openGeneration(record, given.id, { ids: [...ids, ...(other?.ancestors ?? [])], number }),
    role: 'primary',
    store: 'clean',
    promoting: state.serving ? null : to,
    handingOver: null,
    cleanStop: null,
    latest: null,
    splitBrain: null,
    aloneSince: record.aloneSince ?? given.wallMs,
    overwrite: nameless ? state.self.peer : null,
    peer: peerOf(state),
  };
  return {
    state: { ...state, phase: 'promoting', proof: null, offered: null, zeroBase: false, refusal: null },
    plan: plan(
      'keep',
      { do: 'close-replication' },
      onOverlays(state, { do: 'hide-view' }),
      commit(to === 'latest' ? { ...change, ...emptied(state) } : change),
      finishPromotion(state, to),
    ),
  };
}

/** The command that waits for a promotion is answered: users are served. */
export function promoted(state: PairState): Decision {
  if (state.pending === null) return { state };
  const now = [answer(state.pending, null, `${state.self.name} is primary`)];
  return { state: { ...state, pending: null, forced: false }, now };
}
