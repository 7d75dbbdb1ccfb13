/** Lock-step: what a proof says of a secondary that goes back behind its last flush (pair.md 12, 15, 16). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, verify } from './pair-scenes.ts';
import { otherSide, type PairWorld } from './pair-world.ts';

const paired = (seed: number): Promise<PairWorld> =>
  inStep(seed, { config: { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } });

/** Blocks 1 and 2 are written beyond the last checkpoint. @returns what that has of block 1 */
async function writeBeyond(pair: PairWorld): Promise<number> {
  const user = await pair.connect('alpha');
  const version = await pair.world.complete(user.write(1));
  await pair.command('alpha', 'pair-checkpoint');
  await pair.world.complete(user.write(1));
  await pair.world.complete(user.write(2));
  await pair.world.complete(user.flush());
  await pair.world.complete(user.client.close());
  return version;
}

/** Both are stopped cleanly, alpha first. */
async function stopBoth(pair: PairWorld): Promise<void> {
  await pair.stop('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  const said = /nothing is missing; `failover` goes back to checkpoint \d+, `--to latest` does not$/;
  assert.match((await pair.status('beta')).notice ?? '', said);
  await pair.stop('beta');
  pair.log.length = 0;
}

const compared = (pair: PairWorld): boolean => pair.log.some((line) => /comparing/.test(line));

for (const first of ['alpha', 'beta'] as const) {
  test(`pair 12: lock-step, both stopped cleanly, ${first} starts first: beta goes back, and gets what it lacks`, async () => {
    const pair = await paired(1);
    await writeBeyond(pair);
    await stopBoth(pair);
    await pair.start(first);
    await pair.world.runFor(1000);
    await pair.start(otherSide(first));
    await pair.inStep();
    assert.ok(!compared(pair), 'alpha knows what it wrote since that checkpoint');
    pair.assertEqual();
    await verify(pair, 'alpha');
  });
}

test('pair 12: lock-step: what a clean stop has kept of a checkpoint counts for nothing once both went on', async () => {
  const pair = await paired(5);
  await writeBeyond(pair);
  await pair.stop('alpha');
  pair.log.length = 0;
  await pair.start('alpha');
  await pair.inStep();
  assert.ok(
    pair.log.some((line) => /alpha: joining -> in-step/.test(line)),
    'beta has not gone back: both are equal',
  );
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(5));
  await pair.world.complete(user.flush());
  pair.kill('beta');
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 16: lock-step, both stopped cleanly, a failover to what beta went back to: alpha becomes it', async () => {
  const pair = await paired(6);
  const version = await writeBeyond(pair);
  await stopBoth(pair);
  await pair.start('beta');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  await pair.until(() => pair.phase('beta') === 'alone');
  await pair.start('alpha');
  await pair.inStep();
  assert.ok(!compared(pair), 'alpha knows what it wrote since that checkpoint');
  pair.assertEqual();
  const late = await pair.connect('beta');
  assert.deepEqual(await pair.world.complete(late.read(1)), [version]);
});

/** Alpha has handed over durably, and beta was killed before it had taken it. */
async function handedOverToNobody(pair: PairWorld): Promise<void> {
  await writeBeyond(pair);
  const { daemon } = pair.side('alpha');
  daemon.execute('pair-switch').catch(() => undefined);
  await pair.until(() => daemon.state.record.handingOver !== null);
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'handing-over');
}

test('pair 15: lock-step, a switchover that is taken back: a secondary that went back gets what it lacks', async () => {
  const pair = await paired(2);
  await handedOverToNobody(pair);
  await pair.start('beta');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'primary');
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 16: lock-step, a switchover that became a failover: the old primary gets what the new one lacks', async () => {
  const pair = await paired(3);
  await handedOverToNobody(pair);
  pair.world.cut('alpha', 'beta');
  await pair.start('beta');
  await pair.command('beta', 'pair-failover', { to: 'latest' });
  pair.failure = null;
  await pair.until(() => pair.phase('beta') === 'alone');
  pair.world.heal('alpha', 'beta');
  await pair.inStep();
  assert.equal((await pair.status('beta')).role, 'primary');
  pair.assertEqual();
});

test('pair 13: in lock-step the kept side of a split brain goes back to its checkpoint', async () => {
  const pair = await paired(4);
  const version = await writeBeyond(pair);
  pair.kill('alpha');
  pair.world.cut('alpha', 'beta');
  // Another machine takes its name and its role.
  const { files } = pair.world.restart('alpha');
  for (const name of await pair.world.complete(files.list('/data')))
    await pair.world.complete(files.remove(`/data/${name}`));
  pair.world.kill('alpha');
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.side('beta').daemon.state.record.splitBrain !== null);
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  pair.failure = null;
  const late = await pair.connect('beta');
  assert.deepEqual(await pair.world.complete(late.read(1)), [version]);
  assert.deepEqual(await pair.world.complete(late.read(2)), [0]);
  await pair.inStep();
  pair.assertEqual();
});
