/**
 * The pair on simulated machines: syncs, links, stops and failing disks; each test names the rule of pair.md that it
 * shows.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify, writeSome } from './pair-scenes.ts';
import { PairWorld } from './pair-world.ts';

test('pair 10, 13: two fresh sides come in step, and a flushed write is on both', async () => {
  const pair = await paired(1);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  await pair.world.complete(user.flush());
  pair.assertEqual();
  const status = await pair.status('alpha');
  assert.equal(status.role, 'primary');
  assert.equal(status.inSync, true);
  assert.equal(status.aloneSince, null);
  assert.equal((await pair.status('beta')).generation?.id, status.generation?.id);
});

test('pair 10: the first sync of a primary with data copies it to a blank target', async () => {
  const pair = new PairWorld(2);
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 12, 16: a primary that was killed returns as the primary, with a compare of everything', async () => {
  const pair = await paired(5);
  await writeSome(pair, 'alpha');
  const before = (await pair.status('alpha')).generation;
  pair.kill('alpha');
  await pair.start('alpha');
  await pair.inStep();
  assert.ok(pair.log.some((line) => /alpha: .*comparing/.test(line)));
  const after = await pair.status('alpha');
  assert.equal(after.role, 'primary');
  assert.notEqual(after.generation?.id, before?.id);
  await verify(pair, 'alpha');
});

test('pair 12, 18: both stopped cleanly and started again are in step at once, in the same generation', async () => {
  const pair = await paired(6);
  await writeSome(pair, 'alpha');
  const before = await pair.status('alpha');
  await pair.stop('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  assert.match((await pair.status('beta')).latestAsOf?.text ?? '', /when the primary stopped: nothing is missing/);
  await pair.stop('beta');
  pair.log.length = 0;
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).generation?.id, before.generation?.id);
  assert.ok(!pair.log.some((line) => /comparing|copying/.test(line)), 'nothing was compared or copied');
  await verify(pair, 'alpha');
  // The mark of the clean stop is gone: what comes now is no clean stop.
  pair.kill('alpha');
  await pair.start('alpha');
  await pair.inStep();
  assert.ok(pair.log.some((line) => /alpha: .*comparing/.test(line)));
});

test('pair 12: a primary that was alone at its clean stop copies only what may differ', async () => {
  const pair = await paired(7);
  await writeSome(pair, 'alpha');
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await writeSome(pair, 'alpha');
  await pair.stop('alpha');
  await pair.start('alpha');
  pair.log.length = 0;
  await pair.start('beta');
  await pair.inStep();
  assert.ok(!pair.log.some((line) => /comparing/.test(line)), 'it had proof');
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 13: a primary that starts serves nobody until a hello, or until a person says so', async () => {
  const pair = await paired(8);
  pair.kill('alpha');
  pair.kill('beta');
  await pair.start('alpha');
  await pair.world.runFor(10_000);
  const waiting = await pair.status('alpha');
  assert.equal(waiting.serving, false);
  assert.match(waiting.notice ?? '', /beta does not answer.*start --alone/);
  await assert.rejects(pair.connect('alpha'), /not served yet/);
  await pair.command('alpha', 'pair-start', { alone: true });
  await verify(pair, 'alpha');
  assert.ok((await pair.status('alpha')).aloneSince !== null);
});

test('pair 5, 7: a cut link makes the primary go on alone in a new generation, without an error', async () => {
  const pair = await paired(9, { disks: ['a', 'b'] });
  const before = (await pair.status('alpha')).generation;
  const users = [await pair.connect('alpha', 'a'), await pair.connect('alpha', 'b')];
  pair.world.cut('alpha', 'beta');
  await pair.world.complete(
    Promise.all(
      users.map(async (user) => {
        await user.write(1);
        await user.flush();
      }),
    ),
  );
  const alone = await pair.status('alpha');
  assert.equal(alone.phase, 'alone');
  assert.ok(alone.aloneSince !== null);
  assert.equal(alone.generation?.number, (before?.number ?? 0) + 1);
  assert.ok(alone.lagBytes > 0);
  pair.world.heal('alpha', 'beta');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).aloneSince, null);
  pair.assertEqual();
});

test('pair 6: a secondary that hangs stalls no user beyond the bound', async () => {
  const pair = await paired(10);
  const user = await pair.connect('alpha');
  pair.world.hang('beta');
  const from = pair.world.now;
  await pair.world.complete(user.write(1));
  await pair.world.complete(user.flush());
  assert.ok(pair.world.now - from < 2000 + 500, `${pair.world.now - from} ms`);
  pair.world.resume('beta');
  await pair.inStep();
  pair.assertEqual();
});

test('pair 7: with degraded=stop writes fail while the secondary is away, and both are equal when it is back', async () => {
  const pair = await paired(11, { config: { degraded: 'stop' } });
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(1));
  await pair.world.complete(user.flush());
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await assert.rejects(pair.world.complete(user.write(2)));
  await pair.start('beta');
  await pair.inStep();
  await pair.world.complete(user.write(2));
  await pair.world.complete(user.flush());
  pair.assertEqual();
});

test("pair 8: a local write that fails is the user's error, and both sides are equal afterwards", async () => {
  const pair = await paired(21);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(1));
  const fault = pair.world.fault('alpha', { operation: 'write', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  await assert.rejects(pair.world.complete(user.write(2)), /EIO|input\/output/i);
  fault.remove();
  await pair.world.runFor(3000);
  await pair.inStep();
  await pair.world.complete(user.flush());
  pair.assertEqual();
});

test("pair: a secondary whose disk is full costs the primary's user nothing", async () => {
  const pair = await paired(22);
  const user = await pair.connect('alpha');
  const fault = pair.world.fault('beta', { operation: 'write', path: '/data/disk0.img', errno: 'ENOSPC' });
  for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
  await pair.world.complete(user.flush());
  assert.notEqual((await pair.status('alpha')).phase, 'in-step');
  fault.remove();
  await pair.inStep();
  pair.assertEqual();
});

test('pair 7: a group file that cannot be written holds the users, who go on when it can', async () => {
  const pair = await paired(23);
  const user = await pair.connect('alpha');
  const fault = pair.world.fault('alpha', { operation: 'write', path: '/data/group', errno: 'ENOSPC' });
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'going-alone');
  let answered = false;
  const write = user
    .write(1)
    .then(() => user.flush())
    .then(() => {
      answered = true;
    });
  await pair.world.runFor(5000);
  assert.equal(answered, false, 'nothing is answered that is not durably alone');
  assert.match((await pair.status('alpha')).error ?? '', /ENOSPC/);
  fault.remove();
  await pair.world.complete(write);
  assert.equal(pair.phase('alpha'), 'alone');
});

test('pair 4: what another life of the secondary may have lost is sent again, though it had answered', async () => {
  const pair = await paired(30);
  const user = await pair.connect('alpha');
  for (let block = 0; block < 10; block++) await pair.world.complete(user.write(block));
  await pair.world.runFor(500);
  pair.powerCut('beta', { loseUnsynced: true });
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
});

test('pair 12, 18: what the proof of a clean stop rests on is durable on both sides', async () => {
  for (const alone of [false, true]) {
    const pair = await paired(alone ? 42 : 41);
    const user = await pair.connect('alpha');
    for (let block = 0; block < 10; block++) await pair.world.complete(user.write(block));
    if (alone) {
      await pair.world.runFor(1000);
      pair.kill('beta');
      await pair.until(() => pair.phase('alpha') === 'alone');
    }
    await pair.stop('alpha');
    pair.powerCut('alpha', { loseUnsynced: true });
    if (pair.world.isAlive('beta')) pair.kill('beta');
    await pair.start('alpha');
    await pair.start('beta');
    await pair.inStep();
    pair.assertEqual();
    await verify(pair, 'alpha');
  }
});
