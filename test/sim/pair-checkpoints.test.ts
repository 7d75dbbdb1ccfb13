/** Checkpoints of a pair with `store: overlays` (pair.md 11, 14 to 17, 20 to 22; record-log.md 8 to 10). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep, verify, writeSome } from './pair-scenes.ts';
import { PairWorld, type PairWorldOptions, type SideName, sideNames, type User } from './pair-world.ts';

/** Overlays, and no clock: checkpoints are made on command. */
const overlays = (options: PairWorldOptions = {}): PairWorldOptions => ({
  ...options,
  config: { store: 'overlays', checkpointMs: null, ...options.config },
});

const paired = (seed: number, options: PairWorldOptions = {}): Promise<PairWorld> => inStep(seed, overlays(options));

const checkpointOf = async (pair: PairWorld, side: SideName): Promise<number | undefined> =>
  (await pair.status(side)).checkpoint?.number;

async function write(pair: PairWorld, user: User, block: number): Promise<number> {
  const version = await pair.world.complete(user.write(block));
  await pair.world.complete(user.flush());
  return version;
}

const read = (pair: PairWorld, user: User, block: number): Promise<number[]> => pair.world.complete(user.read(block));

/** Whatever was flushed, both may be dead: what alpha was writing is on its way. */
async function loseAlpha(pair: PairWorld): Promise<void> {
  pair.powerCut('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
}

test('pair 17, 21: the secondary shows the last checkpoint read-only; a command on either side makes one', async () => {
  const pair = await paired(1);
  const user = await pair.connect('alpha');
  const first = await write(pair, user, 3);
  const view = await pair.connect('beta');
  assert.equal(view.client.info.readOnly, true);
  assert.deepEqual(await read(pair, view, 3), [0]);
  assert.match((await pair.command('alpha', 'pair-checkpoint')).text, /^checkpoint \d+$/);
  assert.deepEqual(await read(pair, view, 3), [first]);
  const second = await write(pair, user, 3);
  assert.deepEqual(await read(pair, view, 3), [first]);
  pair.assertEqual();
  await pair.command('beta', 'pair-checkpoint');
  assert.deepEqual(await read(pair, view, 3), [second]);
  await pair.world.runFor(20);
  assert.equal(await checkpointOf(pair, 'beta'), await checkpointOf(pair, 'alpha'));
});

test('pair 20: the clock makes checkpoints, and none where nothing was written; numbers only rise', async () => {
  const pair = await paired(2, { config: { checkpointMs: 1000 } });
  const user = await pair.connect('alpha');
  const seen: (number | undefined)[] = [];
  for (let i = 0; i < 3; i++) {
    await write(pair, user, i);
    await pair.world.runFor(1500);
    seen.push(await checkpointOf(pair, 'beta'));
  }
  assert.ok(
    seen.every((number, index) => index === 0 || (number ?? 0) > (seen[index - 1] ?? 0)),
    String(seen),
  );
  const before = pair.side('beta').daemon.state.sequence;
  await pair.world.runFor(10_000);
  assert.equal(pair.side('beta').daemon.state.sequence, before);
  const { checkpoint } = await pair.status('beta');
  assert.ok(checkpoint !== null && checkpoint.number === seen.at(-1) && checkpoint.ageMs <= 1100);
  assert.ok(((await pair.status('alpha')).checkpoint?.ageMs ?? 1e9) <= 1200);
});

test('pair 14, 16: failover to the checkpoint serves it; the old primary returns as the target', async () => {
  const pair = await paired(3);
  const user = await pair.connect('alpha');
  const first = await write(pair, user, 3);
  await pair.command('alpha', 'pair-checkpoint');
  await write(pair, user, 3);
  await loseAlpha(pair);
  const { text } = await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  assert.match(text, /back at checkpoint \d+, .* s old/);
  const late = await pair.connect('beta');
  assert.deepEqual(await read(pair, late, 3), [first]);
  await pair.until(() => pair.phase('beta') === 'alone');
  await pair.start('alpha');
  await pair.inStep();
  pair.assertEqual();
  assert.deepEqual(await read(pair, late, 3), [first]);
  assert.equal((await pair.status('alpha')).role, 'secondary');
  assert.notEqual(await checkpointOf(pair, 'alpha'), undefined);
});

test('pair 15, 16: after a failover to the checkpoint both change roles again and again, and make checkpoints', async () => {
  const pair = await paired(15);
  await writeSome(pair, 'alpha');
  await pair.command('alpha', 'pair-checkpoint');
  await loseAlpha(pair);
  await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  await pair.until(() => pair.phase('beta') === 'alone');
  await pair.start('alpha');
  await pair.inStep();
  for (const side of ['alpha', 'beta'] as const) {
    await pair.command(side, 'pair-switch');
    await pair.inStep();
    await writeSome(pair, side);
    await pair.command(side, 'pair-checkpoint');
    pair.assertEqual();
  }
});

test('pair 13: lock-step on one side only is refused on both', async () => {
  const pair = new PairWorld(14, overlays());
  await pair.start('alpha');
  await pair.start('beta', { mode: 'lock-step', acknowledge: 'local' });
  await pair.until(() => sideNames.every((side) => /lock-step/.test(pair.side(side).daemon.state.refusal ?? '')));
});

test('pair 14: failover goes to the latest write if nothing else is said, and what led back from it is gone', async () => {
  const pair = await paired(4);
  const user = await pair.connect('alpha');
  await pair.command('alpha', 'pair-checkpoint');
  await write(pair, user, 3);
  await loseAlpha(pair);
  await pair.command('beta', 'pair-failover');
  await verify(pair, 'beta');
  assert.equal(await checkpointOf(pair, 'beta'), undefined);
  assert.equal(pair.world.machine('beta')?.disk.names.has('/data/disk0.hidden'), false);
});

for (const how of ['kill', 'powerCut'] as const) {
  test(`record-log 9: after a ${how} a secondary rolls nothing back: it shows the checkpoint, and both are offered`, async () => {
    for (const to of ['latest', 'checkpoint'] as const) {
      const pair = await paired(5);
      const user = await pair.connect('alpha');
      const first = await write(pair, user, 3);
      await pair.command('alpha', 'pair-checkpoint');
      const second = await write(pair, user, 3);
      pair[how]('beta');
      pair.kill('alpha');
      await pair.start('beta');
      const view = await pair.connect('beta');
      assert.deepEqual(await read(pair, view, 3), [first]);
      await pair.command('beta', 'pair-failover', { to });
      const late = await pair.connect('beta');
      assert.deepEqual(await read(pair, late, 3), [to === 'latest' ? second : first]);
    }
  });
}

test('pair 15: a checkpoint is no switchover: refused while the primary is in step; forced, it is stopped first', async () => {
  const pair = await paired(6);
  const user = await pair.connect('alpha');
  const first = await write(pair, user, 3);
  await pair.command('alpha', 'pair-checkpoint');
  await write(pair, user, 3);
  await assert.rejects(pair.command('beta', 'pair-failover', { to: 'checkpoint' }), /switchover goes to the latest/);
  await pair.command('beta', 'pair-failover', { to: 'checkpoint', force: true });
  const late = await pair.connect('beta');
  assert.deepEqual(await read(pair, late, 3), [first]);
  assert.equal((await pair.status('alpha')).serving, false);
  // What it had beyond the checkpoint was given up knowingly: it returns without a hand, and without a compare.
  pair.failure = null;
  pair.log.length = 0;
  await pair.inStep();
  assert.equal((await pair.status('beta')).role, 'primary');
  assert.ok(!pair.log.some((line) => /comparing|split/.test(line)));
  pair.assertEqual();
});

/** Alpha is alone and has written; beta is being synced, and has got some of it. */
async function inResync(pair: PairWorld): Promise<void> {
  await writeSome(pair, 'alpha');
  await pair.command('alpha', 'pair-checkpoint');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await writeSome(pair, 'alpha');
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'copying');
}

