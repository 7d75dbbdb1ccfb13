/** What every host promises of time and randomness: cases for the real host and the simulated one. */
import assert from 'node:assert/strict';
import { type Case, until } from './tools.ts';

export const clockCases: readonly Case[] = [
  [
    'timers come in their order, a cancelled one never',
    async (host) => {
      const seen: number[] = [];
      const begin = host.clock.now();
      for (const ms of [30, 5, 60]) host.clock.after(ms, () => seen.push(ms));
      const cancelled = host.clock.after(20, () => seen.push(20));
      host.clock.after(10, () => cancelled.cancel());
      await until(host, () => seen.length === 3);
      assert.deepEqual(seen, [5, 30, 60]);
      assert.ok(host.clock.now() - begin >= 59);
      cancelled.cancel();
      host.clock.after(1e12, () => seen.push(0)).cancel();
    },
  ],
  [
    'the end of the turn comes after all microtasks and before the time goes on',
    async (host) => {
      const seen: string[] = [];
      host.clock.after(1, () => seen.push('timer'));
      host.clock.endOfTurn(() => seen.push('end'));
      await Promise.resolve().then(() => Promise.resolve());
      queueMicrotask(() => queueMicrotask(() => seen.push('microtask')));
      await until(host, () => seen.length === 3);
      assert.deepEqual(seen, ['microtask', 'end', 'timer']);
    },
  ],
  [
    'random bytes differ and fractions lie in [0, 1)',
    async (host) => {
      assert.equal(host.random.bytes(16).length, 16);
      assert.notDeepEqual(host.random.bytes(16), host.random.bytes(16));
      for (let i = 0; i < 100; i++) {
        const x = host.random.fraction();
        assert.ok(x >= 0 && x < 1);
      }
    },
  ],
];
