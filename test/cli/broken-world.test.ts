/**
 * Disks that are full or cannot be written, a secondary that hangs, a peer that is something else: on real processes.
 */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type RunResult, run } from '../support/process.ts';
import { requireTools } from '../support/tools.ts';
import { type Entry, TestPair } from './pair-support.ts';

requireTools('qemu-io', 'nbdcopy', 'unshare');

const inSync = (entry: Entry): boolean => entry.inSync === true;

/** A file system of `mebibytes` under the folder where the daemon's image is. */
const tmpfs = (mebibytes: number): string => `mount -t tmpfs -o size=${mebibytes}m none . && cd "$PWD"`;

async function qemuIo(pair: TestPair, ...commands: string[]): Promise<RunResult> {
  const { uri } = await pair.entry('a');
  const args = commands.flatMap((command) => ['-c', command]);
  return run('qemu-io', ['-f', 'raw', ...args, uri ?? assert.fail('no URI')]);
}

function assertDone(result: RunResult): void {
  assert.equal(result.code, 0, result.stdout + result.stderr);
  assert.doesNotMatch(result.stdout + result.stderr, /failed|error/i);
}

async function configured(t: TestContext): Promise<TestPair> {
  const pair = await TestPair.make(t);
  await pair.configure();
  return pair;
}

test("the secondary's disk is full: the user sees no error, the primary goes on alone", async (t) => {
  const pair = await configured(t);
  await pair.ownDisk('b');
  await pair.runOnOwnDisk('b', tmpfs(24));
  await pair.run('a');
  await pair.until('a', 'in sync', inSync);
  assertDone(await qemuIo(pair, 'write -P 0x11 0 8M', 'flush', 'write -P 0x22 8M 64M', 'flush'));
  await pair.until('a', 'alone', (entry) => entry.inSync === false && entry.aloneSince !== null);
  assertDone(await qemuIo(pair, 'read -P 0x11 0 8M', 'read -P 0x22 8M 64M'));
});

test('pair 11: no space below the overlays: the user sees no error, and the checkpoint is kept if so said', async (t) => {
  const pair = await configured(t);
  for (const name of ['a', 'b']) await pair.edit(name, 'size: 1GiB', 'size: 128MiB');
  const keep = 'checkpoint: off\noverlays: { folder: ./b-disk }\nresync: keep-checkpoint\n';
  await pair.edit('b', 'peer:\n', `${keep}peer:\n`);
  await mkdir(join(pair.data, 'b-disk'));
  await pair.runOnOwnDisk('b', tmpfs(24));
  await pair.run('a');
  await pair.until('a', 'in sync', inSync);
  assertDone(await qemuIo(pair, 'write -P 0x11 0 64M', 'flush'));
  assert.match((await pair.command('status')).stdout, /^b: .* for the overlays, which take up to /m);
  // Checkpoints that are made early give space back: so until one comes too late.
  for (let round = 0; (await pair.entry('a')).inSync === true; round += 1) {
    assert(round < 20, 'the overlays do not fill their disk');
    assertDone(await qemuIo(pair, `write -P ${round} 0 32M`, `write -P ${round} 32M 32M`, 'flush'));
  }
  const apart = await pair.until('b', 'apart', (entry) => /checkpoint cannot be kept/.test(String(entry.error)));
  assert.notEqual(apart.checkpoint, null);
  const kept = join(pair.data, 'kept.img');
  const back = join(pair.data, 'back.img');
  assertDone(await run('nbdcopy', [String(apart.uri), kept]));

  process.kill((await pair.entry('a')).pid ?? assert.fail('a is gone'), 'SIGKILL');
  await pair.until('b', 'without a primary', (entry) => entry.connected === false);
  const failover = await pair.command('failover', '--to', 'checkpoint');
  assert.equal(failover.code, 0, failover.stderr);
  assertDone(await run('nbdcopy', [String(apart.uri), back]));
  assertDone(await run('cmp', [kept, back]));
});

test("the primary's own disk is full: the user gets ENOSPC, and what was written stays", async (t) => {
  const pair = await configured(t);
  await pair.ownDisk('a');
  await pair.run('b');
  await pair.runOnOwnDisk('a', tmpfs(24));
  await pair.until('a', 'in sync', inSync);
  assertDone(await qemuIo(pair, 'write -P 0x11 0 8M', 'flush'));
  const full = await qemuIo(pair, 'write -P 0x22 8M 64M');
  assert.match(full.stdout + full.stderr, /No space left on device/);
  assertDone(await qemuIo(pair, 'read -P 0x11 0 8M'));
});

test('an image that cannot be written: one line, exit code 5', async (t) => {
  const pair = await configured(t);
  await pair.ownDisk('a');
  const readOnly = `${tmpfs(24)} && truncate -s 1G disk0.img && mount -o remount,ro .`;
  const result = await run('unshare', pair.onOwnDisk('a', readOnly));
  assert.equal(result.code, 5, result.stderr);
  assert.match(result.stderr.trimEnd().split('\n').at(-1) ?? '', /^blockstep: .*disk0\.img/);
});

test('pair 6: a secondary that hangs holds no user back for good, and gets what it missed', async (t) => {
  const pair = await configured(t);
  const secondary = await pair.run('b');
  await pair.run('a');
  await pair.until('a', 'in sync', inSync);
  secondary.kill('SIGSTOP');
  assertDone(await qemuIo(pair, 'write -P 0x33 0 4M', 'flush', 'read -P 0x33 0 4M'));
  await pair.until('a', 'alone', (entry) => entry.inSync === false && entry.aloneSince !== null);
  secondary.kill('SIGCONT');
  await pair.until('a', 'in sync again', inSync);
  assertDone(await qemuIo(pair, 'read -P 0x33 0 4M'));
});

test('a peer that is not blockstep is told in words; the primary waits', async (t) => {
  const pair = await configured(t);
  const web = createServer((socket) => socket.on('error', () => undefined).end('HTTP/1.1 400 Bad Request\r\n\r\n'));
  t.after(() => web.close());
  await new Promise<void>((listening) => web.listen(0, '127.0.0.1', listening));
  const address = web.address();
  assert(typeof address === 'object' && address !== null);
  const { supervisor } = (await pair.parsed('a')).peer;
  assert(supervisor.type === 'inet');
  await pair.edit('a', `supervisor: 127.0.0.1:${supervisor.port}\n`, `supervisor: 127.0.0.1:${address.port}\n`);
  await pair.run('a');
  const entry = await pair.until('a', 'told', (one) => /not|HTTP/.test(String(one.notice)));
  assert.equal(entry.serving, false);
  t.diagnostic(String(entry.notice));
});
