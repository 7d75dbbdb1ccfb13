/**
 * `degraded: stop` at the level of the pair (pair.md 7): users who never give up, before the first sync, during it,
 * while the other side is gone, and during the resync.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, verify } from './pair-scenes.ts';
import { PairWorld, type User } from './pair-world.ts';

const stop = { config: { degraded: 'stop' }, blocks: 128 } as const;

/** Writes and flushes again and again; counts what was refused in which phase, and looks at each success. */
class Insistent {
  readonly refused = new Map<string, number>();
  successes = 0;
  over = false;
  readonly done: Promise<void>;
  readonly #pair: PairWorld;
  readonly #user: User;

  constructor(pair: PairWorld, user: User) {
    this.#pair = pair;
    this.#user = user;
    this.done = this.#insist();
  }

  refusedIn(phase: string): number {
    return this.refused.get(phase) ?? 0;
  }

  async #insist(): Promise<void> {
    const user = this.#user;
    for (let n = 0; !this.over; n++) {
      await this.#try(n % 5 === 4 ? () => user.flush() : () => user.write((n * 7) % user.blocks));
      await this.#pair.sleep(1);
    }
  }

  async #try(request: () => Promise<unknown>): Promise<void> {
    const phase = this.#pair.phase('alpha');
    try {
      await request();
    } catch (error) {
      assert.match(String(error), /input\/output error .*writes are refused/);
      this.refused.set(phase, this.refusedIn(phase) + 1);
      return;
    }
    this.successes++;
    // The promise is worth something only if the other side could take over now.
    const store = this.#pair.sides.get('beta')?.daemon.state.record.store;
    if (store !== 'clean') this.#pair.failure ??= new Error(`a success while beta is ${store}, in phase ${phase}`);
  }
}

test('pair 7: degraded=stop: no success before the first sync and during it, afterwards there are', async () => {
  const pair = new PairWorld(51, stop);
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  const insistent = new Insistent(pair, await pair.connect('alpha'));
  await pair.world.runFor(200);
  await pair.start('beta');
  await pair.inStep();
  assert.ok(insistent.refusedIn('alone') > 0);
  await pair.until(() => insistent.successes > 20);
  insistent.over = true;
  await pair.world.complete(insistent.done);
  await pair.world.complete((await pair.connect('alpha')).flush());
  pair.assertEqual();
});

test('pair 7: degraded=stop: no success while the secondary is away, compared or synced again; then both are equal', async () => {
  let copying = 0;
  for (const seed of [52, 53, 54, 55]) {
    const pair = await paired(seed, stop);
    const insistent = new Insistent(pair, await pair.connect('alpha'));
    await pair.until(() => insistent.successes > 20);
    pair.kill('beta');
    await pair.until(() => pair.phase('alpha') === 'alone');
    // Answers that are on their way.
    await pair.world.runFor(50);
    const before = insistent.successes;
    await pair.world.runFor(300);
    assert.equal(insistent.successes, before);
    await pair.start('beta');
    await pair.inStep();
    copying += insistent.refusedIn('copying') + insistent.refusedIn('settling') + insistent.refusedIn('closing');
    await pair.until(() => insistent.successes > before + 20);
    insistent.over = true;
    await pair.world.complete(insistent.done);
    await pair.world.complete((await pair.connect('alpha')).flush());
    pair.assertEqual();
    await verify(pair, 'alpha');
  }
  assert.ok(copying > 0, 'somebody asked while a sync was under way');
});