test('pair 11: a resync leaves a checkpoint of what was found; only that is offered until it has ended', async () => {
  const pair = await paired(7);
  await inResync(pair);
  const number = await checkpointOf(pair, 'beta');
  await loseAlpha(pair);
  assert.equal((await pair.status('beta')).store, 'resync');
  await assert.rejects(pair.command('beta', 'pair-failover'), /mixture.*--to checkpoint. goes back to checkpoint/);
  const { text } = await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  assert.match(text, new RegExp(`checkpoint ${number},`));
});

test('pair 17: the checkpoint is shown also while a resync runs', async () => {
  const pair = await paired(13);
  await inResync(pair);
  const view = await pair.connect('beta');
  assert.equal(view.client.info.readOnly, true);
});

test('record-log 9: a start that finds resync standing goes back, and what may differ is enough for the next', async () => {
  const pair = await paired(8);
  await inResync(pair);
  const number = await checkpointOf(pair, 'beta');
  pair.powerCut('beta');
  pair.log.length = 0;
  await pair.start('beta');
  assert.ok(pair.log.some((line) => line.includes(`beta: went back to checkpoint ${number}: a resync had not ended`)));
  await pair.inStep();
  assert.ok(!pair.log.some((line) => /alpha: .*comparing/.test(line)), 'nothing was compared');
  pair.assertEqual();
  await verify(pair, 'alpha');
});

