/** The compaction of an overlay (record-log.md 7): whatever happens on its way, every block is there afterwards. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DriverNode } from '../../src/block/driver.ts';
import { BlockIndex } from '../../src/util/block-index.ts';
import { overlayOn } from './shadow-overlay.ts';

const blockBytes = 4096;
const many = 700;
const turn = () => new Promise((resolve) => setImmediate(resolve));
const fillOf = (block: number): number => 1 + (block % 250);

const overlay = () => overlayOn({ driver: 'blkdebug', image: { driver: 'memory', size: 0 } }, 4096 * blockBytes);

const write = (node: DriverNode, block: number) =>
  node.write(block * blockBytes, new Uint8Array(blockBytes).fill(fillOf(block)), 0);

/** In an order in which no two that follow each other stand together: each is moved for itself. */
async function writeAll(node: DriverNode, count: number): Promise<void> {
  for (let i = 0; i < count; i++) await write(node, (i * 37) % count);
}

const bytesOf = (node: DriverNode): number => Number(node.info?.()['log-bytes']);

/** Writes until a compaction has ended: the log is short again. */
async function compacted(node: DriverNode, count: number): Promise<void> {
  const before = bytesOf(node);
  for (let i = 0; bytesOf(node) > 0.8 * before; i++) {
    assert.ok(i < 2000, `${bytesOf(node)} of ${before} bytes are left`);
    await write(node, i % 4);
    await turn();
  }
  await node.settle?.();
  assert.ok(bytesOf(node) >= count * blockBytes);
}

async function checkAll(node: DriverNode, count: number, claim: string): Promise<void> {
  const bytes = new Uint8Array(blockBytes);
  for (let block = 0; block < count; block++) {
    await node.read(block * blockBytes, bytes);
    assert.deepEqual([block, bytes[0]], [block, fillOf(block)], claim);
  }
}

async function reopened(open: () => ReturnType<Awaited<ReturnType<typeof overlay>>['open']>): Promise<DriverNode> {
  return (await open()).node;
}

test('every block is moved, that of the last slot among them', async () => {
  const index = new BlockIndex();
  for (let block = 0; block < many; block++) index.set(block, 1);
  assert.ok(index.blockAt(index.slotCount - 1) !== undefined);
  const { open } = await overlay();
  const { node, close } = await open();
  for (let round = 0; round < 3; round++) await writeAll(node, many);
  await compacted(node, many);
  await close();
  await checkAll(await reopened(open), many, 'reopened');
});

test('an index that grows on the way loses no block', async () => {
  for (let rounds = 2; rounds < 30; rounds += 2) {
    const { open } = await overlay();
    const { node, close } = await open();
    for (let round = 0; round < 2; round++) await writeAll(node, many);
    while (node.info?.()['log-lives'] === 1) await write(node, 0);
    for (let round = 0; round < rounds; round++) {
      await write(node, 0);
      await turn();
    }
    for (let block = many; block < 800; block++) await write(node, block);
    await compacted(node, 800);
    await close();
    await checkAll(await reopened(open), 800, `grown after ${rounds} steps`);
  }
});

test('a block that cannot be read is not left behind', async () => {
  const { log, open } = await overlay();
  const { node, close } = await open();
  await writeAll(node, many);
  await (log as DriverNode).control?.({ action: 'add-fault', fault: { operation: 'read', errno: 'EIO', count: 1 } });
  for (let round = 0; round < 3; round++) await writeAll(node, many);
  await node.settle?.();
  assert.ok(bytesOf(node) > 4 * many * blockBytes, 'it was given up');
  await close();
  await checkAll(await reopened(open), many, 'reopened');
});
