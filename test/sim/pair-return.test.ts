/** How an old primary returns after a failover: what both sides' bitmaps know is enough (pair.md 12, 16). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { joinRanges } from '../../src/pair/ranges.ts';
import { paired as inStep, writeSome } from './pair-scenes.ts';
import { type PairWorld, sideNames } from './pair-world.ts';

const paired = (seed: number): Promise<PairWorld> =>
  inStep(seed, { config: { store: 'overlays', checkpointMs: null } });

/** Both are in step again, beta primary, and nothing was compared on the way. */
async function returned(pair: PairWorld, compared: boolean): Promise<void> {
  await pair.inStep();
  assert.equal(
    pair.log.some((line) => /: alone -> comparing|going-alone -> comparing/.test(line)),
    compared,
  );
  assert.equal((await pair.status('beta')).role, 'primary');
  pair.assertEqual();
}

for (const to of ['latest', 'checkpoint'] as const) {
  test(`pair 16: a primary that stopped cleanly returns after a failover to ${to}: both bitmaps are enough`, async () => {
    const pair = await paired(1);
    await writeSome(pair, 'alpha');
    await pair.command('alpha', 'pair-checkpoint');
    // What the checkpoint does not have.
    const user = await pair.connect('alpha');
    await pair.world.complete(user.write(5));
    await pair.world.complete(user.flush());
    await pair.stop('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    await pair.command('beta', 'pair-failover', { to });
    if (to === 'checkpoint') pair.failure = null;
    await pair.until(() => pair.phase('beta') === 'alone');
    const late = await pair.connect('beta');
    await pair.world.complete(late.write(20));
    await pair.world.complete(late.flush());
    pair.log.length = 0;
    await pair.start('alpha');
    await returned(pair, false);
  });
}

test('pair 16: a primary that was alone while a failover was made: after the split brain is resolved', async () => {
  const pair = await paired(2);
  await writeSome(pair, 'alpha');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(40));
  await pair.world.complete(user.flush());
  await pair.command('beta', 'pair-failover');
  await pair.until(() => pair.phase('beta') === 'alone');
  await writeSome(pair, 'beta');
  pair.world.heal('alpha', 'beta');
  await pair.until(() => sideNames.every((side) => pair.side(side).daemon.state.record.splitBrain !== null));
  pair.log.length = 0;
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  await returned(pair, false);
});

test('pair 12: a primary that was killed knows nothing: it is compared', async () => {
  const pair = await paired(3);
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  await pair.until(() => pair.phase('beta') === 'alone');
  pair.log.length = 0;
  await pair.start('alpha');
  await returned(pair, true);
});

test('ranges are joined where least lies between them, and cover what they did', () => {
  const ranges = [
    [0, 10],
    [20, 10],
    [31, 9],
    [100, 1],
    [110, 1],
  ] as const;
  assert.deepEqual(joinRanges(ranges, 5), ranges);
  assert.deepEqual(joinRanges(ranges, 2), [
    [0, 40],
    [100, 11],
  ]);
  assert.deepEqual(joinRanges(ranges, 1), [[0, 111]]);
  const even = Array.from({ length: 10 }, (_, i) => [i * 10, 1] as const);
  assert.equal(joinRanges(even, 4).length, 4);
  assert.equal(
    joinRanges(even, 4)
      .at(-1)
      ?.reduce((a, b) => a + b),
    91,
  );
});
