/** The pair on simulated machines, one sequence of events a test; each names the rule of pair.md that it shows. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PairWorld, type PairWorldOptions } from './pair-world.ts';

/** Two sides in step, alpha primary. */
async function paired(seed: number, options: PairWorldOptions = {}): Promise<PairWorld> {
  const pair = new PairWorld(seed, options);
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  return pair;
}

/** Writes block 0 to 7 and flushes. */
async function writeSome(pair: PairWorld, side: 'alpha' | 'beta', disk?: string): Promise<void> {
  const user = await pair.connect(side, disk);
  await pair.world.complete(user.verify());
  for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
  await pair.world.complete(user.flush());
  await pair.world.complete(user.client.close());
}

async function verify(pair: PairWorld, side: 'alpha' | 'beta'): Promise<void> {
  for (const disk of pair.disks) {
    const user = await pair.connect(side, disk);
    await pair.world.complete(user.verify());
    await pair.world.complete(user.client.close());
  }
}

test('pair 10, 13: two fresh sides come in step, and a flushed write is on both', async () => {
  const pair = await paired(1);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  await pair.world.complete(user.flush());
  pair.assertEqual();
  const status = await pair.status('alpha');
  assert.equal(status.role, 'primary');
  assert.equal(status.inSync, true);
  assert.equal(status.aloneSince, null);
  assert.equal((await pair.status('beta')).generation?.id, status.generation?.id);
});

test('pair 10: the first sync of a primary with data copies it to a blank target', async () => {
  const pair = new PairWorld(2);
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 1, 14: after a power cut of the primary the secondary serves every flushed write', async () => {
  const pair = await paired(3, { disks: ['a', 'b', 'c'] });
  for (const disk of pair.disks) await writeSome(pair, 'alpha', disk);
  pair.powerCut('alpha', { loseUnsynced: true });
  await pair.until(() => pair.phase('beta') === 'detached');
  const before = await pair.status('beta');
  assert.match(before.latestAsOf?.text ?? '', /latest as of .*; the primary may have gone on/);
  const { text } = await pair.command('beta', 'pair-failover');
  assert.match(text, /beta is primary; latest as of .*the primary may have gone on/);
  await verify(pair, 'beta');
  const status = await pair.status('beta');
  assert.equal(status.role, 'primary');
  assert.ok(status.aloneSince !== null);
});

test('pair 16: after a failover the old primary returns as the target by itself, and its URI says who is primary', async () => {
  const pair = await paired(4);
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  await writeSome(pair, 'beta');
  await pair.start('alpha');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'secondary');
  await assert.rejects(pair.connect('alpha'), /secondary; the primary is beta at nbd:/);
  pair.assertEqual();
  await verify(pair, 'beta');
});

test('pair 12, 16: a primary that was killed returns as the primary, with a compare of everything', async () => {
  const pair = await paired(5);
  await writeSome(pair, 'alpha');
  const before = (await pair.status('alpha')).generation;
  pair.kill('alpha');
  await pair.start('alpha');
  await pair.inStep();
  assert.ok(pair.log.some((line) => /alpha: .*comparing/.test(line)));
  const after = await pair.status('alpha');
  assert.equal(after.role, 'primary');
  assert.notEqual(after.generation?.id, before?.id);
  await verify(pair, 'alpha');
});

test('pair 12, 18: both stopped cleanly and started again are in step at once, in the same generation', async () => {
  const pair = await paired(6);
  await writeSome(pair, 'alpha');
  const before = await pair.status('alpha');
  await pair.stop('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  assert.match((await pair.status('beta')).latestAsOf?.text ?? '', /when the primary stopped: nothing is missing/);
  await pair.stop('beta');
  pair.log.length = 0;
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).generation?.id, before.generation?.id);
  assert.ok(!pair.log.some((line) => /comparing|copying/.test(line)), 'nothing was compared or copied');
  await verify(pair, 'alpha');
  // The mark of the clean stop is gone: what comes now is no clean stop.
  pair.kill('alpha');
  await pair.start('alpha');
  await pair.inStep();
  assert.ok(pair.log.some((line) => /alpha: .*comparing/.test(line)));
});

