/** When calls go to threads, and when they come back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Pace } from '../../src/host/node-pace.ts';
import { RunQueue } from '../../src/host/node-run-queue.ts';

const cached = 0.003;
const cold = 0.09;

/** a machine with processors to spare */
const idle = { sinceLast: () => 0 };

function callsUntilSlow(pace: Pace, ms: number, length = 4096): number {
  for (let calls = 1; calls <= 10_000; calls += 1) {
    pace.took(ms, length);
    if (pace.slow) return calls;
  }
  return Number.POSITIVE_INFINITY;
}

/**
 * Lets it run on threads; each call takes `threadMs` there, one that is tried `trialMs`. How many calls until it is
 * back.
 */
function callsUntilQuick(pace: Pace, threadMs: number, trialMs: number): number {
  for (let calls = 1; calls <= 100_000; calls += 1) {
    if (pace.mayTry()) pace.took(trialMs, 4096);
    else pace.tookOnThread(threadMs);
    if (!pace.slow) return calls;
  }
  return Number.POSITIVE_INFINITY;
}

test('one stall, or some calls of a cold disk, move a file to threads; cached calls never do', () => {
  assert.equal(callsUntilSlow(new Pace(idle), 1000), 1);
  assert.ok(callsUntilSlow(new Pace(idle), 10) <= 3);
  assert.ok(callsUntilSlow(new Pace(idle), cold) < 500);
  assert.equal(callsUntilSlow(new Pace(idle), cached), Number.POSITIVE_INFINITY);
  assert.equal(callsUntilSlow(new Pace(idle), 0.4, 1 << 20), Number.POSITIVE_INFINITY, 'a megabyte takes its time');
});

test('a thread that waited for its processor is not taken for a slow disk', () => {
  const waits = new Pace({ sinceLast: () => 50 });
  for (let i = 0; i < 10_000; i += 1) waits.took(i % 10 === 0 ? 50 : cached, 4096);
  assert.equal(waits.slow, false);
  const untold = new Pace(idle);
  for (let i = 0; i < 100_000; i += 1) untold.took(i % 400 === 0 ? 8 : cached, 4096);
  assert.equal(untold.slow, false, 'where the kernel does not tell, short waits are forgiven');
});

test('a thread that spins beside others learns how long it waited', () => {
  const queue = new RunQueue();
  queue.sinceLast();
  const waited = queue.sinceLast();
  assert.ok(waited >= 0 && waited < 1000, `${waited} ms`);
});

test('a file comes back once its calls are quick, and stays while they are not', () => {
  const slow = () => {
    const pace = new Pace(idle);
    callsUntilSlow(pace, 50);
    return pace;
  };
  assert.ok(callsUntilQuick(slow(), 0.05, cached) < 2000);
  assert.equal(callsUntilQuick(slow(), 0.12, cold), Number.POSITIVE_INFINITY);
});

test('a device that takes long is not tried at once', () => {
  fc.assert(
    fc.property(fc.double({ min: 1.5, max: 10_000, noNaN: true }), (threadMs) => {
      const pace = new Pace(idle);
      callsUntilSlow(pace, threadMs);
      for (let i = 0; i < 1000; i += 1) {
        assert.equal(pace.mayTry(), false);
        pace.tookOnThread(threadMs);
      }
    }),
  );
});
