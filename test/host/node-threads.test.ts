/** How files share the threads on which slow calls wait. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Pace } from '../../src/host/node-pace.ts';
import { FileThreads, ThreadPool } from '../../src/host/node-threads.ts';

/** A file whose calls end when the test says so. */
class Slow {
  readonly threads: FileThreads;
  readonly started: PromiseWithResolvers<void>[] = [];

  constructor(pool: ThreadPool) {
    this.threads = new FileThreads(-1, pool, new Pace({ sinceLast: () => 0 }));
  }

  call(): Promise<void> {
    return this.threads.run(() => {
      const call = Promise.withResolvers<void>();
      this.started.push(call);
      return call.promise;
    });
  }
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

test('a file that hangs has a share of the threads, smaller when others need some, and a quarter is never taken', async () => {
  const pool = new ThreadPool(8);
  const [one, other] = [new Slow(pool), new Slow(pool)];
  const calls = Array.from({ length: 10 }, () => one.call());
  assert.equal(one.started.length, 6);
  const more = Array.from({ length: 5 }, () => other.call());
  assert.equal(other.started.length, 3);
  for (const call of one.started.slice(0, 4)) call.resolve();
  await turn();
  assert.equal(one.started.length, 7, 'two go on beside the one that may now start');
  for (let i = 0; i < 10; i += 1) {
    one.started[i]?.resolve();
    await turn();
  }
  await Promise.all(calls);
  assert.equal(other.started.length, 3, 'its line moves when one of its own ends');
  other.started[0]?.resolve();
  await turn();
  assert.equal(other.started.length, 5, 'alone it has six again');
  for (const call of other.started) call.resolve();
  await Promise.all(more);
  await other.threads.settled();
  assert.equal(other.threads.oldestMs, 0);
});

test('a call that fails frees its thread as one that succeeds', async () => {
  const file = new Slow(new ThreadPool(1));
  const [first, second] = [file.call(), file.call()];
  assert.equal(file.started.length, 1);
  assert.ok(file.threads.oldestMs >= 0);
  const settled = file.threads.settled();
  file.started[0]?.reject(new Error('gone'));
  await assert.rejects(first, /gone/);
  await turn();
  file.started[1]?.resolve();
  await second;
  await settled;
});
