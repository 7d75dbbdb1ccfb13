/** Each way in which a daemon cannot start: one clear line, and an exit code of its own. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, readFile, truncate, unlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { RunResult } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { blockstep, blockstepIn, TestPair } from './pair-support.ts';

/** A pair that was in sync once and is stopped. */
async function stoppedPair(t: TestContext): Promise<TestPair> {
  const pair = await TestPair.make(t);
  const demo = await pair.demo();
  await pair.until('a', 'in sync', (entry) => entry.inSync === true);
  demo.kill('SIGINT');
  assert.equal(await demo.exited, 0, demo.stdout() + demo.stderr());
  return pair;
}

/** The last line, which is the error: what stands before it is the log. */
function assertFailed(result: RunResult, code: number, message: RegExp, from: 'stdout' | 'stderr' = 'stderr'): void {
  assert.match(result[from].trimEnd().split('\n').at(-1) ?? '', message);
  assert.equal(result.code, code, result.stderr);
}

test('no argument, a wrong one, and a configuration with a typo: exit code 2', async (t) => {
  assert.equal((await blockstep()).code, 2);
  assertFailed(await blockstep('staus'), 2, /Did you mean status\?/);
  assertFailed(await blockstep('failover', '--to', 'yesterday'), 2, /^blockstep: .*latest, checkpoint/);
  const file = join(await temporaryFolder(t), 'c.yaml');
  await writeFile(file, 'name: a\nvolum: x\n');
  assertFailed(await blockstep('run', '-c', file), 2, /^blockstep: .*c\.yaml:2:1: volum: .*did you mean volume/);
  assertFailed(await blockstep('run', '-c', `${file}.not`), 2, /^blockstep: .*there is no such file$/);
});

test('nobody there: exit code 7, and a line that says what to do', async (t) => {
  const folder = await temporaryFolder(t);
  assertFailed(await blockstep('status', '-d', folder), 7, /npm start/);
  assertFailed(await blockstep('failover', '-d', join(folder, 'none')), 7, /npm start/);
});

test('without -c and -d it is ./data, or else ./blockstep.yaml', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  const folder = await temporaryFolder(t);
  const status = (): Promise<RunResult> => blockstepIn(folder, 'status');
  assertFailed(
    await status(),
    7,
    /^blockstep: no daemon has its data in data, .* no blockstep\.yaml here; say -c FILE/,
  );
  const config = await readFile(pair.config('b'), 'utf8');
  await writeFile(join(folder, 'blockstep.yaml'), config);
  assertFailed(await status(), 7, /^b is not running; start it: npx blockstep run -c blockstep\.yaml$/, 'stdout');
  await mkdir(join(folder, 'data'));
  await writeFile(join(folder, 'data', 'c.yaml'), config.replace('name: b', 'name: c'));
  assertFailed(await status(), 7, /^c is not running/, 'stdout');
});

test('a disk that is to be a device is not made as a file in its place', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  await pair.edit('a', './a/disk0.img', '/dev/blockstep-none/disk0');
  const started = await blockstep('run', '-c', pair.config('a'));
  assertFailed(started, 5, /^blockstep: disk disk0: there is no device \/dev\/blockstep-none\/disk0$/);
  assert.equal(existsSync('/dev/blockstep-none'), false);
});

test('a data folder in use says by whom: exit code 3', async (t) => {
  const pair = await TestPair.make(t);
  await pair.demo();
  const { pid } = await pair.entry('b');
  const second = await blockstep('run', '-c', pair.config('b'));
  assertFailed(second, 3, new RegExp(`^blockstep: .*/b is in use by b \\(process ${pid}\\)$`));
});

test('a port in use: exit code 4', async (t) => {
  const pair = await stoppedPair(t);
  const port = Number(/nbd: 127\.0\.0\.1:(\d+)/.exec(await readFile(pair.config('a'), 'utf8'))?.[1]);
  const other = createServer();
  await new Promise<void>((listening) => other.listen(port, '127.0.0.1', listening));
  t.after(() => other.close());
  assertFailed(await blockstep('run', '-c', pair.config('a')), 4, new RegExp(`^blockstep: .*127\\.0\\.0\\.1:${port}`));
  const demo = await pair.command('demo');
  assertFailed(demo, 4, new RegExp(`^blockstep: a could not start: .*127\\.0\\.0\\.1:${port}`));
});

test('an image that is missing, or of another size: exit code 5, and nothing is made in its place', async (t) => {
  const pair = await stoppedPair(t);
  await truncate(pair.image('a'), 2 ** 20);
  assertFailed(await blockstep('run', '-c', pair.config('a')), 5, /^blockstep: .*disk0\.img .*: write `size: 1048576`/);
  await unlink(pair.image('a'));
  assertFailed(await blockstep('run', '-c', pair.config('a')), 5, /^blockstep: .*disk0\.img/);
  await assert.rejects(readFile(pair.image('a')), { code: 'ENOENT' });
});