test('pair 12: a primary that was alone at its clean stop copies only what may differ', async () => {
  const pair = await paired(7);
  await writeSome(pair, 'alpha');
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await writeSome(pair, 'alpha');
  await pair.stop('alpha');
  await pair.start('alpha');
  pair.log.length = 0;
  await pair.start('beta');
  await pair.inStep();
  assert.ok(!pair.log.some((line) => /comparing/.test(line)), 'it had proof');
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 13: a primary that starts serves nobody until a hello, or until a person says so', async () => {
  const pair = await paired(8);
  pair.kill('alpha');
  pair.kill('beta');
  await pair.start('alpha');
  await pair.world.runFor(10_000);
  const waiting = await pair.status('alpha');
  assert.equal(waiting.serving, false);
  assert.match(waiting.notice ?? '', /beta does not answer.*start --alone/);
  await assert.rejects(pair.connect('alpha'), /not served yet/);
  await pair.command('alpha', 'pair-start', { alone: true });
  await verify(pair, 'alpha');
  assert.ok((await pair.status('alpha')).aloneSince !== null);
});

test('pair 5, 7: a cut link makes the primary go on alone in a new generation, without an error', async () => {
  const pair = await paired(9, { disks: ['a', 'b'] });
  const before = (await pair.status('alpha')).generation;
  const users = [await pair.connect('alpha', 'a'), await pair.connect('alpha', 'b')];
  pair.world.cut('alpha', 'beta');
  await pair.world.complete(
    Promise.all(
      users.map(async (user) => {
        await user.write(1);
        await user.flush();
      }),
    ),
  );
  const alone = await pair.status('alpha');
  assert.equal(alone.phase, 'alone');
  assert.ok(alone.aloneSince !== null);
  assert.equal(alone.generation?.number, (before?.number ?? 0) + 1);
  assert.ok(alone.lagBytes > 0);
  pair.world.heal('alpha', 'beta');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).aloneSince, null);
  pair.assertEqual();
});

test('pair 6: a secondary that hangs stalls no user beyond the bound', async () => {
  const pair = await paired(10);
  const user = await pair.connect('alpha');
  pair.world.hang('beta');
  const from = pair.world.now;
  await pair.world.complete(user.write(1));
  await pair.world.complete(user.flush());
  assert.ok(pair.world.now - from < 2000 + 500, `${pair.world.now - from} ms`);
  pair.world.resume('beta');
  await pair.inStep();
  pair.assertEqual();
});

test('pair 7: with degraded=stop writes fail while the secondary is away, and both are equal when it is back', async () => {
  const pair = await paired(11, { config: { degraded: 'stop' } });
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(1));
  await pair.world.complete(user.flush());
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await assert.rejects(pair.world.complete(user.write(2)));
  await pair.start('beta');
  await pair.inStep();
  await pair.world.complete(user.write(2));
  await pair.world.complete(user.flush());
  pair.assertEqual();
});

test('pair 15: a switchover changes the roles without a compare, and nothing is lost', async () => {
  const pair = await paired(12, { disks: ['a', 'b', 'c'] });
  for (const disk of pair.disks) await writeSome(pair, 'alpha', disk);
  pair.log.length = 0;
  const { text } = await pair.command('alpha', 'pair-switch');
  assert.match(text, /beta is primary/);
  await pair.inStep();
  assert.equal((await pair.status('beta')).role, 'primary');
  assert.ok(!pair.log.some((line) => /comparing/.test(line)), 'a switchover has proof');
  pair.assertEqual();
  await verify(pair, 'beta');
  // And back, asked for on the side that is to become primary.
  await pair.command('alpha', 'pair-switch');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'primary');
  await verify(pair, 'alpha');
});

test('pair 15: `failover` with a primary that answers and is in step is a switchover', async () => {
  const pair = await paired(13);
  await writeSome(pair, 'alpha');
  const { text } = await pair.command('beta', 'pair-failover');
  assert.match(text, /beta is primary/);
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'secondary');
  assert.equal((await pair.status('alpha')).splitBrain, null);
  await verify(pair, 'beta');
});

test('pair 15: a primary found handing over serves again only when the other side has durably refused', async () => {
  const pair = await paired(14);
  await writeSome(pair, 'alpha');
  // The link breaks when alpha has made its offer durable, before beta hears of it.
  const switching = pair
    .side('alpha')
    .daemon.execute('pair-switch')
    .catch(() => undefined);
  await pair.until(() => pair.sides.get('alpha')?.daemon.state.record.handingOver !== null);
  pair.world.cut('alpha', 'beta');
  pair.kill('alpha');
  void switching;
  await pair.start('alpha');
  await pair.world.runFor(8000);
  assert.equal((await pair.status('alpha')).serving, false);
  const offered = pair.sides.get('alpha')?.daemon.state.record.handingOver?.id ?? '';
  pair.world.heal('alpha', 'beta');
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'primary');
  assert.ok(pair.sides.get('beta')?.daemon.state.record.refused.includes(offered));
  await verify(pair, 'alpha');
});

