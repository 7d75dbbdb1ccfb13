/** The disks of a running pair as other programs find them, and what its users hear when one of them fails. */
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { blockstep, type Entry, TestPair } from '../cli/pair-support.ts';
import { fuseFile } from '../support/fuse-file.ts';
import { loopDevice } from '../support/loop-device.ts';
import { lockedBytes } from '../support/outside.ts';
import { run, spawnDaemon } from '../support/process.ts';
import { smallDisk } from '../support/small-disk.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-system-x86_64', 'losetup');
const mib = 2 ** 20;

const inSync = (entry: Entry): boolean => entry.inSync === true;

/** A machine that never runs and has one disk. */
const machine = (image: string): string[] => [
  ...['-M', 'q35', '-S', '-display', 'none', '-monitor', 'none', '-nodefaults', '-qmp', 'stdio'],
  ...['-drive', `file=${image},format=raw,if=virtio`],
];

test('image locks: both disks of a running pair are refused to qemu’s programs, to a VM and to a second daemon', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  await pair.run('b');
  await pair.run('a');
  await pair.until('a', 'in sync', inSync);
  for (const name of ['a', 'b']) {
    const image = pair.image(name);
    assert.deepEqual(lockedBytes(image), [100, 101, 201, 203], 'as a VM holds them');
    for (const [program, ...args] of [
      ['qemu-io', '-f', 'raw', '-c', 'write 0 4k', image],
      ['qemu-img', 'resize', '-f', 'raw', image, '+1M'],
      ['qemu-nbd', '-f', 'raw', '-k', join(pair.data, 'socket'), image],
      ['qemu-system-x86_64', ...machine(image)],
    ] as [string, ...string[]][]) {
      const refused = await run(program, args);
      assert.notEqual(refused.code, 0, program);
      assert.match(refused.stderr, /Failed to get "write" lock/, program);
    }
    const daemon = await run(process.execPath, [
      join(import.meta.dirname, '../../src/cli/storage-daemon.ts'),
      ...['--blockdev', `driver=file,node-name=f,filename=${image}`],
      ...['--nbd-server', `addr.type=unix,addr.path=${pair.data}/socket`],
      ...['--export', 'type=nbd,id=e,node-name=f,writable=on'],
    ]);
    assert.equal(daemon.code, 3, daemon.stderr);
    assert.match(daemon.stderr, /disk0\.img: another program .* does not allow 'write'/);
  }
});

test('image locks: a pair does not begin on a disk that a VM holds, and says so with exit code 3', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  const first = await pair.run('b');
  first.kill('SIGTERM');
  await first.exited;
  const vm = await spawnDaemon(t, 'qemu-system-x86_64', machine(pair.image('b')), { ready: /QMP/ });
  while (!lockedBytes(pair.image('b')).includes(201)) await new Promise((resolve) => setTimeout(resolve, 10));
  const refused = await blockstep('run', '-c', pair.config('b'));
  assert.equal(refused.code, 3, refused.stderr);
  assert.match(
    refused.stderr,
    /disk0\.img: another program \(a VM, .*\) uses the image for 'write', which is not to be shared/,
  );
  vm.kill();
  await vm.exited;
  await pair.run('b');
});

test('a primary whose device fails an fsync: EIO for its users, status says why, failover serves, and it comes back', async (t) => {
  const folder = await smallDisk(t, 8 * mib);
  const pair = await TestPair.make(t);
  await pair.configure();
  const size = 64 * mib;
  const { device } = await loopDevice(t, size, { folder });
  await pair.edit('a', 'file: ./a/disk0.img', `file: ${device}`);
  for (const name of ['a', 'b']) await pair.edit(name, 'size: 1GiB', 'size: 64MiB');
  await pair.run('b');
  await pair.run('a');
  const { uri } = await pair.until('a', 'in sync', inSync);
  const io = async (to: string | undefined, ...commands: string[]): Promise<string> => {
    const args = ['-f', 'raw', '-t', 'writeback', ...commands.flatMap((each) => ['-c', each]), to ?? ''];
    const { stdout, stderr } = await run('qemu-io', args);
    return stdout + stderr;
  };
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
  const enlarged = await run('mount', ['-o', `remount,size=${2 * size}`, folder]);
  assert.equal(enlarged.code, 0, enlarged.stderr);
  await pair.until('b', 'in sync again', inSync);
  const compared = await run('cmp', [device, pair.image('b')]);
  assert.equal(compared.code, 0, compared.stdout + compared.stderr);
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
