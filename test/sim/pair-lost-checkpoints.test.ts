/** Checkpoints that are lost (record-log.md 8, 9): what takes them along, and what does not; mostly `sync: false`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { HostFiles } from '../../src/host/host.ts';
import { Onlooker } from './checkpoint-onlooker.ts';
import { paired, verify, wayBackBegun, writeSome } from './pair-scenes.ts';
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

test('pair 11: a resync whose checkpoint went with a failed sync goes on as one that leaves none', async () => {
  for (let seed = 0; seed < 12; seed++) {
    const resync = seed % 2 === 0 ? 'keep-checkpoint' : 'give-up-checkpoint';
    const pair = await paired(seed, { config: { ...unsynced, resync } });
    await writeSome(pair, 'alpha');
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    const user = await pair.connect('alpha');
    for (let block = 0; block < 64; block += 2) await pair.world.complete(user.write(block));
    await pair.start('beta');
    await pair.until(() => pair.phase('alpha') === 'copying');
    const fault = pair.world.fault('beta', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
    await pair.until(() => fault.met > 0 && pair.phase('beta') === 'detached');
    const { checkpoint, store } = pair.side('beta').daemon.state.record;
    assert.deepEqual([checkpoint, store], [null, 'incomplete']);
    await pair.inStep();
    await look(pair);
    pair.assertEqual();
    assert.equal(pair.failure, null);
  }
});

async function damage(files: HostFiles, path: string): Promise<void> {
  const file = await files.open(path, { access: 'write' });
  await file.write(0, new Uint8Array(128 * 1024).fill(0xee));
  await file.sync();
  await file.close();
}

for (const how of ['missing', 'damaged'] as const) {
  test(`record log 9: an overlay that is ${how} has lost the checkpoint for every start, also one that is killed`, async () => {
    for (let io = 1; io < 40; io += 2) {
      const pair = await paired(io, { config: { store: 'overlays', checkpointMs: null } });
      await writeSome(pair, 'alpha');
      await pair.command('alpha', 'pair-checkpoint');
      await writeSome(pair, 'alpha');
      pair.kill('alpha');
      pair.kill('beta');
      const { files } = pair.world.restart('beta');
      const hidden = '/data/disk0.hidden';
      await pair.world.complete(how === 'missing' ? files.remove(hidden) : damage(files, hidden));
      pair.world.kill('beta');
      const first = pair.world.ioCount;
      pair.world.onIo((count, host) => {
        if (host === 'beta' && count === first + io) pair.kill('beta');
      });
      const begun = pair.begin('beta');
      begun.catch(() => undefined);
      await pair.world.runFor(1000);
      pair.world.onIo(null);
      if (pair.world.isAlive('beta')) pair.kill('beta');
      await pair.start('beta');
      assert.equal(pair.side('beta').daemon.state.record.checkpoint, null, `killed at ${io}`);
      assert.equal(pair.failure, null);
    }
  });
}

test('record log 2: where the way back of one disk is lost no disk is rolled back, else all are', async () => {
  for (const isLost of [true, false]) {
    const config = { store: 'overlays', checkpointMs: null, mode: 'lock-step', acknowledge: 'local' } as const;
    const disks = ['disk0', 'disk1'];
    const pair = await paired(70, { config, disks });
    for (const disk of disks) await writeSome(pair, 'alpha', disk);
    await pair.command('alpha', 'pair-checkpoint');
    const before = disks.map((disk) => pair.image('beta', disk));
    for (const disk of disks) await writeSome(pair, 'alpha', disk);
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    pair.kill('beta');
    const after = disks.map((disk) => pair.image('beta', disk));
    if (isLost) {
      const { files } = pair.world.restart('beta');
      await pair.world.complete(files.remove('/data/disk1.hidden'));
      pair.world.kill('beta');
    }
    await pair.start('beta');
    const { store, checkpoint } = pair.side('beta').daemon.state.record;
    assert.deepEqual([store, checkpoint === null], isLost ? ['incomplete', true] : ['clean', false]);
    assert.ok(Buffer.compare(before[0] ?? new Uint8Array(), after[0] ?? new Uint8Array()) !== 0);
    for (const [index, disk] of disks.entries()) {
      assert.deepEqual(pair.image('beta', disk), (isLost ? after : before)[index], disk);
    }
    assert.equal(pair.failure, null);
  }
});

test('pair 14: a way back that had begun and lost its overlays leaves a copy that stands for nothing', async () => {
  const pair = await paired(80, { config: { store: 'overlays', checkpointMs: null } });
  await wayBackBegun(pair);
  pair.kill('beta');
  const { files } = pair.world.restart('beta');
  await pair.world.complete(files.remove('/data/disk0.hidden'));
  pair.world.kill('beta');
  await pair.start('beta');
  const { role, store, promoting, generation } = pair.side('beta').daemon.state.record;
  assert.deepEqual([role, store, promoting, generation], ['secondary', 'incomplete', null, null]);
  await pair.start('alpha');
  await pair.inStep();
  await verify(pair, 'alpha');
  pair.assertEqual();
  assert.equal(pair.failure, null);
});
