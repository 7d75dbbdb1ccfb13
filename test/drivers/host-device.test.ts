/** Block devices, on loop devices: what the driver does to them is seen in the file below. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { writeFlags } from '../../src/block/node.ts';
import { createHost } from '../../src/host/index.ts';
import { NodeFiles } from '../../src/host/node-files.ts';
import { parent, reader, testGraph, writer } from '../block/fixture.ts';
import { runSteps, step } from '../model/array-model.ts';
import { cleanup } from '../support/cleanup.ts';
import { loopDevice } from '../support/loop-device.ts';
import { dataRanges, lockedBytes, usedKib } from '../support/outside.ts';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-img', 'qemu-io', 'losetup', 'mkfs.ext4');
const mib = 2 ** 20;

test('a device has its size, and a discard gives space back where it stands', async (t) => {
  const { device, file } = await loopDevice(t, 16 * mib);
  const { graph } = testGraph();
  await graph.add({ driver: 'host_device', 'node-name': 'd', filename: device, discard: 'unmap' });
  const { node } = graph.find('d');
  assert.equal(node.length, 16 * mib);
  await node.write(0, new Uint8Array(8 * mib).fill(1), writeFlags.fua);
  const full = await usedKib(file);
  assert.ok(full >= 8192, `${full} KiB`);
  await node.discard(0, 4 * mib);
  await node.flush();
  assert.ok((await usedKib(file)) <= full - 4000, `${await usedKib(file)} KiB of ${full} left`);
  await node.writeZeroes(4 * mib, 2 * mib, writeFlags.fua);
  assert.ok((await usedKib(file)) <= full - 6000, 'zeroes are a hole');
  await node.writeZeroes(6 * mib, 2 * mib, writeFlags.fua | writeFlags.noHole);
  assert.ok((await usedKib(file)) >= full - 6200, 'but not with NO_HOLE');
  const block = new Uint8Array(8 * mib).fill(9);
  await node.read(0, block);
  assert.ok(block.subarray(4 * mib).every((byte) => byte === 0));
  await graph.close();
});

test('discards that are not asked for change nothing on the device', async (t) => {
  const { device, file } = await loopDevice(t, 4 * mib);
  const { graph } = testGraph();
  await graph.add({ driver: 'host_device', 'node-name': 'd', filename: device });
  const { node } = graph.find('d');
  await node.write(0, new Uint8Array(mib).fill(1), writeFlags.fua);
  await node.discard(0, mib);
  await node.flush();
  assert.deepEqual(await dataRanges(file), [[0, mib]]);
  await graph.close();
});

test('zeroes that begin and end within a sector leave its other bytes', async (t) => {
  const { device } = await loopDevice(t, mib, { sectorBytes: 4096 });
  const { graph } = testGraph();
  await graph.add({ driver: 'host_device', 'node-name': 'd', filename: device, discard: 'unmap' });
  const { node } = graph.find('d');
  const expected = new Uint8Array(mib).fill(7);
  await node.write(0, expected, 0);
  for (const [offset, length] of [
    [100, 50_000],
    [200_000, 10],
    [300_000, 4096],
    [409_600, 8192],
  ] as const) {
    await node.writeZeroes(offset, length, 0);
    expected.fill(0, offset, offset + length);
    await node.discard(offset + 600_000 - 300_000, 100);
  }
  const found = new Uint8Array(mib);
  await node.read(0, found);
  assert.equal(Buffer.compare(found, expected), 0);
  await assert.rejects(async () => await node.writeZeroes(10, 20, writeFlags.fastZero), { code: 'not-supported' });
  await graph.close();
});

test('a device that is written to is kept from mounts, from claims and from qemu-io, and shows QEMU’s locks', async (t) => {
  const { device } = await loopDevice(t, 16 * mib);
  assert.equal((await run('mkfs.ext4', ['-q', device])).code, 0);
  const folder = await temporaryFolder(t);
  const { graph } = testGraph();
  const options = { driver: 'host_device', 'node-name': 'd', filename: device };
  await graph.add({ ...options, exclusive: true });
  const use = await graph.use('d', parent('export "x"'), writer);
  assert.deepEqual(lockedBytes(device), [100, 101, 201, 203]);
  const mounted = await run('mount', [device, folder]);
  assert.notEqual(mounted.code, 0);
  assert.match(mounted.stderr, /busy|mounted/);
  const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', device]);
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /lock/);
  await use.release();
  await graph.remove('d');
  assert.deepEqual(lockedBytes(device), []);

  assert.equal((await run('mount', [device, folder])).code, 0);
  cleanup(t, () => run('umount', [folder]));
  await assert.rejects(graph.add(options), { code: 'locked', message: /device is in use: it is mounted/ });
  await graph.add({ ...options, 'read-only': true });
  const looking = await graph.use('d', parent('reader'), reader);
  await looking.release();
  await graph.close();
});

test('a device that grew is longer for who comes then, and for all after block_resize', async (t) => {
  const { device, resize } = await loopDevice(t, 4 * mib);
  const { graph } = testGraph();
  await graph.add({ driver: 'raw', 'node-name': 'r', file: { driver: 'host_device', filename: device } });
  const { node } = graph.find('r');
  assert.equal(node.length, 4 * mib);
  await resize(8 * mib);
  const use = await graph.use('r', parent('export "new"'), writer);
  assert.equal(node.length, 8 * mib);
  await node.write(8 * mib - 512, new Uint8Array(512).fill(3), writeFlags.fua);
  await assert.rejects(graph.resize('r', 6 * mib), { code: 'permission-conflict', message: /resize.*export "new"/ });
  await use.release();
  await resize(12 * mib);
  await graph.resize('r', 12 * mib);
  assert.equal(node.length, 12 * mib);
  await assert.rejects(graph.resize('r', 13 * mib), { code: 'invalid-option', message: /has only 12582912 bytes/ });
  await graph.close();
});

test('a read-only device is refused to a writer, and opened so with auto-read-only', async (t) => {
  const { device } = await loopDevice(t, mib, { readOnly: true });
  const { graph } = testGraph();
  const options = { driver: 'host_device', 'node-name': 'd', filename: device };
  await assert.rejects(graph.add(options), { code: 'read-only' });
  const node = await graph.add({ ...options, 'auto-read-only': true });
  assert.equal(node.readOnly, true);
  await assert.rejects(graph.use('d', parent('export "x"'), writer), { code: 'read-only' });
  await node.node.read(0, new Uint8Array(4096));
  await graph.close();
});

test('a device is claimed when it is reopened for writing, and let go when it is read-only again', async (t) => {
  const { device } = await loopDevice(t, 16 * mib);
  assert.equal((await run('mkfs.ext4', ['-q', device])).code, 0);
  const folder = await temporaryFolder(t);
  const mount = async (): Promise<number | null> => {
    const mounted = await run('mount', [device, folder]);
    if (mounted.code === 0) await run('umount', [folder]);
    return mounted.code;
  };
  const { graph } = testGraph();
  await graph.add({ driver: 'host_device', 'node-name': 'd', filename: device, 'read-only': true, discard: 'unmap' });
  assert.equal(await mount(), 0);
  await graph.reopen([{ nodeName: 'd', readOnly: false }]);
  assert.notEqual(await mount(), 0);
  const { node } = graph.find('d');
  await node.write(0, new Uint8Array(4096).fill(1), writeFlags.fua);
  await node.discard(mib, mib);
  await graph.reopen([{ nodeName: 'd', readOnly: true }]);
  await assert.rejects(async () => await node.write(0, new Uint8Array(4096), 0), { errno: 'EBADF' });
  const found = new Uint8Array(4096);
  await node.read(0, found);
  assert.ok(found.every((byte) => byte === 1));
  await graph.close();
});

test('without system calls a device has its size, is read and written to the byte, and is told to be all data', async (t) => {
  const { device, file, resize } = await loopDevice(t, 4 * mib, { sectorBytes: 4096 });
  const { graph } = testGraph({ ...createHost(), files: new NodeFiles(null) });
  await graph.add({ driver: 'host_device', 'node-name': 'd', filename: device, discard: 'unmap' });
  const { node } = graph.find('d');
  assert.equal(node.length, 4 * mib);
  assert.equal(node.info?.().locks, 'unlocked');
  const expected = new Uint8Array(4 * mib).fill(7);
  await node.write(0, expected, 0);
  await node.discard(0, mib);
  await node.writeZeroes(mib + 100, mib, 0);
  expected.fill(0, mib + 100, 2 * mib + 100);
  await node.write(3 * mib + 1, new Uint8Array(5000).fill(8), writeFlags.fua);
  expected.fill(8, 3 * mib + 1, 3 * mib + 5001);
  const found = new Uint8Array(4 * mib);
  await node.read(0, found);
  assert.equal(Buffer.compare(found, expected), 0);
  assert.equal(Buffer.compare(readFileSync(file), expected), 0);
  assert.deepEqual(await node.blockStatus(0, 4 * mib), [{ length: 4 * mib, zero: false, allocated: true }]);
  await resize(8 * mib);
  const use = await graph.use('d', parent('export "new"'), writer);
  assert.equal(node.length, 8 * mib);
  await use.release();
  await graph.close();
});

test('what is no block device is refused, saying which driver is right', async (t) => {
  const filename = join(await temporaryFolder(t), 'f');
  assert.equal((await run('truncate', ['-s', '1M', filename])).code, 0);
  const { graph } = testGraph();
  await assert.rejects(graph.add({ driver: 'host_device', 'node-name': 'd', filename }), {
    code: 'invalid-option',
    message: /is not a block device: use driver 'file'/,
  });
  await assert.rejects(graph.add({ driver: 'host_device', 'node-name': 'd', filename: '/dev/null' }), {
    code: 'invalid-option',
  });
});

for (const direct of [false, true])
  for (const sectorBytes of [512, 4096])
    test(`random requests on a device do what they do to an array: sectors of ${sectorBytes}, direct ${direct}`, async (t) => {
      const { device } = await loopDevice(t, 37 * 4096, { sectorBytes });
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
          const { graph } = testGraph();
          await graph.add({
            driver: 'host_device',
            'node-name': 'd',
            filename: device,
            discard: 'unmap',
            cache: { direct },
          });
          const { node } = graph.find('d');
          await node.writeZeroes(0, node.length, 0);
          await runSteps(node, steps);
          await graph.close();
        }),
        { numRuns: 25 },
      );
    });
