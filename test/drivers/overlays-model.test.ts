import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { allPermissions, permissionBits } from '../../src/block/child.ts';
import { copiesBeforeWrite } from '../../src/block/copies-before-write.ts';
import { BlockGraph } from '../../src/block/graph.ts';
import type { BlockParent } from '../../src/block/graph-view.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { copyBeforeWriteDriver } from '../../src/drivers/copy-before-write.ts';
import { memoryDriver } from '../../src/drivers/memory.ts';
import { shadowDriver } from '../../src/drivers/shadow.ts';
import { createHost } from '../../src/host/index.ts';
import { testGraph } from '../block/fixture.ts';

const size = 256 * 1024 + 1536;

async function chain() {
  const graph = new BlockGraph(
    createHost(),
    new DriverRegistry([memoryDriver, shadowDriver, copyBeforeWriteDriver]),
    new Map(),
    () => undefined,
  );
  await graph.add({ driver: 'memory', 'node-name': 'disk', size });
  const file = { driver: 'memory', size: 0 };
  await graph.add({ driver: 'shadow', 'node-name': 'hidden', file, backing: 'disk', 'grow-bytes': 65536 });
  await graph.add({ driver: 'shadow', 'node-name': 'active', file, backing: 'hidden', 'grow-bytes': 65536 });
  await graph.add({ driver: 'copy-before-write', 'node-name': 'copying', file: 'disk', target: 'hidden' });
  const parent: BlockParent = { description: 'the test', drainBegin: () => undefined, drainEnd: () => undefined };
  const { 'consistent-read': read, write } = permissionBits;
  await graph.use('copying', parent, { needs: read | write, shares: allPermissions });
  await graph.use('active', parent, { needs: read | write, shares: allPermissions });
  const node = (name: string) => graph.find(name).node;
  return { graph, primary: node('copying'), top: node('active'), hidden: node('hidden'), disk: node('disk') };
}

type Step =
  | { at: 'primary' | 'top'; kind: 'write' | 'zero'; offset: number; length: number; fill: number }
  | { at: 'checkpoint' };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      at: fc.constantFrom('primary' as const, 'top' as const),
      kind: fc.constantFrom('write' as const, 'write' as const, 'zero' as const),
      offset: fc.nat(size - 1),
      length: fc.integer({ min: 1, max: 30000 }),
      fill: fc.integer({ min: 1, max: 255 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ at: fc.constant('checkpoint' as const) }) },
);

test('the top shows the last checkpoint plus its own writes, whatever the primary writes below', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const { primary, top, hidden, disk } = await chain();
      const model = { disk: new Uint8Array(size), top: new Uint8Array(size) };
      for (const one of steps) {
        if (one.at === 'checkpoint') {
          await top.makeEmpty?.();
          await hidden.makeEmpty?.();
          copiesBeforeWrite(primary)?.forgetCopies();
          model.top = model.disk.slice();
          continue;
        }
        const length = Math.min(one.length, size - one.offset);
        const node = one.at === 'primary' ? primary : top;
        const fill = one.kind === 'zero' ? 0 : one.fill;
        if (one.kind === 'zero') await node.writeZeroes(one.offset, length, 0);
        else await node.write(one.offset, new Uint8Array(length).fill(fill), 0);
        (one.at === 'primary' ? model.disk : model.top).fill(fill, one.offset, one.offset + length);
        const seen = new Uint8Array(size);
        await top.read(0, seen);
        assert.ok(Buffer.from(seen).equals(model.top), 'the top');
        await disk.read(0, seen);
        assert.ok(Buffer.from(seen).equals(model.disk), 'the disk');
      }
    }),
    { numRuns: 60 },
  );
});

const user: BlockParent = { description: 'the test', drainBegin: () => undefined, drainEnd: () => undefined };
const readAndWrite = { needs: permissionBits['consistent-read'] | permissionBits.write, shares: allPermissions };

test('a granule of which only a part reads as zeroes is copied, not taken for zeroes', async () => {
  const { graph } = testGraph();
  const log = { driver: 'memory', size: 0 };
  const blocks = 48;
  await graph.add({ driver: 'shadow', 'node-name': 'disk', file: log, size: blocks * 4096, 'grow-bytes': 65536 });
  await graph.add({ driver: 'shadow', 'node-name': 'kept', file: log, size: blocks * 4096, 'grow-bytes': 65536 });
  const options = { driver: 'copy-before-write', file: 'disk', target: 'kept', granularity: 65536 };
  await graph.add({ ...options, 'node-name': 'copying' });
  await graph.use('copying', user, readAndWrite);
  await graph.use('kept', user, readAndWrite);
  const [copying, kept] = [graph.find('copying').node, graph.find('kept').node];
  for (const block of [20, 31, 40]) await copying.write(block * 4096, new Uint8Array(4096).fill(block), 0);
  copiesBeforeWrite(copying)?.forgetCopies();
  await copying.write(0, new Uint8Array(blocks * 4096).fill(255), 0);
  const found = new Uint8Array(blocks * 4096);
  await kept.read(0, found);
  for (let block = 0; block < blocks; block++) {
    assert.deepEqual([block, found[block * 4096]], [block, [20, 31, 40].includes(block) ? block : 0]);
  }
});

test('record-log 8: old content whose sync failed is not taken for kept, though it was copied at once', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'disk', size });
  await graph.add({ driver: 'blkdebug', 'node-name': 'kept', image: { driver: 'memory', size } });
  await graph.add({ driver: 'copy-before-write', 'node-name': 'copying', file: 'disk', target: 'kept', sync: true });
  await graph.use('copying', user, readAndWrite);
  const { node } = graph.find('copying');
  const fault = { operation: 'flush', errno: 'EIO', count: 2 };
  await graph.find('kept').node.control?.({ action: 'add-fault', fault });
  for (let attempt = 0; attempt < 2; attempt++) {
    await assert.rejects(async () => node.write(0, new Uint8Array(4096).fill(1), 0), /EIO/);
    assert.equal(copiesBeforeWrite(node)?.copiedBytes, 0);
  }
  await node.write(0, new Uint8Array(4096).fill(1), 0);
  assert.equal(copiesBeforeWrite(node)?.copiedBytes, 4096);
});

test('a change that is longer than one copy waits for all copies of what it overwrites', async () => {
  const { graph } = testGraph();
  const disk = 4 * 1024 * 1024;
  await graph.add({ driver: 'memory', 'node-name': 'disk', size: disk });
  await graph.add({ driver: 'memory', 'node-name': 'kept', size: disk });
  await graph.add({ driver: 'copy-before-write', 'node-name': 'copying', file: 'disk', target: 'kept' });
  await graph.use('copying', user, readAndWrite);
  const [copying, kept] = [graph.find('copying').node, graph.find('kept').node];
  const old = Uint8Array.from({ length: disk / 4096 }, (_, block) => 1 + (block % 250));
  for (const [block, fill] of old.entries()) await copying.write(block * 4096, new Uint8Array(4096).fill(fill), 0);
  copiesBeforeWrite(copying)?.forgetCopies();
  // One block of it was changed before: the run is in two parts, the second of them longer than a copy.
  await copying.write(100 * 4096, new Uint8Array(4096).fill(255), 0);
  await copying.write(4096, new Uint8Array(disk - 8192).fill(255), 0);
  assert.equal(copiesBeforeWrite(copying)?.copiedBytes, disk - 8192);
  const found = new Uint8Array(disk);
  await kept.read(0, found);
  for (const block of old.keys()) {
    if (block === 0 || block === old.length - 1) continue;
    assert.deepEqual([block, found[block * 4096]], [block, old[block]]);
  }
});
