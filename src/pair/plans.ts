/**
 * The plans of the state machine: which steps, in which order. What is durable stands before what depends on it, and
 * the comment at each plan says what would be lost otherwise.
 */
import { type Generation, type GroupRecord, openGeneration } from './generation.ts';
import type { Message } from './messages.ts';
import type {
  Command,
  Decision,
  Differences,
  Given,
  PairState,
  Plan,
  PlanName,
  Proof,
  Session,
  Step,
} from './pair-state.ts';

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

/** How this side goes on without the other (pair.md 7); with `degraded: stop` the filters refuse users in it. */
export const aloneMode: Step = { do: 'set-mode', mode: 'alone' };

/**
 * The proof from now on. Null before a flush clears what may differ: what it clears lies behind the checkpoint that the
 * other side could still go back to.
 */
export function goingBackTo(proof: Proof | null, checkpoint: number | null): Proof | null {
  return proof === null ? null : { ...proof, checkpoint };
}

/** The other side holds the id that it had, or the one that a sync's end offered. */
export function proofOfBoth(state: PairState): Proof | null {
  if (state.proof === null) return null;
  const { peers } = state.proof;
  if (state.offered === null || peers.includes(state.offered)) return state.proof;
  return { ...state.proof, peers: [...peers, state.offered] };
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
    plan: plan('serve-alone', commit(aloneRecord(state, given, fresh)), { do: 'build-primary' }, aloneMode, {
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
    state: {
      ...state,
      phase: 'going-alone',
      session: null,
      proof: proofOfBoth(state),
      offered: null,
      serving: true,
    },
    plan: plan(
      'go-alone',
      { do: 'set-mode', mode: 'held' },
      commit(aloneRecord(state, given, true)),
      aloneMode,
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
    plan: plan('lose-session', aloneMode, { do: 'stop-work' }, { do: 'detach' }, dropLink(reason)),
  };
}

/** Does the proof say of this target that it differs only where mayDiffer says so (pair.md 12)? */
export function proofHolds(state: PairState, session: Session): boolean {
  const { proof } = state;
  if (proof === null) return false;
  const { rolledBack, checkpoint } = session.theirs;
  if (rolledBack && (checkpoint === null || proof.checkpoint !== checkpoint.number)) return false;
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
    !session.theirs.rolledBack &&
    (record.cleanStop?.equal === true || record.cleanStop?.bitmaps === '') &&
    !state.serving &&
    proofHolds(state, session)
  );
}

/** The other side's disk becomes a mixture from then on: not for a disk of ours that cannot be read any more. */
export const askToSync: readonly Step[] = [{ do: 'flush-own' }, { do: 'ask-to-attach', how: 'sync' }];

/** A serving primary and a target that agreed: the shortest sync that is proven to be enough. */
export function beginSync(state: PairState, session: Session, differs: Differences | null = null): Decision {
  const { theirs } = session;
  const known = differs !== null && differs.from === state.promotedFrom?.id;
  const holds = !known && proofHolds(state, session);
  const proof = {
    peers: [theirs.generation?.id ?? null],
    instance: theirs.instance,
    checkpoint: holds ? (state.proof?.checkpoint ?? null) : null,
  };
  // From here on mayDiffer is about this target: what it proves is cleared, and another blank one lacks it.
  const next: PairState = { ...state, zeroBase: false, promotedFrom: null };
  if (known) {
    // Both sides' bitmaps together: neither has lost any since they were one generation (pair.md 16).
    return {
      state: { ...next, phase: 'attaching', proof },
      plan: plan('mark', { do: 'mark-ranges', ranges: differs.ranges }, askToSync),
    };
  }
  if (holds) {
    // Another life of the other side may have lost what it had answered and not flushed (pair.md 4).
    const unproven: Step[] = state.proof?.instance === theirs.instance ? [] : [{ do: 'mark', what: 'unproven' }];
    return { state: { ...next, phase: 'attaching', proof }, plan: plan('mark', unproven, askToSync) };
  }
  if (theirs.blank) {
    const all: Step[] = state.zeroBase ? [] : [{ do: 'mark', what: 'all' }];
    return { state: { ...next, phase: 'attaching', proof }, plan: plan('mark', all, askToSync) };
  }
  // What the other side reads must be durable there before its checksums prove anything.
  return { state: { ...next, phase: 'comparing', proof: null }, now: [send({ type: 'flush' })] };
}

/** From here on a flush of users waits for the other side too. */
const serveInSync: Step = { do: 'set-mode', mode: 'in-sync' };

/** In lock-step flushes are local: only where writers wait do all disks hold still in one moment (pair.md 21, 22). */
const barrier: Step = { do: 'set-mode', mode: 'barrier' };

/**
 * Everything is copied and durable there. With `degraded: stop` users are served only when the other side is `clean`:
 * what they are told is kept must outlive this side (pair.md 7). They are refused until then, so both stay equal.
 */
export function close(state: PairState): Decision {
  const { generation, ancestors } = state.record;
  if (generation === null) return { state };
  return {
    // Noted before it is sent: whatever happens from here, the other side may hold this id.
    state: { ...state, phase: 'closing', offered: generation.id, proof: goingBackTo(state.proof, null) },
    plan: plan(
      'close',
      state.self.degraded === 'stop' ? [] : [state.self.lockStep ? barrier : serveInSync],
      { do: 'flush-remote', proven: false, bounded: false },
      send({ type: 'sync-end', generation, ancestors }),
      // What ends it is that the other side took it; writers wait no longer than for any checkpoint.
      state.self.lockStep ? [{ do: 'await-checkpoint' }] : [],
    ),
  };
}

/** @param checkpoint the one that the other side made in the same write; null: it has none */
export function endSync(state: PairState, took: string, checkpoint: number | null): Decision {
  const theirs = state.peer;
  const { generation } = state.record;
  return {
    state: {
      ...state,
      proof: {
        peers: [took],
        instance: state.proof?.instance ?? null,
        // In lock-step nothing is cleared before the next one.
        checkpoint: state.self.lockStep ? checkpoint : null,
      },
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
      state.self.degraded === 'stop' || state.self.lockStep ? [serveInSync] : [],
      send({ type: 'in-step' }),
    ),
  };
}

export function join(state: PairState, exports: Readonly<Record<string, string>>, session: Session): Decision {
  return {
    // What was kept of the other side's checkpoint is forgotten with the bitmaps.
    state: { ...state, serving: true, refusal: null, proof: goingBackTo(state.proof, null) },
    plan: plan(
      'join',
      state.record.cleanStop?.equal === true ? [{ do: 'forget' }] : [],
      // The saved bitmaps say what may differ; another life of the other side has lost none of the proven rest.
      { do: 'mark', what: 'unproven' },
      { do: 'attach', exports, theirs: session.theirs },
      // Who says that it is the target has refused what was offered.
      commit({ cleanStop: null, handingOver: null, peer: peerOf(state) }),
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
  const proof = { peers: [own.id], instance: null, checkpoint: null };
  return {
    state: { ...state, serving: false, proof: goingBackTo(state.proof, null) },
    plan: plan(
      'hand-over',
      // Users were sent away, and wait.
      { do: 'flush-remote', proven: true, bounded: true },
      { do: 'save-clean-stop', proof, equal: true, behind: null, change: { handingOver: offer } },
      { do: 'set-mode', mode: 'held' },
      { do: 'detach' },
      { do: 'offer', generation: offer },
    ),
  };
}

/** The generation whose disk the bitmaps are about, if the other side was promoted from just that. */
function comparableTo({ proof, peer }: PairState): string | null {
  const from = peer?.promotedFrom;
  if (proof === null || from == null || !proof.peers.includes(from.id)) return null;
  return from.wentBack === null || from.wentBack === proof.checkpoint ? from.id : null;
}

/** Becomes the target of the other side (pair.md 15 (4), 16). The own id is kept until a sync has ended. */
export function demote(state: PairState, given: Given): Decision {
  const { record } = state;
  const from = comparableTo(state);
  // Data that went on by itself and was superseded by a person's decision is nothing to fail over to (pair.md 13).
  const superseded = record.splitBrain !== null || record.aloneSince !== null;
  return {
    state: { ...state, phase: 'demoting', serving: false, built: false, checkpoint: null },
    plan: plan(
      'demote',
      from === null ? [] : [{ do: 'remember-differences', from }],
      commit({
        role: 'secondary',
        store: superseded ? 'incomplete' : record.store,
        aloneSince: null,
        cleanStop: null,
        handingOver: null,
        promoting: null,
        splitBrain: null,
        overwrite: null,
        // Since it was promoted, or alone, the other side has what this one was never given.
        latest: { asOfMs: state.peer?.aloneSince ?? given.wallMs, goodbye: false },
        peer: peerOf(state),
      }),
      { do: 'detach' },
      { do: 'tear-primary' },
      { do: 'refuse-users', reason: null },
      dropLink('this side became the target'),
    ),
  };
}
