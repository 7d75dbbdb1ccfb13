/** Rare sequences of events, each of which lost data, split the sides silently, or hung before its rule was kept. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { writeSome } from './pair-scenes.ts';
import { PairWorld, type PairWorldOptions } from './pair-world.ts';

async function paired(seed: number, options: PairWorldOptions = {}): Promise<PairWorld> {
  const pair = new PairWorld(seed, options);
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  return pair;
}

async function write(pair: PairWorld, flush: boolean): Promise<void> {
  const user = await pair.connect('alpha');
  await pair.world.complete(user.verify());
  for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
  if (flush) await pair.world.complete(user.flush());
  user.client.destroy('gone');
}

/** Another machine takes the name: blank disks, no group file. */
async function replace(pair: PairWorld, side: 'alpha' | 'beta'): Promise<void> {
  pair.kill(side);
  const { files } = pair.world.restart(side);
  for (const name of await pair.world.complete(files.list('/data')))
    await pair.world.complete(files.remove(`/data/${name}`));
  pair.world.kill(side);
}

test('pair 10: a blank target gets everything, also where the disks were blank at the start and another one was in step since', async () => {
  const pair = await paired(203);
  await pair.stop('alpha');
  await pair.stop('beta');
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  await pair.start('beta');
  await pair.inStep();
  await write(pair, true);
  await replace(pair, 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
});

test('pair 4: a secondary whose sync failed once comes back as another life, and gets again what it lost', async () => {
  const pair = new PairWorld(204);
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  await write(pair, true);
  await pair.start('beta');
  await pair.until(() => pair.phase('alpha') === 'copying');
  pair.world.fault('beta', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  await pair.inStep();
  pair.assertEqual();
});

test('pair 12: a primary whose last sync failed saves no mark of a clean stop', async () => {
  const pair = await paired(205);
  await write(pair, false);
  pair.world.fault('alpha', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  await pair.world.complete(pair.side('alpha').daemon.stop());
  assert.equal(pair.side('alpha').daemon.state.record.cleanStop, null);
});

test('pair 8: a range of one disk that diverges while another disk is made good is made good too', async () => {
  const pair = await paired(206, { disks: ['a', 'b'] });
  const fail = async (disk: string): Promise<void> => {
    const user = await pair.connect('alpha', disk);
    const fault = pair.world.fault('alpha', { operation: 'write', path: `/data/${disk}.img`, errno: 'EIO', count: 1 });
    await assert.rejects(pair.world.complete(user.write(0)), /EIO/);
    fault.remove();
    user.client.destroy('gone');
  };
  const slow = pair.world.fault('alpha', { operation: 'read', path: '/data/a.img', delayMs: 5000 });
  await fail('a');
  await pair.until(() => slow.met > 0);
  await fail('b');
  const missing = async (): Promise<number[]> => (await pair.status('alpha')).disks.map((disk) => disk.missingBytes);
  assert.deepEqual((await missing()).map(Boolean), [true, true]);
  slow.remove();
  await pair.world.complete(pair.sleep(20_000));
  assert.deepEqual(await missing(), [0, 0]);
  assert.equal(pair.phase('alpha'), 'in-step');
  pair.assertEqual();
});

test('pair 7: a stop that cannot make going alone durable gives waiting users no answer', async () => {
  const pair = await paired(207);
  const user = await pair.connect('alpha');
  pair.world.hang('beta');
  await pair.world.complete(user.write(0));
  let flushed: string | null = null;
  user.client.flush()?.then(
    () => (flushed = 'answered'),
    () => (flushed = 'lost'),
  );
  await pair.world.complete(pair.sleep(50));
  pair.world.fault('alpha', { operation: 'sync', path: '/data/group', errno: 'EIO' });
  const stopped = pair.side('alpha').daemon.stop();
  await pair.until(() => pair.phase('alpha') === 'stopping');
  pair.kill('beta');
  await pair.world.complete(stopped);
  await pair.until(() => flushed !== null);
  assert.equal(flushed, 'lost');
});

test('pair 18: a stop ends though a disk hangs and users are held', async () => {
  const pair = await paired(208);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(0));
  pair.world.fault('alpha', { operation: 'sync', path: '/data/group', delayMs: 1e7 });
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'going-alone');
  const flush = user.client.flush();
  flush?.catch(() => undefined);
  const { daemon, engine } = pair.side('alpha');
  let ended = false;
  daemon
    .stop()
    .then(() => engine.close())
    .then(
      () => (ended = true),
      () => (ended = true),
    );
  await pair.until(() => ended, 40_000);
});

test('pair 18: a status is told though the engine gives no answer', async () => {
  const pair = await paired(209);
  const { engine } = pair.side('alpha');
  engine.execute = () => new Promise(() => undefined);
  const status = await pair.status('alpha');
  assert.equal(status.role, 'primary');
  assert.match(status.error ?? '', /engine gives no answer/);
});

test('pair 11: a block that cannot be read is named by `status`, tried again now and then, and copied once it can be', async () => {
  for (const compared of [false, true]) {
    const pair = new PairWorld(compared ? 62 : 61, { disks: ['a', 'b'] });
    await pair.start('alpha');
    if (compared) {
      await pair.start('beta');
      await pair.inStep();
      pair.kill('beta');
      await pair.until(() => pair.phase('alpha') === 'alone');
    } else await pair.command('alpha', 'pair-start', { alone: true });
    for (const disk of pair.disks) await writeSome(pair, 'alpha', disk);
    if (compared) {
      // Without proof everything is compared.
      pair.kill('alpha');
      await pair.start('alpha');
      await pair.command('alpha', 'pair-start', { alone: true });
    }
    const bad = { operation: 'read', path: '/data/b.img', range: { offset: 0, length: 4096 }, errno: 'EIO' } as const;
    const fault = pair.world.fault('alpha', bad);
    await pair.start('beta');
    await pair.world.runFor(30_000);
    assert.match((await pair.status('alpha')).error ?? '', /^disk b: .*bytes at 0: .*EIO/);
    assert.ok(fault.met > 1 && fault.met < 40, `tried ${fault.met} times in 30 s`);
    await verifyReads(pair, 'a');
    fault.remove();
    await pair.inStep();
    assert.equal((await pair.status('alpha')).error, null);
    pair.assertEqual();
  }
});

async function verifyReads(pair: PairWorld, disk: string): Promise<void> {
  const user = await pair.connect('alpha', disk);
  await pair.world.complete(user.verify());
  await pair.world.complete(user.client.close());
}
