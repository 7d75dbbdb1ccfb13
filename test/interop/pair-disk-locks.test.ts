/** The disks of a running pair as other programs find them. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { blockstep, type Entry, TestPair } from '../cli/pair-support.ts';
import { lockedBytes } from '../support/outside.ts';
import { run, spawnDaemon } from '../support/process.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-system-x86_64');

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

test('image locks: one image in two configurations is refused to the second daemon, though the first serves nobody yet', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  await pair.edit('b', './b/disk0.img', './a/disk0.img');
  await pair.run('a', /waits for b/);
  const second = await blockstep('run', '-c', pair.config('b'));
  assert.equal(second.code, 3, second.stderr);
  assert.match(second.stderr, /a\/disk0\.img: another program .* uses the image .*'write'/);
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
  assert.match(refused.stderr, /disk0\.img: another program \(a VM, .*\) uses the image and does not allow 'write'/);
  vm.kill();
  await vm.exited;
  await pair.run('b');
});
