/** What a side says of its own data is no more than it has (pair.md 4, 7, 12, 16). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, verify, writeSome } from './pair-scenes.ts';
import { type PairWorld, sideNames } from './pair-world.ts';

const paired = (seed: number): Promise<PairWorld> =>
  inStep(seed, { config: { store: 'overlays', checkpointMs: null } });

test('pair 16: what an old primary says of its disk is durable there before it is said', async () => {
  const pair = await paired(1);
  await writeSome(pair, 'alpha');
  const user = await pair.connect('alpha');
  // Beta has it durably, alpha in the memory of its system.
  await pair.world.complete(user.write(20));
  await pair.command('alpha', 'pair-checkpoint');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  await pair.until(() => pair.phase('beta') === 'alone');
  await writeSome(pair, 'beta');
  pair.world.heal('alpha', 'beta');
  await pair.until(() => sideNames.every((side) => pair.side(side).daemon.state.record.splitBrain !== null));
  pair.world.fault('alpha', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  await pair.until(() => pair.phase('beta') === 'copying');
  pair.powerCut('alpha', { loseUnsynced: true });
  await pair.until(() => pair.phase('beta') === 'alone');
  await pair.start('alpha');
  await pair.inStep();
  pair.assertEqual();
  await verify(pair, 'beta');
});

test('pair 7: an old primary that returns has the latest as of the failover, not as of its return', async () => {
  const pair = await paired(2);
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  // By its own clock: those of two machines differ.
  const promoted = pair.side('beta').host.clock.wall();
  await writeSome(pair, 'beta');
  await pair.world.runFor(60_000);
  await pair.start('alpha');
  await pair.until(() => pair.side('alpha').daemon.state.record.role === 'secondary');
  const { latest } = pair.side('alpha').daemon.state.record;
  assert.ok(latest !== null && latest.asOfMs <= promoted, `${(latest?.asOfMs ?? 0) - promoted} ms too late`);
});

test('pair 7, 11: the checkpoint that a resync begins with is as old as what was found', async () => {
  const pair = await paired(3);
  await writeSome(pair, 'alpha');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await writeSome(pair, 'alpha');
  await pair.world.runFor(60_000);
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'copying');
  pair.kill('alpha');
  pair.kill('beta');
  await pair.start('beta');
  const { latestAsOf, checkpoint } = await pair.status('beta');
  const now = pair.world.host('onlooker').clock.wall();
  assert.ok(latestAsOf !== null && now - latestAsOf.ms > 60_000, `latest as of ${now - (latestAsOf?.ms ?? 0)} ms ago`);
  assert.ok(checkpoint !== null && checkpoint.ageMs > 60_000, `checkpoint ${checkpoint?.ageMs} ms old`);
});
