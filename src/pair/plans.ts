/**
 * The plans of the state machine: which steps, in which order. What is durable stands before what depends on it, and
 * the comment at each plan says what would be lost otherwise.
 */
import { addRefused, type Generation, type GroupRecord, joinAncestors, openGeneration } from './generation.ts';
import type { Message } from './messages.ts';
import type { Command, Decision, Given, PairState, Plan, PlanName, Session, Step } from './pair-state.ts';

export const plan = (name: PlanName, ...steps: readonly (Step | readonly Step[])[]): Plan => ({
  name,
  steps: steps.flat(),
});

export const commit = (change: Partial<GroupRecord>): Step => ({ do: 'commit', change });
export const send = (message: Message): Step => ({ do: 'send', message });
export const dropLink = (reason: string): Step => ({ do: 'drop-link', reason });

export const answer = (command: Command['name'], error: string | null, text = ''): Step => ({
  do: 'answer',
  command,
  error,
  text,
});

/** The command that waits, if one does, gets this error. */
export function answered(state: PairState, error: string): Decision {
  if (state.pending === null) return { state };
  return { state: { ...state, pending: null, forced: false }, now: [answer(state.pending, error)] };
}

/** How this side goes on without the other: pair.md 7. */
export function aloneMode(state: PairState): Step {
  return { do: 'set-mode', mode: state.self.degraded === 'stop' ? 'refusing' : 'alone' };
}

/** May the other side hold the generation that we have? Then going alone needs a new one (pair.md 7, 13). */
export function isShared(state: PairState): boolean {
  const own = state.record.generation?.id;
  if (own === undefined || state.record.aloneSince === null) return true;
  return state.offered === own || state.session?.theirs.generation?.id === own;
}

/** What is durable before a user gets an answer that the other side has no part in. */
export function aloneRecord(state: PairState, given: Given, fresh: boolean): Partial<GroupRecord> {
  return {
    ...(fresh ? openGeneration({ ...state.record, peer: peerOf(state) }, given.id) : {}),
    peer: peerOf(state),
    aloneSince: state.record.aloneSince ?? given.wallMs,
    handingOver: null,
    cleanStop: null,
  };
}

/** The other side as last seen, for the group file. */
export function peerOf(state: PairState): GroupRecord['peer'] {
  if (state.peer === null) return state.record.peer;
  return { name: state.peer.name, generation: state.peer.generation };
}

/** A primary that begins to serve: pair.md 13. The clean-stop mark goes in the same write (pair.md 12). */
export function serveAlone(state: PairState, given: Given, always: boolean): Decision {
  const fresh = always || isShared(state);
  return {
    state: { ...state, phase: 'going-alone', serving: true, offered: null },
    plan: plan('serve-alone', commit(aloneRecord(state, given, fresh)), { do: 'build-primary' }, aloneMode(state), {
      do: 'open-exports',
    }),
  };
}

/**
 * The link is gone while users are served and the other side may hold our generation. Their requests wait in mode held
 * until the new generation is durable; only then may one be answered that the other side has not (pair.md 7).
 */
export function goAlone(state: PairState, given: Given, reason: string): Decision {
  return {
    state: { ...state, phase: 'going-alone', session: null, offered: null, serving: true },
    plan: plan(
      'go-alone',
      { do: 'set-mode', mode: 'held' },
      commit(aloneRecord(state, given, true)),
      aloneMode(state),
      { do: 'open-exports' },
      { do: 'stop-work' },
      { do: 'detach' },
      dropLink(reason),
    ),
  };
}

/** The link is gone before the other side was offered anything: this side is durably alone already. */
export function loseSession(state: PairState, reason: string): Decision {
  return {
    state: { ...state, phase: 'alone', session: null },
    plan: plan('lose-session', aloneMode(state), { do: 'stop-work' }, { do: 'detach' }, dropLink(reason)),
  };
}

/** Does the proof say of this target that it differs only where mayDiffer says so (pair.md 12)? */
export function proofHolds(state: PairState, session: Session): boolean {
  const { proof } = state;
  if (proof === null) return false;
  const id = session.theirs.generation?.id ?? null;
  if (!proof.peers.includes(id)) return false;
  return id !== null || proof.instance === session.theirs.instance;
}

/** A primary that stopped cleanly in step: both disks are equal, nothing needs to be copied or marked. */
export function canJoin(state: PairState, session: Session): boolean {
  const { record } = state;
  return (
    record.generation !== null &&
    record.generation.id === session.theirs.generation?.id &&
    record.aloneSince === null &&
    session.theirs.store === 'clean' &&
    !state.serving &&
    proofHolds(state, session)
  );
}

