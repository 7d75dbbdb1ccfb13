/** What every host promises of files: cases for the real host and the simulated one. */
import assert from 'node:assert/strict';
import { join } from 'node:path/posix';
import { type Case, create, fails, pattern, readAll } from './tools.ts';

export const fileCases: readonly Case[] = [
  [
    'what was written is read back, and past the end there are zeroes',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      const data = pattern(200_000, 1);
      await file.write(1000, data);
      assert.equal(file.size(), 201_000);
      assert.deepEqual(await readAll(file, 1000, 200_000), data);
      const over = await readAll(file, 200_000, 5000);
      assert.deepEqual(over.subarray(0, 1000), data.subarray(199_000));
      assert.ok(over.subarray(1000).every((byte) => byte === 0));
      assert.ok((await readAll(file, 10_000_000, 100)).every((byte) => byte === 0));
      assert.equal((await readAll(file, 0, 0)).length, 0);
      await file.write(5, new Uint8Array(0));
      await file.close();
    },
  ],
  [
    'opening says what is wrong and names the path',
    async (host, folder) => {
      const path = join(folder, 'f');
      await fails('file-not-found', path, () => host.files.open(path, { access: 'write' }));
      const file = await create(host, path);
      await fails('file-exists', path, () => host.files.open(path, { access: 'write', create: 'exclusive' }));
      await fails('invalid-option', folder, () => host.files.open(folder, { access: 'read' }));
      await fails('file-not-found', 'no-folder', () =>
        host.files.open(join(folder, 'no-folder', 'f'), { access: 'write', create: 'if-missing' }),
      );
      await file.write(0, pattern(10, 1));
      await file.close();
      const again = await host.files.open(path, { access: 'write', create: 'if-missing' });
      assert.equal(again.size(), 10);
      await again.close();
    },
  ],
  [
    'a file opened to read refuses writes, a closed one everything',
    async (host, folder) => {
      const path = join(folder, 'f');
      await (await create(host, path)).close();
      const file = await host.files.open(path, { access: 'read' });
      await fails('io-error', path, async () => file.write(0, pattern(10, 1)));
      await file.close();
      await file.close();
      await fails('io-error', path, async () => file.read(0, new Uint8Array(10)));
      await fails('io-error', path, async () => file.write(0, new Uint8Array(10)));
      await fails('io-error', path, async () => file.size());
      await fails('io-error', path, () => file.sync());
    },
  ],
  [
    'what was written stays when the page cache is dropped, synced or not',
    async (host, folder) => {
      const path = join(folder, 'f');
      const file = await create(host, path);
      await file.write(0, pattern(100_000, 1));
      await file.sync();
      await file.write(50_000, pattern(10_000, 2));
      await file.dropCache();
      const expected = pattern(100_000, 1);
      expected.set(pattern(10_000, 2), 50_000);
      assert.deepEqual(await readAll(file, 0, 100_000), expected);
      await file.close();
    },
  ],
  [
    'truncate cuts and extends, and what it cut does not come back',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      await file.write(0, pattern(10_000, 3));
      await file.truncate(1234);
      await file.truncate(10_000);
      assert.equal(file.size(), 10_000);
      assert.deepEqual(await readAll(file, 0, 1234), pattern(10_000, 3).subarray(0, 1234));
      assert.ok((await readAll(file, 1234, 8766)).every((byte) => byte === 0));
      await file.close();
    },
  ],
  [
    'names are made, listed, moved and removed',
    async (host, folder) => {
      const { files } = host;
      const deep = join(folder, 'a', 'b', 'c');
      assert.deepEqual(await files.list(deep), []);
      assert.equal(await files.stat(deep), null);
      await files.makeFolder(deep);
      await files.makeFolder(deep);
      assert.equal((await files.stat(deep))?.kind, 'folder');
      for (const name of ['z', 'y', 'x']) await (await create(host, join(deep, name))).close();
      assert.deepEqual(await files.list(deep), ['x', 'y', 'z']);
      await files.rename(join(deep, 'x'), join(deep, 'y'));
      await files.remove(join(deep, 'z'));
      await files.remove(join(deep, 'z'));
      await files.syncFolder(deep);
      assert.deepEqual(await files.list(deep), ['y']);
      await fails('file-not-found', 'x', () => files.rename(join(deep, 'x'), join(deep, 'w')));
      await fails('file-not-found', 'nowhere', () => files.syncFolder(join(folder, 'nowhere')));
    },
  ],
  [
    'stat tells kind, size and what is allocated',
    async (host, folder) => {
      const path = join(folder, 'f');
      const file = await create(host, path);
      await file.truncate(1 << 24);
      await file.write(65_536, pattern(65_536, 1));
      await file.sync();
      await file.close();
      const stat = await host.files.stat(path);
      assert.equal(stat?.kind, 'file');
      assert.equal(stat.size, 1 << 24);
      assert.ok(stat.allocated >= 65_536 && stat.allocated < 1 << 20, `${stat.allocated}`);
      assert.ok(Math.abs(stat.modifiedMs - host.clock.wall()) < 60_000);
    },
  ],
  [
    'sync resolves, also several at once and beside a close',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      await file.write(0, pattern(5000, 1));
      await Promise.all([file.sync(), file.sync(), file.sync()]);
      await file.close();
    },
  ],
];

