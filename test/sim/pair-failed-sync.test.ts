/** A disk of a pair whose fsync failed: who hears of it, who serves, and how it becomes whole again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify, wayBackBegun, writeSome } from './pair-scenes.ts';
import type { PairWorld, SideName, User } from './pair-world.ts';

/** One sync of a side's disk fails, that of the user's flush. */
async function failSync(pair: PairWorld, side: SideName): Promise<User> {
  await writeSome(pair, 'alpha');
  const user = await pair.connect('alpha');
  for (let block = 4; block < 12; block++) await pair.world.complete(user.write(block));
  const fault = pair.world.fault(side, { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  const flushed = pair.world.complete(user.flush());
  if (side === 'alpha') await assert.rejects(flushed, /EIO/);
  else await flushed;
  fault.remove();
  return user;
}

/** The device of alpha works again. */
async function reopen(pair: PairWorld): Promise<void> {
  const options = [{ driver: 'file', 'node-name': 'disk0-file', filename: '/data/disk0.img', exclusive: true }];
  await pair.command('alpha', 'blockdev-reopen', { options });
}

/** A clean stop: the engine says at its end that a disk failed. */
async function stop(pair: PairWorld, side: SideName): Promise<void> {
  const { daemon, engine } = pair.side(side);
  await pair.world.complete(daemon.stop());
  await assert.rejects(pair.world.complete(engine.close()), /may be lost/);
  pair.kill(side);
}

test('a primary whose disk failed a sync gives errors for everything, and status says why', async () => {
  const pair = await paired(401);
  const user = await failSync(pair, 'alpha');
  for (let i = 0; i < 3; i++) {
    await assert.rejects(pair.world.complete(user.read(1)), /EIO/);
    await assert.rejects(pair.world.complete(user.write(2)), /EIO/);
    await assert.rejects(pair.world.complete(user.flush()), /EIO/);
    await pair.world.runFor(2000);
  }
  const { disks, notice } = await pair.status('alpha');
  assert.match(notice ?? '', /disk disk0 has failed .*`failover` on beta serves all that was flushed/);
  assert.match(disks[0]?.error ?? '', /sync \/data\/disk0.img: EIO.* may be lost; EIO until it is opened anew/);
});

test('pair 12: it proves nothing by a clean stop, and is whole again after a compare', async () => {
  for (let seed = 410; seed < 416; seed++) {
    const pair = await paired(seed);
    await failSync(pair, 'alpha');
    await stop(pair, 'alpha');
    const record = pair.sides.get('alpha')?.daemon.state.record;
    assert.deepEqual([record?.cleanStop, record?.aloneSince], [null, null]);
    await pair.start('alpha');
    await pair.inStep();
    await verify(pair, 'alpha');
    pair.assertEqual();
  }
});

test('pair 8: failover stays possible, and nothing that was flushed is lost', async () => {
  for (let seed = 420; seed < 426; seed++) {
    const pair = await paired(seed);
    await failSync(pair, 'alpha');
    await pair.world.runFor(5000);
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    await pair.command('beta', 'pair-failover');
    await verify(pair, 'beta');
    await pair.start('alpha');
    await pair.inStep();
    pair.assertEqual();
  }
});

test('pair 15: failover while it is there hands over what it has not lost, and it becomes a target that is compared', async () => {
  for (let seed = 440; seed < 446; seed++) {
    const pair = await paired(seed);
    const user = await failSync(pair, 'alpha');
    if (seed % 2 === 0) await assert.rejects(pair.world.complete(user.write(2)), /EIO/);
    await pair.world.runFor(5000);
    await pair.command('beta', 'pair-failover');
    assert.equal((await pair.status('beta')).role, 'primary');
    await verify(pair, 'beta');
    await pair.inStep();
    const { role, splitBrain, disks } = await pair.status('alpha');
    assert.deepEqual([role, splitBrain, disks[0]?.error], ['secondary', null, null]);
    pair.assertEqual();
  }
});

test('pair 8: what a failed sync may have lost is sent again when the image is opened anew under its users', async () => {
  for (let seed = 450; seed < 456; seed++) {
    const pair = await paired(seed);
    const user = await failSync(pair, 'alpha');
    await pair.world.runFor(5000);
    const status = await pair.status('alpha');
    assert.deepEqual(status.disks[0]?.missingBytes, pair.layout('disk0').length, 'nothing is proven about any of it');
    assert.match(status.error ?? '', /may be lost/);
    await reopen(pair);
    await pair.until(() => pair.side('alpha').daemon.state.error === null);
    await pair.world.complete(user.verify());
    await pair.world.complete(user.flush());
    assert.equal((await pair.status('alpha')).disks[0]?.missingBytes, 0);
    assert.equal(pair.phase('alpha'), 'in-step');
    pair.assertEqual();
  }
});

test('pair 8: an image that was opened anew is believed by a sync with a secondary that returns, too', async () => {
  for (let seed = 470; seed < 474; seed++) {
    const pair = await paired(seed);
    const user = await failSync(pair, 'alpha');
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    await reopen(pair);
    await pair.world.complete(user.verify());
    await pair.world.complete(user.flush());
    await pair.start('beta');
    await pair.inStep(20_000);
    pair.assertEqual();
  }
});

test('a flush of its own that fails is told to users of a primary, too: what they read is gone', async () => {
  for (let seed = 490; seed < 494; seed++) {
    const pair = await paired(seed);
    const user = await pair.connect('alpha');
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
    const fault = pair.world.fault('alpha', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
    await pair.start('beta');
    await pair.until(() => fault.met > 0);
    await pair.until(() => pair.phase('alpha') === 'alone');
    await assert.rejects(pair.world.complete(user.read(1)), /EIO/);
    await assert.rejects(pair.world.complete(user.write(2)), /EIO/);
    assert.match((await pair.status('alpha')).disks[0]?.error ?? '', /may be lost/);
  }
});

test('what a read that was under way has seen of a disk which fails a sync is not answered', async () => {
  let refused = 0;
  for (let seed = 480; seed < 496; seed++) {
    const pair = await paired(seed, { atOnce: 0 });
    const user = await pair.connect('alpha');
    for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
    pair.world.fault('alpha', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
    const slow = pair.world.fault('alpha', { operation: 'read', path: '/data/disk0.img', delayMs: 200 });
    const reads = [0, 1, 2, 3].map((block) => user.verifyOne(block));
    reads.push(user.flush());
    const settled = pair.world.complete(Promise.allSettled(reads));
    for (const one of await settled) {
      if (one.status === 'rejected') assert.match(String(one.reason), /EIO/);
      refused += one.status === 'rejected' ? 1 : 0;
    }
    assert.ok(slow.met >= 4);
  }
  assert.ok(refused > 16, `${refused}`);
});

test('pair 8: a secondary that comes back meanwhile is not made incomplete by a disk that cannot be read', async () => {
  for (let seed = 460; seed < 464; seed++) {
    const pair = await paired(seed);
    await failSync(pair, 'alpha');
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    await pair.start('beta');
    await pair.world.runFor(10_000);
    assert.match((await pair.status('alpha')).error ?? '', /may be lost/);
    assert.equal((await pair.status('beta')).store, 'clean');
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    await pair.command('beta', 'pair-failover');
    await verify(pair, 'beta');
  }
});

test('a secondary whose disk failed a sync drops out, comes back as another life, and gets what it lost', async () => {
  for (let seed = 430; seed < 436; seed++) {
    const pair = await paired(seed);
    const user = await failSync(pair, 'beta');
    await pair.until(() => pair.phase('alpha') !== 'in-step');
    await pair.inStep();
    await pair.world.complete(user.verify());
    await pair.world.complete(user.flush());
    pair.assertEqual();
    assert.equal((await pair.status('beta')).disks[0]?.error, null);
  }
});

for (const side of ['alpha', 'beta'] as const) {
  test(`a start after a kill -9 believes nothing of ${side} that a failed sync may have left in memory only`, async () => {
    for (let seed = 500; seed < 508; seed++) {
      const pair = await paired(seed);
      await failSync(pair, side);
      pair.kill(side);
      await pair.start(side);
      await pair.inStep();
      const user = await pair.connect('alpha');
      await pair.world.complete(user.verify());
      await pair.world.complete(user.flush());
      pair.powerCut(side, { loseUnsynced: true });
      await pair.start(side);
      await pair.inStep();
      await verify(pair, 'alpha');
      pair.assertEqual();
    }
  });
}

const standby = { store: 'overlays', checkpointMs: null, stallMsMax: 400 } as const;

test('nor of the group file: what it goes on with is durable', async () => {
  for (let seed = 520; seed < 536; seed++) {
    const pair = await paired(seed, { config: standby, sound: true });
    await writeSome(pair, 'alpha');
    const fault = pair.world.fault('beta', { operation: 'sync', path: '/data/group', errno: 'EIO' });
    pair
      .side('beta')
      .daemon.execute('pair-checkpoint')
      .catch(() => undefined);
    await pair.until(() => fault.met > 0);
    await pair.world.runFor(seed % 2 === 0 ? 20 : 1000);
    pair.kill('beta');
    fault.remove();
    await pair.start('beta');
    const { checkpoint } = pair.side('beta').daemon.state.record;
    pair.powerCut('beta', { loseUnsynced: true });
    await pair.start('beta');
    assert.deepEqual(pair.side('beta').daemon.state.record.checkpoint, checkpoint);
    await pair.inStep();
    await verify(pair, 'alpha');
    pair.assertEqual();
  }
});

test('pair 14: a way back to the checkpoint that a failed sync ended says to start this side again, which ends it well', async () => {
  for (let seed = 540; seed < 544; seed++) {
    const pair = await paired(seed, { config: standby });
    await wayBackBegun(pair);
    const fault = pair.world.fault('beta', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO' });
    await pair.until(() => fault.met > 0);
    await pair.world.runFor(3000);
    fault.remove();
    assert.match((await pair.status('beta')).error ?? '', /disk0.img: EIO.*start this side again$/);
    pair.kill('beta');
    await pair.start('beta');
    await pair.until(() => pair.phase('beta') === 'waiting' || pair.side('beta').daemon.state.serving);
    if (pair.phase('beta') === 'waiting') await pair.command('beta', 'pair-start', { alone: true });
    await verify(pair, 'beta');
    await pair.start('alpha');
    await pair.inStep();
    await verify(pair, 'beta');
    pair.assertEqual();
  }
});
