/** Checkpoints of overlays with `sync: false` (record-log.md 8): what takes them away, and what does not. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Onlooker } from './checkpoint-onlooker.ts';
import { paired, verify, writeSome } from './pair-scenes.ts';
import type { PairWorld } from './pair-world.ts';

const unsynced = { store: 'overlays', checkpointMs: null, overlays: { folder: '/data', sync: false } } as const;

async function look(pair: PairWorld): Promise<void> {
  const view = await pair.world.complete(Onlooker.connect(pair, 'beta', 'disk0'));
  await pair.world.complete(view.lookWell());
  view.close();
}

test('record log 8: a disk that fails a sync takes the checkpoint along that stood on what was not synced', async () => {
  for (let seed = 0; seed < 6; seed++) {
    const pair = await paired(seed, { config: unsynced });
    const user = await pair.connect('alpha');
    for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
    await pair.command('alpha', 'pair-checkpoint');
    pair.world.fault('beta', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
    if (seed % 2 === 0) pair.kill('alpha');
    else await pair.world.complete(user.flush());
    await pair.until(() => pair.phase('beta') === 'detaching');
    await pair.until(() => pair.phase('beta') !== 'detaching');
    if (seed % 2 === 0) {
      assert.equal(pair.side('beta').daemon.state.record.checkpoint, null);
      await assert.rejects(pair.command('beta', 'pair-failover', { to: 'checkpoint' }), /no checkpoint/);
      await pair.command('beta', 'pair-failover');
      await verify(pair, 'beta');
    } else {
      await pair.inStep();
      await look(pair);
    }
    assert.equal(pair.failure, null);
  }
});

test('record log 8, 9: in lock-step what the view alone wrote takes nothing along when the power goes', async () => {
  for (let seed = 0; seed < 4; seed++) {
    const config = { ...unsynced, mode: 'lock-step', acknowledge: 'local' } as const;
    const pair = await paired(seed, { config });
    await writeSome(pair, 'alpha');
    await pair.command('alpha', 'pair-checkpoint');
    await pair.stop('beta');
    pair.world.cut('alpha', 'beta');
    await pair.start('beta');
    const view = await pair.world.complete(Onlooker.connect(pair, 'beta', 'disk0'));
    await pair.world.complete(view.write(5));
    pair.powerCut('beta');
    await pair.start('beta');
    assert.notEqual(pair.side('beta').daemon.state.record.checkpoint, null, 'hidden was closed, and is whole');
    await look(pair);
    await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
    await verify(pair, 'beta');
    pair.kill('beta');
    await pair.start('beta');
    assert.equal(pair.side('beta').daemon.state.record.store, 'clean');
    assert.equal(pair.failure, null);
  }
});