/** Cases for files that know holes and locks. */
export const holeAndLockCases: readonly Case[] = [
  [
    'data and holes are found, also beyond 4 GiB',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      const far = 5 * 2 ** 30;
      await file.truncate(6 * 2 ** 30);
      assert.equal(await file.seekData(0), Number.POSITIVE_INFINITY);
      await file.write(65_536, pattern(65_536, 1));
      await file.write(far, pattern(4096, 2));
      await file.sync();
      assert.equal(await file.seekData(0), 65_536);
      assert.equal(await file.seekHole(65_536), 131_072);
      assert.equal(await file.seekHole(0), 0);
      assert.equal(await file.seekData(131_072), far);
      assert.equal(await file.seekHole(far), far + 4096);
      assert.equal(await file.seekData(far + 4096), Number.POSITIVE_INFINITY);
      assert.equal(await file.seekData(6 * 2 ** 30), Number.POSITIVE_INFINITY);
      assert.equal(await file.seekHole(far + 4096), far + 4096);
      assert.equal(await file.seekHole(6 * 2 ** 30 + 5), 6 * 2 ** 30 + 5);
      await file.close();
    },
  ],
  [
    'a punched range is a hole, a zeroed one is not, both read as zeroes and change nothing else',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      const model = pattern(1 << 20, 5);
      await file.write(0, model);
      assert.ok(await file.punchHole(262_144, 131_072));
      assert.ok(await file.punchHole(1000, 100));
      model.fill(0, 262_144, 393_216).fill(0, 1000, 1100);
      if (await file.zeroRange(524_288, 65_536)) model.fill(0, 524_288, 589_824);
      assert.ok(await file.punchHole(5, 0));
      await file.sync();
      assert.deepEqual(await readAll(file, 0, 1 << 20), model);
      assert.equal(await file.seekHole(0), 262_144);
      assert.equal(await file.seekData(262_144), 393_216);
      await file.punchHole(1 << 20, 4096);
      assert.equal(file.size(), 1 << 20);
      await file.close();
    },
  ],
  [
    'byte locks are shared or exclusive between open files, and go with the close',
    async (host, folder) => {
      const path = join(folder, 'f');
      const one = await create(host, path);
      const two = await host.files.open(path, { access: 'write' });
      assert.ok(one.locks !== null && two.locks !== null);
      assert.equal(one.locks.share(100), true);
      assert.equal(two.locks.share(100), true);
      assert.equal(two.locks.exclude(100), false);
      assert.equal(one.locks.heldByOther(100), true);
      assert.equal(one.locks.heldByOther(101), false);
      two.locks.release(100);
      assert.equal(one.locks.heldByOther(100), false);
      assert.equal(one.locks.exclude(100), true);
      assert.equal(one.locks.heldByOther(100), false);
      assert.equal(two.locks.share(100), false);
      assert.equal(one.locks.share(100), true);
      assert.equal(two.locks.share(100), true);
      assert.equal(two.locks.exclude(2 ** 40), true);
      assert.equal(one.locks.exclude(2 ** 40), false);
      await two.close();
      assert.equal(one.locks.exclude(100), true);
      assert.equal(one.locks.exclude(2 ** 40), true);
      await one.close();
    },
  ],
];
