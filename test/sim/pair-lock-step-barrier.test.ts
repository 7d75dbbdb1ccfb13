/** Lock-step: what a barrier holds back stays out of its checkpoint, whatever is ordered meanwhile (pair.md 21, 22). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, verify } from './pair-scenes.ts';
import type { PairWorld, User } from './pair-world.ts';

const config = { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } as const;

interface Scene {
  readonly pair: PairWorld;
  readonly users: readonly User[];
  /** the checkpoint that is under way; never rejects */
  readonly made: Promise<string>;
}

/**
 * Beta is making a checkpoint of two disks, slowly one after the other, or it `hangs` when both are prepared; writes of
 * block 2 wait behind it.
 */
async function duringCheckpoint(seed: number, hangs = false): Promise<Scene> {
  const pair = await inStep(seed, { disks: ['disk0', 'disk1'], config, sound: true });
  const users = [await pair.connect('alpha', 'disk0'), await pair.connect('alpha', 'disk1')];
  for (const user of users) await pair.world.complete(user.write(1));
  const slow = pair.world.fault('beta', { operation: 'sync', path: /disk.\.img$/, delayMs: 200 });
  const hanging = pair.world.fault('beta', { operation: 'sync', path: '/data/group', delayMs: hangs ? 60_000 : 0 });
  const asked = pair.side('alpha').daemon.execute('pair-checkpoint') as Promise<{ text: string }>;
  const made = asked.then(({ text }) => text, String);
  const { daemon } = pair.side('beta');
  await pair.until(() => daemon.state.checkpointFor !== null && (hangs ? hanging.met : slow.met - users.length) > 0);
  for (const user of users) user.write(2).catch(() => undefined);
  await pair.world.runFor(20);
  return { pair, users, made };
}

const orders = {
  switch: (pair: PairWorld) => pair.side('alpha').daemon.execute('pair-switch'),
  failover: (pair: PairWorld) => pair.side('beta').daemon.execute('pair-failover', { to: 'latest' }),
  stop: (pair: PairWorld) => pair.side('alpha').daemon.stop(),
};

for (const [name, order] of Object.entries(orders)) {
  test(`pair 21: a ${name} that comes during a checkpoint lets nothing into it`, async () => {
    for (const seed of [1, 2]) {
      const { pair } = await duringCheckpoint(seed);
      const { daemon } = pair.side('beta');
      const last = daemon.state.record.checkpoints;
      order(pair).catch(() => undefined);
      await pair.until(() => daemon.state.record.checkpoints > last);
      pair.world.cut('alpha', 'beta');
      pair.kill('alpha');
      for (const disk of pair.disks) {
        const view = await pair.connect('beta', disk);
        assert.deepEqual(await pair.world.complete(view.read(2)), [0], `${disk}, seed ${seed}`);
      }
    }
  });

  test(`pair 21: a ${name} that comes during a checkpoint goes on when that is made`, async () => {
    const { pair, made } = await duringCheckpoint(3);
    const ordered = order(pair);
    assert.match(await pair.world.complete(made), /^checkpoint \d+$/);
    await pair.world.complete(ordered);
    if (name === 'stop') {
      pair.kill('alpha');
      await pair.start('alpha');
    }
    await pair.inStep();
    await verify(pair, name === 'stop' ? 'alpha' : 'beta');
    pair.assertEqual();
  });
}

test('pair 6, 15: a switchover that waits for a checkpoint which hangs is refused, and a stop ends', async () => {
  const { pair, made } = await duringCheckpoint(4, true);
  const switched = pair.side('alpha').daemon.execute('pair-switch');
  await assert.rejects(pair.world.complete(switched), /no checkpoint within/);
  assert.match(await pair.world.complete(made), /no checkpoint within/);
  await pair.until(() => pair.phase('alpha') === 'alone');
  await verify(pair, 'alpha');
  await pair.stop('alpha');
});
