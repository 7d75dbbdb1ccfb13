/** What a checkpoint asks of the engine, and in which order its durable steps are made (pair.md 22). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pairDefaults } from '../../src/pair/config.ts';
import { PairOverlays } from '../../src/pair/overlays.ts';
import { rollBackDisk } from '../../src/pair/roll-back.ts';
import type { QmpEvent, QmpTarget } from '../../src/qmp/target.ts';
import { deferred } from '../../src/util/later.ts';
import { World } from '../sim/world.ts';

/** Overlays that keep old content, over an engine that only remembers what it was told. */
async function keeping(fails: readonly string[] = [], answers: Readonly<Record<string, unknown>> = {}) {
  const steps: string[] = [];
  const engine: QmpTarget = {
    async execute(command) {
      steps.push(command);
      if (fails.includes(command)) throw new Error(`${command} fails`);
      return answers[command] ?? {};
    },
    subscribe: () => () => undefined,
  };
  const inet = { type: 'inet', host: 'a', port: 1 } as const;
  const overlays = new PairOverlays(new World(1).host('a'), engine, {
    ...pairDefaults,
    store: 'overlays',
    overlays: { folder: '/data', sync: true },
    name: 'a',
    volume: 'v',
    role: 'secondary',
    dataFolder: '/data',
    disks: [{ name: 'disk0', file: '/data/disk0.img', size: 65536 }],
    listen: { supervisor: inet, replication: inet, nbd: [inet] },
    peer: { name: 'b', supervisor: inet },
    insecure: true,
  });
  await overlays.keep();
  steps.length = 0;
  const step = (name: string, error?: string) => async () => {
    steps.push(name);
    if (error !== undefined) throw new Error(error);
  };
  return { overlays, steps, step };
}

test('pair 22: all are ready before it is durable, and forget the old after it', async () => {
  const { overlays, steps, step } = await keeping();
  await overlays.checkpoint(2, step('durable'), step('take back'));
  assert.deepEqual(steps, ['replication-prepare', 'durable', 'replication-commit']);
});

test('pair 22: one that was not made durable is taken back before anybody goes on', async () => {
  const { overlays, steps, step } = await keeping();
  await assert.rejects(overlays.checkpoint(2, step('durable', 'EIO'), step('take back')), /EIO/);
  assert.deepEqual(steps, ['replication-prepare', 'durable', 'take back', 'replication-abort']);
});

test('pair 22: who cannot take it back holds still until the next try, or the end of the session', async () => {
  for (const next of ['try', 'session'] as const) {
    const { overlays, steps, step } = await keeping();
    await assert.rejects(overlays.checkpoint(2, step('durable', 'EIO'), step('take back', 'EIO again')), /EIO again/);
    assert.deepEqual(steps, ['replication-prepare', 'durable', 'take back']);
    if (next === 'session') {
      await overlays.leave();
      await overlays.keep();
    }
    steps.length = 0;
    await overlays.checkpoint(2, step('durable'), step('take back'));
    const held = next === 'try' ? [] : ['replication-prepare'];
    assert.deepEqual(steps, [...held, 'durable', 'replication-commit']);
  }
});

test('pair 22: where not all are ready nothing is made durable', async () => {
  const { overlays, steps, step } = await keeping(['replication-prepare']);
  await assert.rejects(overlays.checkpoint(2, step('durable'), step('take back')), /prepare fails/);
  assert.deepEqual(steps, ['replication-prepare']);
});

test('pair 22: where old content is not kept there is no checkpoint', async () => {
  const { overlays, steps, step } = await keeping();
  await overlays.leave();
  steps.length = 0;
  await assert.rejects(overlays.checkpoint(2, step('durable'), step('take back')), { code: 'wrong-state' });
  assert.deepEqual(steps, []);
});

test('pair 14: a way back that fails is said to have failed, and nothing is emptied', async () => {
  const failed = { node: 'disk0-top', mode: 'secondary', stage: 'failover-failed', error: 'EIO', commit: null };
  const { overlays, steps, step } = await keeping([], { 'query-replication': [failed] });
  const text = /disk0-top: going back to the checkpoint failed: EIO; start this side again/;
  await assert.rejects(overlays.endTakeover(2, step('durable'), step('take back')), text);
  assert.ok(!steps.includes('durable'));
});

test('record-log 9: a disk is rolled back when its commit has ended well, and not before', async () => {
  const endings = [
    ['BLOCK_JOB_COMPLETED', {}, null],
    ['BLOCK_JOB_COMPLETED', { error: 'EIO' }, /disk disk0: EIO/],
    ['BLOCK_JOB_CANCELLED', {}, /was cancelled/],
  ] as const;
  for (const [event, more, error] of endings) {
    const told = deferred<(event: QmpEvent) => void>();
    const asked: string[] = [];
    const rolling = rollBackDisk(
      {
        async execute(command) {
          asked.push(command);
          return {};
        },
        subscribe(listener) {
          told.resolve(listener);
          return () => undefined;
        },
      },
      'disk0',
    );
    let over = false;
    const ended = rolling.finally(() => {
      over = true;
    });
    ended.catch(() => undefined);
    const tell = await told.promise;
    const timestamp = { seconds: 0, microseconds: 0 };
    const pass = () => new Promise((resolve) => setImmediate(resolve));
    tell({ event: 'BLOCK_JOB_COMPLETED', data: { device: 'another' }, timestamp });
    tell({ event: 'BLOCK_JOB_READY', data: { device: 'roll-back-disk0' }, timestamp });
    await pass();
    assert.deepEqual([over, asked], [false, ['block-commit', 'job-complete']]);
    tell({ event, data: { device: 'roll-back-disk0', ...more }, timestamp });
    if (error === null) await ended;
    else await assert.rejects(ended, error);
  }
});
