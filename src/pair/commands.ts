/**
 * The rows of commands: failover, switch, resolve, start --alone, stop. A refusal says what would be allowed instead.
 */

import { checkpointRows, isBehindBarrier } from './checkpoints.ts';
import type { Command, Decision, Given, PairState, Phase, Step } from './pair-state.ts';
import { phases } from './pair-state.ts';
import {
  aloneMode,
  aloneRecord,
  answer,
  commit,
  goAlone,
  goingBackTo,
  plan,
  proofOfBoth,
  send,
  sendAway,
  serveAlone,
} from './plans.ts';
import { canBeForced, tellToStop, unfit } from './secondary.ts';
import { keep, promote } from './secondary-plans.ts';
import { type Row, row } from './table.ts';

const all = Object.keys(phases) as Phase[];
const except = (...some: readonly Phase[]): Phase[] => all.filter((phase) => !some.includes(phase));

const reply = (state: PairState, command: Command['name'], error: string | null, text = ''): Decision => ({
  state,
  now: [answer(command, error, text)],
});

/** The command is under way: the answer comes later. */
const pending = (
  state: PairState,
  command: 'failover' | 'switch' | 'resolve' | 'start-alone',
  forced = false,
): PairState => ({
  ...state,
  pending: command,
  forced,
});

const busy = (state: PairState, command: Command['name']): Decision | null =>
  state.pending === null ? null : reply(state, command, `a ${state.pending} is under way`);

// ---------------------------------------------------------------- failover and switch

type Failover = Extract<Command, { name: 'failover' }>;

/** Which state it goes to: the latest write, in lock-step the checkpoint (pair.md 15). */
const goingTo = (state: PairState, { to }: Failover): PairState => ({
  ...state,
  to: to ?? (state.self.lockStep ? 'checkpoint' : 'latest'),
});

/** Why it is refused, or null. */
function refusal(state: PairState, force: boolean): string | null {
  const reason = unfit(state, state.to);
  if (reason === null || (force && canBeForced(state))) return null;
  return canBeForced(state) ? `${reason}; \`--force\` takes it nevertheless` : reason;
}

function failoverDetached(state: PairState, force: boolean, given: Given): Decision {
  const reason = refusal(state, force);
  if (reason !== null) return reply(state, 'failover', reason);
  const answers = state.connected && !state.noPrimary && state.peer?.role === 'primary';
  if (!answers) return promote(pending(state, 'failover', force), given, null);
  if (!force) return reply(state, 'failover', `${state.peer?.name} answers and is primary; \`--force\` stops it`);
  return { state: pending(state, 'failover', true), now: tellToStop };
}

function failoverConnected(state: PairState, force: boolean): Decision {
  const reason = refusal(state, force);
  if (force && reason === null) return { state: pending(state, 'failover', true), now: tellToStop };
  if (force) return reply(state, 'failover', reason);
  const inStep = state.phase === 'following' ? 'a switchover goes to the latest write' : null;
  const why = unfit(state, state.to) ?? inStep ?? `${state.self.name} is not in step yet`;
  return reply(state, 'failover', `the primary ${state.self.peer} answers, and ${why}; \`--force\` stops it`);
}

const askSwitch = (state: PairState, command: 'failover' | 'switch'): Decision => ({
  state: pending(state, command),
  now: [send({ type: 'switch-request' })],
});

/** A primary whose disk hangs never hands over: it is stopped without waiting for its users' requests. */
function insteadOfSwitch(state: PairState, command: Failover): Decision {
  const next = goingTo(state, command);
  const reason = refusal(next, true);
  if (reason !== null) return reply(state, 'failover', reason);
  const told = state.pending === 'switch' ? [answer('switch', 'a forced failover came instead')] : [];
  return { state: pending(next, 'failover', true), now: [...told, ...tellToStop] };
}

const failoverRows: readonly Row[] = [
  row(
    'detached',
    'command failover',
    'promoting',
    'promotes this side, unless it is incomplete or a primary answers (pair.md 14, 15)',
    (state, command, given) =>
      busy(state, 'failover') ?? failoverDetached(goingTo(state, command), command.force, given),
  ),
  row('detaching', 'command failover', 'detaching', 'goes on when the session is closed', (state, command) => {
    const next = goingTo(state, command);
    const reason = refusal(next, command.force);
    if (reason !== null) return busy(state, 'failover') ?? reply(state, 'failover', reason);
    return busy(state, 'failover') ?? { state: pending(next, 'failover', command.force) };
  }),
  row(
    'following',
    'command failover',
    'following',
    'the primary answers and is in step: a switchover (pair.md 15); forced while one waits: it is stopped first',
    (state, command) => {
      if (state.pending !== null && command.force) return insteadOfSwitch(state, command);
      const next = goingTo(state, command);
      if (command.to !== 'checkpoint') return busy(state, 'failover') ?? askSwitch(next, 'failover');
      return busy(state, 'failover') ?? failoverConnected(next, command.force);
    },
  ),
  row(
    'following',
    'command switch',
    'following',
    'asks the primary',
    (state) => busy(state, 'switch') ?? askSwitch(state, 'switch'),
  ),
  row(
    ['target', 'syncing'],
    'command failover',
    'the same',
    'refused while the primary answers; forced: it is stopped first',
    (state, command) => busy(state, 'failover') ?? failoverConnected(goingTo(state, command), command.force),
  ),
  row(
    'in-step',
    'command switch',
    'switching',
    'writers are sent away, behind a barrier when that has ended',
    (state) => {
      const next = pending(state, 'switch');
      const behind = isBehindBarrier(state);
      return busy(state, 'switch') ?? (behind ? { state: { ...next, switchWanted: true } } : sendAway(next));
    },
  ),
  row(
    except('detached', 'detaching', 'following', 'target', 'syncing'),
    'command failover',
    'the same',
    'refused',
    (state) => reply(state, 'failover', cannot(state, 'failover')),
  ),
  row(except('following', 'in-step'), 'command switch', 'the same', 'refused', (state) =>
    reply(state, 'switch', cannot(state, 'switch')),
  ),
];

