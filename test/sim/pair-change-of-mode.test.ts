/** A secondary whose `mode` is another one when it starts: what counts is how its disk got what it holds. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PairConfig } from '../../src/pair/config.ts';
import { paired, verify } from './pair-scenes.ts';
import type { PairWorld, User } from './pair-world.ts';

const lockStep = { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null } as const;
const standby = { store: 'overlays', mode: 'standby', acknowledge: 'flush', checkpointMs: null } as const;

const done = <T>(pair: PairWorld, work: Promise<T>): Promise<T> => pair.world.complete(work);

/** In step with a checkpoint, and a write behind it. */
async function beyondCheckpoint(
  seed: number,
  config: Partial<PairConfig>,
  sound = true,
): Promise<{ pair: PairWorld; user: User; kept: number; last: number }> {
  const pair = await paired(seed, { config, sound });
  const user = await pair.connect('alpha');
  const kept = await done(pair, user.write(1));
  await pair.command('alpha', 'pair-checkpoint');
  const last = await done(pair, user.write(1));
  await done(pair, user.flush());
  return { pair, user, kept, last };
}

for (const how of ['stop', 'kill', 'powerCut'] as const) {
  test(`pair 17: lock-step that is a standby from now on shows the checkpoint, not what its machine wrote (${how})`, async () => {
    const { pair, user, kept } = await beyondCheckpoint(1, lockStep);
    const own = await pair.connect('beta');
    await done(pair, own.write(2));
    await done(pair, own.flush());
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    await done(pair, own.client.close());
    await done(pair, user.client.close());
    await pair[how]('beta');
    await pair.start('beta', standby);
    const view = await pair.connect('beta');
    assert.equal(view.client.info.readOnly, true);
    assert.deepEqual(await done(pair, view.read(1)), [kept]);
    assert.deepEqual(await done(pair, view.read(2)), [0]);
    // In lock-step no flush says what of the later writes is durable: the latest is the checkpoint as well.
    await pair.command('beta', 'pair-failover');
    const late = await pair.connect('beta');
    assert.deepEqual(await done(pair, late.read(1)), [kept]);
    await pair.start('alpha', standby);
    await pair.inStep();
    pair.assertEqual();
  });
}

test('pair 11: lock-step that is a mirror from now on, without its checkpoint, offers no latest', async () => {
  const { pair } = await beyondCheckpoint(2, lockStep, false);
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.stop('beta');
  await pair.start('beta', { ...standby, store: 'mirror' });
  await assert.rejects(pair.command('beta', 'pair-failover'), /are incomplete/);
  await pair.start('alpha', { ...standby, store: 'mirror' });
  await pair.inStep();
  pair.assertEqual();
});

test('pair 1: a standby that is in lock-step from now on loses nothing that was flushed', async () => {
  for (const starts of [1, 2]) {
    const { pair, last } = await beyondCheckpoint(3, standby);
    const before = pair.side('beta').daemon.state.record.checkpoint?.number ?? 0;
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    for (let start = 0; start < starts; start++) {
      pair.powerCut('beta');
      await pair.start('beta', lockStep);
      const own = await pair.connect('beta');
      assert.deepEqual(await done(pair, own.read(1)), [last]);
      assert.deepEqual(await done(pair, own.read(2)), [0]);
      await done(pair, own.write(2));
      await done(pair, own.flush());
    }
    assert.equal(pair.side('beta').daemon.state.record.checkpoint?.number, before + 1);
    await pair.command('beta', 'pair-failover');
    const late = await pair.connect('beta');
    assert.deepEqual(await done(pair, late.read(1)), [last]);
  }
});

test('record-log 9: a standby that had to go back, in lock-step and then not, shows nothing of what its machine wrote', async () => {
  const { pair, user, last } = await beyondCheckpoint(5, standby);
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
  await done(pair, user.write(1));
  await done(pair, user.flush());
  pair.world.heal('alpha', 'beta');
  await pair.until(() => pair.side('beta').daemon.state.record.store === 'resync');
  pair.kill('alpha');
  pair.kill('beta');
  await pair.start('beta', lockStep);
  const own = await pair.connect('beta');
  assert.deepEqual(await done(pair, own.read(1)), [last]);
  await done(pair, own.write(2));
  await done(pair, own.flush());
  pair.kill('beta');
  await pair.start('beta', standby);
  const view = await pair.connect('beta');
  assert.deepEqual(await done(pair, view.read(1)), [last]);
  assert.deepEqual(await done(pair, view.read(2)), [0]);
});

test('a pair that was stopped cleanly goes from one mode to the other and back', async () => {
  const { pair, last, user } = await beyondCheckpoint(4, standby);
  await done(pair, user.client.close());
  for (const mode of [lockStep, standby, lockStep]) {
    await pair.stop('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    await pair.stop('beta');
    await pair.start('beta', mode);
    await pair.start('alpha', mode);
    await pair.inStep();
    const view = await pair.connect('beta');
    assert.deepEqual(await done(pair, view.read(1)), [last]);
    if (mode === lockStep) {
      await done(pair, view.write(2));
      await done(pair, view.flush());
    } else assert.deepEqual(await done(pair, view.read(2)), [0]);
    await done(pair, view.client.close());
    await verify(pair, 'alpha');
    pair.assertEqual();
  }
});

/** A start of beta that ends at its nth I/O. @returns whether it came to that */
async function cutStart(pair: PairWorld, n: number, config: Partial<PairConfig>): Promise<boolean> {
  let seen = 0;
  let ended = false;
  let started = false;
  pair.world.onIo((_, machine) => {
    if (machine !== 'beta' || ended || ++seen < n) return;
    ended = true;
    pair[n % 2 === 0 ? 'kill' : 'powerCut']('beta');
  });
  const starting = pair.begin('beta', config).then(
    () => {
      started = true;
    },
    () => undefined,
  );
  await pair.until(() => started || ended);
  if (!ended) await done(pair, starting);
  pair.world.onIo(null);
  return ended;
}

for (const [before, after] of [
  [standby, lockStep],
  [lockStep, standby],
] as const) {
  test(`from ${before.mode} to ${after.mode}: cut off at any I/O of the start, the next one shows what it would have`, async () => {
    let cuts = 0;
    for (let n = 1, isOver = true; isOver; n += 7) {
      const { pair, kept, last } = await beyondCheckpoint(n, before);
      if (before === lockStep) {
        const own = await pair.connect('beta');
        await done(pair, own.write(2));
        await done(pair, own.flush());
        own.client.destroy('done');
      }
      pair.kill('alpha');
      await pair.until(() => pair.phase('beta') === 'detached');
      pair.kill('beta');
      isOver = await cutStart(pair, n, after);
      if (!isOver) break;
      cuts++;
      await pair.start('beta', after);
      const wanted = before === standby ? last : kept;
      for (const to of [null, 'latest'] as const) {
        if (to !== null) await pair.command('beta', 'pair-failover', { to });
        const found = await pair.connect('beta');
        assert.deepEqual(await done(pair, found.read(1)), [wanted], `I/O ${n}, ${to}`);
        assert.deepEqual(await done(pair, found.read(2)), [0], `I/O ${n}, ${to}`);
        found.client.destroy('done');
      }
    }
    assert.ok(cuts > 3, `${cuts}`);
  });
}
