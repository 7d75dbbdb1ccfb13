/** Writes after a failed failover (spec: replication-filter, "The split of failover-failed"): piece after piece. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { RootUse } from '../../src/block/graph-view.ts';
import { writeFlags } from '../../src/block/node.ts';
import { attempt } from '../../src/util/later.ts';
import { parent, writer } from '../block/fixture.ts';
import { contentOf, eio, fill, Secondary } from './replication-secondary-world.ts';

const length = 2 ** 20;
const block = 4096;

interface Split {
  readonly side: Secondary;
  readonly user: RootUse;
  /** of the top; numbers of blocks */
  content(first: number, count: number): Promise<number[]>;
  fault(node: string, rule: Record<string, unknown>): Promise<void>;
}

/** Active has blocks 1 and 2, hidden has 4; every block reads as 1, those in active as 2. */
async function splitOf(t: TestContext): Promise<Split> {
  const discard = 'unmap';
  const image = { driver: 'memory', size: length, discard };
  const side = await Secondary.open(t, { length, local: { driver: 'blkdebug', discard, image }, filter: { discard } });
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await fill(s, 0, length, 1);
  await side.start();
  await fill(top, block, 2 * block, 2);
  await fill(s, 4 * block, block, 9);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-d-top', size: 512 });
  await side.failover();
  assert.equal(await side.stage(), 'failover-failed');
  const { graph } = side.checked.engine;
  return {
    side,
    user: await graph.use('d-top', parent('a user'), writer),
    content: async (first, count) => {
      const bytes = await contentOf(top, first * block, count * block);
      return Array.from({ length: count }, (_, i) => {
        const part = bytes.subarray(i * block, (i + 1) * block);
        return part.every((byte) => byte === part[0]) ? (part[0] ?? -1) : -1;
      });
    },
    fault: async (node, rule) => {
      await graph.find(node).node.control?.({ action: 'add-fault', fault: { count: 1, ...rule } });
    },
  };
}

const filled = (blocks: number, value: number) => new Uint8Array(blocks * block).fill(value);

test('failover-failed: the first piece that fails ends a write, and a write of zeroes; later pieces are not tried', async (t) => {
  const { user, content, fault } = await splitOf(t);
  // Block 3 is the secondary disk's, between one in active and one in hidden.
  await fault('d-local', { operation: 'write', errno: 'EIO', offset: 3 * block, length: block });
  await eio(Promise.resolve(attempt(() => user.node.write(block, filled(5, 7), writeFlags.none))));
  assert.deepEqual(await content(0, 6), [1, 7, 7, 1, 1, 1]);
  await fault('d-local', { operation: 'write-zeroes', errno: 'EIO', offset: 3 * block, length: block });
  await eio(Promise.resolve(attempt(() => user.node.writeZeroes(block, 5 * block, writeFlags.none))));
  assert.deepEqual(await content(0, 6), [1, 0, 0, 1, 1, 1]);
  await user.node.writeZeroes(block, 5 * block, writeFlags.none);
  assert.deepEqual(await content(0, 6), [1, 0, 0, 0, 0, 0]);
});

test('failover-failed: the first query of the allocation that fails ends a write; earlier pieces stay written', async (t) => {
  const { user, content, fault } = await splitOf(t);
  // What is in active is known without asking below it.
  await fault('d-local', { operation: 'block-status', errno: 'EIO', offset: 5 * block, count: 2 });
  await eio(Promise.resolve(attempt(() => user.node.write(4 * block, filled(3, 7), writeFlags.none))));
  assert.deepEqual(await content(3, 4), [1, 7, 1, 1]);
  await user.node.write(4 * block, filled(3, 7), writeFlags.none);
  assert.deepEqual(await content(3, 4), [1, 7, 7, 7]);
});

test('failover-failed: a piece of zeroes may become a hole in the secondary disk, unless its writer forbids it', async (t) => {
  const { side, user } = await splitOf(t);
  const { node } = side.checked.engine.graph.find('d-local');
  const hole = 64 * 1024;
  await user.node.writeZeroes(4 * hole, hole, writeFlags.none);
  await user.node.writeZeroes(8 * hole, hole, writeFlags.noHole);
  const allocated = async (at: number) => (await node.blockStatus(at, hole))[0]?.allocated;
  assert.deepEqual([await allocated(4 * hole), await allocated(8 * hole)], [false, true]);
});

test('failover-failed: overlapping requests take effect in the order issued, though each waits for its pieces', async (t) => {
  const { user, content, fault } = await splitOf(t);
  await fault('d-local', { operation: 'write', 'delay-ms': 50 });
  const first = attempt(() => user.node.write(8 * block, filled(2, 5), writeFlags.none));
  const second = attempt(() => user.node.write(9 * block, filled(2, 6), writeFlags.none));
  const seen = filled(2, 0);
  const read = attempt(() => user.node.read(9 * block, seen));
  const third = attempt(() => user.node.write(9 * block, filled(2, 7), writeFlags.none));
  await Promise.all([first, second, read, third]);
  assert.ok(
    seen.every((byte) => byte === 6),
    'a read sees the writes before it, and not the one after it',
  );
  assert.deepEqual(await content(7, 5), [1, 5, 7, 7, 1]);
});

test('failover-failed: a drain waits for the pieces of a write', async (t) => {
  const { side, user, fault } = await splitOf(t);
  await fault('d-local', { operation: 'write', 'delay-ms': 50 });
  let done = false;
  void Promise.resolve(attempt(() => user.node.write(8 * block, filled(1, 5), writeFlags.none))).then(() => {
    done = true;
  });
  const drained = await side.checked.engine.graph.drain('d-top');
  assert.ok(done);
  drained.end();
});
