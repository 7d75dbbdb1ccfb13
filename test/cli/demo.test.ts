/** The main job on real processes: write to a disk, lose its host, go on with every flushed byte. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { requireTools } from '../support/tools.ts';
import { type Entry, TestPair } from './pair-support.ts';

const mebibyte = 2 ** 20;

/** Writes a pattern and flushes; the tool reports what went wrong. */
async function writePattern(uri: string, pattern: number, offset: number, length: number): Promise<void> {
  const commands = ['-c', `write -P ${pattern} ${offset} ${length}`, '-c', 'flush'];
  const result = await run('qemu-io', ['-f', 'raw', ...commands, uri]);
  assert.equal(result.code, 0, result.stdout + result.stderr);
}

async function readPattern(uri: string, pattern: number, offset: number, length: number): Promise<void> {
  const result = await run('qemu-io', ['-f', 'raw', '-r', '-c', `read -P ${pattern} ${offset} ${length}`, uri]);
  assert.equal(result.code, 0, result.stdout + result.stderr);
  assert.doesNotMatch(result.stdout, /failed/);
}

const inSync = (entry: Entry): boolean => entry.inSync === true;
const uriOf = (entry: Entry): string => entry.uri ?? assert.fail(`no URI: ${JSON.stringify(entry)}`);
const checkpointOf = (entry: Entry): { number: number; ageMs: number } =>
  (entry.checkpoint as { number: number; ageMs: number } | null) ??
  assert.fail(`no checkpoint: ${JSON.stringify(entry)}`);
const pidOf = (entry: Entry): number => entry.pid ?? assert.fail(`no process: ${JSON.stringify(entry)}`);

test('killed -9, failed over, started again: every flushed byte stays, and so do the roles', async (t) => {
  requireTools('qemu-io', 'nbdcopy');
  const pair = await TestPair.make(t);
  const demo = await pair.demo();
  const first = await pair.until('a', 'in sync', inSync);
  assert.equal(first.role, 'primary');

  const image = join(pair.data, 'written.img');
  const content = randomBytes(4 * mebibyte);
  await writeFile(image, content);
  const copied = await run('nbdcopy', ['--flush', image, uriOf(first)]);
  assert.equal(copied.code, 0, copied.stderr);
  await writePattern(uriOf(first), 0xa1, 512 * mebibyte, mebibyte);
  process.kill(pidOf(first), 'SIGKILL');
  await pair.until('a', 'gone', (entry) => entry.role === undefined);

  const failover = await pair.command('failover');
  assert.equal(failover.code, 0, failover.stderr);
  const promoted = await pair.entry('b');
  assert.equal(promoted.role, 'primary');
  assert.match(failover.stdout, /b is primary; latest as of .*\n?b serves nbd:/);
  await readPattern(uriOf(promoted), 0xa1, 512 * mebibyte, mebibyte);
  const back = join(pair.data, 'read.img');
  const read = await run('nbdcopy', [uriOf(promoted), back]);
  assert.equal(read.code, 0, read.stderr);
  const compared = await run('cmp', ['-n', String(4 * mebibyte), image, back]);
  assert.equal(compared.code, 0, compared.stdout);
  await writePattern(uriOf(promoted), 0xb2, 600 * mebibyte, mebibyte);

  const restarted = await pair.run('a');
  const target = await pair.until('a', 'the target, in sync', inSync);
  assert.equal(target.role, 'secondary');
  await pair.until('b', 'in sync', inSync);
  const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', uriOf(target)]);
  assert.notEqual(refused.code, 0, 'what the target shows is read-only');
  await pair.untilSaid(demo, /a died \(SIGKILL\)/);

  demo.kill('SIGINT');
  assert.equal(await demo.exited, 0, demo.stdout() + demo.stderr());
  assert.equal(await restarted.exited, 0, restarted.stderr());

  await pair.demo();
  const again = await pair.until('b', 'in sync', inSync);
  assert.equal(again.role, 'primary');
  await readPattern(uriOf(again), 0xb2, 600 * mebibyte, mebibyte);
  const switched = await pair.command('switch');
  assert.equal(switched.code, 0, switched.stderr);
  const home = await pair.until('a', 'the primary again', (entry) => entry.role === 'primary');
  await readPattern(uriOf(home), 0xb2, 600 * mebibyte, mebibyte);
  await readPattern(uriOf(home), 0xa1, 512 * mebibyte, mebibyte);
});

