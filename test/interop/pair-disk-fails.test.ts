/** What the users of a pair hear, on real processes, when a disk of it fails a sync or hangs. */
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Entry, TestPair } from '../cli/pair-support.ts';
import { fuseFile } from '../support/fuse-file.ts';
import { loopDevice } from '../support/loop-device.ts';
import { run } from '../support/process.ts';
import { smallDisk } from '../support/small-disk.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-io', 'losetup');
const mib = 2 ** 20;

const inSync = (entry: Entry): boolean => entry.inSync === true;

/** A pair of which one side's disk is a device of 64 MiB, with room for 8 MiB until `makeRoom`. */
async function pairOnSmallDevice(t: TestContext, side: 'a' | 'b') {
  const folder = await smallDisk(t, 8 * mib);
  const pair = await TestPair.make(t);
  await pair.configure();
  const { device } = await loopDevice(t, 64 * mib, { folder });
  await pair.edit(side, `file: ./${side}/disk0.img`, `file: ${device}`);
  for (const name of ['a', 'b']) await pair.edit(name, 'size: 1GiB', 'size: 64MiB');
  await pair.run('b');
  await pair.run('a');
  const { uri } = await pair.until('a', 'in sync', inSync);
  return {
    pair,
    device,
    uri,
    async makeRoom(): Promise<void> {
      const enlarged = await run('mount', ['-o', `remount,size=${128 * mib}`, folder]);
      assert.equal(enlarged.code, 0, enlarged.stderr);
    },
    /** Both disks hold the same bytes. */
    async assertEqual(): Promise<void> {
      const compared = await run('cmp', [device, pair.image(side === 'a' ? 'b' : 'a')]);
      assert.equal(compared.code, 0, compared.stdout + compared.stderr);
    },
  };
}

async function io(uri: string | undefined, ...commands: string[]): Promise<string> {
  const args = ['-f', 'raw', '-t', 'writeback', ...commands.flatMap((each) => ['-c', each]), uri ?? ''];
  const { stdout, stderr } = await run('qemu-io', args);
  return stdout + stderr;
}

test('a primary whose device fails an fsync: EIO for its users, status says why, failover serves, and it comes back', async (t) => {
  const { pair, device, uri, makeRoom, assertEqual } = await pairOnSmallDevice(t, 'a');
  assert.doesNotMatch(await io(uri, 'write -P 1 0 4M', 'flush', 'read -P 1 0 4M'), /failed|error/i);
  // The device takes it, and has no room for it.
  await io(uri, 'write -P 2 8M 16M', 'flush');
  for (const command of ['read 0 64k', 'write 32M 64k']) assert.match(await io(uri, command), /Input\/output error/);
  const { disks } = (await pair.entry('a')) as unknown as { disks: { error: string }[] };
  assert.match(disks[0]?.error ?? '', new RegExp(`sync ${device}: EIO.*may be lost`));

  const failover = await pair.command('failover', '--name', 'b');
  assert.equal(failover.code, 0, failover.stderr);
  const promoted = await pair.until('b', 'primary', (entry) => entry.role === 'primary' && entry.uri !== undefined);
  assert.doesNotMatch(await io(promoted.uri, 'read -P 1 0 4M', 'write -P 3 0 1M', 'flush'), /failed|error/i);
  await makeRoom();
  await pair.until('b', 'in sync again', inSync);
  await assertEqual();
});

test('a secondary whose device fails an fsync: no user hears of it, it drops out, and gets what it lost', async (t) => {
  const { pair, uri, makeRoom, assertEqual } = await pairOnSmallDevice(t, 'b');
  assert.doesNotMatch(await io(uri, 'write -P 1 0 4M', 'flush'), /failed|error/i);
  assert.doesNotMatch(await io(uri, 'write -P 2 8M 16M', 'flush', 'read -P 2 8M 16M'), /failed|error/i);
  await pair.until('a', 'alone', (entry) => entry.inSync === false && entry.aloneSince !== null);
  assert.doesNotMatch(await io(uri, 'write -P 3 32M 1M', 'flush', 'read -P 1 0 4M'), /failed|error/i);
  await makeRoom();
  await pair.until('a', 'in sync again', inSync);
  assert.doesNotMatch(await io(uri, 'write -P 4 40M 1M', 'flush'), /failed|error/i);
  await assertEqual();
});

test('pair 18: a primary whose disk hangs in the middle of a call says so, and goes on when it answers', async (t) => {
  const control = join(await temporaryFolder(t), 'pause');
  const disk = await fuseFile(t, ['--filter=pause', 'memory', '16M', `pause-control=${control}`]);
  /** `p`: the medium answers nothing more; `r`: it goes on */
  const tell = (what: 'p' | 'r'): Promise<void> =>
    new Promise((resolve, reject) => {
      const socket = connect(control).on('error', reject);
      socket.end(what);
      socket.on('data', () => undefined).on('close', () => resolve());
    });
  const pair = await TestPair.make(t);
  await pair.configure();
  for (const name of ['a', 'b']) await pair.edit(name, 'size: 1GiB', 'size: 16MiB');
  await pair.edit('a', 'file: ./a/disk0.img', `file: ${disk}`);
  await pair.run('b');
  await pair.run('a');
  const { uri } = await pair.until('a', 'in sync', inSync);
  await tell('p');
  const args = ['-f', 'raw', '-c', 'write -P 2 0 1M', '-c', 'flush', '-c', 'read -P 2 0 1M', uri ?? ''];
  const writing = run('qemu-io', args, { timeoutMs: 60_000 });
  const says = (entry: Entry): string => {
    const { error, disks } = entry as unknown as { error?: string | null; disks?: { error: string | null }[] };
    return `${error ?? ''} ${disks?.[0]?.error ?? ''}`;
  };
  await pair.until('a', 'known to hang', (entry) => /a disk may hang|has not answered for \d+ s/.test(says(entry)));
  assert.equal((await pair.entry('b')).connected, true, 'the heartbeat goes on');
  await tell('r');
  const written = await writing;
  assert.equal(written.code, 0, written.stdout + written.stderr);
  await pair.until('a', 'well again', (entry) => inSync(entry) && says(entry).trim() === '');
});
