import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LinkPace } from '../../src/block/link-pace.ts';
import type { HostClock } from '../../src/host/host.ts';

const kib = 1024;
const granule = 64 * kib;
const mib = 1024 * kib;

function made(latencyMsMax: number): { pace: LinkPace; at: (ms: number) => void } {
  let nowMs = 0;
  const clock = { now: () => nowMs } as unknown as HostClock;
  return {
    pace: new LinkPace(clock, granule, 16 * mib, latencyMsMax),
    at: (ms) => {
      nowMs = ms;
    },
  };
}

/** A link that carries `rate` bytes a millisecond: as much is kept under way as the pace allows. */
function copyOver(rate: number, latencyMsMax: number, totalBytes: number) {
  const { pace, at } = made(latencyMsMax);
  const underWay: { length: number; startMs: number; endMs: number }[] = [];
  let nowMs = 0;
  let linkFreeMs = 0;
  let sent = 0;
  let latencyMsWorst = 0;
  let underWayWorst = 0;
  while (sent < totalBytes || underWay.length > 0) {
    const bytes = underWay.reduce((sum, chunk) => sum + chunk.length, 0);
    underWayWorst = Math.max(underWayWorst, bytes);
    if (sent < totalBytes && bytes + granule <= pace.bytes) {
      const length = Math.min(mib, Math.floor((pace.bytes - bytes) / granule) * granule);
      linkFreeMs = Math.max(linkFreeMs, nowMs) + length / rate;
      const chunk = { length, startMs: nowMs, endMs: linkFreeMs };
      pace.left(chunk, bytes + length);
      underWay.push(chunk);
      sent += length;
      continue;
    }
    const first = underWay.shift();
    assert.ok(first !== undefined);
    nowMs = first.endMs;
    at(nowMs);
    latencyMsWorst = Math.max(latencyMsWorst, first.endMs - first.startMs);
    pace.answered(first);
  }
  return { latencyMsWorst, underWayWorst };
}

test('pair 6: a slow link is not overloaded: nothing is under way for longer than half the stall bound', () => {
  for (const rate of [300, 1000, 3000, 10_000]) {
    const { latencyMsWorst } = copyOver(rate, 500, 64 * mib);
    assert.ok(latencyMsWorst <= 1000, `${rate} bytes a ms: ${latencyMsWorst} ms`);
  }
});

test('over a quick link all is used that may be', () => {
  assert.equal(copyOver(1_000_000, 500, 512 * mib).underWayWorst, 16 * mib);
});

test('early answers say nothing about more than was under way', () => {
  const { pace, at } = made(500);
  for (let i = 0; i < 100; i++) {
    at(i);
    pace.left(pace, 4 * kib);
    pace.answered(pace);
  }
  assert.equal(pace.bytes, granule);
});

test('a late answer halves what was under way, once for all that were under way together', () => {
  const { pace, at } = made(500);
  for (let i = 0; i < 7; i++) {
    pace.left(pace, pace.bytes);
    pace.answered(pace);
  }
  assert.equal(pace.bytes, 8 * mib);
  const chunks = Array.from({ length: 8 }, () => ({}));
  for (const [index, chunk] of chunks.entries()) pace.left(chunk, (index + 1) * mib);
  at(1000);
  for (const chunk of chunks) pace.answered(chunk);
  assert.equal(pace.bytes, mib / 2);
});