test('pair 13: both went on by themselves: split brain, both say so, nothing is merged; a person decides', async () => {
  const pair = await paired(15);
  await writeSome(pair, 'alpha');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  await writeSome(pair, 'alpha');
  await writeSome(pair, 'beta');
  pair.world.heal('alpha', 'beta');
  await pair.until(() =>
    ['alpha', 'beta'].every((side) => pair.sides.get(side as 'alpha')?.daemon.state.record.splitBrain !== null),
  );
  for (const side of ['alpha', 'beta'] as const) {
    const status = await pair.status(side);
    assert.match(status.notice ?? '', /split brain.*resolve --keep alpha.*resolve --keep beta/);
    assert.equal(status.role, 'primary');
    await verify(pair, side);
  }
  await assert.rejects(pair.command('alpha', 'pair-resolve', { keep: 'gamma' }), /the sides are called alpha and beta/);
  await pair.command('alpha', 'pair-resolve', { keep: 'beta' });
  await pair.inStep();
  assert.equal((await pair.status('alpha')).role, 'secondary');
  pair.assertEqual();
  await verify(pair, 'beta');
});

test('pair 13: the kept side decides a split brain durably though the other is away', async () => {
  const pair = await paired(16);
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover');
  await writeSome(pair, 'beta');
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.sides.get('beta')?.daemon.state.record.splitBrain !== null);
  pair.kill('alpha');
  await pair.command('beta', 'pair-resolve', { keep: 'beta' });
  pair.kill('beta');
  await pair.start('beta');
  await pair.start('alpha');
  await pair.inStep();
  assert.equal((await pair.status('beta')).role, 'primary');
  assert.equal((await pair.status('alpha')).splitBrain, null);
  await verify(pair, 'beta');
});

