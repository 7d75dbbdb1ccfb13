/** The filter above a chain that is being committed (record-log.md 10): what reaches the top, and what the base too. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type CommitTap, CommitWrites } from '../../src/block/commit-writes.ts';
import type { DriverNode, OpenContext } from '../../src/block/driver.ts';
import { type BlockNode, writeFlags } from '../../src/block/node.ts';
import { commitTopDriver } from '../../src/drivers/commit-top.ts';
import { type Deferred, deferred } from '../../src/util/later.ts';

const length = 16 * 4096;

/** A node that tells what it was asked for; requests take until `let`. */
function recorder(name: string, told: string[]) {
  const waiting: Deferred[] = [];
  const slow = { on: false };
  const ask = (what: string): undefined | Promise<void> => {
    told.push(`${name} ${what}`);
    if (!slow.on) return undefined;
    const one = deferred();
    waiting.push(one);
    return one.promise;
  };
  const node: BlockNode = {
    length,
    read: (offset) => ask(`read ${offset}`),
    write: (offset, from, flags) => ask(`write ${offset}+${from.length} ${flags}`),
    writeZeroes: (offset, bytes, flags) => ask(`zeroes ${offset}+${bytes} ${flags}`),
    discard: (offset, bytes) => ask(`discard ${offset}+${bytes}`),
    flush: () => ask('flush'),
    blockStatus: (_, bytes) => [{ length: bytes, zero: false, allocated: true }],
  };
  const answer = () => {
    for (const one of waiting.splice(0)) one.resolve();
  };
  return { node, slow, answer };
}

async function commit() {
  const told: string[] = [];
  const top = recorder('top', told);
  const base = recorder('base', told);
  const context = { attach: async () => ({ node: top.node }) } as unknown as OpenContext;
  const filter = (await commitTopDriver.open({ file: 'top' }, context)) as DriverNode & CommitTap;
  const writes = new CommitWrites(
    length,
    4096,
    () => base.node,
    () => undefined,
  );
  return { told, top, base, filter, writes };
}

const { fua, none } = writeFlags;

test('what is written reaches the top with its flags, and where the base is up to date the base', async () => {
  const { told, filter, writes } = await commit();
  writes.dirty.mark(4096, 4096);
  filter.follow(writes);
  await filter.write(0, new Uint8Array(3 * 4096), fua);
  await filter.writeZeroes(4096, 8192, fua);
  await filter.writeZeroes(4096, 4096, none);
  assert.deepEqual(told, [
    `top write 0+12288 ${fua}`,
    `base write 0+4096 ${none}`,
    `base write 8192+4096 ${none}`,
    `top zeroes 4096+8192 ${fua}`,
    `base zeroes 8192+4096 ${none}`,
    `top zeroes 4096+4096 ${none}`,
  ]);
});

test('a flush is the top: nothing less, whether there is a commit or not', async () => {
  for (const follows of [true, false]) {
    const { told, top, filter, writes } = await commit();
    filter.follow(follows ? writes : null);
    top.slow.on = true;
    let done = false;
    const flushed = Promise.resolve(filter.flush()).then(() => {
      done = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual([told, done], [['top flush'], false]);
    top.answer();
    await flushed;
  }
});

test('a discard would make top and base differ: it goes to the top only where there is no commit', async () => {
  const { told, filter, writes } = await commit();
  filter.follow(writes);
  await filter.discard(0, 4096);
  assert.deepEqual(told, []);
  filter.follow(null);
  await filter.discard(0, 4096);
  assert.deepEqual(told, ['top discard 0+4096']);
});

test('a read comes after the writes before it, and nothing is quiet while one is under way', async () => {
  const { told, top, base, filter, writes } = await commit();
  filter.follow(writes);
  top.slow.on = true;
  base.slow.on = true;
  const written = filter.write(0, new Uint8Array(4096), none);
  const read = filter.read(0, new Uint8Array(4096));
  let quiet = false;
  const settled = Promise.resolve(filter.settle?.()).then(() => {
    quiet = true;
  });
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  await turn();
  assert.deepEqual([told, quiet], [[`top write 0+4096 ${none}`], false]);
  top.answer();
  await turn();
  // The base is part of the write.
  assert.deepEqual([told.slice(1), quiet], [[`base write 0+4096 ${none}`], false]);
  base.answer();
  await turn();
  assert.deepEqual([told.slice(2), quiet], [['top read 0'], false]);
  top.answer();
  await Promise.all([written, read, settled]);
});
