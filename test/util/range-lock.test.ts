import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RangeLock } from '../../src/util/range-lock.ts';

const request = fc.record({ offset: fc.nat(40), length: fc.integer({ min: 1, max: 12 }), shared: fc.boolean() });

test('conflicting requests run one at a time, in the order they came; others are not held up', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(request, { maxLength: 25 }), fc.infiniteStream(fc.nat(3)), async (requests, chance) => {
      const lock = new RangeLock();
      const started: number[] = [];
      const running = new Set<number>();
      const ends = new Map<number, () => void>();
      const conflict = (a: number, b: number): boolean => {
        const [x, y] = [requests[a], requests[b]];
        if (x === undefined || y === undefined || (x.shared && y.shared)) return false;
        return x.offset < y.offset + y.length && y.offset < x.offset + x.length;
      };
      const all = requests.map((each, index) =>
        lock.run(each.offset, each.length, each.shared, () => {
          for (const other of running) assert.ok(!conflict(other, index), `${other} and ${index} run together`);
          started.push(index);
          if (chance.next().value === 0) return undefined;
          running.add(index);
          return new Promise((resolve) => ends.set(index, resolve));
        }),
      );
      while (ends.size > 0 || started.length < requests.length) {
        await new Promise((resolve) => setImmediate(resolve));
        // Whoever has not started waits for somebody who came earlier.
        for (const index of requests.keys()) {
          if (started.includes(index)) continue;
          const blocked = requests.some((_, earlier) => earlier < index && conflict(earlier, index) && !done(earlier));
          assert.ok(blocked, `${index} waits for nobody`);
        }
        const [first] = [...ends.keys()].slice((chance.next().value ?? 0) % ends.size);
        if (first === undefined) continue;
        running.delete(first);
        ends.get(first)?.();
        ends.delete(first);
      }
      await Promise.all(all);
      assert.equal(started.length, requests.length);
      for (const [at, index] of started.entries()) {
        for (const earlier of started.slice(at)) assert.ok(earlier >= index || !conflict(earlier, index));
      }
      assert.ok(lock.idle);

      function done(index: number): boolean {
        return started.includes(index) && !running.has(index);
      }
    }),
    { numRuns: 200 },
  );
});

test('a request that fails, at once or later, lets the next one in', async () => {
  const lock = new RangeLock();
  const failing = lock.run(0, 10, false, () => Promise.reject(new Error('later')));
  const next = lock.run(5, 1, false, () => {
    throw new Error('at once');
  });
  const last = lock.run(5, 1, false, () => undefined);
  await assert.rejects(async () => await failing, /later/);
  await assert.rejects(async () => await next, /at once/);
  await last;
  assert.ok(lock.idle);
  assert.throws(() => lock.run(0, 1, false, () => assert.fail('now')), /now/);
  assert.ok(lock.idle, 'what fails at once holds nothing');
});

test('settled waits for everything that is held', async () => {
  const lock = new RangeLock();
  const hold = await lock.acquire(7, 1);
  let settled = false;
  const waiting = lock.settled().then(() => {
    settled = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(settled, false);
  hold.release();
  hold.release();
  await waiting;
  assert.ok(lock.idle);
});
