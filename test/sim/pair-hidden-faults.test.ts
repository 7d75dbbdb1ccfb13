/** A resync whose old content cannot be kept at some point: what a start goes back to is the checkpoint, or nothing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, writeSome } from './pair-scenes.ts';

for (const errno of ['EIO', 'ENOSPC'] as const) {
  test(`pair 11: hidden fails with ${errno} in a resync: a start goes back to just the checkpoint`, async () => {
    let wentBack = 0;
    for (let skip = 0; skip < 8; skip++) {
      const pair = await inStep(skip + 1, { config: { store: 'overlays', checkpointMs: null } });
      await writeSome(pair, 'alpha');
      pair.world.cut('alpha', 'beta');
      await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
      const user = await pair.connect('alpha');
      for (let block = 0; block < 64; block += 4) await pair.world.complete(user.write(block));
      const found = pair.image('beta', 'disk0');
      const path = '/data/disk0.hidden';
      const operation = skip % 2 === 0 ? 'write' : 'sync';
      const fault = pair.world.fault('beta', { operation, path, errno, skip: skip >> 1, count: 1 });
      pair.world.heal('alpha', 'beta');
      await pair.until(() => fault.met > 0 || pair.phase('alpha') === 'in-step');
      if (pair.phase('alpha') === 'in-step') break;
      await pair.world.runFor(30 * skip);
      const { store, checkpoint } = pair.side('beta').daemon.state.record;
      pair.kill('alpha');
      pair.powerCut('beta');
      if (store !== 'resync' || checkpoint === null) continue;
      await pair.start('beta');
      if (pair.side('beta').daemon.state.record.checkpoint?.number !== checkpoint.number) continue;
      assert.deepEqual(pair.image('beta', 'disk0'), found, `fault ${skip}`);
      wentBack += 1;
    }
    assert.ok(wentBack > 0);
  });
}
