/** A file system that is full below an export: what clients hear, what is kept, and how it goes on. */
import assert from 'node:assert/strict';
import { closeSync, openSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { run } from '../support/process.ts';
import { smallDisk } from '../support/small-disk.ts';
import { type StorageDaemon, storageDaemon } from '../support/storage-daemon.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-io', 'nbdcopy');
const mib = 2 ** 20;

interface Disk extends StorageDaemon {
  enlarge(bytes: number): Promise<void>;
  io(...commands: string[]): Promise<{ code: number | null; said: string }>;
}

/** A disk of 16 MiB on a file system of 4 MiB. */
async function fullDisk(t: TestContext, more = ''): Promise<Disk> {
  const folder = await smallDisk(t, 4 * mib);
  const filename = join(folder, 'disk.img');
  closeSync(openSync(filename, 'w'));
  truncateSync(filename, 16 * mib);
  const storage = await storageDaemon(t, {
    blockdevs: [`driver=file,node-name=f,filename=${filename}`, 'driver=raw,node-name=disk,file=f'],
    exports: [`type=nbd,id=e,node-name=disk,name=disk,writable=on${more}`],
  });
  return {
    ...storage,
    async enlarge(bytes) {
      const done = await run('mount', ['-o', `remount,size=${bytes}`, folder]);
      assert.equal(done.code, 0, done.stderr);
    },
    async io(...commands) {
      const args = commands.flatMap((each) => ['-c', each]);
      const result = await run('qemu-io', ['-f', 'raw', ...args, storage.uri('disk')]);
      return { code: result.code, said: result.stdout + result.stderr };
    },
  };
}

test('a write to a full file system fails with ENOSPC, loses nothing else, and works when there is room', async (t) => {
  const disk = await fullDisk(t);
  const before = await disk.io('write -P 1 0 2M', 'flush');
  assert.equal(before.code, 0, before.said);
  const full = await disk.io('write -P 2 4M 8M', 'flush', 'read -P 1 0 2M', 'write -P 3 1M 64k', 'read -P 3 1M 64k');
  assert.match(full.said, /write failed: No space left on device/);
  assert.match(full.said, /read 2097152\/2097152 bytes at offset 0/);
  assert.match(full.said, /wrote 65536\/65536 bytes at offset 1048576/);
  assert.doesNotMatch(full.said, /Pattern verification failed|flush failed|read failed/);
  await disk.enlarge(32 * mib);
  const after = await disk.io('write -P 2 4M 8M', 'flush', 'read -P 2 4M 8M', 'read -P 1 0 1M', 'read -P 3 1M 64k');
  assert.equal(after.code, 0, after.said);
  assert.doesNotMatch(after.said, /failed/);
  await disk.qmp.execute('quit');
  assert.equal(await disk.daemon.exited, 0);
});

test('on-write-error=stop: the write waits, the daemon says so, and it is done when there is room', async (t) => {
  const disk = await fullDisk(t, ',on-write-error=stop');
  const exported = async () => ((await disk.qmp.execute('query-block-exports')) as Record<string, unknown>[])[0];
  assert.equal((await disk.io('write -P 1 0 2M', 'flush')).code, 0);
  assert.equal((await exported())?.stopped, undefined);
  const writing = disk.io('write -P 2 4M 8M', 'flush', 'read -P 2 4M 8M');
  let answered = false;
  void writing.then(() => {
    answered = true;
  });
  const event = await disk.event('BLOCK_IO_ERROR');
  const { reason, ...rest } = event;
  assert.match(String(reason), /no space/i);
  assert.deepEqual(rest, { id: 'e', 'node-name': 'disk', operation: 'write', action: 'stop', nospace: true });
  assert.deepEqual((await exported())?.stopped, { reason, waiting: 1 });
  const reading = await disk.io('read -P 1 0 2M');
  assert.doesNotMatch(reading.said, /failed/);
  await disk.qmp.execute('x-block-export-resume', { id: 'e' });
  assert.equal((await disk.event('BLOCK_IO_ERROR')).nospace, true);
  assert.equal(answered, false);
  await disk.enlarge(32 * mib);
  await disk.qmp.execute('x-block-export-resume', { id: 'e' });
  const written = await writing;
  assert.equal(written.code, 0, written.said);
  assert.doesNotMatch(written.said, /failed/);
  assert.equal((await exported())?.stopped, undefined);
});

test('on-write-error=stop: an export that goes, and a daemon that stops, do not wait for room', async (t) => {
  const disk = await fullDisk(t, ',on-write-error=stop');
  const first = disk.io('write -P 2 4M 8M');
  await disk.event('BLOCK_IO_ERROR');
  await disk.qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
  assert.match((await first).said, /No space left on device|Input\/output error/);
  const again = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'disk', writable: true, 'on-write-error': 'stop' };
  await assert.rejects(disk.qmp.execute('block-export-add', { ...again, ordered: true }), /ordered export reports/);
  await disk.qmp.execute('block-export-add', again);
  const second = disk.io('write -P 2 4M 8M');
  await disk.event('BLOCK_IO_ERROR');
  await disk.qmp.execute('quit');
  assert.equal(await disk.daemon.exited, 0);
  assert.match((await second).said, /failed/);
});
