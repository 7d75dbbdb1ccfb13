/** The configuration file: the example that users copy, and each way of being wrong, by line and reason. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseConfig, readConfig } from '../../src/cli/config.ts';
import { checkPairConfig } from '../../src/pair/config.ts';
import { BlockError } from '../../src/util/errors.ts';

const root = join(import.meta.dirname, '..', '..');
const exampleFile = join(root, 'examples', 'blockstep.yaml');
const example = readFileSync(exampleFile, 'utf8');

/** What is said about the example with `from` replaced by `to`. */
function complaint(from: string | RegExp, to: string): string {
  const text = example.replace(from, to);
  assert.notEqual(text, example, `the example holds ${String(from)}`);
  try {
    parseConfig(text, 'b.yaml');
  } catch (error) {
    assert(error instanceof BlockError);
    assert.equal(error.code, 'invalid-option');
    assert.doesNotMatch(error.message, /\n/);
    return error.message;
  }
  return assert.fail(`accepted: ${to}`);
}

/** The line of the example, from 1, that holds the text. */
function lineOf(text: string): number {
  const index = example.split('\n').findIndex((line) => line.includes(text));
  assert.notEqual(index, -1, text);
  return index + 1;
}

test('the example file is a correct configuration, with the defaults that it says', async () => {
  const config = await readConfig(exampleFile);
  assert.equal(config.name, 'north');
  assert.deepEqual(config.disks, [
    { name: 'disk0', file: join(root, 'examples', 'north', 'disk0.img'), size: 10 * 2 ** 30 },
  ]);
  assert.deepEqual(config.listen.nbd, [{ type: 'inet', host: '127.0.0.1', port: 10809 }]);
  const defaults = example.indexOf('# What follows are the defaults');
  assert.notEqual(defaults, -1);
  assert.deepEqual(parseConfig(example.slice(0, defaults), exampleFile), config);
  checkPairConfig(config);
});

test('the README shows the example file as it is', () => {
  const lines = example.split('\n').filter((line) => line !== '' && !line.startsWith('# One daemon'));
  const readme = readFileSync(join(root, 'README.md'), 'utf8');
  for (const line of lines) assert(readme.includes(line), line);
});

test('a wrong value is told with file, line, column and what was expected', () => {
  const line = lineOf('size: 10GiB');
  assert.equal(
    complaint('size: 10GiB', 'size: 10GB'),
    `b.yaml:${line}:11: disks.0.size: expected a size such as 10GiB (units: KiB, MiB, GiB, TiB), got "10GB"`,
  );
  assert.match(complaint('size: 10GiB', 'size: 1000'), /disks\.0\.size: expected a multiple of 512 bytes/);
  assert.match(complaint('size: 10GiB', 'size: 0'), /disks\.0\.size: .*not zero/);
  assert.match(
    complaint('role: primary', 'role: main'),
    /^b\.yaml:7:7: role: expected one of primary, secondary, got "main"$/,
  );
  assert.match(complaint('127.0.0.1:10809', '127.0.0.1:108090'), /listen\.nbd\.0: expected HOST:PORT, .*108090/);
  assert.match(complaint('stall-ms-max: 2000', 'stall-ms-max: 1.5'), /stall-ms-max: expected /);
  assert.match(complaint('insecure: true', 'insecure: maybe'), /insecure: expected true or false/);
  assert.match(complaint('window: 16MiB', 'window: [1]'), /window: expected a size/);
});

test('an unknown key is refused at its place, with the nearest known one', () => {
  const line = lineOf('heartbeat-ms');
  assert.equal(
    complaint('heartbeat-ms', 'heart-beat-ms'),
    `b.yaml:${line}:1: heart-beat-ms: is not a known key; did you mean heartbeat-ms?`,
  );
  assert.match(complaint('size: 10GiB', 'sise: 10GiB'), /:13:5: disks\.0\.sise: .*did you mean size\?/);
  assert.match(complaint('volume: example', 'volume: example\nzebra: 1'), /zebra: is not a known key$/);
});

test('a missing key is named', () => {
  assert.match(complaint('volume: example', ''), /volume: is missing$/);
  assert.match(complaint('size: 10GiB', ''), /disks\.0\.size: is missing$/);
  assert.match(complaint('role: primary', ''), /role: is missing$/);
});

