/** What supervisors say: every message comes back, every wrong line ends in a sentence (pair.md 13). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  agreeVersion,
  decodeHello,
  decodeMessage,
  encodeMessage,
  type Hello,
  type Message,
  versions,
} from '../../src/pair/messages.ts';
import { helloOf } from './machine.ts';

const id = '0123456789abcdef';
export const hello = helloOf('alpha', {
  role: 'primary',
  generation: { id, number: 3 },
  disks: [{ name: 'd', size: 1024 }],
  instance: 'ab',
  uris: ['nbd://127.0.0.1:2/d'],
});
const lineOf = (message: Message | Hello): string => new TextDecoder().decode(encodeMessage(message)).trimEnd();

const messages: readonly Message[] = [
  { type: 'heartbeat', inSync: true },
  { type: 'target', differs: null },
  { type: 'refused', id },
  { type: 'flush' },
  { type: 'flushed' },
  { type: 'checksum', request: 1, disk: 'd', offset: 0, length: 65536, block: 65536 },
  { type: 'checksums', request: 1, checksums: ['00'], error: null },
  { type: 'attach', how: 'sync', bytes: 0 },
  { type: 'attached', exports: { d: 'd.s.i' }, checkpoint: null, fresh: false },
  { type: 'sync-end', generation: { id, number: 1 }, ancestors: [id] },
  { type: 'took', id, checkpoint: 3 },
  { type: 'checkpoint-request' },
  { type: 'checkpoint', request: 1, asked: true },
  { type: 'checkpointed', number: 3, ageMs: 0, request: null },
  { type: 'held', held: { number: 3, forMs: 60_000 } },
  { type: 'held', held: null },
  { type: 'checkpoint-failed', request: 1, reason: 'no space' },
  { type: 'in-step' },
  { type: 'switch-request' },
  { type: 'switch-refused', reason: 'why' },
  { type: 'hand-over', generation: { id, number: 1 } },
  { type: 'took-over', id },
  { type: 'stop-serving' },
  { type: 'stopped-serving' },
  { type: 'resolve' },
  { type: 'goodbye', clean: true },
  { type: 'goodbye-noted' },
];

test('every message and the hello come back as they were sent, each on one line', () => {
  for (const message of messages) {
    const line = lineOf(message);
    assert.ok(!line.includes('\n'));
    assert.deepEqual(decodeMessage(line), message);
  }
  assert.deepEqual(decodeHello(lineOf(hello)), hello);
});

test('pair 13: an unknown version is refused in words that name both ranges', () => {
  const newer = { ...hello, versions: { min: versions.max + 1, max: versions.max + 2 } };
  assert.throws(
    () => decodeHello(JSON.stringify({ ...newer, role: 'captain' })),
    /speaks versions 3 to 4.*this side 1 to 2/,
  );
  assert.throws(() => agreeVersion(newer.versions), /update the older one/);
});

test('pair 13: a range of versions works together, and a hello with more in it than this side knows', () => {
  assert.equal(agreeVersion({ min: 1, max: 9 }), versions.max);
  assert.equal(decodeHello(JSON.stringify({ ...hello, versions: { min: 1, max: 9 }, colour: 'blue' })).name, 'alpha');
});

test('a peer that is not blockstep is called that, with what it said', () => {
  for (const said of ['SSH-2.0-OpenSSH_9.2', 'HTTP/1.1 400 Bad Request', '{"QMP": {}}', '[]', 'null']) {
    assert.throws(() => decodeHello(said), /not a blockstep supervisor: it said/);
  }
});

test('a wrong field of a hello is named', () => {
  assert.throws(() => decodeHello(JSON.stringify({ ...hello, disks: 5 })), /hello is wrong at disks/);
});

test('whatever arrives is a message, or an error of ours', () => {
  const mangled = fc.oneof(
    fc.string(),
    fc.json(),
    fc
      .tuple(fc.constantFrom(...messages), fc.string(), fc.jsonValue())
      .map(([m, k, v]) => JSON.stringify({ ...m, [k]: v })),
  );
  fc.assert(
    fc.property(mangled, (line) => {
      for (const decode of [decodeHello, decodeMessage]) {
        try {
          decode(line);
        } catch (error) {
          assert.equal((error as { code?: string }).code, 'protocol-error');
        }
      }
    }),
  );
});
