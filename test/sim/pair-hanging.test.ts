/** A disk that hangs while roles change: somebody serves again, in bounded time or on command. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify, writeSome } from './pair-scenes.ts';
import type { PairWorld } from './pair-world.ts';

const path = '/data/disk0.img';
const forEver = 600_000;

/** Alpha's disk hangs under a user: a switchover would wait for it. */
async function waitingForAlpha(seed: number, operation: 'write' | 'sync'): Promise<[PairWorld, () => void]> {
  const pair = await paired(seed);
  await writeSome(pair, 'alpha');
  const user = await pair.connect('alpha');
  const fault = pair.world.fault('alpha', { operation, path, delayMs: forEver });
  user.write(5).catch(() => undefined);
  user.client.flush()?.catch(() => undefined);
  await pair.until(() => fault.met > 0);
  return [pair, () => fault.remove()];
}

/** What hangs is let go of by the system when it is answered, at the latest with the process. */
async function restartBeta(pair: PairWorld): Promise<void> {
  pair.kill('beta');
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
}

test('pair 6, 15: the secondary’s disk hangs in a switchover: the primary serves again after stall-ms-max', async () => {
  const pair = await paired(1);
  await writeSome(pair, 'alpha');
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  const fault = pair.world.fault('beta', { operation: 'sync', path, delayMs: forEver });
  await assert.rejects(pair.command('alpha', 'pair-switch'), /beta proved no flush within/);
  await pair.until(() => pair.phase('alpha') === 'alone', 5000);
  await verify(pair, 'alpha');
  fault.remove();
  await restartBeta(pair);
});

for (const operation of ['write', 'sync'] as const) {
  test(`pair 15: the primary’s disk hangs (${operation}): a failover that waits for it can be forced`, async () => {
    const [pair, mend] = await waitingForAlpha(2, operation);
    const { daemon } = pair.side('beta');
    const waiting = daemon.execute('pair-failover');
    await pair.world.runFor(10_000);
    assert.match((await pair.status('beta')).notice ?? '', /waits for alpha to hand over; `failover --force`/);
    await assert.rejects(pair.command('beta', 'pair-failover'), /is under way/);
    const forced = daemon.execute('pair-failover', { force: true });
    for (const one of [waiting, forced])
      assert.match(((await pair.world.complete(one)) as { text: string }).text, /beta is primary/);
    await verify(pair, 'beta');
    mend();
    pair.kill('alpha');
    await pair.start('alpha');
    await pair.inStep();
    assert.equal((await pair.status('beta')).role, 'primary');
    pair.assertEqual();
  });
}

test('pair 15: a switch that waits for a disk which hangs gives way to a forced failover', async () => {
  const [pair] = await waitingForAlpha(3, 'write');
  const switching = pair.side('beta').daemon.execute('pair-switch') as Promise<unknown>;
  const refused = assert.rejects(switching, /a forced failover came instead/);
  await pair.world.runFor(3000);
  await pair.command('beta', 'pair-failover', { force: true });
  await refused;
  await verify(pair, 'beta');
});

test('pair 15: the primary is lost in a switchover: what the failover goes to is of its own order, not of an earlier one', async () => {
  const lockStep = { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } as const;
  const standby = { store: 'overlays', checkpointMs: null } as const;
  for (const config of [standby, lockStep]) {
    const pair = await paired(4, { config, sound: true });
    const user = await pair.connect('alpha');
    const before = await pair.world.complete(user.write(1));
    await pair.command('alpha', 'pair-checkpoint');
    pair.world.cut('alpha', 'beta');
    await pair.until(() => pair.phase('beta') === 'detached');
    const fault = pair.world.fault('beta', { operation: 'write', path: '/data/group', errno: 'EIO', count: 1 });
    const to = config === standby ? 'checkpoint' : 'latest';
    await assert.rejects(pair.command('beta', 'pair-failover', { to }), /EIO/);
    fault.remove();
    pair.world.heal('alpha', 'beta');
    await pair.inStep();
    await pair.command('alpha', 'pair-checkpoint');
    const after = await pair.world.complete(user.write(1));
    await pair.world.complete(user.flush());
    pair.world.fault('alpha', { operation: 'sync', path: '/data/group', delayMs: forEver });
    const failover = pair.side('beta').daemon.execute('pair-failover');
    await pair.until(() => pair.phase('alpha') === 'switching');
    pair.kill('alpha');
    await pair.world.complete(failover);
    const late = await pair.connect('beta');
    assert.deepEqual(await pair.world.complete(late.read(1)), [config === standby ? after : before]);
  }
});

test('pair 13: a secondary that hangs while it is joined keeps nobody from serving alone', async () => {
  const pair = await paired(5);
  await writeSome(pair, 'alpha');
  for (const side of ['alpha', 'beta'] as const) await pair.stop(side);
  await pair.start('beta');
  await pair.until(() => pair.phase('beta') === 'detached');
  const fault = pair.world.fault('beta', { operation: 'sync', path: '/data/group', delayMs: forEver });
  await pair.start('alpha');
  await pair.until(() => pair.phase('alpha') === 'joining');
  await pair.world.runFor(10_000);
  assert.match((await pair.status('alpha')).notice ?? '', /waits for beta; `start --alone`/);
  await pair.command('alpha', 'pair-start', { alone: true });
  await verify(pair, 'alpha');
  fault.remove();
  await restartBeta(pair);
});
