/** A checkpoint that is held (`pair-checkpoint` with `holdMs`): nobody makes another one until the hold ends. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep } from './pair-scenes.ts';
import type { PairWorld, PairWorldOptions, SideName, User } from './pair-world.ts';

const paired = (seed: number, config: PairWorldOptions['config'] = {}): Promise<PairWorld> =>
  inStep(seed, { config: { store: 'overlays', checkpointMs: 1000, ...config } });

const minute = 60_000;

async function write(pair: PairWorld, user: User, block: number): Promise<number> {
  const version = await pair.world.complete(user.write(block));
  await pair.world.complete(user.flush());
  return version;
}

const read = (pair: PairWorld, user: User, block: number): Promise<number[]> => pair.world.complete(user.read(block));

const hold = (pair: PairWorld, holdMs = 10 * minute, side: SideName = 'beta'): Promise<{ text: string }> =>
  pair.command(side, 'pair-checkpoint', { holdMs });

const release = (pair: PairWorld, side: SideName = 'beta'): Promise<{ text: string }> =>
  pair.command(side, 'pair-checkpoint', { release: true });

const checkpointOf = async (pair: PairWorld, side: SideName): Promise<number | undefined> =>
  (await pair.status(side)).checkpoint?.number;

const heldMs = async (pair: PairWorld, side: SideName = 'beta'): Promise<number | null> =>
  (await pair.status(side)).held?.forMs ?? null;

const nothingHeld = /no checkpoint is held/;

test('a held checkpoint has what was answered before, and neither clock nor command moves it until it is released', async () => {
  const pair = await paired(1);
  const user = await pair.connect('alpha');
  const first = await write(pair, user, 3);
  const { text } = await hold(pair);
  const number = await checkpointOf(pair, 'beta');
  assert.equal(text, `checkpoint ${number}`);
  const view = await pair.connect('beta');
  for (let second = 0; second < 20; second++) {
    await write(pair, user, 3);
    await pair.world.runFor(1000);
    assert.deepEqual(await read(pair, view, 3), [first]);
  }
  const still = await heldMs(pair);
  assert.ok(still !== null && still > 9 * minute && still < 10 * minute, String(still));
  for (const side of ['alpha', 'beta'] as const) {
    const refused = new RegExp(`checkpoint ${number} is held on beta until .*; .checkpoint --release. ends that`);
    await assert.rejects(pair.command(side, 'pair-checkpoint'), refused);
  }
  await assert.rejects(hold(pair), /is held/);
  assert.equal(await checkpointOf(pair, 'beta'), number);
  assert.equal(pair.phase('alpha'), 'in-step');

  assert.equal((await release(pair)).text, `checkpoint ${number} was held until now`);
  assert.equal(await heldMs(pair), null);
  const last = await write(pair, user, 3);
  await pair.world.runFor(2500);
  assert.deepEqual(await read(pair, view, 3), [last]);
  await assert.rejects(release(pair), nothingHeld);
});

test('a hold ends with its time, and a release afterwards says so', async () => {
  const pair = await paired(2);
  const user = await pair.connect('alpha');
  await hold(pair, 10_000);
  const number = await checkpointOf(pair, 'beta');
  await write(pair, user, 3);
  await pair.world.runFor(9000);
  assert.equal(await checkpointOf(pair, 'beta'), number);
  await pair.world.runFor(3000);
  assert.notEqual(await checkpointOf(pair, 'beta'), number);
  await assert.rejects(release(pair), nothingHeld);
});

test('a second hold is not ended by the time of the first', async () => {
  const pair = await paired(3);
  const user = await pair.connect('alpha');
  await hold(pair, 10_000);
  await pair.world.runFor(8000);
  await release(pair);
  await hold(pair, 10_000);
  const number = await checkpointOf(pair, 'beta');
  await write(pair, user, 3);
  await pair.world.runFor(8000);
  assert.equal(await checkpointOf(pair, 'beta'), number);
});

test('whatever is asked for beside it, no checkpoint comes between the one that is held and the hold', async () => {
  for (let seed = 10; seed < 30; seed++) {
    const pair = await paired(seed, { checkpointMs: 50 });
    const user = await pair.connect('alpha');
    const first = await write(pair, user, 3);
    const others = [1, 2, 3, 4].map((one) => pair.side(one % 2 === 0 ? 'alpha' : 'beta').daemon);
    const asked = others.map((daemon) => daemon.execute('pair-checkpoint').catch(() => undefined));
    const held = hold(pair);
    asked.push(...others.map((daemon) => daemon.execute('pair-checkpoint').catch(() => undefined)));
    const { text } = await held;
    await write(pair, user, 3);
    await pair.world.complete(Promise.all(asked));
    await pair.world.runFor(500);
    assert.equal(`checkpoint ${await checkpointOf(pair, 'beta')}`, text, `seed ${seed}`);
    const view = await pair.connect('beta');
    assert.deepEqual(await read(pair, view, 3), [first], `seed ${seed}`);
  }
});

test('a hold ends with the session: what comes after makes checkpoints of its own', async () => {
  const pair = await paired(4);
  const user = await pair.connect('alpha');
  await hold(pair);
  const number = await checkpointOf(pair, 'beta');
  pair.world.cut('alpha', 'beta');
  await pair.until(() => pair.phase('beta') === 'detached' && pair.phase('alpha') === 'alone');
  await assert.rejects(release(pair), nothingHeld);
  await write(pair, user, 3);
  pair.world.heal('alpha', 'beta');
  await pair.inStep();
  assert.equal(await heldMs(pair), null);
  assert.notEqual(await checkpointOf(pair, 'beta'), number);
});

test('with the primary gone, a failover goes to the checkpoint that was held', async () => {
  const pair = await paired(5);
  const user = await pair.connect('alpha');
  const first = await write(pair, user, 3);
  await hold(pair);
  await write(pair, user, 3);
  await pair.world.runFor(5000);
  pair.powerCut('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
  const late = await pair.connect('beta');
  assert.deepEqual(await read(pair, late, 3), [first]);
  assert.equal(await heldMs(pair), null);
});

test('a switchover ends a hold, and so does a new start', async () => {
  const pair = await paired(6);
  await hold(pair);
  await pair.command('beta', 'pair-switch');
  await pair.inStep();
  assert.equal(await heldMs(pair, 'alpha'), null);
  await assert.rejects(release(pair, 'alpha'), nothingHeld);
  await hold(pair, minute, 'alpha');
  await pair.stop('alpha');
  await pair.start('alpha');
  await pair.inStep();
  assert.equal(await heldMs(pair, 'alpha'), null);
});

test('both sides’ status say which checkpoint is held and until when, and that it is no more', async () => {
  const pair = await paired(9);
  const ends: Record<string, () => Promise<unknown>> = {
    release: () => release(pair),
    'its time': () => pair.world.runFor(10 * minute),
    'the session': async () => {
      pair.world.cut('alpha', 'beta');
      await pair.until(() => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
      pair.world.heal('alpha', 'beta');
      assert.equal((await pair.status('alpha')).held, null);
      await pair.inStep();
    },
  };
  for (const [what, end] of Object.entries(ends)) {
    await hold(pair);
    const number = await checkpointOf(pair, 'beta');
    await pair.world.runFor(3000);
    const [there, here] = [(await pair.status('alpha')).held, (await pair.status('beta')).held];
    assert.equal(here?.number, number);
    assert.equal(there?.number, number);
    assert.ok(Math.abs((there?.untilMs ?? 0) - (here?.untilMs ?? 0)) < 1000, 'but for the way of the message');
    await end();
    await pair.world.runFor(100);
    for (const side of ['alpha', 'beta'] as const) assert.equal(await heldMs(pair, side), null, `${what}, ${side}`);
  }
});

test('short space ends a hold, before the copy is lost to it', async () => {
  const pair = await paired(7);
  const user = await pair.connect('alpha');
  await hold(pair);
  const number = await checkpointOf(pair, 'beta');
  for (let block = 0; block < 8; block++) await write(pair, user, block);
  const disk = pair.world.machine('beta')?.disk;
  assert.ok(disk !== undefined);
  await pair.world.runFor(3000);
  assert.equal(await checkpointOf(pair, 'beta'), number);
  disk.freeBytes = 4096;
  await pair.world.runFor(3000);
  assert.notEqual(await checkpointOf(pair, 'beta'), number);
  assert.ok(pair.log.some((line) => line.includes(`checkpoint ${number} is not held any more`)));
  const { space } = await pair.status('beta');
  assert.match(space?.warning ?? '', /0\.\d\d MiB for the overlays, which take up to \d\.\d\d MiB if/);
  await assert.rejects(release(pair), nothingHeld);
  assert.equal(pair.phase('beta'), 'following');
});

test('a checkpoint is held by a standby that has it: a primary, a mirror and lock-step say what to do instead', async () => {
  const pair = await paired(8);
  await assert.rejects(hold(pair, minute, 'alpha'), /is held where it is: run it on beta/);
  await assert.rejects(release(pair, 'alpha'), nothingHeld);
  await assert.rejects(pair.command('beta', 'pair-checkpoint', { holdMs: minute, release: true }), /say one of them/);
  const lockStep = await paired(8, { mode: 'lock-step', acknowledge: 'local', checkpointMs: null });
  await assert.rejects(hold(lockStep), /in lock-step a checkpoint lasts until you make the next one/);
  const mirror = await inStep(8);
  await assert.rejects(hold(mirror), /a mirror has no checkpoints/);
});