test('pair 11: a resync that does not fit gives the checkpoint up; keep-checkpoint refuses it instead', async () => {
  for (const resync of ['give-up-checkpoint', 'keep-checkpoint'] as const) {
    const pair = await paired(9, { config: { resync } });
    await writeSome(pair, 'alpha');
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    await writeSome(pair, 'alpha');
    const beta = await pair.start('beta');
    const disk = pair.world.machine('beta')?.disk;
    assert.ok(disk !== undefined);
    disk.freeBytes = 4096;
    const lost: unknown[] = [];
    beta.daemon.subscribe(({ event, data }) => {
      if (event === 'PAIR_CHECKPOINT' && data.number === null) lost.push(data.reason);
    });
    if (resync === 'keep-checkpoint') {
      await pair.until(() => /cannot be kept/.test(pair.side('beta').daemon.state.error ?? ''));
      assert.equal((await pair.status('beta')).store, 'clean');
      assert.notEqual(await checkpointOf(pair, 'beta'), undefined);
      disk.freeBytes = 2 ** 30;
    }
    await pair.inStep();
    assert.equal(lost.length, resync === 'keep-checkpoint' ? 0 : 1);
    pair.assertEqual();
    assert.notEqual(await checkpointOf(pair, 'beta'), undefined);
  }
});

test('record-log 8: with sync=false a power cut loses the checkpoint, and that is said; the latest write stays', async () => {
  const pair = await paired(10, { config: { overlays: { folder: '/data', sync: false } } });
  const user = await pair.connect('alpha');
  await pair.command('alpha', 'pair-checkpoint');
  await write(pair, user, 3);
  pair.kill('alpha');
  pair.powerCut('beta');
  await pair.start('beta');
  assert.ok(pair.log.some((line) => /beta: the last checkpoint is lost/.test(line)));
  assert.equal(await checkpointOf(pair, 'beta'), undefined);
  await assert.rejects(pair.command('beta', 'pair-failover', { to: 'checkpoint' }), /has no checkpoint/);
  await pair.command('beta', 'pair-failover');
  await verify(pair, 'beta');
});

test('pair 22: three disks take a checkpoint together', async () => {
  const disks = ['disk0', 'disk1', 'disk2'];
  const pair = await paired(11, { disks, config: { checkpointMs: 50 } });
  // Each version is on all disks before the next is written: no cut shows a later one beside an earlier one.
  const users = [];
  for (const disk of disks) users.push(await pair.connect('alpha', disk));
  let over = false;
  const versions = new Map<number, number>();
  const writing = (async () => {
    for (let round = 0; !over; round++) {
      for (const user of users) {
        versions.set(await user.write(0), round);
        await user.flush();
      }
    }
  })();
  await pair.world.runFor(1500);
  pair.powerCut('alpha');
  over = true;
  for (const user of users) user.abandon();
  writing.catch(() => undefined);
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  const rounds = [];
  for (const disk of disks) {
    const [version = 0] = await read(pair, await pair.connect('beta', disk), 0);
    rounds.push(versions.get(version) ?? -1);
  }
  const [first = 0, , last = 0] = rounds;
  assert.ok(
    first >= last && first - last <= 1 && [...rounds].sort((a, b) => b - a).join() === rounds.join(),
    `${rounds}`,
  );
  assert.ok(first > 2, `${rounds} of ${versions.size}, checkpoint ${await checkpointOf(pair, 'beta')}`);
});
