/** What of `shadow` shows without a crash: its file stays bounded, damage is told, misuse is refused. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DriverNode } from '../../src/block/driver.ts';
import { epochal } from '../../src/block/epochal.ts';
import { parent, testGraph, writer } from '../block/fixture.ts';
import { overlayOn } from './shadow-overlay.ts';

const size = 64 * 4096;

const overlay = (epoch?: number) => overlayOn({ size: 0 }, size, epoch);

test('record-log 7: a file stays bounded though its blocks are rewritten within an epoch, and reads back', async () => {
  const { log, open } = await overlay();
  const { node, close } = await open();
  const block = new Uint8Array(4096);
  for (let i = 0; i < 4000; i++) {
    await node.write((i % 16) * 4096, block.fill(i % 251), 0);
    if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await node.settle?.();
  assert.ok(log.length < 4 * 1024 * 1024, `${log.length} bytes for 64 KiB of blocks`);
  await close();
  const { node: again } = await open();
  for (let i = 3984; i < 4000; i++) {
    await again.read((i % 16) * 4096, block);
    assert.ok(block.every((byte) => byte === i % 251));
  }
});

test('record-log 7: a block that is written once stays while others around it are rewritten and compacted', async () => {
  const { open } = await overlay();
  const { node, close } = await open();
  const block = new Uint8Array(4096);
  await node.write(20 * 4096, block.fill(7), 0);
  for (let i = 0; i < 500; i++) {
    await node.write((i % 4) * 4096, block.fill(1), 0);
    if (i % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await node.settle?.();
  await close();
  const { node: again } = await open();
  await again.read(20 * 4096, block);
  assert.ok(block.every((byte) => byte === 7));
});

test('record-log 7: blocks of zeroes stay so while others are rewritten and compacted, the first record among them', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'log', size: 0 });
  await graph.add({ driver: 'memory', 'node-name': 'disk', size });
  const { node: disk } = graph.find('disk');
  await disk.write(0, new Uint8Array(size).fill(9), 0);
  const small = { 'grow-bytes': 65536, 'reuse-bytes': 65536 };
  const open = async () => {
    await graph.add({ driver: 'shadow', 'node-name': 'top', file: 'log', backing: 'disk', ...small });
    const use = await graph.use('top', parent('the test'), writer);
    const { node } = graph.find('top');
    return { node, close: () => use.release().then(() => graph.remove('top')) };
  };
  const block = new Uint8Array(4096);
  let lives = 0;
  for (const zeroed of [20, 30, 40]) {
    const { node, close } = await open();
    const top: DriverNode = node;
    await node.writeZeroes(zeroed * 4096, 4096, 0);
    if (zeroed !== 30) await node.write((zeroed + 1) * 4096, block.fill(7), 0);
    for (let i = 0; i < 100; i++) {
      await node.write((i % 4) * 4096, block.fill(1), 0);
      if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await top.settle?.();
    lives = Number(top.info?.()['log-lives']);
    await close();
  }
  assert.ok(lives < 3, `${lives} lives after compactions`);
  const { node } = await open();
  for (const zeroed of [20, 30, 40]) {
    await node.read(zeroed * 4096, block);
    assert.deepEqual([zeroed, block[0]], [zeroed, 0]);
    await node.read((zeroed + 1) * 4096, block);
    assert.deepEqual([zeroed + 1, block[0]], [zeroed + 1, zeroed === 30 ? 9 : 7]);
  }
});

test('a life is kept as long as one record of it counts: its first, its last, or one of zeroes', async () => {
  const { open } = await overlay();
  const block = new Uint8Array(4096);
  const write = (node: DriverNode, at: number, fill: number) => node.write(at * 4096, block.fill(fill), 0);
  const lives: ((node: DriverNode) => Promise<unknown>)[] = [
    async (node) => {
      await write(node, 0, 1);
      await write(node, 1, 1);
      await write(node, 2, 1);
    },
    async (node) => {
      await write(node, 3, 2);
      await write(node, 2, 2);
    },
    async (node) => await node.writeZeroes(0, 4096, 0),
    async (node) => {
      await write(node, 2, 4);
      await write(node, 4, 4);
    },
    async (node) => await write(node, 2, 5),
  ];
  for (const live of lives) {
    const { node, close } = await open();
    await live(node);
    await close();
  }
  const { node } = await open();
  for (const [at, fill] of [0, 1, 5, 2, 4].entries()) {
    await node.read(at * 4096, block);
    assert.deepEqual([at, block[0]], [at, fill]);
  }
});

test('record-log 8: with sync=false it is unclean before the first write, and clean only when its backing is durable', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'log', size: 0 });
  await graph.add({ driver: 'blkdebug', 'node-name': 'disk', image: { driver: 'memory', size } });
  const options = {
    driver: 'shadow',
    'node-name': 'top',
    file: 'log',
    backing: 'disk',
    'grow-bytes': 65536,
    sync: false,
  };
  await graph.add(options);
  assert.equal(graph.find('log').node.length, 0);
  const use = await graph.use('top', parent('the test'), writer);
  assert.ok(graph.find('log').node.length > 0, 'its superblock says so');
  await use.release();
  const fault = { operation: 'flush', errno: 'EIO', count: 1 };
  await graph.find('disk').node.control?.({ action: 'add-fault', fault });
  await assert.rejects(graph.remove('top'), /injected EIO/);
});

test('a file stays bounded over many epochs of a group, whose overlays are not emptied one by one', async () => {
  const { log, open } = await overlay(1);
  const { node } = await open();
  for (let epoch = 2; epoch < 60; epoch++) {
    for (let i = 0; i < 30; i++) await node.write(i * 4096, new Uint8Array(4096).fill(epoch), 0);
    epochal(node)?.emptyAt(epoch);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.ok(log.length < 1024 * 1024, `${log.length} bytes`);
  await assert.rejects(async () => node.makeEmpty?.(), { code: 'wrong-state' });
  assert.throws(() => epochal(node)?.emptyAt(59), /epoch 59 is not above 59/);
});

test('record-log 2: damage is said and refuses I/O, at each opening, until the overlay is emptied', async () => {
  const { log, open } = await overlay();
  const first = await open();
  await first.node.write(0, new Uint8Array(4096).fill(1), 0);
  await first.node.flush();
  await first.node.write(4096, new Uint8Array(4096).fill(2), 0);
  await first.close();
  await log.write(128 * 1024 + 500, Uint8Array.of(77), 0);
  for (let opening = 0; opening < 2; opening++) {
    const { node, close } = await open();
    assert.match(String(node.info?.()['checkpoint-lost']), /damaged: record 1 does not hold/);
    await assert.rejects(async () => node.read(0, new Uint8Array(512)), { code: 'bad-image' });
    await assert.rejects(async () => node.write(0, new Uint8Array(512), 0), { code: 'bad-image' });
    if (opening === 1) {
      await node.makeEmpty?.();
      assert.equal(node.info?.()['checkpoint-lost'], null);
      await node.write(0, new Uint8Array(512).fill(3), 0);
    }
    await close();
  }
  const { node } = await open();
  const sector = new Uint8Array(512);
  await node.read(0, sector);
  assert.deepEqual([sector[0], node.info?.()['checkpoint-lost']], [3, null]);
});

test('record-log 8: an epoch that has gone back leads to no checkpoint: what it had is not all there any more', async () => {
  const { open } = await overlay();
  const first = await open(5);
  await first.node.write(0, new Uint8Array(4096).fill(1), 0);
  epochal(first.node)?.emptyAt(6);
  await first.node.write(4096, new Uint8Array(4096).fill(2), 0);
  await first.close();
  // Its owner's file was damaged, say, and the copy of it that is left is the older one.
  const back = await open(5);
  assert.match(String(back.node.info?.()['checkpoint-lost']), /holds epoch 6, and its group says 5/);
  await assert.rejects(async () => back.node.read(0, new Uint8Array(512)), { code: 'bad-image' });
  epochal(back.node)?.emptyAt(6);
  await back.node.write(8192, new Uint8Array(4096).fill(3), 0);
  await back.close();
  const again = await open(6);
  assert.equal(again.node.info?.()['held-bytes'], 4096);
});

test('record-log 4: after a failed sync nothing is read that may be lost, also when the file works again', async () => {
  const { graph } = testGraph();
  await graph.add({
    driver: 'blkdebug',
    'node-name': 'log',
    image: { driver: 'memory', size: 0 },
    'volatile-cache': true,
  });
  await graph.add({ driver: 'shadow', 'node-name': 'top', file: 'log', size, 'grow-bytes': 65536 });
  const use = await graph.use('top', parent('the test'), writer);
  const { node } = graph.find('top');
  const file = graph.find('log').node;
  const block = new Uint8Array(4096);
  await node.write(0, block.fill(1), 0);
  await node.flush();
  await node.write(0, block.fill(2), 0);
  await file.control?.({ action: 'add-fault', fault: { operation: 'flush', errno: 'EIO', count: 1 } });
  await assert.rejects(async () => node.flush(), /injected EIO/);
  // As a system does that forgets what it could not write; then somebody mends the device.
  await file.control?.({ action: 'cut' });
  await file.control?.({ action: 'power-on' });
  await assert.rejects(async () => node.read(0, block), /injected EIO.*until the overlay is opened anew/);
  await use.release();
  await graph.remove('top');
  await graph.add({ driver: 'shadow', 'node-name': 'top', file: 'log', size, 'grow-bytes': 65536 });
  await graph.find('top').node.read(0, block);
  assert.ok(block.every((byte) => byte === 1));
});

test('a read finds a write that was issued before it, whether that is done or not', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'blkdebug', 'node-name': 'log', image: { driver: 'memory', size: 0 } });
  await graph.add({ driver: 'shadow', 'node-name': 'top', file: 'log', size, 'grow-bytes': 65536 });
  await graph.use('top', parent('the test'), writer);
  const { node } = graph.find('top');
  await node.write(0, new Uint8Array(4096).fill(1), 0);
  await graph.find('log').node.control?.({ action: 'add-fault', fault: { operation: 'write', 'delay-ms': 5 } });
  const found = new Uint8Array(4096);
  for (const fill of [2, 3]) {
    const length = fill === 2 ? 4096 : 100;
    const writing = node.write(0, new Uint8Array(length).fill(fill), 0);
    const reading = node.read(0, found);
    await Promise.all([writing, reading]);
    assert.deepEqual([found[0], found[4095]], [fill, 2]);
  }
});

test('record-log 8: an overlay of a group that was lost and emptied is not lost again, though nothing was written', async () => {
  const { log, open } = await overlay(1);
  const first = await open();
  await first.node.write(0, new Uint8Array(4096).fill(1), 0);
  await first.node.flush();
  await first.node.write(4096, new Uint8Array(4096).fill(2), 0);
  await first.close();
  await log.write(128 * 1024 + 500, Uint8Array.of(77), 0);
  const damaged = await open();
  assert.match(String(damaged.node.info?.()['checkpoint-lost']), /damaged/);
  epochal(damaged.node)?.emptyAt(2);
  assert.equal(damaged.node.info?.()['checkpoint-lost'], null);
  await damaged.close();
  const { node } = await open(2);
  assert.equal(node.info?.()['checkpoint-lost'], null);
});

test('an emptying that failed has not come to pass, and a log that failed is not emptied', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'blkdebug', 'node-name': 'log', image: { driver: 'memory', size: 0 } });
  await graph.add({ driver: 'shadow', 'node-name': 'top', file: 'log', size, 'grow-bytes': 65536 });
  await graph.use('top', parent('the test'), writer);
  const node: DriverNode = graph.find('top').node;
  const block = new Uint8Array(4096);
  const failWrite = async () =>
    graph.find('log').node.control?.({ action: 'add-fault', fault: { operation: 'write', errno: 'EIO', count: 1 } });
  await node.write(0, block.fill(1), 0);
  await failWrite();
  await assert.rejects(async () => node.makeEmpty?.(), /EIO/);
  await node.read(0, block);
  assert.equal(block[0], 1);
  await graph.add({ driver: 'blkdebug', 'node-name': 'log2', image: { driver: 'memory', size: 0 } });
  await graph.add({ driver: 'shadow', 'node-name': 'other', file: 'log2', size, 'grow-bytes': 65536 });
  await graph.use('other', parent('the test'), writer);
  const other: DriverNode = graph.find('other').node;
  await other.makeEmpty?.();
  const fault = { operation: 'write', errno: 'EIO', count: 1 };
  await graph.find('log2').node.control?.({ action: 'add-fault', fault });
  await assert.rejects(async () => other.write(0, block, 0), /EIO/);
  await assert.rejects(async () => other.makeEmpty?.(), /EIO/);
});