test('pair 16, 17, 21: read the checkpoint, fail over to it, and the old primary becomes it too', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  // No clock: what is compared below is the state of the command.
  for (const name of ['a', 'b']) await pair.edit(name, 'peer:\n', 'checkpoint: off\npeer:\n');
  const demo = await pair.demo();
  const first = await pair.until('a', 'in sync', inSync);
  await writePattern(uriOf(first), 0x11, 0, 2 * mebibyte);
  const made = await pair.command('checkpoint');
  assert.equal(made.code, 0, made.stderr);
  assert.match(made.stdout, /^checkpoint \d+/);
  await writePattern(uriOf(first), 0x22, mebibyte, mebibyte);

  const offered = await pair.entry('b');
  assert.equal(`checkpoint ${checkpointOf(offered).number}`, /^checkpoint \d+/.exec(made.stdout)?.[0]);
  await readPattern(uriOf(offered), 0x11, 0, 2 * mebibyte);
  await readPattern(uriOf(first), 0x22, mebibyte, mebibyte);
  await pair.untilSaid(demo, /b serves the last checkpoint, read-only: {2}nbd:/);

  process.kill(pidOf(first), 'SIGKILL');
  await pair.until('a', 'gone', (entry) => entry.role === undefined);
  const failover = await pair.command('failover', '--to', 'checkpoint');
  assert.equal(failover.code, 0, failover.stderr);
  assert.match(failover.stdout, /\nb serves nbd:/);
  await readPattern(uriOf(offered), 0x11, 0, 2 * mebibyte);
  await writePattern(uriOf(offered), 0x33, 4 * mebibyte, mebibyte);

  await pair.run('a');
  const target = await pair.until('a', 'the target, in sync', inSync);
  assert.equal(target.role, 'secondary');
  const switched = await pair.command('switch');
  assert.equal(switched.code, 0, switched.stderr);
  const home = await pair.until('a', 'the primary again', (entry) => entry.role === 'primary');
  await readPattern(uriOf(home), 0x11, 0, 2 * mebibyte);
  await readPattern(uriOf(home), 0x33, 4 * mebibyte, mebibyte);
});

test('pair 18: Ctrl-C stops the primary first, then the secondary, both cleanly', async (t) => {
  const pair = await TestPair.make(t);
  const demo = await pair.demo();
  await pair.until('a', 'in sync', inSync);
  demo.kill('SIGINT');
  demo.kill('SIGINT');
  assert.equal(await demo.exited, 0, demo.stdout() + demo.stderr());
  assert.match(demo.stdout(), /a stopped\n[\s\S]*b stopped\n/);
  const timeOf = (name: string, what: RegExp): string =>
    pair
      .log(name)
      .split('\n')
      .find((line) => what.test(line))
      ?.slice(0, 12) ?? assert.fail(pair.log(name));
  assert(timeOf('a', /stopped cleanly/) <= timeOf('b', /stopping/));
  timeOf('b', /stopped cleanly/);
  assert.deepEqual(
    (await pair.status()).map(({ name, error }) => ({ name, known: typeof error })),
    [
      { name: 'a', known: 'string' },
      { name: 'b', known: 'string' },
    ],
  );
});

test('status --json has every promised member, and the table is for people', async (t) => {
  const pair = await TestPair.make(t);
  await pair.demo();
  await pair.until('a', 'in sync', inSync);
  const entries = JSON.parse((await pair.command('status', '--json')).stdout) as Entry[];
  const entry = entries.find((one) => one.name === 'a') ?? assert.fail('a is missing');
  const promised = ['name', 'role', 'pid', 'uri', 'connected', 'inSync', 'generation', 'forwardedBytes', 'lagBytes'];
  for (const member of [...promised, 'checkpoint', 'aloneSince', 'error']) assert(member in entry, member);
  const { number, ageMs } = checkpointOf(
    await pair.until('b', 'keeping a checkpoint', (one) => one.checkpoint !== null),
  );
  assert(number >= 1 && ageMs >= 0);
  assert.equal(entry.error, null);
  const table = await pair.command('status');
  assert.equal(table.code, 0);
  assert.match(table.stdout, /^NAME +ROLE +STATE/);
  assert.match(table.stdout, /^a +primary +in sync/m);
  assert.match(table.stdout, /^b +secondary +in sync +clean +\d+ +\d+, [\d.]+ \w+ ago /m);

  const second = await pair.command('demo');
  assert.equal(second.code, 3);
  assert.match(second.stderr, /^blockstep: .* is in use by a demo \(process \d+\)\n$/);
});
