import assert from 'node:assert/strict';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { writeFlags } from '../../src/block/node.ts';
import { blockStatusOf } from '../../src/block/status.ts';
import { SyncQueue } from '../../src/drivers/file-sync.ts';
import { createHost } from '../../src/host/index.ts';
import { NodeFiles } from '../../src/host/node-files.ts';
import { parent, testGraph, writer } from '../block/fixture.ts';
import { World } from '../sim/world.ts';
import { cleanup } from '../support/cleanup.ts';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const size = 2 ** 20;

/** A small file system of its own, gone after the test. */
async function smallDisk(t: TestContext, bytes: number): Promise<string> {
  const folder = await temporaryFolder(t);
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', folder]);
  assert.equal(mounted.code, 0, `mounting a tmpfs needs root: ${mounted.stderr}`);
  cleanup(t, () => run('umount', [folder]));
  return folder;
}

async function image(t: TestContext): Promise<string> {
  const path = join(await temporaryFolder(t), 'disk.img');
  writeFileSync(path, new Uint8Array(size));
  return path;
}

test('an image that is missing, a folder, or on a read-only file system is refused in words', async (t) => {
  const { graph } = testGraph();
  const folder = await temporaryFolder(t);
  const add = (filename: string) => graph.add({ driver: 'file', 'node-name': 'f', filename });
  const missing = join(folder, 'none.img');
  await assert.rejects(add(missing), (error: Error) => error.message.includes(missing));
  await assert.rejects(add(missing), { code: 'file-not-found' });
  await assert.rejects(add(folder), { code: 'invalid-option' });
  const mount = await smallDisk(t, 2 * size);
  const path = join(mount, 'ro.img');
  writeFileSync(path, new Uint8Array(size));
  await run('mount', ['-o', 'remount,ro', mount]);
  await assert.rejects(add(path), { code: 'read-only' });
  const node = await graph.add({ driver: 'file', 'node-name': 'f', filename: path, 'auto-read-only': true });
  assert.equal(node.readOnly, true);
  await assert.rejects(graph.use('f', parent('export "x"'), writer), { code: 'read-only' });
  await graph.close();
});

test('a full disk is ENOSPC for that write, and everything before it is still there', async (t) => {
  const path = join(await smallDisk(t, size / 2), 'disk.img');
  writeFileSync(path, '');
  truncateSync(path, size);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path });
  const { node } = graph.find('f');
  const block = new Uint8Array(64 * 1024);
  let written = 0;
  await assert.rejects(
    async () => {
      for (; written < size / block.length; written += 1) {
        await node.write(written * block.length, block.fill(written + 1), writeFlags.fua);
      }
    },
    { code: 'no-space' },
  );
  assert.ok(written >= 4);
  for (let i = 0; i < written; i += 1) {
    await node.read(i * block.length, block);
    assert.ok(block.every((byte) => byte === i + 1));
  }
  await node.flush();
  await graph.close();
});

test('an image that somebody cut fails the next flush, and everything after it, saying so, until it is whole again', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path });
  const { node } = graph.find('f');
  await node.flush();
  truncateSync(path, 4096);
  for (const offset of [0, 8192]) {
    const extents = await blockStatusOf(node, offset, size - offset);
    assert.equal(extents.at(-1)?.zero, true, 'past its new end it reads as zeroes, and is said to');
  }
  await assert.rejects(async () => await node.flush(), { message: /disk.img was cut to 4096 bytes by somebody else/ });
  truncateSync(path, size);
  await assert.rejects(async () => await node.read(0, new Uint8Array(512)), { code: 'io-error', message: /was cut/ });
  assert.match(String(node.info?.().failed), /was cut/);
  truncateSync(path, size - 1);
  const reopen = (): Promise<void> => graph.reopen([{ nodeName: 'f', readOnly: false, anew: true }]);
  await assert.rejects(reopen(), { message: /was cut to 1048575 bytes/ });
  truncateSync(path, size);
  await reopen();
  await node.flush();
  await node.read(0, new Uint8Array(512));
  await graph.close();
});