function cannot(state: PairState, command: 'failover' | 'switch'): string {
  if (state.phase === 'promoting') return 'a promotion is under way';
  if (state.phase === 'no-role')
    return `${state.self.name} has no role: \`resolve --keep ${state.self.name}\` adopts its data`;
  if (command === 'switch') return `a switchover needs both sides in step (${state.self.name}: ${state.phase})`;
  if (state.phase === 'handing-over') {
    const { name, peer } = state.self;
    return `${name} is handing over to ${peer}: \`start --alone\` takes it back if ${peer} is gone`;
  }
  return `${state.self.name} is primary already; run it on ${state.self.peer}`;
}

// ---------------------------------------------------------------- resolve and start --alone

/** Two histories, or data whose history nobody knows, here or on a side that answers: a person says whose counts. */
function isUndecided({ record, connected, session, peer }: PairState): boolean {
  const facesStranger = connected && session === null && peer !== null && peer.generation === null && !peer.blank;
  return record.splitBrain !== null || record.role === 'none' || (facesStranger && record.role === 'primary');
}

function resolve(state: PairState, kept: string, given: Given): Decision {
  const { name, peer } = state.self;
  if (kept !== name && kept !== peer) return reply(state, 'resolve', `the sides are called ${name} and ${peer}`);
  if (!isUndecided(state)) {
    return reply(state, 'resolve', 'there is nothing to resolve: no split brain is known here');
  }
  if (kept === name) return keep(pending(state, 'resolve'), given);
  if (!state.connected) return reply(state, 'resolve', `${peer} does not answer: run it there`);
  return { state, now: [send({ type: 'resolve' }), answer('resolve', null, `${peer} was told`)] };
}

const resolvable = ['no-role', 'waiting', 'alone', 'detached', 'handing-over'] as const satisfies readonly Phase[];

const resolveRows: readonly Row[] = [
  row(
    resolvable,
    'command resolve',
    'promoting',
    'the kept side opens a generation that descends from both (pair.md 13)',
    (state, { keep: kept }, given) => busy(state, 'resolve') ?? resolve(state, kept, given),
  ),
  row(resolvable, 'message resolve', 'promoting', 'the other side was told to keep this one', (state, _, given) =>
    isUndecided(state) ? keep(state, given) : { state },
  ),
  row(except(...resolvable), 'command resolve', 'the same', 'refused', (state) =>
    reply(state, 'resolve', `not now: ${phases[state.phase]}`),
  ),
  row(
    ['waiting', 'handing-over'],
    'command start-alone',
    'going-alone',
    'a person says that nobody else serves: a new generation, then serves',
    (state, _, given) => busy(state, 'start-alone') ?? serveAlone(pending(state, 'start-alone'), given, true),
  ),
  row(
    'joining',
    'command start-alone',
    'going-alone',
    'the same, where the other side opens no exports: its disk may hang',
    (state, _, given) => busy(state, 'start-alone') ?? goAlone(pending(state, 'start-alone'), given, 'serves alone'),
  ),
  row(except('waiting', 'handing-over', 'joining'), 'command start-alone', 'the same', 'refused', (state) =>
    reply(
      state,
      'start-alone',
      state.serving ? null : `${state.self.name} cannot: ${phases[state.phase]}`,
      `${state.self.name} serves already`,
    ),
  ),
];

// ---------------------------------------------------------------- stop

const finish = (state: PairState, ...before: readonly Step[]): Decision => ({
  state: { ...state, phase: 'stopping', serving: false, session: null },
  plan: plan('finish', ...before, { do: 'finish' }),
});

const serving = [
  'alone',
  'comparing',
  'attaching',
  'copying',
  'settling',
  'in-step',
] as const satisfies readonly Phase[];
const idle = ['starting', 'no-role', 'waiting', 'handing-over', 'detached'] as const satisfies readonly Phase[];
const receiving = ['target', 'syncing', 'following'] as const satisfies readonly Phase[];