/** A serving primary and a target that agreed: the shortest sync that is proven to be enough. */
export function beginSync(state: PairState, session: Session): Decision {
  const { theirs } = session;
  const proof = { peers: [theirs.generation?.id ?? null], instance: theirs.instance };
  // The other side's disk becomes a mixture from then on: not for a disk of ours that cannot be read any more.
  const attach: Step[] = [{ do: 'flush-own' }, send({ type: 'attach', how: 'sync' })];
  // From here on mayDiffer is about this target: what it proves is cleared, and another blank one lacks it.
  const next: PairState = { ...state, zeroBase: false };
  if (proofHolds(state, session)) {
    // Another life of the other side may have lost what it had answered and not flushed (pair.md 4).
    const unproven: Step[] = state.proof?.instance === theirs.instance ? [] : [{ do: 'mark', what: 'unproven' }];
    return { state: { ...next, phase: 'attaching', proof }, plan: plan('mark', unproven, attach) };
  }
  if (theirs.blank) {
    const all: Step[] = state.zeroBase ? [] : [{ do: 'mark', what: 'all' }];
    return { state: { ...next, phase: 'attaching', proof }, plan: plan('mark', all, attach) };
  }
  // What the other side reads must be durable there before its checksums prove anything.
  return { state: { ...next, phase: 'comparing', proof: null }, now: [send({ type: 'flush' })] };
}

/** From here on a flush of users waits for the other side too. */
const serveInSync: Step = { do: 'set-mode', mode: 'in-sync' };

/**
 * Everything is copied and durable there. With `degraded: stop` users are served only when the other side is `clean`:
 * what they are told is kept must outlive this side (pair.md 7). They are refused until then, so both stay equal.
 */
export function close(state: PairState): Decision {
  const { generation, ancestors } = state.record;
  if (generation === null) return { state };
  return {
    // Noted before it is sent: whatever happens from here, the other side may hold this id.
    state: { ...state, phase: 'closing', offered: generation.id },
    plan: plan(
      'close',
      state.self.degraded === 'stop' ? [] : [serveInSync],
      { do: 'flush-remote', proven: false },
      send({ type: 'sync-end', generation, ancestors }),
    ),
  };
}

export function endSync(state: PairState, took: string): Decision {
  const theirs = state.peer;
  const { generation } = state.record;
  return {
    state: {
      ...state,
      proof: { peers: [took], instance: state.proof?.instance ?? null },
      peer: theirs === null ? null : { ...theirs, generation, store: 'clean', blank: false },
    },
    plan: plan(
      'end-sync',
      commit({
        aloneSince: null,
        splitBrain: null,
        overwrite: null,
        peer: { name: state.self.peer, generation },
      }),
      state.self.degraded === 'stop' ? [serveInSync] : [],
      send({ type: 'in-step' }),
    ),
  };
}

export function join(state: PairState, exports: Readonly<Record<string, string>>, session: Session): Decision {
  return {
    state: { ...state, serving: true, refusal: null },
    plan: plan(
      'join',
      // The saved bitmaps say what may differ; another life of the other side has lost none of the proven rest.
      { do: 'mark', what: 'unproven' },
      { do: 'attach', exports, theirs: session.theirs },
      commit({ cleanStop: null, peer: peerOf(state) }),
      { do: 'set-mode', mode: 'in-sync' },
      { do: 'open-exports' },
      send({ type: 'in-step' }),
    ),
  };
}

/** pair.md 15 (1): the users are gone when `exports-closed` comes. */
export function sendAway(state: PairState): Decision {
  return {
    state: { ...state, phase: 'switching' },
    plan: plan(
      'send-away',
      { do: 'refuse-users', reason: `is being handed over to ${state.self.peer}` },
      { do: 'begin-close-exports' },
    ),
  };
}

/**
 * pair.md 15 (1) and (2): both flushed, then durable, then said. A disk that failed here is no reason to refuse: the
 * other side has what was answered, and is told that this one is no copy.
 */
export function handOver(state: PairState, given: Given): Decision {
  const own = state.record.generation;
  if (own === null) return { state };
  const offer: Generation = { id: given.id, number: own.number + 1 };
  const proof = { peers: [own.id], instance: null };
  return {
    state: { ...state, serving: false },
    plan: plan(
      'hand-over',
      { do: 'flush-remote', proven: true },
      { do: 'save-clean-stop', proof, equal: true, change: { handingOver: offer } },
      { do: 'set-mode', mode: 'held' },
      { do: 'detach' },
      { do: 'offer', generation: offer },
    ),
  };
}

/** Becomes the target of the other side (pair.md 15 (4), 16). The own id is kept until a sync has ended. */
export function demote(state: PairState, given: Given): Decision {
  const { record } = state;
  // Data that went on by itself and was superseded by a person's decision is nothing to fail over to (pair.md 13).
  const superseded = record.splitBrain !== null || record.aloneSince !== null;
  return {
    state: { ...state, phase: 'demoting', serving: false, built: false },
    plan: plan(
      'demote',
      commit({
        role: 'secondary',
        store: superseded ? 'incomplete' : record.store,
        aloneSince: null,
        cleanStop: null,
        handingOver: null,
        promoting: null,
        splitBrain: null,
        overwrite: null,
        latest: { asOfMs: given.wallMs, goodbye: false },
        peer: peerOf(state),
      }),
      { do: 'detach' },
      { do: 'tear-primary' },
      { do: 'refuse-users', reason: null },
      dropLink('this side became the target'),
    ),
  };
}

