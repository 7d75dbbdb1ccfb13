import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testGraph } from '../block/fixture.ts';

const size = 65536;
const image = { driver: 'memory', size };
const bytes = new Uint8Array(512);

async function filter(options: Record<string, unknown>) {
  const { graph } = testGraph();
  return (await graph.add({ driver: 'blkdebug', 'node-name': 'b', image, ...options })).node;
}

test('inject-error, as QEMU writes it, meets its operation and sector, once if so asked', async () => {
  const node = await filter({
    'inject-error': [
      { event: 'write_aio', errno: 28, sector: 2, once: true },
      { event: 'none', iotype: 'flush' },
    ],
  });
  await node.write(0, bytes, 0);
  await node.read(1024, bytes);
  await assert.rejects(async () => await node.write(1000, bytes, 0), { code: 'no-space', message: /at 1000/ });
  await node.write(1000, bytes, 0);
  for (let i = 0; i < 2; i += 1) await assert.rejects(async () => await node.flush(), { code: 'io-error' });
});

test('faults pass what they skip, meet what they count, and go when told', async () => {
  const node = await filter({
    faults: [{ id: 'f', operation: 'read', errno: 'EIO', offset: 4096, length: 512, skip: 1, count: 2 }],
  });
  const results: boolean[] = [];
  for (let i = 0; i < 5; i += 1) {
    try {
      await node.read(4000, bytes);
      results.push(true);
    } catch {
      results.push(false);
    }
  }
  assert.deepEqual(results, [true, false, false, true, true]);
  await node.control?.({ action: 'add-fault', fault: { id: 'g', errno: 'ENOSPC' } });
  await assert.rejects(async () => await node.write(0, bytes, 0), { code: 'no-space' });
  assert.deepEqual(await node.control?.({ action: 'remove-faults', id: 'g' }), { removed: 1 });
  assert.equal(node.write(0, bytes, 0), undefined, 'without faults everything goes straight through');
});

test('a delayed write keeps its place before those that overlap it', async () => {
  const node = await filter({ faults: [{ operation: 'write', 'delay-ms': 20, count: 1 }] });
  const first = node.write(0, new Uint8Array(512).fill(1), 0);
  const second = node.write(256, new Uint8Array(512).fill(2), 0);
  const other = node.write(8192, new Uint8Array(512).fill(3), 0);
  assert.equal(other, undefined);
  await Promise.all([first, second]);
  const into = new Uint8Array(768);
  await node.read(0, into);
  assert.deepEqual([into[0], into[255], into[256], into[767]], [1, 1, 2, 2]);
});

test('a request that was delayed over a power cut fails and leaves no trace', async () => {
  const node = await filter({ 'volatile-cache': true, faults: [{ operation: 'write', 'delay-ms': 10, count: 1 }] });
  const writing = node.write(0, new Uint8Array(512).fill(1), 0);
  await node.control?.({ action: 'cut' });
  await node.control?.({ action: 'power-on' });
  await assert.rejects(async () => await writing, { message: /power/ });
  await node.read(0, bytes.fill(9));
  assert.ok(bytes.every((byte) => byte === 0));
});

test('an action or fault that is not one is refused, naming the field', async () => {
  const node = await filter({});
  const control = (args: Record<string, unknown>) => async () => await node.control?.(args);
  await assert.rejects(control({ action: 'explode' }), { code: 'invalid-option', message: /action/ });
  await assert.rejects(control({ action: 'add-fault', fault: { errno: 'EWHAT' } }), { message: /fault.errno/ });
  await assert.rejects(control({ action: 'add-fault', fault: { probability: 2 } }), { message: /fault.probability/ });
});
