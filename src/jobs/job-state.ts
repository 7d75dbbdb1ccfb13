/**
 * The life of a job as a table and one pure function (QEMU: qapi/job.json, JobStatus and JobVerb).
 *
 *     created -> running <-> paused
 *                   |  \
 *                   |   ready <-> standby
 *                   v     v
 *                 waiting -> pending -> concluded -> null
 *                       \______v___________^
 *                           aborting
 *
 * `decide` never waits and never calls anything: it gives the next state and what the runner (`job.ts`) has to do.
 */
import { BlockError } from '../util/errors.ts';

export type JobStatus =
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null';

export type JobVerb = 'pause' | 'resume' | 'cancel' | 'complete' | 'finalize' | 'dismiss' | 'set-speed';

/** Where each status may go next. */
export const jobMoves: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['concluded', 'aborting'],
  aborting: ['concluded'],
  concluded: ['null'],
  null: [],
};

/** In which statuses a user may say what. */
export const jobVerbs: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  pause: ['created', 'running', 'paused', 'ready', 'standby'],
  resume: ['created', 'running', 'paused', 'ready', 'standby'],
  cancel: ['created', 'running', 'paused', 'ready', 'standby', 'waiting', 'pending'],
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
  'set-speed': ['created', 'running', 'paused', 'ready', 'standby'],
};

/** How a ready job was told to end: `complete` with its last step (a mirror pivots), `leave` without. */
export type JobEnding = 'complete' | 'leave';

export interface JobState {
  readonly status: JobStatus;
  /** a user, or an error with `stop`, wants it to rest; it does so at its next pause point */
  readonly pauseWanted: boolean;
  readonly cancelled: boolean;
  readonly ending: JobEnding | null;
  readonly failed: boolean;
  /** the last step is under way: too late to cancel */
  readonly finalizing: boolean;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
}

export type JobEvent =
  | { readonly type: 'start' }
  /** it was made, but what it needs could not be had: it never was */
  | { readonly type: 'forgotten' }
  | { readonly type: 'verb'; readonly verb: JobVerb; readonly force?: boolean }
  /** the body stands at a pause point and does nothing */
  | { readonly type: 'rested' }
  /** an I/O error that stops the job until a user resumes it */
  | { readonly type: 'stopped' }
  | { readonly type: 'ready' }
  | { readonly type: 'ended'; readonly how: 'done' | 'failed' | 'cancelled' }
  | { readonly type: 'prepared'; readonly how: 'done' | 'failed' }
  | { readonly type: 'cleaned' };

/** What the runner does next, in this order. */
export type JobAction =
  /** tell the new status */
  | { readonly type: 'status'; readonly status: JobStatus }
  /** start the body */
  | { readonly type: 'run' }
  /** the body waits for something: look again */
  | { readonly type: 'wake' }
  | { readonly type: 'tell-ready' }
  | { readonly type: 'tell-pending' }
  /** do the last step, which can fail */
  | { readonly type: 'prepare' }
  /** give back what is held, then say how it ended */
  | { readonly type: 'clean' };

export interface JobDecision {
  readonly state: JobState;
  readonly actions: readonly JobAction[];
}

export function initialState(how: { readonly autoFinalize: boolean; readonly autoDismiss: boolean }): JobState {
  return {
    status: 'created',
    pauseWanted: false,
    cancelled: false,
    ending: null,
    failed: false,
    finalizing: false,
    ...how,
  };
}

/** @throws BlockError invalid-request if a user's verb does not fit the status */
export function decide(state: JobState, event: JobEvent): JobDecision {
  switch (event.type) {
    case 'start':
      // It was cancelled while what it needs was still being taken: now that can be given back.
      if (state.cancelled) return moved(state, 'aborting', { type: 'clean' });
      return moved(state, 'running', { type: 'run' });
    case 'forgotten':
      return moved(state, 'null');
    case 'verb':
      return decideVerb(state, event.verb, event.force === true);
    case 'rested':
      if (!state.pauseWanted || state.cancelled) return { state, actions: [{ type: 'wake' }] };
      if (state.status === 'running') return moved(state, 'paused');
      return state.status === 'ready' ? moved(state, 'standby') : { state, actions: [] };
    case 'stopped':
      return { state: { ...state, pauseWanted: true }, actions: [] };
    case 'ready':
      return moved(state, 'ready', { type: 'tell-ready' });
    case 'ended':
      return decideEnded(state, event.how);
    case 'prepared':
      if (event.how === 'done') return { state, actions: [{ type: 'clean' }] };
      return moved({ ...state, failed: true }, 'aborting', { type: 'clean' });
    case 'cleaned': {
      const concluded = moved(state, 'concluded');
      return state.autoDismiss ? join(concluded, moved(concluded.state, 'null')) : concluded;
    }
  }
}