function stopServing(state: PairState): Decision {
  if (isBehindBarrier(state)) return { state: { ...state, stopWanted: true } };
  const inStep = state.phase === 'in-step';
  return {
    state: { ...state, phase: 'stopping', stopping: { inStep, exportsClosed: false } },
    plan: plan(
      'send-away',
      inStep ? [] : [aloneMode, { do: 'stop-work' }, { do: 'detach' }],
      { do: 'refuse-users', reason: 'is being stopped' },
      { do: 'begin-close-exports' },
    ),
  };
}

/** Users are gone. Both sides flushed, then the bitmaps and the mark, then the goodbye (pair.md 18). */
function saveAndStop(state: PairState): Decision {
  const inStep = state.stopping?.inStep === true;
  const proof = inStep ? goingBackTo(state.proof, null) : state.proof;
  // In lock-step the other side goes back behind that flush when it starts again.
  const behind = inStep && state.self.lockStep ? (state.proof?.checkpoint ?? null) : null;
  return {
    state: { ...state, serving: false, stopping: { inStep, exportsClosed: true }, proof },
    plan: plan(
      'save-and-stop',
      behind === null ? [] : [{ do: 'keep-behind' }],
      // Let go before the goodbye: the other side hangs up when it hears it, and that is no lost link.
      inStep
        ? [{ do: 'flush-remote', proven: true, bounded: false }, { do: 'set-mode', mode: 'held' }, { do: 'detach' }]
        : [],
      // Proof is about durable disks: what our own system's memory alone holds may be lost with its power.
      { do: 'save-clean-stop', proof: proofOfBoth({ ...state, proof }), equal: false, behind, change: {} },
      send({ type: 'goodbye', clean: inStep }),
      inStep ? [{ do: 'await-goodbye' }] : [],
      { do: 'finish' },
    ),
  };
}

/** In step no more: durably alone, so that waiting users can be answered and then sent away. */
function stopAlone(state: PairState, given: Given): Decision {
  const { stopping } = state;
  if (stopping === null || !stopping.inStep) return { state: { ...state, session: null } };
  return {
    state: { ...state, session: null, stopping: { ...stopping, inStep: false } },
    plan: plan('stop-alone', { do: 'set-mode', mode: 'held' }, commit(aloneRecord(state, given, true)), aloneMode, {
      do: 'detach',
    }),
  };
}

const stopRows: readonly Row[] = [
  row(
    serving,
    'command stop',
    'stopping',
    'users are sent away first, behind a barrier when that has ended',
    stopServing,
  ),
  row(
    'stopping',
    'exports-closed',
    'stopping',
    'flushes both, saves the bitmaps, marks a clean stop, says goodbye',
    (state) =>
      // What could not be made durable leaves no mark, also when the last users are gone.
      (state.plan === 'stop-alone' || state.plan === 'finish') && state.stopping !== null
        ? { state: { ...state, stopping: { ...state.stopping, exportsClosed: true } } }
        : saveAndStop(state),
  ),
  row(
    'stopping',
    ['link-lost', 'replication-down'],
    'stopping',
    'was in step: durably alone, then on',
    (state, _, given) => stopAlone(state, given),
  ),
  row('stopping', 'done stop-alone', 'stopping', 'goes on once users are gone', (state) =>
    state.stopping?.exportsClosed === true ? saveAndStop(state) : { state },
  ),
  row(
    'stopping',
    ['failed send-away', 'failed save-and-stop', 'failed stop-alone'],
    'stopping',
    'in step: alone first; else stops without a mark, so that the next start compares',
    (state, error, given) =>
      state.stopping?.inStep === true
        ? stopAlone({ ...state, error }, given)
        : finish({ ...state, error }, { do: 'drop-users' }),
  ),
  row(idle, 'command stop', 'stopping', 'has nothing to hold', (state) =>
    finish(state, send({ type: 'goodbye', clean: false })),
  ),
  row(receiving, 'command stop', 'stopping', 'says goodbye, makes its disks durable', (state, _, given) => {
    const asOfMs = state.asOfMs ?? state.record.inStepMs ?? given.wallMs;
    const keeps = state.record.store === 'clean' && state.record.generation !== null && state.record.latest === null;
    return finish(
      state,
      send({ type: 'goodbye', clean: false }),
      { do: 'close-replication' },
      { do: 'flush-own' },
      ...(keeps ? [commit({ latest: { asOfMs, goodbye: false } })] : []),
    );
  }),
  row(['stopping'], ['done save-and-stop', 'done finish', 'failed finish'], 'stopped', 'ended', (state) => ({
    state: { ...state, phase: 'stopped' },
    now: [{ do: 'answer', command: 'stop', error: null, text: 'stopped' }],
  })),
  row('stopped', 'command stop', 'stopped', 'is stopped', (state) => reply(state, 'stop', null, 'stopped')),
  row(
    except(...serving, ...idle, ...receiving, 'stopped'),
    'command stop',
    'the same',
    'stops when what is under way has ended',
    (state) => ({
      state: { ...state, stopWanted: true },
    }),
  ),
];

export const commandRows: readonly Row[] = [
  ...failoverRows,
  ...resolveRows,
  ...checkpointRows(except('in-step', 'following')),
  ...stopRows,
];