test('pair 10, 11: a target in the middle of a sync refuses a failover; forced, it names the disks and has no ancestors', async () => {
  const pair = await paired(17);
  await writeSome(pair, 'alpha');
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await writeSome(pair, 'alpha');
  await pair.start('beta');
  await pair.until(() => pair.phase('beta') === 'syncing');
  pair.powerCut('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await assert.rejects(pair.command('beta', 'pair-failover'), /disks disk0 on beta are incomplete.*--force/);
  await pair.command('beta', 'pair-failover', { force: true });
  assert.deepEqual(pair.sides.get('beta')?.daemon.state.record.ancestors, []);
});

test('pair 15: a primary that answers and is not in step refuses a failover; forced, it is stopped first', async () => {
  const pair = await paired(18);
  await writeSome(pair, 'alpha');
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  await pair.start('beta');
  await pair.until(() => pair.phase('beta') === 'target' || pair.phase('beta') === 'syncing');
  await assert.rejects(pair.command('beta', 'pair-failover'), /alpha answers.*--force/);
  await pair.until(() => pair.phase('beta') === 'target' || pair.phase('beta') === 'syncing');
  await pair.command('beta', 'pair-failover', { force: true });
  assert.equal((await pair.status('alpha')).serving, false);
  assert.equal((await pair.status('beta')).serving, true);
});

test('pair 14: a promotion cut off at any I/O is finished by the next start', async () => {
  for (let io = 1; io < 40; io += 3) {
    const pair = await paired(100 + io);
    await writeSome(pair, 'alpha');
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    let left = io;
    let cut = false;
    pair.world.onIo((_n, host) => {
      if (host !== 'beta' || --left > 0) return;
      pair.world.onIo(null);
      pair.powerCut('beta');
      cut = true;
    });
    const promoted = pair
      .side('beta')
      .daemon.execute('pair-failover')
      .then(
        () => true,
        () => true,
      );
    let done = false;
    void promoted.then(() => {
      done = true;
    });
    await pair.until(() => done || cut);
    pair.world.onIo(null);
    if (!cut) pair.kill('beta');
    await pair.start('beta');
    const { promoting, role } = pair.side('beta').daemon.state.record;
    if (role === 'secondary') await pair.command('beta', 'pair-failover');
    else if (promoting === null && pair.phase('beta') === 'waiting')
      await pair.command('beta', 'pair-start', { alone: true });
    await pair.until(() => pair.phase('beta') === 'alone');
    await verify(pair, 'beta');
    await pair.start('alpha');
    await pair.inStep();
    pair.assertEqual();
  }
});

test('pair 13: a lost group file beside data is no role; a person adopts the data', async () => {
  const pair = await paired(19);
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  pair.kill('beta');
  await pair.world.complete(pair.world.restart('alpha').files.remove('/data/group'));
  pair.world.kill('alpha');
  await pair.start('alpha');
  const lost = await pair.status('alpha');
  assert.equal(lost.role, 'none');
  assert.equal(lost.store, 'incomplete');
  assert.match(lost.notice ?? '', /group file is missing or unreadable.*resolve --keep alpha/);
  await pair.command('alpha', 'pair-resolve', { keep: 'alpha' });
  await verify(pair, 'alpha');
});

test('pair 13: a blank primary never serves where the other side has the data', async () => {
  const pair = await paired(20);
  await writeSome(pair, 'alpha');
  await pair.stop('alpha');
  const files = pair.world.restart('alpha').files;
  await pair.world.complete(Promise.all([files.remove('/data/group'), files.remove('/data/disk0.img')]));
  pair.world.kill('alpha');
  await pair.start('alpha');
  await pair.until(() => pair.side('alpha').daemon.state.refusal !== null);
  await pair.world.runFor(3000);
  const status = await pair.status('alpha');
  assert.equal(status.serving, false);
  assert.match(status.notice ?? '', /beta has the data.*failover` on beta/);
  await pair.command('beta', 'pair-failover');
  await pair.inStep();
  pair.assertEqual();
  await verify(pair, 'beta');
});

test("pair 8: a local write that fails is the user's error, and both sides are equal afterwards", async () => {
  const pair = await paired(21);
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(1));
  const fault = pair.world.fault('alpha', { operation: 'write', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  await assert.rejects(pair.world.complete(user.write(2)), /EIO|input\/output/i);
  fault.remove();
  await pair.world.runFor(3000);
  await pair.inStep();
  await pair.world.complete(user.flush());
  pair.assertEqual();
});

test("pair: a secondary whose disk is full costs the primary's user nothing", async () => {
  const pair = await paired(22);
  const user = await pair.connect('alpha');
  const fault = pair.world.fault('beta', { operation: 'write', path: '/data/disk0.img', errno: 'ENOSPC' });
  for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
  await pair.world.complete(user.flush());
  assert.notEqual((await pair.status('alpha')).phase, 'in-step');
  fault.remove();
  await pair.inStep();
  pair.assertEqual();
});

test('pair 7: a group file that cannot be written holds the users, who go on when it can', async () => {
  const pair = await paired(23);
  const user = await pair.connect('alpha');
  const fault = pair.world.fault('alpha', { operation: 'write', path: '/data/group', errno: 'ENOSPC' });
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'going-alone');
  let answered = false;
  const write = user
    .write(1)
    .then(() => user.flush())
    .then(() => {
      answered = true;
    });
  await pair.world.runFor(5000);
  assert.equal(answered, false, 'nothing is answered that is not durably alone');
  assert.match((await pair.status('alpha')).error ?? '', /ENOSPC/);
  fault.remove();
  await pair.world.complete(write);
  assert.equal(pair.phase('alpha'), 'alone');
});

test('pair 4: what another life of the secondary may have lost is sent again, though it had answered', async () => {
  const pair = await paired(30);
  const user = await pair.connect('alpha');
  for (let block = 0; block < 10; block++) await pair.world.complete(user.write(block));
  await pair.world.runFor(500);
  pair.powerCut('beta', { loseUnsynced: true });
  await pair.start('beta');
  await pair.inStep();
  pair.assertEqual();
});

test('pair 15: a switchover loses not even what was answered and never flushed', async () => {
  for (let seed = 31; seed < 41; seed++) {
    const pair = await paired(seed, { config: { windowBytes: 1 << 20 } });
    const user = await pair.connect('alpha');
    const writes = Array.from({ length: 30 }, (_, block) => user.write(block));
    await pair.world.complete(Promise.all(writes));
    await pair.command('alpha', 'pair-switch');
    await pair.until(() => pair.phase('beta') === 'alone' || pair.phase('beta') === 'in-step');
    const after = await pair.connect('beta');
    for (let block = 0; block < 30; block++) {
      assert.deepEqual(await pair.world.complete(after.read(block)), [block + 1], `seed ${seed} block ${block}`);
    }
  }
});

test('pair 12, 18: what the proof of a clean stop rests on is durable on both sides', async () => {
  for (const alone of [false, true]) {
    const pair = await paired(alone ? 42 : 41);
    const user = await pair.connect('alpha');
    for (let block = 0; block < 10; block++) await pair.world.complete(user.write(block));
    if (alone) {
      await pair.world.runFor(1000);
      pair.kill('beta');
      await pair.until(() => pair.phase('alpha') === 'alone');
    }
    await pair.stop('alpha');
    pair.powerCut('alpha', { loseUnsynced: true });
    if (pair.world.isAlive('beta')) pair.kill('beta');
    await pair.start('alpha');
    await pair.start('beta');
    await pair.inStep();
    pair.assertEqual();
    await verify(pair, 'alpha');
  }
});
