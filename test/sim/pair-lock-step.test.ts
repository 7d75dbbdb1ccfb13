/** Lock-step: a machine on each side, checkpointed together with its disks (pair.md 15, 17, 21; record-log.md 9). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, verify } from './pair-scenes.ts';
import type { PairWorld, PairWorldOptions } from './pair-world.ts';

const lockStep = (options: PairWorldOptions = {}): PairWorldOptions => ({
  ...options,
  config: { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null, ...options.config },
});

const paired = (seed: number, options: PairWorldOptions = {}): Promise<PairWorld> => inStep(seed, lockStep(options));

const done = <T>(pair: PairWorld, work: Promise<T>): Promise<T> => pair.world.complete(work);

test('pair 17: the secondary’s own user writes beside the checkpoint; a checkpoint makes both equal', async () => {
  const pair = await paired(1);
  const user = await pair.connect('alpha');
  const own = await pair.connect('beta');
  assert.equal(own.client.info.readOnly, false);
  const a = await done(pair, user.write(1));
  const b = await done(pair, own.write(2));
  assert.deepEqual(await done(pair, own.read(1)), [0]);
  assert.deepEqual(await done(pair, own.read(2)), [b]);
  assert.deepEqual(await done(pair, user.read(2)), [0]);
  await pair.command('alpha', 'pair-checkpoint');
  assert.deepEqual(await done(pair, own.read(1)), [a]);
  assert.deepEqual(await done(pair, own.read(2)), [0]);
  pair.assertEqual();
});

test('pair 21: a write that comes while a checkpoint is made waits, and is not in it', async () => {
  const pair = await paired(2);
  const user = await pair.connect('alpha');
  const own = await pair.connect('beta');
  const before = await done(pair, user.write(1));
  const making = pair.side('alpha').daemon.execute('pair-checkpoint');
  let made = false;
  making.then(
    () => {
      made = true;
    },
    () => undefined,
  );
  await pair.until(() => pair.side('alpha').daemon.state.checkpointing);
  const writing = user.write(2);
  await done(pair, making);
  assert.ok(made);
  const after = await done(pair, writing);
  assert.deepEqual(await done(pair, own.read(1)), [before]);
  assert.deepEqual(await done(pair, own.read(2)), [0]);
  assert.deepEqual(await done(pair, user.read(2)), [after]);
});

test('pair 15: the primary gone, a failover keeps the secondary’s own writes on top of the checkpoint', async () => {
  const pair = await paired(3);
  const user = await pair.connect('alpha');
  const own = await pair.connect('beta');
  const a = await done(pair, user.write(1));
  await pair.command('beta', 'pair-checkpoint');
  await done(pair, user.write(1));
  await done(pair, user.write(4));
  const b = await done(pair, own.write(2));
  await done(pair, own.flush());
  pair.powerCut('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  const { text } = await pair.command('beta', 'pair-failover');
  assert.match(text, /back at checkpoint/);
  const late = await pair.connect('beta');
  for (const [block, version] of [[1, a] as const, [2, b] as const, [4, 0] as const]) {
    assert.deepEqual(await done(pair, late.read(block)), [version]);
  }
  await pair.until(() => pair.phase('beta') === 'alone');
  await pair.start('alpha', {});
  await pair.inStep();
  pair.assertEqual();
});

test('record-log 9: a secondary that starts again is at the checkpoint, without its own user’s writes', async () => {
  for (const how of ['kill', 'powerCut'] as const) {
    const pair = await paired(4);
    const user = await pair.connect('alpha');
    const own = await pair.connect('beta');
    const a = await done(pair, user.write(1));
    await pair.command('alpha', 'pair-checkpoint');
    await done(pair, user.write(1));
    await done(pair, own.write(2));
    await done(pair, own.flush());
    pair[how]('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    pair.log.length = 0;
    await pair.start('beta');
    assert.ok(pair.log.some((line) => /beta: went back to checkpoint/.test(line)));
    const view = await pair.connect('beta');
    assert.deepEqual(await done(pair, view.read(1)), [a]);
    assert.deepEqual(await done(pair, view.read(2)), [0]);
    await pair.inStep();
    assert.ok(
      !pair.log.some((line) => /alpha: .*comparing/.test(line)),
      'what may differ since the checkpoint is known',
    );
    pair.assertEqual();
    await verify(pair, 'alpha');
  }
});

for (const what of ['group', 'disk0.img', 'disk0.hidden']) {
  test(`pair 6: a secondary whose checkpoint hangs at ${what} holds nobody longer than stall-ms-max`, async () => {
    const pair = await paired(5);
    const user = await pair.connect('alpha');
    await done(pair, user.write(1));
    const fault = pair.world.fault('beta', { operation: 'sync', path: `/data/${what}`, delayMs: 60_000 });
    const making = pair.side('alpha').daemon.execute('pair-checkpoint');
    making.catch(() => undefined);
    await pair.until(() => pair.side('alpha').daemon.state.checkpointing);
    const since = pair.world.now;
    await done(pair, user.write(2));
    assert.ok(pair.world.now - since < 4000, `${pair.world.now - since} ms`);
    await assert.rejects(done(pair, making), /no checkpoint within|not in step/);
    fault.remove();
    await pair.inStep();
    pair.assertEqual();
  });
}

test('a checkpoint that cannot be made durable is refused, and the machines go on', async () => {
  const pair = await paired(6);
  const user = await pair.connect('alpha');
  const own = await pair.connect('beta');
  await done(pair, user.write(1));
  const fault = pair.world.fault('beta', { operation: 'write', path: '/data/group', errno: 'ENOSPC', count: 1 });
  await assert.rejects(pair.command('alpha', 'pair-checkpoint'), /ENOSPC/);
  fault.remove();
  assert.deepEqual(await done(pair, own.read(1)), [0]);
  await done(pair, user.write(2));
  assert.equal(pair.phase('alpha'), 'in-step');
  await pair.command('alpha', 'pair-checkpoint');
  assert.notDeepEqual(await done(pair, own.read(2)), [0]);
});

test('pair 20: little space makes no checkpoint early under a machine that runs on the last one', async () => {
  const pair = await paired(7);
  const user = await pair.connect('alpha');
  const own = await pair.connect('beta');
  await pair.command('alpha', 'pair-checkpoint');
  const mine = await done(pair, own.write(2));
  const disk = pair.world.machine('beta')?.disk;
  assert.ok(disk !== undefined);
  disk.freeBytes = 10_000;
  for (let block = 0; block < 32; block++) await done(pair, user.write(block));
  const { number } = pair.side('beta').daemon.state.record.checkpoint ?? {};
  await pair.world.runFor(10_000);
  assert.equal(pair.side('beta').daemon.state.record.checkpoint?.number, number);
  assert.deepEqual(await done(pair, own.read(2)), [mine]);
});
