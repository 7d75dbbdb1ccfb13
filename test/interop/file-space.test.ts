/** What the server does to the space of the file below it, seen by du, qemu-img map and NBD clients. */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { cleanup } from '../support/cleanup.ts';
import { dataRanges, usedKib } from '../support/outside.ts';
import { run } from '../support/process.ts';
import { serveDisk } from '../support/served-disk.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy');

const mib = 2 ** 20;
const gib = 2 ** 30;

/** Commands of qemu-io on a disk that is served; discards are passed on. */
async function qemuIo(uri: string, ...commands: string[]): Promise<void> {
  const server = `file.server.type=unix,file.server.path=${uri.split('socket=')[1]}`;
  const options = `driver=raw,discard=unmap,file.driver=nbd,file.export=disk,${server}`;
  const result = await run('qemu-io', ['--image-opts', ...commands.flatMap((each) => ['-c', each]), options]);
  assert.equal(result.code, 0, result.stderr + result.stdout);
  assert.doesNotMatch(result.stdout, /failed|error/i);
}

/** 8 MiB of data. */
function fullImage(folder: string): string {
  const path = join(folder, 'full.img');
  writeFileSync(path, new Uint8Array(8 * mib).fill(0x55));
  return path;
}

const places: readonly [string, (t: TestContext) => Promise<string>][] = [
  ['a file system', temporaryFolder],
  [
    'tmpfs',
    async (t) => {
      const folder = mkdtempSync('/dev/shm/bs-');
      cleanup(t, () => rmSync(folder, { recursive: true, force: true }));
      return folder;
    },
  ],
];

for (const [place, folderOn] of places) {
  describe(`on ${place}`, () => {
    test('discard=unmap gives space back', async (t) => {
      const filename = fullImage(await folderOn(t));
      const { uri } = await serveDisk(t, { driver: 'file', filename, discard: 'unmap' });
      await qemuIo(uri, 'discard 1M 4M', 'flush');
      const used = await usedKib(filename);
      assert.ok(used <= 4096 + 64, `${used} KiB`);
      assert.deepEqual(await dataRanges(filename), [
        [0, mib],
        [5 * mib, 3 * mib],
      ]);
    });

    test('discard=ignore, which is the default, leaves all as it is', async (t) => {
      const filename = fullImage(await folderOn(t));
      const { uri } = await serveDisk(t, { driver: 'file', filename });
      await qemuIo(uri, 'discard 1M 4M', 'flush', 'read -P 0x55 0 8M');
      assert.ok((await usedKib(filename)) >= 8192);
    });

    test('write-zeroes is a hole, with NO_HOLE it stays allocated, and both read as zeroes', async (t) => {
      const filename = fullImage(await folderOn(t));
      const { uri } = await serveDisk(t, { driver: 'file', filename, discard: 'unmap' });
      // qemu-io sends NO_HOLE unless -u says that it may unmap.
      await qemuIo(uri, 'write -z 1M 2M', 'flush', 'read -P 0 1M 2M', 'read -P 0x55 3M 5M');
      assert.ok((await usedKib(filename)) >= 8192);
      await qemuIo(uri, 'write -z -u 1M 4M', 'flush', 'read -P 0 1M 4M', 'read -P 0x55 5M 3M');
      assert.ok((await usedKib(filename)) <= 4096 + 64);
      await qemuIo(uri, 'write -z -u 5000000 777', 'read -P 0 5000000 777', 'read -P 0x55 5242880 3M');
    });

    for (const [value, kib] of [
      ['off', 8192],
      ['on', 8192],
      ['unmap', 6144],
    ] as const)
      test(`zeroes that are written with detect-zeroes=${value}`, async (t) => {
        const filename = fullImage(await folderOn(t));
        const { uri } = await serveDisk(t, { driver: 'file', filename, discard: 'unmap', 'detect-zeroes': value });
        await qemuIo(uri, 'write -P 0 1M 2M', 'write -P 7 4M 64k', 'flush', 'read -P 0 1M 2M', 'read -P 7 4M 64k');
        const used = await usedKib(filename);
        assert.ok(Math.abs(used - kib) <= 64, `${used} KiB, ${kib} expected`);
      });

    test('a disk of 1 TiB with 100 MiB in it is mapped and copied as what it has', async (t) => {
      const folder = await folderOn(t);
      const filename = join(folder, 'sparse.img');
      const file = openSync(filename, 'w');
      const pieces = 10;
      const each = 10 * mib;
      for (let i = 0; i < pieces; i += 1) writeSync(file, new Uint8Array(each).fill(i + 1), 0, each, i * 100 * gib);
      closeSync(file);
      truncateSync(filename, 1024 * gib);
      const { uri } = await serveDisk(t, { driver: 'raw', discard: 'unmap', file: { driver: 'file', filename } });
      const map = await run('nbdinfo', ['--map', '--json', uri]);
      assert.equal(map.code, 0, map.stderr);
      const extents = JSON.parse(map.stdout) as { offset: number; length: number; type: number }[];
      assert.equal(extents.length, 2 * pieces);
      for (const [index, { offset, length, type }] of extents.entries()) {
        const start = Math.floor(index / 2) * 100 * gib;
        if (index % 2 === 0) assert.deepEqual([offset, length, type], [start, each, 0]);
        else assert.deepEqual([offset, type], [start + each, 3]);
      }
      const copy = join(folder, 'copy.img');
      closeSync(openSync(copy, 'w'));
      truncateSync(copy, 1024 * gib);
      const copied = await run('nbdcopy', ['--destination-is-zero', uri, copy]);
      assert.equal(copied.code, 0, copied.stderr);
      assert.deepEqual(await dataRanges(copy), await dataRanges(filename));
    });

    test('a sparse copy to a disk that is not known to be zero leaves holes', async (t) => {
      const folder = await folderOn(t);
      const source = join(folder, 'source.img');
      const filename = join(folder, 'disk.img');
      for (const path of [source, filename]) {
        writeFileSync(path, new Uint8Array(3 * mib).fill(1));
        truncateSync(path, 16 * gib);
      }
      truncateSync(source, mib);
      truncateSync(source, 16 * gib);
      const { uri } = await serveDisk(t, { driver: 'raw', discard: 'unmap', file: { driver: 'file', filename } });
      const copied = await run('nbdcopy', [source, uri]);
      assert.equal(copied.code, 0, copied.stderr);
      assert.deepEqual(await dataRanges(filename), [[0, mib]]);
    });
  });
}

test('a file of many small pieces is mapped in few answers', async (t) => {
  const filename = join(await temporaryFolder(t), 'pieces.img');
  const file = openSync(filename, 'w');
  const pieces = 2000;
  for (let i = 0; i < pieces; i += 1) writeSync(file, new Uint8Array(4096).fill(1), 0, 4096, i * 16_384);
  closeSync(file);
  truncateSync(filename, pieces * 16_384);
  const { uri, engine } = await serveDisk(t, { driver: 'file', filename });
  const map = await run('nbdinfo', ['--map', '--json', uri]);
  assert.equal(map.code, 0, map.stderr);
  assert.equal((JSON.parse(map.stdout) as unknown[]).length, 2 * pieces);
  assert.ok((await engine.graph.find('disk').node.blockStatus(0, pieces * 16_384)).length >= 16);
});
