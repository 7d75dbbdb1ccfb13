/** What the options of a file make the daemon ask of the kernel: seen in /proc, and by the medium itself. */
import assert from 'node:assert/strict';
import { constants, existsSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { NodeFiles } from '../../src/host/node-files.ts';
import { fuseFile } from '../support/fuse-file.ts';
import { dataRanges, lockedBytes, usedKib } from '../support/outside.ts';
import { run } from '../support/process.ts';
import { serveDisk } from '../support/served-disk.ts';
import { storageDaemon } from '../support/storage-daemon.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-io', 'qemu-img', 'nbdinfo');
const mib = 2 ** 20;
const { O_ACCMODE, O_DIRECT, O_RDONLY, O_RDWR } = { ...constants, O_ACCMODE: 3 };

/** How a process has a file open: the flags of each of its descriptors. */
function openFlags(pid: number, path: string): number[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    if (!existsSync(`/proc/${pid}/fd/${fd}`) || readlinkSync(`/proc/${pid}/fd/${fd}`) !== path) return [];
    const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))?.[1];
    return [Number.parseInt(flags ?? '', 8)];
  });
}

for (const [options, direct, access] of [
  ['', false, O_RDWR],
  [',aio=io_uring', false, O_RDWR],
  [',cache.direct=on', true, O_RDWR],
  [',cache.direct=on,aio=native', true, O_RDWR],
  [',cache.direct=on,aio=io_uring,read-only=on', true, O_RDONLY],
  [',read-only=on', false, O_RDONLY],
] as const)
  test(`a file with '${options}' is open for ${access === O_RDWR ? 'writing' : 'reading'}, ${direct ? 'past' : 'through'} the page cache`, async (t) => {
    const filename = join(await temporaryFolder(t), 'disk.img');
    writeFileSync(filename, new Uint8Array(mib).fill(1));
    const writable = access === O_RDWR;
    const storage = await storageDaemon(t, {
      blockdevs: [`driver=file,node-name=disk,filename=${filename}${options}`],
      exports: [`type=nbd,id=e,node-name=disk,name=disk${writable ? ',writable=on' : ''}`],
    });
    const [flags, ...more] = openFlags(storage.daemon.pid, filename);
    assert.ok(flags !== undefined && more.length === 0);
    assert.deepEqual([(flags & O_DIRECT) !== 0, flags & O_ACCMODE], [direct, access]);
    const read = await run('qemu-io', ['-f', 'raw', '-r', '-c', 'read -P 1 512 100000', storage.uri('disk')]);
    assert.equal(read.code, 0, read.stderr);
    const written = await run('qemu-io', ['-f', 'raw', '-c', 'write -P 2 512 100000', storage.uri('disk')]);
    assert.equal(written.code === 0, writable, written.stderr);
  });

for (const noFlush of [false, true])
  test(`a flush ${noFlush ? 'does not reach' : 'reaches'} the medium with cache.no-flush ${noFlush ? 'on' : 'off'}`, async (t) => {
    const flag = join(await temporaryFolder(t), 'flushed');
    const filename = await fuseFile(t, [
      'eval',
      'get_size=echo 1M',
      'pread=head -c $3 /dev/zero',
      'pwrite=cat >/dev/null',
      'can_write=exit 0',
      'can_flush=exit 0',
      `flush=touch ${flag}`,
    ]);
    const { uri } = await serveDisk(t, { driver: 'file', filename, cache: { 'no-flush': noFlush } });
    rmSync(flag, { force: true });
    const io = await run('qemu-io', ['-f', 'raw', '-t', 'writeback', '-c', 'write 0 64k', '-c', 'flush', uri]);
    assert.equal(io.code, 0, io.stderr);
    // qemu-io flushes once more when it closes.
    assert.equal(existsSync(flag), !noFlush);
  });

test('without system calls: a disk is served in full, nothing is a hole, nothing is freed, nobody sees a lock', async (t) => {
  const filename = join(await temporaryFolder(t), 'disk.img');
  writeFileSync(filename, new Uint8Array(4 * mib).fill(1));
  const host = { ...createHost(), files: new NodeFiles(null) };
  const { uri, engine } = await serveDisk(t, { driver: 'file', filename, discard: 'unmap' }, host);
  const io = (...commands: string[]) =>
    run('qemu-io', ['-f', 'raw', '-d', 'unmap', ...commands.flatMap((each) => ['-c', each]), uri]);
  const done = await io(
    'discard 0 1M',
    'write -z -u 1M 1M',
    'write -P 2 2M 1M',
    'flush',
    'read -P 0 1M 1M',
    'read -P 2 2M 1M',
  );
  assert.equal(done.code, 0, done.stderr);
  assert.doesNotMatch(done.stdout, /failed|error/i);
  const map = await run('nbdinfo', ['--map', '--totals', uri]);
  assert.match(map.stdout, /^\s*4194304\s+100\.0%\s+0\s+data/m);
  assert.ok((await usedKib(filename)) >= 4096);
  assert.deepEqual(await dataRanges(filename), [[0, 4 * mib]]);
  assert.deepEqual(lockedBytes(filename), []);
  const nodes = (await engine.execute('query-named-block-nodes')) as { info?: { locks?: string } }[];
  assert.equal(nodes[0]?.info?.locks, 'unlocked');
});
