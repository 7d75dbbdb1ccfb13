/** Lock-step with a secondary whose disks are slow: in step if it can be, else status says what to change. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { verify } from './pair-scenes.ts';
import { PairWorld } from './pair-world.ts';

const config = { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } as const;

/** Each sync of beta takes so long, from its first start. */
async function slow(seed: number, delayMs: number): Promise<PairWorld> {
  const pair = new PairWorld(seed, { config, sound: true });
  await pair.start('alpha');
  await pair.start('beta');
  pair.world.fault('beta', { operation: 'sync', delayMs });
  return pair;
}

test('pair 6: who can make a checkpoint while writers wait can end a sync, too', async () => {
  const pair = await slow(1, 700);
  await pair.inStep(20_000);
  assert.ok(!pair.log.some((line) => /closing -> going-alone/.test(line)));
  const user = await pair.connect('alpha');
  for (let round = 0; round < 3; round++) {
    await pair.world.complete(user.write(round));
    // What is kept of it is durable there.
    await pair.world.runFor(5000);
    await pair.command('alpha', 'pair-checkpoint');
  }
  pair.assertEqual();
});

test('pair 18: a secondary too slow to end a sync: status names the setting, nothing is compared anew', async () => {
  const pair = await slow(2, 1500);
  await pair.until(() => pair.log.some((line) => /closing -> going-alone/.test(line)));
  const user = await pair.connect('alpha');
  pair.log.length = 0;
  for (let second = 0; second < 40; second++) {
    await pair.world.runFor(1000);
    await pair.world.complete(user.write(second));
    assert.match((await pair.status('alpha')).error ?? '', /beta made no checkpoint within .*`stall-ms-max`/);
  }
  assert.ok(!pair.log.some((line) => /comparing/.test(line)), 'beta may have what it was offered');
  pair.kill('alpha');
  await pair.start('alpha', { stallMsMax: 10_000 });
  await pair.inStep();
  assert.equal((await pair.status('alpha')).error, null);
  await verify(pair, 'alpha');
  pair.assertEqual();
});