test('what is no YAML, or no mapping, is refused with its place', () => {
  assert.match(complaint('disks:', 'disks: {'), /^b\.yaml:\d+:\d+: /);
  assert.match(complaint(/[\s\S]*/, '- a'), /^b\.yaml:1:1: expected a mapping/);
  assert.match(complaint(/[\s\S]*/, ''), /^b\.yaml:1:1: expected a mapping/);
  assert.match(complaint('name: north', 'name: north\nname: north'), /^b\.yaml:6:1: .*unique/);
  assert.match(complaint('volume: example', 'volume: &v example\n? *v\n: 1'), /^b\.yaml:\d+:\d+: /);
});

/** The example with lines added, as a configuration. */
const withLines = (...lines: string[]) =>
  parseConfig(example.replace(/# What follows are the defaults[\s\S]*/, `${lines.join('\n')}\n`), exampleFile);

test('checkpoints: what is said in the file, and what holds where it says nothing', () => {
  const { store, mode, acknowledge, checkpointMs, overlays, resync } = withLines();
  assert.deepEqual(
    { store, mode, acknowledge, checkpointMs, overlays, resync },
    {
      store: 'overlays',
      mode: 'standby',
      acknowledge: 'flush',
      checkpointMs: 1000,
      overlays: { folder: join(root, 'examples', 'north'), sync: true },
      resync: 'give-up-checkpoint',
    },
  );
  for (const [text, ms] of [
    ['500ms', 500],
    ['2m', 120_000],
    ['1.5 s', 1500],
    ['24h', 86_400_000],
    ['off', null],
  ]) {
    assert.equal(withLines(`checkpoint: ${text}`).checkpointMs, ms, String(text));
  }
  assert.deepEqual(withLines('overlays: { folder: /fast, sync: false }').overlays, { folder: '/fast', sync: false });
  assert.deepEqual(withLines('overlays: { folder: fast }').overlays, {
    folder: join(root, 'examples', 'fast'),
    sync: true,
  });
  assert.equal(withLines('resync: keep-checkpoint').resync, 'keep-checkpoint');
});

test('a mirror has no checkpoints: no clock, and no word that needs one', () => {
  for (const lines of [['store: mirror'], ['store: mirror', 'checkpoint: off']]) {
    const config = withLines(...lines);
    assert.equal(config.checkpointMs, null);
    checkPairConfig(config);
  }
  const mirror = (key: string, value: string) => () => withLines('store: mirror', `${key}: ${value}`);
  const line = lineOf('# What follows are the defaults') + 1;
  const place = (column: number) => `^BlockError: .*blockstep\\.yaml:${line}:${column}: `;
  assert.throws(mirror('checkpoint', '1s'), new RegExp(`${place(13)}checkpoint: needs \`store: overlays\``));
  assert.throws(mirror('mode', 'lock-step'), new RegExp(`${place(7)}mode: lock-step needs \`store: overlays\``));
  assert.throws(mirror('resync', 'keep-checkpoint'), new RegExp(`${place(9)}resync: keep-checkpoint needs`));
  assert.throws(mirror('overlays', '{ sync: true }'), new RegExp(`${place(11)}overlays: needs \`store: overlays\``));
});

test('a disk has at most 256 TiB', () => {
  const [disk] = withLines().disks;
  assert.ok(disk !== undefined);
  const of = (size: number) => () => checkPairConfig({ ...withLines(), disks: [{ ...disk, size }] });
  of(256 * 2 ** 40)();
  assert.throws(of(256 * 2 ** 40 + 512), /disks\.0\.size: at most 256 TiB; make two of it/);
});

test('lock-step answers locally: another `acknowledge` is refused there, and `local` elsewhere', () => {
  for (const lines of [['mode: lock-step'], ['mode: lock-step', 'acknowledge: local']]) {
    const config = withLines(...lines);
    assert.equal(config.acknowledge, 'local');
    assert.equal(config.checkpointMs, 1000);
    checkPairConfig(config);
  }
  const line = lineOf('acknowledge: ');
  assert.match(
    complaint('mode: standby', 'mode: lock-step'),
    new RegExp(`^b\\.yaml:${line}:14: acknowledge: flush cannot be kept in lock-step`),
  );
  assert.match(complaint('acknowledge: flush', 'acknowledge: local'), /acknowledge: local needs `mode: lock-step`/);
});

test('a wrong value of a key of checkpoints is told at its place', () => {
  const line = lineOf('checkpoint: 1s');
  assert.equal(
    complaint('checkpoint: 1s', 'checkpoint: 1000'),
    `b.yaml:${line}:13: checkpoint: expected a time such as 1s, 500ms or 2m, or off, got 1000`,
  );
  for (const text of ['0s', '1ms', '25h']) {
    assert.match(complaint('checkpoint: 1s', `checkpoint: ${text}`), /checkpoint: expected 50ms to 24h, or off$/);
  }
  assert.match(complaint('checkpoint: 1s', 'checkpoint: -1s'), /checkpoint: expected a time/);
  assert.match(complaint('store: overlays', 'store: journal'), /store: expected one of overlays, mirror/);
  assert.match(complaint('mode: standby', 'mode: colo'), /mode: expected one of standby, lock-step/);
  assert.match(complaint('resync: give-up', 'resync: give-it-up'), /resync: expected one of give-up-checkpoint, keep/);
  assert.match(complaint('sync: true', 'sync: perhaps'), /overlays\.sync: expected true or false/);
  assert.match(
    complaint('  folder: ./n', '  foldr: ./n'),
    /overlays\.foldr: is not a known key; did you mean folder\?/,
  );
});

test('contradictions between fields are told: names, disks, timeouts', () => {
  assert.match(complaint('name: south', 'name: north'), /peer\.name: is this side's own name/);
  const two = 'disks:\n  - { name: disk0, size: 1GiB }\n  - name: disk0';
  assert.match(complaint(/disks:.*\n {2}- name: disk0/, two), /disks\.1\.name: "disk0" is the name of disks.0 too/);
  assert.match(complaint('peer-timeout-ms: 2500', 'peer-timeout-ms: 600'), /twice heartbeat-ms/);
});

test('an address that is said twice is told: each listener has its own, and the other side is somewhere else', () => {
  assert.match(
    complaint('192.168.7.1:7802', '192.168.7.1:7801'),
    /^b\.yaml:\d+:16: listen\.replication: 192\.168\.7\.1:7801 is also listen\.supervisor$/,
  );
  assert.match(complaint('192.168.7.1:7801', '127.0.0.1:10809'), /listen\.supervisor: .* is also listen\.nbd\.0/);
  assert.match(
    complaint('192.168.7.2:7801', '192.168.7.1:7801'),
    /peer\.supervisor: 192\.168\.7\.1:7801 is this side's own listen\.supervisor/,
  );
});

test('a socket whose path, from the root, is longer than the system takes is told', () => {
  const path = 'd'.repeat(100);
  assert.match(complaint('127.0.0.1:10809', `unix:${path}`), /listen\.nbd\.0: a path of 1\d\d bytes, 107 at most/);
});

test('pair 19: a replication address beyond loopback is refused without `insecure`', () => {
  assert.match(
    complaint('insecure: true', 'insecure: false'),
    /listen\.supervisor: can be reached from other machines/,
  );
  const text = example.replace('insecure: true', 'insecure: false');
  assert.equal(parseConfig(text, 'b.yaml', { insecure: true }).name, 'north');
  assert.equal(parseConfig(text.replaceAll('192.168.7.1', '127.0.0.1'), 'b.yaml').name, 'north');
});

test('a replication address that listens everywhere needs an advertised one', () => {
  assert.match(complaint('192.168.7.1:7802', '0.0.0.0:7802'), /advertise\.replication/);
  const text = example.replace('192.168.7.1:7802', '0.0.0.0:7802');
  const advertised = parseConfig(`${text}\nadvertise: { replication: "10.0.0.1:7802" }\n`, 'b.yaml');
  assert.deepEqual(advertised.advertise?.replication, { type: 'inet', host: '10.0.0.1', port: 7802 });
});

test('a file that is not there is one clear line', async () => {
  await assert.rejects(
    readConfig('/nonexistent/b.yaml'),
    /^BlockError: \/nonexistent\/b\.yaml: there is no such file$/,
  );
});
