/** Scenes with `store: overlays` that random lives found: what a promise was broken by (pair.md, record-log.md 9). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Onlooker } from './checkpoint-onlooker.ts';
import { paired } from './pair-scenes.ts';

const overlays = { config: { store: 'overlays', checkpointMs: null } } as const;

test('pair 17: a secondary that was restarted shows its checkpoint before, during and after the resync', async () => {
  const pair = await paired(1, overlays);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  await pair.command('alpha', 'pair-checkpoint');
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await pair.world.complete(user.write(3));
  await pair.start('beta');
  await pair.until(() => pair.phase('beta') === 'detached');
  const early = await pair.world.complete(Onlooker.connect(pair, 'beta', 'disk0'));
  await pair.world.complete(early.lookWell());
  await pair.inStep();
  const late = await pair.world.complete(Onlooker.connect(pair, 'beta', 'disk0'));
  await pair.world.complete(late.lookWell());
  await pair.world.complete(early.lookWell());
  assert.equal(pair.failure, null);
});

test('record log 9: in lock-step nothing of what the view held beside the checkpoint outlives a restart', async () => {
  const lockStep = { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } as const;
  const pair = await paired(2, { config: lockStep });
  pair.kill('alpha');
  for (const ending of ['kill', 'powerCut', 'kill'] as const) {
    await pair.until(() => pair.phase('beta') === 'detached');
    const own = await pair.world.complete(Onlooker.connect(pair, 'beta', 'disk0'));
    await pair.world.complete(own.write(5));
    await pair.world.complete(own.lookWell());
    pair[ending]('beta');
    await pair.start('beta');
    const view = await pair.world.complete(Onlooker.connect(pair, 'beta', 'disk0'));
    await pair.world.complete(view.lookWell());
  }
  assert.equal(pair.failure, null);
});

test('pair 13: the kept side of a split brain goes on serving what it was promoted to, and forwards it', async () => {
  const pair = await paired(3, overlays);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  await pair.command('alpha', 'pair-checkpoint');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await pair.world.complete(user.write(3));
  await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  await pair.until(() => pair.phase('beta') === 'alone');
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.sides.get('beta')?.daemon.state.record.splitBrain !== null);
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  await pair.inStep();
  const late = await pair.connect('beta');
  await pair.world.complete(late.verify());
  await pair.world.complete(late.write(5));
  await pair.world.complete(late.flush());
  pair.assertEqual();
});

test('pair 13: a start goes on only from what is durable, whichever I/O of a failover its last life was killed in', async () => {
  for (let io = 1; io <= 40; io += 3) {
    const pair = await paired(100 + io, { ...overlays, sound: true });
    pair.powerCut('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    const first = pair.world.ioCount;
    pair.world.onIo((count, host) => {
      if (host === 'beta' && count === first + io) pair.kill('beta');
    });
    pair
      .side('beta')
      .daemon.execute('pair-failover', { to: 'checkpoint' })
      .catch(() => undefined);
    await pair.world.runFor(2000);
    pair.world.onIo(null);
    if (!pair.world.isAlive('beta')) await pair.start('beta');
    pair.powerCut('beta', { loseUnsynced: true });
    await pair.start('beta');
    assert.equal(pair.failure, null);
  }
});

test('record log 10: users who write all the time do not keep a failover to the checkpoint from its end', async () => {
  for (let seed = 200; seed < 206; seed++) {
    const pair = await paired(seed, { ...overlays, disks: ['disk0', 'disk1'], atOnce: 0 });
    const early = await Promise.all(pair.disks.map((disk) => pair.connect('alpha', disk)));
    await pair.command('alpha', 'pair-checkpoint');
    for (const user of early) await pair.world.complete(Promise.all([0, 1, 2, 3].map((block) => user.write(block))));
    for (const user of early) await pair.world.complete(user.flush());
    pair.powerCut('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    pair.world.fault('beta', { operation: 'write', path: /\.img$/, delayMs: 40 });
    let over = false;
    const busy = async (disk: string): Promise<void> => {
      while (pair.sides.get('beta')?.daemon.state.serving !== true) await pair.sleep(0.1);
      const user = await pair.openUser('beta', disk);
      const writer = async (block: number): Promise<void> => {
        while (!over) await user.write(block);
      };
      await Promise.all([8, 9, 10, 11].map(writer));
    };
    const users = Promise.all(pair.disks.map(busy));
    pair
      .side('beta')
      .daemon.execute('pair-failover', { to: 'checkpoint' })
      .catch(() => undefined);
    await pair.until(() => pair.phase('beta') === 'alone', 20_000);
    over = true;
    await pair.world.complete(users);
  }
});

test('pair 21, 22: the closing checkpoint of a resync is a consistent cut, in lock-step too', async () => {
  for (let seed = 1; seed < 4; seed++) {
    const config = { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } as const;
    const pair = await paired(seed, { disks: ['disk0', 'disk1'], config });
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    const a = await pair.connect('alpha', 'disk0');
    const b = await pair.connect('alpha', 'disk1');
    let over = false;
    const busy = async (x: typeof a, y: typeof a, first: number): Promise<void> => {
      for (let i = 0; !over; i++) {
        await x.write(first + (i % 8));
        await x.flush();
        await y.write(first + (i % 8));
      }
    };
    const all = Promise.all([busy(a, b, 0), busy(b, a, 16), busy(a, b, 32), busy(b, a, 48)]);
    await pair.world.complete(pair.begin('beta'));
    // Between the moments at which the two disks hold still there is the sync of one of them.
    for (const disk of pair.disks)
      pair.world.fault('beta', { operation: 'sync', path: `/data/${disk}.img`, delayMs: 150 });
    await pair.inStep();
    over = true;
    await pair.world.complete(all);
    assert.equal(pair.failure, null);
  }
});
