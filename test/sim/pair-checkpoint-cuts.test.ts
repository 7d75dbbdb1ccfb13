/** A secondary of lock-step that is cut off at any of its I/Os: two disks, and always one checkpoint (pair.md 22). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired as inStep } from './pair-scenes.ts';
import type { PairWorld } from './pair-world.ts';

const disks = ['disk0', 'disk1'];

const paired = (seed: number): Promise<PairWorld> =>
  inStep(seed, {
    disks,
    sound: true,
    config: { store: 'overlays', mode: 'lock-step', acknowledge: 'local', checkpointMs: null },
  });

async function writeBoth(pair: PairWorld): Promise<number[]> {
  const versions: number[] = [];
  for (const disk of disks) {
    const user = await pair.connect('alpha', disk);
    versions.push(await pair.world.complete(user.write(1)));
    await pair.world.complete(user.flush());
    user.client.destroy('done');
  }
  return versions;
}

async function readBoth(pair: PairWorld): Promise<(number | undefined)[]> {
  const versions: (number | undefined)[] = [];
  for (const disk of disks) {
    const user = await pair.connect('beta', disk);
    versions.push(...(await pair.world.complete(user.read(1))));
    user.client.destroy('done');
  }
  return versions;
}

/**
 * Ends beta at its nth I/O from now on, with its power or without.
 * @returns what takes the watch away and says whether it came to that
 */
function cutAt(pair: PairWorld, n: number, how: 'kill' | 'powerCut'): () => boolean {
  let seen = 0;
  let isOver = false;
  pair.world.onIo((_, machine) => {
    if (machine !== 'beta' || isOver || ++seen < n) return;
    isOver = true;
    pair[how]('beta');
  });
  return () => {
    pair.world.onIo(null);
    return isOver;
  };
}

test('pair 22: cut off at any I/O of a checkpoint, a start shows it on all disks, or the one before', async () => {
  const shown = new Set<string>();
  for (let at = 2, isOver = true; isOver && at < 160; at++) {
    const n = Math.floor(at / 2);
    const pair = await paired(n);
    const first = await writeBoth(pair);
    await pair.command('alpha', 'pair-checkpoint');
    const second = await writeBoth(pair);
    const end = cutAt(pair, n, at % 2 === 0 ? 'kill' : 'powerCut');
    const making = pair.side('alpha').daemon.execute('pair-checkpoint');
    await pair.world.complete(making.catch(() => undefined));
    isOver = end();
    if (!isOver) break;
    pair.kill('alpha');
    await pair.start('beta');
    const found = await readBoth(pair);
    assert.ok(
      [first, second].some((one) => one.join() === found.join()),
      `I/O ${n}: ${found}, not ${first} or ${second}`,
    );
    shown.add(found.join() === first.join() ? 'before' : 'after');
    await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
    assert.deepEqual(await readBoth(pair), found, `I/O ${n}`);
  }
  assert.equal(shown.size, 2);
});

test('record-log 9: cut off at any I/O of going back, the next start goes back on all disks', async () => {
  for (let n = 1, isOver = true; isOver && n < 400; n += 11) {
    const pair = await paired(n);
    const first = await writeBoth(pair);
    await pair.command('alpha', 'pair-checkpoint');
    await writeBoth(pair);
    pair.kill('beta');
    pair.kill('alpha');
    const end = cutAt(pair, n, n % 2 === 0 ? 'kill' : 'powerCut');
    const starting = pair.begin('beta');
    let started = false;
    starting.then(
      () => {
        started = true;
      },
      () => undefined,
    );
    await pair.until(() => started || !pair.world.isAlive('beta'));
    isOver = end();
    if (isOver) await pair.start('beta');
    assert.deepEqual(await readBoth(pair), first, `I/O ${n}`);
    await pair.command('beta', 'pair-failover', { to: 'latest' });
    assert.deepEqual(await readBoth(pair), first, `I/O ${n}: the disks`);
  }
});
