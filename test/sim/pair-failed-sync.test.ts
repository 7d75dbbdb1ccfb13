/** A disk of a pair whose fsync failed: who hears of it, who serves, and how it becomes whole again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify, writeSome } from './pair-scenes.ts';
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
  const { disks } = await pair.status('alpha');
  assert.match(disks[0]?.error ?? '', /sync \/data\/disk0.img: EIO.* may be lost; EIO until it is opened anew/);
});

test('pair 12: it proves nothing by a clean stop, and is whole again after a compare', async () => {
  for (let seed = 410; seed < 416; seed++) {
    const pair = await paired(seed);
    await failSync(pair, 'alpha');
    await stop(pair, 'alpha');
    assert.equal(pair.sides.get('alpha')?.daemon.state.record.cleanStop, null);
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