test('after a flush that failed every request is EIO, saying why and what to do, until the image is opened anew', async () => {
  const world = new World(1);
  const host = world.host('a');
  const { graph } = testGraph(host);
  const options = { driver: 'file', 'node-name': 'f', filename: '/disk.img', discard: 'unmap' };
  const block = new Uint8Array(512);
  const requests = (): readonly (() => unknown)[] => {
    const { node } = graph.find('f');
    return [
      () => node.read(0, block),
      () => node.write(0, block, writeFlags.none),
      () => node.writeZeroes(0, 512, writeFlags.none),
      () => node.writeZeroes(0, 512, writeFlags.noHole | writeFlags.fua),
      () => node.discard(0, 512),
      () => node.blockStatus(0, size),
      () => node.flush(),
    ];
  };
  const work = async (): Promise<void> => {
    const file = await host.files.open('/disk.img', { access: 'write', create: 'exclusive' });
    await file.truncate(size);
    await file.close();
    await graph.add(options);
    const reopen = (anew: boolean): Promise<void> => graph.reopen([{ nodeName: 'f', readOnly: false, anew }]);
    for (const mend of [
      () => reopen(true),
      async () => {
        await graph.remove('f');
        await graph.add(options);
      },
    ]) {
      const fault = world.fault('a', { operation: 'sync', errno: 'EIO', count: 1 });
      const waiting = [...requests(), ...requests()].map(async (request) => await request());
      await Promise.allSettled(waiting);
      fault.remove();
      for (const request of requests()) {
        await assert.rejects(async () => await request(), {
          code: 'io-error',
          message: /sync \/disk.img: EIO.* may be lost; EIO until it is opened anew \(blockdev-reopen\)/,
        });
      }
      assert.match(String(graph.find('f').node.info?.().failed), /may be lost/);
      // A job that needs it writable, or not, does not make it believed.
      await graph.reopen([{ nodeName: 'f', readOnly: true }]);
      await reopen(false);
      await assert.rejects(async () => await graph.find('f').node.flush(), { code: 'io-error' });
      await mend();
      for (const request of requests()) await request();
      assert.equal(graph.find('f').node.info?.().failed, undefined);
    }
    await graph.close();
  };
  await world.complete(work());
});

test('an image that cannot be synced even when it is opened anew stays failed', async () => {
  const world = new World(2);
  const host = world.host('a');
  const { graph } = testGraph(host);
  const work = async (): Promise<void> => {
    const file = await host.files.open('/disk.img', { access: 'write', create: 'exclusive' });
    await file.truncate(size);
    await file.close();
    await graph.add({ driver: 'raw', 'node-name': 'r', file: { driver: 'file', filename: '/disk.img' } });
    const { node } = graph.find('r');
    const fault = world.fault('a', { operation: 'sync', errno: 'EIO' });
    await assert.rejects(async () => await node.flush(), { code: 'io-error' });
    const reopen = (): Promise<void> => graph.reopen([{ nodeName: 'r', readOnly: false, anew: true }]);
    await assert.rejects(reopen(), { code: 'io-error' });
    await assert.rejects(async () => await node.read(0, new Uint8Array(512)), { message: /may be lost/ });
    fault.remove();
    await reopen();
    await node.read(0, new Uint8Array(512));
    await node.flush();
    await graph.close();
  };
  await world.complete(work());
});

test('a flush joins only a sync that has not begun', async () => {
  const syncs: PromiseWithResolvers<void>[] = [];
  const queue = new SyncQueue(() => {
    const sync = Promise.withResolvers<void>();
    syncs.push(sync);
    return sync.promise;
  });
  const done: string[] = [];
  const flush = (name: string): Promise<void> => queue.run().then(() => void done.push(name));
  const all = [flush('a'), flush('b'), flush('c')];
  assert.equal(syncs.length, 1, 'b and c came while a’s sync was running: they wait for the next, together');
  syncs[0]?.resolve();
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual([done, syncs.length], [['a'], 2]);
  all.push(flush('d'));
  syncs[1]?.resolve();
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual([done, syncs.length], [['a', 'b', 'c'], 3]);
  syncs[2]?.resolve();
  await Promise.all(all);
});

test('block status tells holes from data, and zeroes become holes where discards are wanted', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path, discard: 'unmap' });
  const { node } = graph.find('f');
  await node.write(0, new Uint8Array(size).fill(1), 0);
  assert.deepEqual(await node.blockStatus(0, size), [{ length: size, zero: false, allocated: true }]);
  await node.writeZeroes(65536, 65536, 0);
  assert.deepEqual(await blockStatusOf(node, 0, size), [
    { length: 65536, zero: false, allocated: true },
    { length: 65536, zero: true, allocated: false },
    { length: size - 131072, zero: false, allocated: true },
  ]);
  await graph.close();
});

