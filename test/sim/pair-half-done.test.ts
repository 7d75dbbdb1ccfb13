/** Steps of a plan that fail half way: what is left must be something that the next try goes on from. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify, writeSome } from './pair-scenes.ts';
import type { PairWorld } from './pair-world.ts';

const overlays = { store: 'overlays', checkpointMs: null } as const;

/** Alpha is alone and has what beta lacks; beta is about to get it. */
async function apart(pair: PairWorld): Promise<void> {
  await writeSome(pair, 'alpha');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await writeSome(pair, 'alpha');
}

test('pair 11: only what does not fit costs the checkpoint: a write of the group file that fails once does not', async () => {
  const pair = await paired(1, { config: overlays });
  await apart(pair);
  const stores = new Set<string>();
  const { daemon } = pair.side('beta');
  daemon.subscribe(() => stores.add(daemon.state.record.store));
  pair.world.fault('beta', { operation: 'write', path: '/data/group', errno: 'EIO', count: 1 });
  pair.world.heal('alpha', 'beta');
  await pair.inStep();
  assert.ok(!stores.has('incomplete'), [...stores].join());
  pair.assertEqual();
});

test('pair 4: a disk that cannot be opened anew at once is tried again, and nobody waits for ever', async () => {
  const pair = await paired(2);
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  const path = '/data/disk0.img';
  pair.world.fault('beta', { operation: 'sync', path, errno: 'EIO', count: 1 });
  pair.world.fault('beta', { operation: 'open', path, errno: 'EIO', count: 1 });
  // It is compared: beta makes its disks durable first.
  await pair.start('alpha');
  await pair.inStep();
  pair.assertEqual();
});

test('pair 15: a forced failover: who cannot say durably that it stopped does not say it', async () => {
  const pair = await paired(3, { config: overlays });
  await pair.command('alpha', 'pair-checkpoint');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await writeSome(pair, 'alpha');
  const user = await pair.connect('alpha');
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'copying');
  const fault = pair.world.fault('alpha', { operation: 'write', path: '/data/group', errno: 'ENOSPC' });
  const forced = pair.side('beta').daemon.execute('pair-failover', { force: true, to: 'checkpoint' });
  forced.catch(() => undefined);
  await pair.world.runFor(500);
  const writing = user.write(2);
  writing.catch(() => undefined);
  await pair.world.runFor(5000);
  assert.equal(pair.phase('beta'), 'syncing');
  fault.remove();
  await pair.world.complete(forced);
  assert.equal((await pair.status('alpha')).serving, false);
  // What alpha answered while it was alone, beta does not have.
  await pair.until(() => pair.side('beta').daemon.state.record.splitBrain !== null);
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  await pair.inStep();
  assert.equal((await pair.status('beta')).role, 'primary');
  pair.assertEqual();
});

test('pair 16: an old primary whose disks are still in use gives way when they are not', async () => {
  const pair = await paired(4, { disks: ['disk0', 'disk1'] });
  for (const disk of pair.disks) await writeSome(pair, 'alpha', disk);
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await writeSome(pair, 'alpha', 'disk1');
  await pair.command('beta', 'pair-failover');
  await pair.until(() => pair.phase('beta') === 'alone');
  const { engine } = pair.side('alpha');
  const added = { type: 'nbd', id: 'backup', 'node-name': 'disk1', name: 'backup', server: 'nbd' };
  await pair.world.complete(engine.execute('block-export-add', added));
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.side('beta').daemon.state.record.splitBrain !== null);
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  await pair.until(() => pair.phase('alpha') === 'demoting');
  await pair.world.runFor(3000);
  await pair.world.complete(engine.execute('block-export-del', { id: 'backup', mode: 'hard' }));
  await pair.inStep();
  pair.assertEqual();
  await verify(pair, 'beta');
});

test('pair 15: a failover that is a switchover splits nothing where the primary could not hand over', async () => {
  const pair = await paired(5);
  await writeSome(pair, 'alpha');
  pair.world.fault('alpha', { operation: 'write', path: '/data/group', errno: 'ENOSPC', count: 1 });
  await assert.rejects(pair.command('beta', 'pair-failover'), /ENOSPC/);
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'primary');
});

test('pair 8: a range that diverged is tried again also where a checkpoint was under way when its turn came', async () => {
  const pair = await paired(6, { config: overlays });
  await writeSome(pair, 'alpha');
  const path = '/data/disk0.img';
  const unreadable = pair.world.fault('alpha', { operation: 'read', path, errno: 'EIO' });
  const fault = pair.world.fault('alpha', { operation: 'write', path, errno: 'EIO', count: 1 });
  const user = await pair.connect('alpha');
  await assert.rejects(pair.world.complete(user.write(20)), /EIO/);
  fault.remove();
  await pair.until(() => pair.side('alpha').daemon.state.error !== null);
  const slow = pair.world.fault('beta', { operation: 'sync', path: '/data/group', delayMs: 1500 });
  await pair.command('alpha', 'pair-checkpoint');
  slow.remove();
  unreadable.remove();
  await pair.world.runFor(10_000);
  assert.equal((await pair.status('alpha')).disks[0]?.missingBytes, 0);
  pair.assertEqual();
});

test('pair 15: an offer that could not be withdrawn at once is withdrawn when both are in step again', async () => {
  const pair = await paired(7);
  await writeSome(pair, 'alpha');
  const { daemon } = pair.side('alpha');
  daemon.execute('pair-switch').catch(() => undefined);
  await pair.until(() => daemon.state.record.handingOver !== null);
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'handing-over');
  pair.world.fault('alpha', { operation: 'write', path: '/data/group', errno: 'EIO', count: 1 });
  await pair.start('beta');
  await pair.inStep();
  assert.equal(daemon.state.record.handingOver, null);
  pair.assertEqual();
});