// ---------------------------------------------------------------- secondary

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
      send({ type: 'target' }),
    ),
  };
}

export function openForSync(state: PairState, how: 'sync' | 'join', given: Given): Decision {
  const incomplete: Partial<GroupRecord> =
    how === 'sync' ? { role: 'secondary', store: 'incomplete', splitBrain: null } : { inStepMs: given.wallMs };
  return {
    state: { ...state, phase: 'syncing', asOfMs: null },
    plan: plan(
      'open-for-sync',
      { do: 'close-replication' },
      // Before the first byte that makes the disk a mixture; and before the primary may go on beyond a goodbye.
      commit({ ...incomplete, latest: null, peer: peerOf(state) }),
      { do: 'open-replication' },
    ),
  };
}

/** pair.md 13: all disks flushed, then mark lifted and id taken in one write, then said. */
export function take(state: PairState, generation: Generation, ancestors: readonly string[], given: Given): Decision {
  const own = state.record.generation?.id;
  const foreign = own !== undefined && own !== generation.id && !ancestors.includes(own);
  return {
    state,
    plan: plan(
      'take',
      { do: 'flush-own' },
      commit({
        generation,
        // The own earlier id goes along where a person's decision made this side's data void.
        ancestors: joinAncestors(ancestors, foreign ? [own] : []),
        store: 'clean',
        latest: null,
        splitBrain: null,
        inStepMs: given.wallMs,
        peer: { name: state.self.peer, generation },
      }),
      send({ type: 'took', id: generation.id }),
    ),
  };
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
    state: { ...state, phase: 'detaching', session: null },
    plan: plan('detach-secondary', { do: 'close-replication' }, { do: 'flush-own' }, note, dropLink(reason)),
  };
}

/** pair.md 14. `offered`: the generation of a switchover; `equal`: its two disks are. */
export function promote(state: PairState, given: Given, offered: Generation | null, equal = true): Decision {
  const { record } = state;
  const unfinished = record.store === 'incomplete';
  const base = unfinished ? { ...record, ancestors: [], generation: null } : record;
  const opened = openGeneration({ ...base, peer: null }, offered?.id ?? given.id, {
    ids: [],
    number: record.generation?.number ?? 0,
  });
  return {
    state: {
      ...state,
      phase: 'promoting',
      // After a failover nothing is known of the other disk (pair.md 12, 16).
      proof: offered === null || !equal ? null : { peers: [record.generation?.id ?? null], instance: null },
      offered: null,
      zeroBase: false,
    },
    plan: plan(
      'promote',
      { do: 'close-replication' },
      { do: 'flush-own' },
      commit({
        ...opened,
        role: 'primary',
        store: 'clean',
        promoting: 'latest',
        aloneSince: given.wallMs,
        latest: null,
        splitBrain: null,
        cleanStop: null,
        peer: peerOf(state),
      }),
      offered === null ? [] : [send({ type: 'took-over', id: offered.id })],
      finishPromotion(state),
    ),
  };
}

/** Steps (c) and (d) of a promotion; a start repeats them. */
export function finishPromotion(state: PairState): Step[] {
  return [
    { do: 'build-primary' },
    aloneMode(state),
    { do: 'open-exports' },
    commit({ promoting: null }),
    dropLink('this side is primary now'),
  ];
}

/** `resolve --keep` on the side that is kept: one write decides it, whether the other side is there or not. */
export function keep(state: PairState, given: Given): Decision {
  const { record } = state;
  const other = state.peer;
  const ids = [other?.generation?.id ?? record.splitBrain?.other ?? record.peer?.generation?.id ?? null];
  const known = ids[0] !== null;
  const number = other?.generation?.number ?? record.peer?.generation?.number ?? 0;
  return {
    state: { ...state, phase: 'promoting', proof: null, offered: null, zeroBase: false, refusal: null },
    plan: plan(
      'keep',
      { do: 'close-replication' },
      commit({
        ...openGeneration(record, given.id, { ids: [...ids, ...(other?.ancestors ?? [])], number }),
        role: 'primary',
        store: 'clean',
        promoting: state.serving ? null : 'latest',
        handingOver: null,
        cleanStop: null,
        latest: null,
        splitBrain: null,
        aloneSince: record.aloneSince ?? given.wallMs,
        overwrite: known ? null : state.self.peer,
        peer: peerOf(state),
      }),
      finishPromotion(state),
    ),
  };
}
