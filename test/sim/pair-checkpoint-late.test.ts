/** A checkpoint by command while the secondary's disk hangs: an answer in bounded time, and a standby stays in step. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify } from './pair-scenes.ts';
import type { PairWorld, SideName } from './pair-world.ts';

const standby = { store: 'overlays', checkpointMs: null } as const;
const hangs = 60_000;

const numberOn = async (pair: PairWorld, side: SideName): Promise<number | undefined> =>
  (await pair.status(side)).checkpoint?.number;

/** Rejects in bounded time, with this. */
async function refusedInTime(pair: PairWorld, side: SideName, args: Record<string, unknown>, why: RegExp) {
  const since = pair.world.now;
  const { daemon } = pair.side(side);
  await assert.rejects(pair.world.complete(daemon.execute('pair-checkpoint', args) as Promise<unknown>), (error) => {
    assert.ok(error instanceof Error && 'code' in error);
    assert.match(error.message, why);
    assert.equal(error.code, 'wrong-state');
    return true;
  });
  assert.ok(pair.world.now - since < 6000, `${pair.world.now - since} ms`);
}

for (const what of ['disk0.img', 'group'] as const) {
  for (const side of ['alpha', 'beta'] as const) {
    test(`a checkpoint that hangs at ${what} is answered on ${side}; nothing is half, and the next one is made`, async () => {
      const pair = await paired(1, { config: standby, sound: true });
      const user = await pair.connect('alpha');
      const kept = await pair.world.complete(user.write(1));
      await pair.command('alpha', 'pair-checkpoint');
      const number = (await numberOn(pair, 'beta')) ?? 0;
      await pair.world.complete(user.write(1));
      const fault = pair.world.fault('beta', { operation: 'sync', path: `/data/${what}`, delayMs: hangs });
      const hold = side === 'beta' ? { holdMs: hangs } : {};
      const why = /beta (proved no flush|made no checkpoint) within 2000 ms/;
      await refusedInTime(pair, side, hold, why);
      // Another one does not wait for the first.
      await refusedInTime(pair, side, {}, why);
      for (const one of ['alpha', 'beta'] as const) {
        assert.equal(await numberOn(pair, one), number);
        assert.equal((await pair.status(one)).inSync, true);
      }
      // At its last write the disks hold still, and who reads the view waits as well.
      if (what !== 'group') {
        const view = await pair.connect('beta');
        assert.deepEqual(await pair.world.complete(view.read(1)), [kept]);
      }
      fault.remove();
      await pair.world.runFor(hangs);
      assert.equal((await pair.status('alpha')).inSync, true);
      const last = await pair.world.complete(user.write(1));
      await pair.command(side, 'pair-checkpoint');
      await pair.world.runFor(100);
      assert.ok(((await numberOn(pair, 'alpha')) ?? 0) > number);
      assert.equal(await numberOn(pair, 'beta'), await numberOn(pair, 'alpha'));
      assert.equal((await pair.status('beta')).held, null);
      const after = await pair.connect('beta');
      assert.deepEqual(await pair.world.complete(after.read(1)), [last]);
      await verify(pair, 'alpha');
      pair.assertEqual();
    });
  }
}