test('requests that the page cache answers are answered at once', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'raw', 'node-name': 'r', file: { driver: 'file', filename: path } });
  const { node } = graph.find('r');
  const block = new Uint8Array(4096);
  assert.equal(node.write(0, block, 0), undefined);
  assert.equal(node.read(0, block), undefined);
  await graph.close();
});

test('a discard that may take long is not waited for, but what comes after it on its range waits', async (t) => {
  const filename = await image(t);
  truncateSync(filename, 256 * size);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename, discard: 'unmap' });
  const { node } = graph.find('f');
  const block = new Uint8Array(4096).fill(5);
  assert.ok(node.discard(0, 128 * size) instanceof Promise);
  const overlapping = node.write(0, block, 0);
  assert.ok(overlapping instanceof Promise);
  assert.equal(node.write(200 * size, block, 0), undefined, 'others pass');
  await overlapping;
  const found = new Uint8Array(4096);
  await node.read(0, found);
  assert.deepEqual(found, block);
  await graph.close();
});

test('a full disk is ENOSPC on threads too, and loses nothing that was answered', async (t) => {
  const path = join(await smallDisk(t, size / 2), 'disk.img');
  writeFileSync(path, '');
  truncateSync(path, size);
  for (const more of [{ io: 'async' }, { cache: { direct: true } }]) {
    const { graph } = testGraph();
    await graph.add({ driver: 'file', 'node-name': 'f', filename: path, discard: 'unmap', ...more });
    const { node } = graph.find('f');
    await node.discard(0, size);
    const blocks = Array.from({ length: 16 }, (_, i) => new Uint8Array(65_536).fill(i + 1));
    const written = await Promise.allSettled(blocks.map(async (block, i) => await node.write(i * 65_536, block, 0)));
    const failed = written.filter((result) => result.status === 'rejected');
    assert.ok(failed.length > 0 && failed.length < blocks.length, `${failed.length} failed`);
    for (const { reason } of failed) assert.equal((reason as { code: string }).code, 'no-space');
    for (const [i, block] of blocks.entries()) {
      if (written[i]?.status === 'rejected') continue;
      const found = new Uint8Array(65_536);
      await node.read(i * 65_536, found);
      assert.equal(Buffer.compare(found, block), 0, `block ${i}`);
    }
    await graph.close();
  }
});

test('without system calls an image has no locks and no holes, and says so', async (t) => {
  const filename = await image(t);
  const { graph } = testGraph({ ...createHost(), files: new NodeFiles(null) });
  const options = { driver: 'file', 'node-name': 'f', filename, discard: 'unmap' };
  await assert.rejects(graph.add({ ...options, locking: 'on' }), { code: 'not-supported', message: /no byte locks/ });
  await assert.rejects(graph.add({ ...options, cache: { direct: true } }), { code: 'not-supported' });
  await graph.add(options);
  const { node } = graph.find('f');
  assert.equal(node.info?.().locks, 'unlocked');
  await node.write(0, new Uint8Array(size).fill(7), 0);
  await node.discard(0, 4096);
  await node.writeZeroes(8192, 4096, 0);
  await assert.rejects(async () => await node.writeZeroes(0, 4096, writeFlags.fastZero), { code: 'not-supported' });
  assert.deepEqual(await node.blockStatus(0, size), [{ length: size, zero: false, allocated: true }]);
  const found = new Uint8Array(16_384);
  await node.read(0, found);
  assert.deepEqual([found[0], found[8191], found[8192], found[12_287], found[12_288]], [7, 7, 0, 0, 7]);
  await graph.close();
});

test('aio=native wants cache.direct=on, as in QEMU', async (t) => {
  const filename = await image(t);
  const { graph } = testGraph();
  const options = { driver: 'file', 'node-name': 'f', filename, aio: 'native' };
  await assert.rejects(graph.add(options), { code: 'invalid-option', message: /aio: native needs cache.direct=on/ });
  await graph.add({ ...options, cache: { direct: true } });
  await graph.close();
});
