/** When waiting for the other side is a stall, and when it was this process that stood still (pair.md 6). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StallWatch } from '../../src/drivers/replication-stall.ts';
import type { HostClock } from '../../src/host/host.ts';
import { deferred } from '../../src/util/later.ts';

/**
 * A clock that a test moves. Timers that are due run before what is to be read, and that before the end of the turn.
 */
class Turns implements HostClock {
  nowMs = 0;
  #timers: { readonly atMs: number; readonly call: () => void }[] = [];
  #ends: (() => void)[] = [];

  now(): number {
    return this.nowMs;
  }

  wall(): number {
    return this.nowMs;
  }

  after(ms: number, call: () => void): { cancel(): void } {
    const timer = { atMs: this.nowMs + ms, call };
    this.#timers.push(timer);
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((one) => one !== timer);
      },
    };
  }

  endOfTurn(call: () => void): void {
    this.#ends.push(call);
  }

  get timers(): number {
    return this.#timers.length;
  }

  /** One turn of the loop at this time; `read`: what has arrived until then. */
  async turn(atMs: number, read: () => void = () => undefined): Promise<void> {
    this.nowMs = atMs;
    for (const timer of this.#timers.filter((one) => one.atMs <= atMs)) {
      this.#timers = this.#timers.filter((one) => one !== timer);
      timer.call();
    }
    read();
    await new Promise((resolve) => setImmediate(resolve));
    for (const call of this.#ends.splice(0)) call();
  }
}

function watched(): { clock: Turns; stalls: () => number; watch: StallWatch } {
  const clock = new Turns();
  let stalls = 0;
  const watch = new StallWatch(clock, 2000, () => {
    stalls += 1;
  });
  return { clock, stalls: () => stalls, watch };
}

test('pair 6: an answer that did not come in time is a stall, in the turn in which the time is over', async () => {
  const { clock, stalls, watch } = watched();
  void watch.watch(deferred().promise);
  await clock.turn(1999);
  assert.equal(stalls(), 0);
  await clock.turn(2000);
  assert.equal(stalls(), 1);
  assert.equal(clock.timers, 0);
  await clock.turn(9000);
  assert.equal(stalls(), 1);
});

test('pair 6: an answer that arrived while this process stood still is no stall, however long that was', async () => {
  for (const goesOnAtMs of [2000, 2100, 60_000]) {
    const { clock, stalls, watch } = watched();
    const answer = deferred();
    void watch.watch(answer.promise);
    await clock.turn(goesOnAtMs, () => answer.resolve());
    await clock.turn(goesOnAtMs + 5000);
    assert.equal(stalls(), 0, `${goesOnAtMs}`);
    assert.equal(clock.timers, 0);
  }
});

test('pair 6: after this process stood still the other side has a short grace, and then it is a stall', async () => {
  for (const answers of [true, false]) {
    const { clock, stalls, watch } = watched();
    const answer = deferred();
    void watch.watch(answer.promise);
    await clock.turn(60_000);
    await clock.turn(60_100, () => answers && answer.resolve());
    assert.equal(stalls(), 0);
    await clock.turn(60_500);
    assert.equal(stalls(), answers ? 0 : 1);
  }
});

test('a wait that begins between two looks is counted for itself, and one timer counts for all', async () => {
  const { clock, stalls, watch } = watched();
  const first = deferred();
  void watch.watch(first.promise);
  await clock.turn(2000, () => {
    void watch.watch(deferred().promise);
    first.resolve();
  });
  assert.equal(stalls(), 0);
  assert.equal(clock.timers, 1);
  await clock.turn(3999);
  assert.equal(stalls(), 0);
  await clock.turn(4000);
  assert.equal(stalls(), 1);
});

test('pair 6: a wait that others join is as old as its first', async () => {
  const { clock, stalls, watch } = watched();
  const joined = deferred().promise;
  void watch.watch(joined);
  await clock.turn(1500);
  void watch.watch(joined);
  await clock.turn(2000);
  assert.equal(stalls(), 1);
});

test('a watch that is closed between two looks says nothing', async () => {
  const { clock, stalls, watch } = watched();
  void watch.watch(deferred().promise);
  await clock.turn(2000, () => watch.close());
  void watch.watch(deferred().promise);
  await clock.turn(2001, () => watch.close());
  assert.equal(stalls(), 0);
  assert.equal(clock.timers, 0);
});

test('pair 6: a line that moves is back-pressure; one that stands for the whole time is a stall', async () => {
  const { clock, stalls, watch } = watched();
  void watch.watch(deferred().promise);
  for (const atMs of [1500, 3000, 4500]) {
    await clock.turn(atMs);
    watch.moved();
  }
  await clock.turn(6499);
  assert.equal(stalls(), 0);
  assert.equal(clock.timers, 1);
  await clock.turn(6500);
  assert.equal(stalls(), 1);
});
