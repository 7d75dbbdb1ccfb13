/** Sizes, times and addresses as people write and read them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nearest } from '../../src/cli/nearest.ts';
import {
  formatAddress,
  formatDuration,
  formatMoment,
  formatSize,
  parseAddress,
  parseDuration,
  parseSize,
} from '../../src/cli/units.ts';

test('sizes have binary units; decimal ones and fractions of a byte are refused', () => {
  const sizes = { '1GiB': 2 ** 30, '512 MiB': 2 ** 29, '1.5k': 1536, '4096': 4096, '2T': 2 ** 41 };
  for (const [text, bytes] of Object.entries(sizes)) assert.equal(parseSize(text), bytes, text);
  for (const text of ['1GB', '-1', '', 'GiB', '1.0001k', '9999999P', '0x10', '1e3', 'NaN']) {
    assert.equal(parseSize(text), null, text);
  }
});

test('times have a unit; parts of a millisecond are refused', () => {
  const times = { '500ms': 500, '1s': 1000, '1.5 s': 1500, '2m': 120_000, '2min': 120_000, '1h': 3_600_000 };
  for (const [text, ms] of Object.entries(times)) assert.equal(parseDuration(text), ms, text);
  for (const text of ['1', '1.0001s', '-1s', 's', '', '1d', '1S', 'off']) assert.equal(parseDuration(text), null, text);
});

test('what is shown has three digits and a unit', () => {
  assert.deepEqual([0, 999, 1536, 123_456_789, 2 ** 30, 1023 * 1024].map(formatSize), [
    '0 B',
    '999 B',
    '1.50 KiB',
    '118 MiB',
    '1 GiB',
    '1023 KiB',
  ]);
  assert.deepEqual([5, 4200, 90_000, 7_260_000, 300_000_000].map(formatDuration), [
    '5 ms',
    '4.2 s',
    '1 min',
    '2 h 1 min',
    '3 days',
  ]);
  assert.equal(formatMoment(0), '1970-01-01T00:00:00Z');
});

test('addresses read back as they are written', () => {
  for (const text of ['127.0.0.1:10809', '[::1]:80', 'host.example:0', 'unix:/run/a.sock']) {
    const address = parseAddress(text);
    assert(address !== null, text);
    assert.equal(formatAddress(address), text);
  }
  for (const text of ['localhost', ':80', '127.0.0.1:65536', 'unix:', '::1:80', 'a b:1']) {
    assert.equal(parseAddress(text), null, text);
  }
});

test('a typo finds its word, something else finds none', () => {
  assert.equal(nearest('heart-beat-ms', ['heartbeat-ms', 'peer-timeout-ms']), 'heartbeat-ms');
  assert.equal(nearest('Role', ['role', 'name']), 'role');
  assert.equal(nearest('zebra', ['role', 'name']), null);
});
