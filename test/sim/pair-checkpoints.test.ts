/** Checkpoints of a pair with `store: overlays` (pair.md 14 to 17, 20 to 22; record-log.md 8 to 10). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PairWorld, type PairWorldOptions } from './pair-world.ts';

const overlays = (options: PairWorldOptions = {}): PairWorldOptions => ({
  ...options,
  config: { store: 'overlays', checkpointMs: null, ...options.config },
});

async function paired(seed: number, options: PairWorldOptions = {}): Promise<PairWorld> {
  const pair = new PairWorld(seed, overlays(options));
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  return pair;
}

test('pair 17: the secondary shows the last checkpoint read-only; a command makes a new one', async () => {
  const pair = await paired(1);
  const user = await pair.connect('alpha');
  const first = await pair.world.complete(user.write(3));
  await pair.world.complete(user.flush());
  const view = await pair.connect('beta');
  assert.equal(view.client.info.readOnly, true);
  assert.deepEqual(await pair.world.complete(view.read(3)), [0]);
  const { text } = await pair.command('alpha', 'pair-checkpoint');
  assert.match(text, /^checkpoint \d+$/);
  assert.deepEqual(await pair.world.complete(view.read(3)), [first]);
  const second = await pair.world.complete(user.write(3));
  await pair.world.complete(user.flush());
  assert.deepEqual(await pair.world.complete(view.read(3)), [first]);
  pair.assertEqual();
  await pair.command('beta', 'pair-checkpoint');
  assert.deepEqual(await pair.world.complete(view.read(3)), [second]);
  await pair.world.runFor(20);
  const status = await pair.status('beta');
  assert.equal(status.checkpoint?.number, (await pair.status('alpha')).checkpoint?.number);
});

test('pair 14: failover --to checkpoint serves the last checkpoint; the old primary returns as target', async () => {
  const pair = await paired(2);
  const user = await pair.connect('alpha');
  const first = await pair.world.complete(user.write(3));
  await pair.command('alpha', 'pair-checkpoint');
  await pair.world.complete(user.write(3));
  await pair.world.complete(user.flush());
  pair.powerCut('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  const { text } = await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  assert.match(text, /back at checkpoint/);
  const late = await pair.connect('beta');
  assert.deepEqual(await pair.world.complete(late.read(3)), [first]);
  await pair.until(() => pair.phase('beta') === 'alone');
  await pair.start('alpha');
  await pair.inStep();
  pair.assertEqual();
  assert.deepEqual(await pair.world.complete(late.read(3)), [first]);
});
