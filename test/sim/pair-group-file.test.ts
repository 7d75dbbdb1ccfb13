/** A group file that cannot be written: what may stand in it all the same never becomes a checkpoint that was none. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, verify } from './pair-scenes.ts';
import type { PairWorld, PairWorldOptions } from './pair-world.ts';

const standby = { store: 'overlays', checkpointMs: null } as const;
const lockStep = { ...standby, mode: 'lock-step', acknowledge: 'local' } as const;

const paired = (seed: number, config: PairWorldOptions['config'] = standby): Promise<PairWorld> =>
  inStep(seed, { config: { ...config, stallMsMax: 400, heartbeatMs: 100, peerTimeoutMs: 500 }, sound: true });

const path = '/data/group';

/** The next write of beta's group file fails in its sync, and the file cannot be opened anew to take it back. */
function failTwice(pair: PairWorld): () => void {
  const faults = [
    pair.world.fault('beta', { operation: 'sync', path, errno: 'EIO', count: 1 }),
    pair.world.fault('beta', { operation: 'open', path, errno: 'EIO' }),
  ];
  return () => {
    for (const fault of faults) fault.remove();
  };
}

for (const [mode, config] of Object.entries({ standby, lockStep })) {
  test(`pair 22: ${mode}: a checkpoint that could neither be made nor taken back is none that never was after a kill`, async () => {
    const found = new Set<boolean>();
    for (let seed = 1; seed < 9; seed++) {
      const pair = await paired(seed, config);
      const user = await pair.connect('alpha');
      for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
      await pair.command('alpha', 'pair-checkpoint');
      const { number } = pair.side('beta').daemon.state.record.checkpoint ?? { number: 0 };
      for (let block = 4; block < 12; block++) await pair.world.complete(user.write(block));
      const mend = failTwice(pair);
      await assert.rejects(pair.command('alpha', 'pair-checkpoint'));
      for (let block = 6; block < 20; block++) await pair.world.complete(user.write(block));
      await pair.world.runFor(seed % 2 === 0 ? 50 : 3000);
      pair.kill('beta');
      mend();
      await pair.start('beta');
      found.add(pair.side('beta').daemon.state.record.checkpoint?.number === number + 1);
      await pair.inStep();
      await verify(pair, 'alpha');
      pair.assertEqual();
    }
    assert.equal(found.size, 2, 'the file had it, and had it not');
  });
}

for (const sync of [true, false])
  test(`pair 22: who cannot write its group file says so, receives nothing, and loses nothing (sync: ${sync})`, async () => {
    const pair = await paired(20, { ...standby, overlays: { folder: '/data', sync } });
    const { instance } = pair.side('alpha').daemon.state.peer ?? {};
    const user = await pair.connect('alpha');
    for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
    const mend = failTwice(pair);
    await assert.rejects(pair.command('beta', 'pair-checkpoint'), /not made, and cannot be taken back: .*group: EIO/);
    const then = pair.image('beta', 'disk0');
    for (let block = 0; block < 20; block++) await pair.world.complete(user.write(block));
    await pair.world.runFor(10_000);
    assert.match((await pair.status('beta')).error ?? '', /group: EIO/);
    assert.deepEqual(pair.image('beta', 'disk0'), then);
    mend();
    await pair.inStep();
    assert.equal((await pair.status('beta')).error, null);
    assert.equal(pair.side('alpha').daemon.state.peer?.instance, instance, 'its disks have lost nothing');
    pair.assertEqual();
  });

test('pair 14: a way back to the checkpoint whose end could not be written loses nothing that was flushed since', async () => {
  for (let seed = 30; seed < 38; seed++) {
    const pair = await paired(seed);
    const user = await pair.connect('alpha');
    for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
    await pair.command('alpha', 'pair-checkpoint');
    for (let block = 4; block < 12; block++) await pair.world.complete(user.write(block));
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    const failover = pair.side('beta').daemon.execute('pair-failover', { to: 'checkpoint' });
    failover.catch(() => undefined);
    await pair.until(() => pair.side('beta').daemon.state.record.promoting !== null);
    const mend = failTwice(pair);
    await pair.world.complete(failover);
    const late = await pair.connect('beta');
    await pair.world.runFor(500);
    const writing = (async () => {
      for (let block = 0; block < 16; block++) await late.write(block);
      await late.flush();
    })();
    writing.catch(() => undefined);
    await pair.world.runFor(500);
    if (seed % 2 === 0) {
      mend();
      await pair.world.complete(writing);
      await pair.until(() => pair.phase('beta') === 'alone');
    }
    pair.kill('beta');
    mend();
    await pair.start('beta');
    if (pair.phase('beta') === 'waiting') await pair.command('beta', 'pair-start', { alone: true });
    pair.powerCut('beta', { loseUnsynced: true });
    await pair.start('beta');
    await pair.start('alpha');
    await pair.inStep();
    await verify(pair, 'beta');
    pair.assertEqual();
  }
});