function decideVerb(state: JobState, verb: JobVerb, force: boolean): JobDecision {
  if (!jobVerbs[verb].includes(state.status)) {
    throw new BlockError('invalid-request', `a job that is ${state.status} does not accept '${verb}'`);
  }
  switch (verb) {
    case 'pause':
      if (state.pauseWanted) throw new BlockError('invalid-request', 'the job is already paused');
      return { state: { ...state, pauseWanted: true }, actions: [{ type: 'wake' }] };
    case 'resume':
      if (!state.pauseWanted) throw new BlockError('invalid-request', 'the job is not paused');
      return awake({ ...state, pauseWanted: false });
    case 'cancel':
      return decideCancel(state, force);
    case 'complete':
      // One that rests completes when it is resumed.
      return { state: { ...state, ending: 'complete' }, actions: [{ type: 'wake' }] };
    case 'finalize':
      return finalized(state);
    case 'dismiss':
      return moved(state, 'null');
    case 'set-speed':
      return { state, actions: [{ type: 'wake' }] };
  }
}

/** A ready job that is cancelled without force ends well, without its last step, once its copy is up to date. */
function decideCancel(state: JobState, force: boolean): JobDecision {
  const { status } = state;
  if (state.finalizing) throw new BlockError('invalid-request', 'the job is being finalized: too late to cancel it');
  if (!force && (status === 'ready' || status === 'standby')) {
    return awake({ ...state, pauseWanted: false, ending: 'leave' });
  }
  const cancelled = { ...state, pauseWanted: false, cancelled: true };
  // Whoever makes it is not ready yet: `start` or `forgotten` follows.
  if (status === 'created') return { state: cancelled, actions: [] };
  if (status === 'waiting' || status === 'pending') return moved(cancelled, 'aborting', { type: 'clean' });
  return awake(cancelled);
}

function decideEnded(state: JobState, how: 'done' | 'failed' | 'cancelled'): JobDecision {
  if (how !== 'done') {
    const next = { ...state, failed: how === 'failed', cancelled: how === 'cancelled' };
    const up = awake(next);
    return join(up, moved(up.state, 'aborting', { type: 'clean' }));
  }
  const up = awake(state);
  const waiting = moved(up.state, 'waiting');
  const pending = moved(waiting.state, 'pending');
  const last: JobDecision = state.autoFinalize
    ? finalized(pending.state)
    : { state: pending.state, actions: [{ type: 'tell-pending' }] };
  return join(join(up, waiting), join(pending, last));
}

function finalized(state: JobState): JobDecision {
  if (state.finalizing) throw new BlockError('invalid-request', 'the job is being finalized already');
  return { state: { ...state, finalizing: true }, actions: [{ type: 'prepare' }] };
}

/** Out of the two resting statuses. */
function awake(state: JobState): JobDecision {
  if (state.status === 'paused') return moved(state, 'running', { type: 'wake' });
  if (state.status === 'standby') return moved(state, 'ready', { type: 'wake' });
  return { state, actions: [{ type: 'wake' }] };
}

function moved(state: JobState, status: JobStatus, ...more: JobAction[]): JobDecision {
  if (!jobMoves[state.status].includes(status)) {
    throw new BlockError('wrong-state', `a job cannot go from ${state.status} to ${status}`);
  }
  return { state: { ...state, status }, actions: [{ type: 'status', status }, ...more] };
}

function join(first: JobDecision, second: JobDecision): JobDecision {
  return { state: second.state, actions: [...first.actions, ...second.actions] };
}
