/**
 * The pair on simulated machines: who serves, after failovers, switchovers, split brains and lost files (pair.md 13 to
 * 16).
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify, writeSome } from './pair-scenes.ts';
import { sideNames } from './pair-world.ts';

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

for (const teller of ['alpha', 'beta'] as const) {
  test(`pair 13: a secondary that lost its group file is overwritten by a word on ${teller}, while the primary serves`, async () => {
    const pair = await paired(21);
    await writeSome(pair, 'alpha');
    pair.kill('beta');
    await pair.world.complete(pair.world.restart('beta').files.remove('/data/group'));
    pair.world.kill('beta');
    await pair.start('beta');
    const refused = /no common history/;
    await pair.until(() => sideNames.every((side) => refused.test(pair.side(side).daemon.state.refusal ?? '')));
    for (const side of ['alpha', 'beta'] as const) {
      assert.match((await pair.status(side)).notice ?? '', /no common history.*resolve --keep alpha/);
    }
    const user = await pair.connect('alpha');
    await pair.command(teller, 'pair-resolve', { keep: 'alpha' });
    await pair.inStep();
    pair.assertEqual();
    await pair.world.complete(user.verify());
    assert.equal((await pair.status('beta')).role, 'secondary');
    await assert.rejects(pair.command('alpha', 'pair-resolve', { keep: 'alpha' }), /not now|nothing to resolve/);
  });
}

test('pair 13: a word about a split brain that is none changes nothing, and is said to be none on either side', async () => {
  const pair = await paired(22);
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  for (const keep of ['alpha', 'beta']) {
    await assert.rejects(pair.command('alpha', 'pair-resolve', { keep }), /nothing to resolve/);
  }
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

test('pair 15, 18: a failover is possible from the moment that the primary has said goodbye', async () => {
  for (let seed = 41; seed < 45; seed++) {
    const pair = await paired(seed);
    await writeSome(pair, 'alpha');
    pair
      .side('alpha')
      .daemon.stop()
      .catch(() => undefined);
    await pair.until(() => pair.phase('beta') === 'detached');
    await pair.command('beta', 'pair-failover');
    await verify(pair, 'beta');
  }
});
