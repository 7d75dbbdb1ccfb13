/** The life of a job: the tables against QMP's words, the verbs, pausing, speed, errors, events. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type JobBody, type JobControl, JobManager, type JobOptions } from '../../src/jobs/job.ts';
import {
  decide,
  initialState,
  type JobState,
  type JobStatus,
  type JobVerb,
  jobMoves,
  jobVerbs,
} from '../../src/jobs/job-state.ts';
import { BlockError } from '../../src/util/errors.ts';
import { deferred } from '../../src/util/later.ts';
import { settleTurns } from '../drivers/replication-world.ts';

const statuses = Object.keys(jobMoves) as JobStatus[];
const verbs = Object.keys(jobVerbs) as JobVerb[];

interface Run {
  readonly manager: JobManager;
  readonly events: string[];
  readonly control: () => JobControl;
  readonly finish: (error?: Error) => void;
}

/** A job whose body waits for the test, resting where a user wants it to. */
function start(more: Partial<JobOptions> = {}, body: Partial<JobBody> = {}): Run {
  const events: string[] = [];
  const manager = new JobManager((event, data) => {
    events.push(event === 'JOB_STATUS_CHANGE' ? String(data.status) : event);
  });
  let control: JobControl | null = null;
  const end = deferred();
  let ended = false;
  const job = manager.create({
    id: 'j',
    type: 'mirror',
    body: {
      run: async (given) => {
        control = given;
        void end.promise.then(
          () => {
            ended = true;
            given.wake();
          },
          () => undefined,
        );
        for (;;) {
          const rest = given.pausePoint();
          if (rest !== undefined) await rest;
          if (ended || given.ending !== null) return;
          await Promise.race([given.wait(), end.promise]);
        }
      },
      ...body,
    },
    ...more,
  });
  job.start();
  return {
    manager,
    events,
    control: () => control ?? assert.fail(),
    finish: (error) => (error === undefined ? end.resolve() : end.reject(error)),
  };
}

test('QMP: which status accepts which verb is a table, and decide obeys it', () => {
  console.log(`${'status'.padEnd(10)} next | verbs`);
  for (const status of statuses) {
    const accepted = verbs.filter((verb) => jobVerbs[verb].includes(status));
    console.log(`${status.padEnd(10)} ${jobMoves[status].join(' ')} | ${accepted.join(' ')}`);
    for (const verb of verbs) {
      const state: JobState = {
        ...initialState({ autoFinalize: false, autoDismiss: false }),
        status,
        pauseWanted: verb === 'resume',
      };
      const act = () => decide(state, { type: 'verb', verb, force: true });
      if (jobVerbs[verb].includes(status)) act();
      else assert.throws(act, { code: 'invalid-request' }, `${verb} in ${status}`);
    }
  }
  assert.deepEqual(jobVerbs.complete, ['ready', 'standby']);
  assert.deepEqual(jobVerbs.finalize, ['pending']);
  assert.deepEqual(jobVerbs.dismiss, ['concluded']);
});

test('a job runs, waits, is pending, concludes and goes by itself', async () => {
  const { manager, events, finish, control } = start();
  await settleTurns();
  control().setProgress(512, 1024);
  assert.deepEqual(manager.find('j').info(), {
    id: 'j',
    type: 'mirror',
    status: 'running',
    'current-progress': 512,
    'total-progress': 1024,
  });
  finish();
  await settleTurns();
  assert.deepEqual(events, ['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']);
  assert.deepEqual(manager.list(), []);
  assert.throws(() => manager.find('j'), { code: 'job-not-found', qmpClass: 'GenericError' });
  assert.throws(() => manager.findActive('j'), { code: 'job-not-active', qmpClass: 'DeviceNotActive' });
});

