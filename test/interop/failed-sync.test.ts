/**
 * A device that fails a sync, as the kernel really does it: a loop device whose file has no room. The kernel tells of
 * it once, the next sync succeeds, and its page cache goes on showing what was lost.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type LoopDevice, loopDevice } from '../support/loop-device.ts';
import { run } from '../support/process.ts';
import { smallDisk } from '../support/small-disk.ts';
import { type StorageDaemon, storageDaemon } from '../support/storage-daemon.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-io', 'nbdcopy', 'losetup');
const mib = 2 ** 20;
const eio = /Input\/output error/;

interface FailingDisk extends StorageDaemon {
  readonly loop: LoopDevice;
  io(...commands: string[]): Promise<string>;
  makeRoom(): Promise<void>;
  /** what `query-block` says of the node */
  info(): Promise<{ failed?: string }>;
  /** of what a client reads, and of what stands on the disk */
  digests(): Promise<[string, string]>;
}

/** A disk of 8 MiB, of which 2 MiB fit. */
async function failingDisk(t: TestContext, more = ''): Promise<FailingDisk> {
  const folder = await smallDisk(t, 2 * mib);
  const loop = await loopDevice(t, 8 * mib, { folder });
  const storage = await storageDaemon(t, {
    blockdevs: [`driver=host_device,node-name=disk,filename=${loop.device}`],
    exports: [`type=nbd,id=e,node-name=disk,name=disk,writable=on${more}`],
  });
  const copy = join(await temporaryFolder(t), 'copy');
  const digest = (path: string): string => createHash('sha1').update(readFileSync(path)).digest('hex');
  return {
    ...storage,
    loop,
    async io(...commands) {
      const args = commands.flatMap((each) => ['-c', each]);
      const { stdout, stderr } = await run('qemu-io', ['-f', 'raw', '-t', 'writeback', ...args, storage.uri('disk')]);
      return stdout + stderr;
    },
    async makeRoom() {
      const done = await run('mount', ['-o', `remount,size=${32 * mib}`, folder]);
      assert.equal(done.code, 0, done.stderr);
    },
    async info() {
      const blocks = (await storage.qmp.execute('query-block')) as { inserted: { info?: object } }[];
      return { ...blocks[0]?.inserted.info };
    },
    async digests() {
      const copied = await run('nbdcopy', [storage.uri('disk'), copy]);
      assert.equal(copied.code, 0, copied.stderr);
      return [digest(copy), digest(loop.file)];
    },
  };
}

const reopening = (disk: FailingDisk) => ({
  options: [{ driver: 'host_device', 'node-name': 'disk', filename: disk.loop.device }],
});

test('no false success: after a failed fsync clients get EIO for everything, and the daemon says why', async (t) => {
  const disk = await failingDisk(t);
  await disk.io('write -P 7 0 8M', 'flush');
  const { failed } = await disk.info();
  assert.match(String(failed), new RegExp(`sync ${disk.loop.device}: EIO.*may be lost; EIO until it is opened anew`));
  for (const command of ['read 0 64k', 'write -P 8 0 64k', 'write -z 0 64k', 'write -f 0 64k']) {
    assert.match(await disk.io(command), eio, command);
  }
  const map = await run('nbdinfo', ['--map', disk.uri('disk')]);
  assert.notEqual(map.code, 0, map.stdout);
  await disk.makeRoom();
  assert.match(await disk.io('write 0 64k'), eio, 'room alone does not bring back what was lost');
});

test('blockdev-reopen: clients read what stands on the disk, not what the page cache would show, and write again', async (t) => {
  const disk = await failingDisk(t);
  await disk.io('write -P 7 0 8M', 'flush');
  assert.match(await disk.io('read 0 64k'), eio);
  await disk.makeRoom();
  await disk.qmp.execute('blockdev-reopen', reopening(disk));
  assert.equal((await disk.info()).failed, undefined);
  assert.match(await disk.io('read -P 7 0 8M'), /verification failed/, 'something was lost, and it is seen');
  const [read, stands] = await disk.digests();
  assert.equal(read, stands);
  assert.doesNotMatch(await disk.io('write -P 9 0 8M', 'flush', 'read -P 9 0 8M'), /failed|error/i);
  await disk.qmp.execute('quit');
  assert.equal(await disk.daemon.exited, 0);
});

test('a node that is closed and added again shows what stands on the disk, too', async (t) => {
  const disk = await failingDisk(t);
  await disk.io('write -P 7 0 8M', 'flush');
  await disk.makeRoom();
  await disk.qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
  await disk.qmp.execute('blockdev-del', { 'node-name': 'disk' });
  await disk.qmp.execute('blockdev-add', { driver: 'host_device', 'node-name': 'disk', filename: disk.loop.device });
  await disk.qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'disk', writable: true });
  const [read, stands] = await disk.digests();
  assert.equal(read, stands);
  assert.match(await disk.io('read -P 7 0 8M'), /verification failed/);
});

test('on-write-error=stop: what is written after the failed sync waits until the node is opened anew', async (t) => {
  const disk = await failingDisk(t, ',on-write-error=stop');
  await disk.io('write -P 7 0 8M', 'flush');
  const writing = disk.io('write -P 9 0 8M', 'flush', 'read -P 9 0 8M');
  assert.match(String((await disk.event('BLOCK_IO_ERROR')).reason), /may be lost/);
  await disk.makeRoom();
  await disk.qmp.execute('blockdev-reopen', reopening(disk));
  await disk.qmp.execute('x-block-export-resume', { id: 'e' });
  assert.doesNotMatch(await writing, /failed|error/i);
});
