import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CopyPace } from '../../src/jobs/copy-pace.ts';

const kib = 1024;
const granule = 64 * kib;
const mib = 1024 * kib;

/** A link that carries `rate` bytes a millisecond: the copy keeps as much under way as the pace allows. */
function copyOver(rate: number, latencyMsMax: number, totalBytes: number) {
  const pace = new CopyPace(granule, 16 * mib, latencyMsMax);
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
      underWay.push({ length, startMs: nowMs, endMs: linkFreeMs });
      sent += length;
      continue;
    }
    const first = underWay.shift();
    assert.ok(first !== undefined);
    nowMs = first.endMs;
    latencyMsWorst = Math.max(latencyMsWorst, first.endMs - first.startMs);
    pace.took(first.length, first.startMs, nowMs);
  }
  return { latencyMsWorst, underWayWorst };
}

test('pair 6: a copy over a slow link leaves room: nothing is under way for longer than half the stall bound', () => {
  for (const rate of [300, 1000, 3000, 10_000]) {
    const { latencyMsWorst } = copyOver(rate, 500, 64 * mib);
    assert.ok(latencyMsWorst <= 1000, `${rate} bytes a ms: ${latencyMsWorst} ms`);
  }
});

test('over a quick link a copy uses all it may', () => {
  assert.equal(copyOver(1_000_000, 500, 512 * mib).underWayWorst, 16 * mib);
});

test('late chunks that were under way together halve the pace once', () => {
  const pace = new CopyPace(granule, 16 * mib, 500);
  for (let i = 0; i < 7; i++) pace.took(pace.bytes, 0, 1);
  assert.equal(pace.bytes, 8 * mib);
  for (let i = 0; i < 8; i++) pace.took(mib, 10, 1000 + i);
  assert.equal(pace.bytes, 4 * mib);
  pace.took(mib, 2000, 3000);
  assert.equal(pace.bytes, 2 * mib);
});