test('without auto-finalize and auto-dismiss a user says when; the last step runs at finalize', async () => {
  const prepared: unknown[] = [];
  const { manager, events, finish } = start(
    { autoFinalize: false, autoDismiss: false },
    { prepare: async (ending) => void prepared.push(ending) },
  );
  const job = manager.find('j');
  finish();
  await settleTurns();
  assert.equal(job.status, 'pending');
  assert.equal(prepared.length, 0);
  job.finalize();
  assert.throws(() => job.finalize(), { code: 'invalid-request' });
  assert.throws(() => job.cancel(), /too late/);
  await settleTurns();
  assert.equal(prepared.length, 1);
  assert.equal(job.status, 'concluded');
  job.dismiss();
  assert.deepEqual(manager.list(), []);
  assert.deepEqual(events.slice(-4), ['BLOCK_JOB_PENDING', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']);
});

test('a paused job rests at its next pause point, in running and in ready', async () => {
  const { manager, events, control } = start();
  const job = manager.find('j');
  await settleTurns();
  job.pause();
  await settleTurns();
  assert.equal(job.status, 'paused');
  assert.throws(() => job.pause(), /already paused/);
  job.resume();
  await settleTurns();
  assert.equal(job.status, 'running');
  assert.throws(() => job.resume(), /not paused/);
  control().becomeReady();
  job.pause();
  await settleTurns();
  assert.equal(job.status, 'standby');
  job.complete();
  await settleTurns();
  assert.equal(job.status, 'standby', 'it completes when it is resumed');
  job.resume();
  await settleTurns();
  assert.deepEqual(events, [
    'created',
    'running',
    'paused',
    'running',
    'ready',
    'BLOCK_JOB_READY',
    'standby',
    'ready',
    'waiting',
    'pending',
    'BLOCK_JOB_COMPLETED',
    'concluded',
    'null',
  ]);
});

test('cancel ends a running, a resting and a ready job; without force a ready one ends well', async () => {
  for (const [state, force, last] of [
    ['running', false, 'BLOCK_JOB_CANCELLED'],
    ['paused', false, 'BLOCK_JOB_CANCELLED'],
    ['ready', true, 'BLOCK_JOB_CANCELLED'],
    ['ready', false, 'BLOCK_JOB_COMPLETED'],
  ] as const) {
    const cleaned: string[] = [];
    const { manager, events, control } = start({}, { clean: async (outcome) => void cleaned.push(outcome) });
    const job = manager.find('j');
    await settleTurns();
    if (state === 'ready') control().becomeReady();
    if (state === 'paused') job.pause();
    await settleTurns();
    assert.equal(job.status, state);
    job.cancel(force);
    await settleTurns();
    assert.equal(events.at(-3), last, `${state} ${force}`);
    assert.deepEqual(cleaned, [last === 'BLOCK_JOB_CANCELLED' ? 'cancelled' : 'completed']);
  }
});

test('a job that is cancelled while it is being made gives back what it took, once that is whole, and never runs', async () => {
  const cleaned: string[] = [];
  const events: unknown[] = [];
  const manager = new JobManager((event, data) => {
    events.push(event === 'JOB_STATUS_CHANGE' ? data.status : event);
  });
  const body: JobBody = {
    run: () => assert.fail('it runs'),
    clean: async (outcome) => void cleaned.push(outcome),
  };
  const made = manager.create({ id: 'j', type: 'mirror', body });
  made.cancel();
  await settleTurns();
  assert.deepEqual([made.status, cleaned], ['created', []]);
  made.start();
  await made.concluded;
  assert.deepEqual(cleaned, ['cancelled']);
  assert.deepEqual(events, ['created', 'aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null']);
  // What it needs cannot be had after all.
  const forgotten = manager.create({ id: 'j', type: 'mirror', body });
  forgotten.cancel();
  forgotten.forget();
  await forgotten.concluded;
  assert.deepEqual([cleaned.length, manager.list()], [1, []]);
});

test('an error of the body or of the last step ends the job, and stands in its state', async () => {
  const broken = new BlockError('io-error', 'bad sector');
  for (const where of ['run', 'prepare', 'clean'] as const) {
    const body: Partial<JobBody> = { [where]: () => Promise.reject(broken) };
    const { manager, events, finish } = start({ autoDismiss: false }, body);
    finish();
    await settleTurns();
    const job = manager.find('j');
    assert.equal(job.info().error, 'bad sector', where);
    assert.equal(events.includes('aborting'), where !== 'clean');
    assert.deepEqual(events.slice(-2), ['BLOCK_JOB_COMPLETED', 'concluded']);
  }
});

test('on-error: report, ignore, stop, enospc as QEMU has them', async () => {
  const full = new BlockError('no-space', 'full');
  const broken = new BlockError('io-error', 'bad');
  const { manager, control, events } = start();
  await settleTurns();
  const job = manager.find('j');
  assert.equal(control().ioError('read', broken, 'ignore'), 'ignore');
  assert.equal(job.blockInfo()['io-status'], 'ok');
  assert.equal(control().ioError('write', broken, 'enospc'), 'report');
  assert.equal(control().ioError('write', full, 'enospc'), 'stop');
  assert.equal(job.blockInfo()['io-status'], 'nospace');
  control().wake();
  await settleTurns();
  assert.equal(job.status, 'paused');
  assert.equal(events.filter((event) => event === 'BLOCK_JOB_ERROR').length, 3);
  job.resume();
  assert.equal(job.blockInfo()['io-status'], 'ok');
});

test('an internal job is not listed, not to be found, and tells no events', async () => {
  const { manager, events, finish } = start({ internal: true });
  await settleTurns();
  assert.deepEqual([manager.list(), events], [[], []]);
  assert.throws(() => manager.find('j'), { code: 'job-not-found' });
  assert.throws(() => manager.create({ id: 'j', type: 'mirror', body: { run: async () => undefined } }), {
    code: 'name-in-use',
  });
  finish();
  await settleTurns();
});

test('closing the manager cancels every job and waits for its end', async () => {
  const { manager, events } = start();
  await settleTurns();
  await manager.close();
  assert.ok(events.includes('BLOCK_JOB_CANCELLED'));
});
