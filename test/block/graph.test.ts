import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { defineDriver } from '../../src/block/driver.ts';
import { nestingMax } from '../../src/block/graph.ts';
import { drivers } from '../../src/drivers/index.ts';
import { BlockError } from '../../src/util/errors.ts';
import { parent, reader, testGraph, writer } from './fixture.ts';

const size = 65536;

/** A disk that counts how often it was opened and closed. */
function counted(counts: { opened: number; closed: number }) {
  return defineDriver({
    name: 'counted',
    summary: 'counts',
    options: z.strictObject({ readable: z.boolean().default(true) }),
    async open(options, context) {
      if (!options.readable && !context.readOnly) throw new BlockError('access-denied', 'only to be read');
      counts.opened += 1;
      return {
        length: size,
        read: () => undefined,
        write: () => undefined,
        writeZeroes: () => undefined,
        discard: () => undefined,
        flush: () => undefined,
        blockStatus: (_offset, length) => [{ length, zero: false, allocated: true }],
        close: () => {
          counts.closed += 1;
          return undefined;
        },
      };
    },
  });
}

test('options that no driver knows are refused, naming them', async () => {
  const { graph } = testGraph();
  for (const { name } of drivers) {
    await assert.rejects(graph.add({ driver: name, 'node-name': 'x', nonsense: 1 }), { code: 'invalid-option' });
  }
  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ driver: 'memory', 'node-name': 'x', size, nonsense: 1 }, /nonsense: is unexpected/],
    [{ driver: 'memory', 'node-name': 'x' }, /size: is missing/],
    [{ driver: 'memory', size }, /node-name: is missing/],
    [{ driver: 'memory', 'node-name': '#x', size }, /node-name: must begin with a letter/],
    [{ driver: 'memory', 'node-name': 'x', size, discard: 'maybe' }, /discard: expected one of ignore, unmap/],
    [{ driver: 'memory', 'node-name': 'x', size, cache: { writeback: true } }, /cache.writeback: is unexpected/],
    [{ driver: 'memory', 'node-name': 'x', size, 'detect-zeroes': 'unmap' }, /detect-zeroes: unmap needs discard/],
    [{ driver: 'floppy', 'node-name': 'x' }, /there is no driver 'floppy'; there are: /],
    [{ 'node-name': 'x' }, /driver: is missing/],
    [{ driver: 'raw', 'node-name': 'x', file: 7 }, /file: /],
    [{ driver: 'raw', 'node-name': 'x', file: 'nobody' }, /there is no node 'nobody'/],
    [{ driver: 'raw', 'node-name': 'x', file: 'x' }, /there is no node 'x'/],
  ];
  for (const [options, message] of wrong) await assert.rejects(graph.add(options), { name: 'BlockError', message });
  assert.deepEqual(graph.list(), []);
});

test('an open that fails leaves nothing behind, and its name is free again', async () => {
  const counts = { opened: 0, closed: 0 };
  const { graph } = testGraph(undefined, [counted(counts)]);
  await graph.add({ driver: 'memory', 'node-name': 'small', size: 1024 });
  const options = {
    driver: 'quorum',
    'node-name': 'q',
    'vote-threshold': 1,
    children: [{ driver: 'counted', 'node-name': 'c' }, { driver: 'raw', file: { driver: 'counted' } }, 'small'],
  };
  await assert.rejects(graph.add(options), { message: /one length: 'small' has 1024 bytes, 'c' has 65536/ });
  assert.deepEqual(
    graph.list().map((node) => node.nodeName),
    ['small'],
  );
  assert.deepEqual(graph.find('small').parents, []);
  assert.deepEqual(counts, { opened: 2, closed: 2 });
  await graph.add({ driver: 'memory', 'node-name': 'q', size });
});

test('while a node is being opened its name is taken, and nobody finds it', async () => {
  const gate = Promise.withResolvers<void>();
  const slow = defineDriver({
    name: 'slow',
    summary: 'opens when told',
    options: z.strictObject({}),
    async open() {
      await gate.promise;
      throw new BlockError('timed-out', 'never mind');
    },
  });
  const { graph } = testGraph(undefined, [slow]);
  const opening = graph.add({ driver: 'slow', 'node-name': 's' });
  await assert.rejects(graph.add({ driver: 'memory', 'node-name': 's', size }), { code: 'name-in-use' });
  assert.throws(() => graph.find('s'), { code: 'node-not-found' });
  await assert.rejects(graph.use('s', parent('a'), reader), { code: 'node-not-found' });
  gate.resolve();
  await assert.rejects(opening, { code: 'timed-out' });
  await graph.add({ driver: 'memory', 'node-name': 's', size });
});

test('nodes made in place go with their last parent, others stay', async () => {
  const counts = { opened: 0, closed: 0 };
  const { graph } = testGraph(undefined, [counted(counts)]);
  await graph.add({ driver: 'counted', 'node-name': 'own' });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: { driver: 'raw', file: { driver: 'counted' } } });
  await graph.add({ driver: 'raw', 'node-name': 'r2', file: 'own' });
  const [name] = graph.find('r').children.map((child) => child.nodeName);
  assert.match(name ?? '', /^#block\d+$/);
  const use = await graph.use(name ?? '', parent('a'), reader);
  await graph.remove('r');
  await graph.remove('r2');
  assert.deepEqual(counts, { opened: 2, closed: 0 });
  await use.release();
  assert.deepEqual(counts, { opened: 2, closed: 1 });
  assert.deepEqual(
    graph.list().map((node) => node.nodeName),
    ['own'],
  );
});

test('a node in use is not removed, and the refusal names who uses it', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'm', size });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'm' });
  await assert.rejects(graph.remove('m'), { code: 'in-use', message: /in use by node 'r' as 'file'/ });
  const use = await graph.use('r', parent('export "x"'), writer);
  await assert.rejects(graph.remove('r'), { code: 'in-use', message: /in use by export "x"/ });
  await assert.rejects(graph.close(), { code: 'in-use', message: /export "x"/ });
  await use.release();
  await use.release();
  await graph.remove('r');
  await graph.remove('m');
  await assert.rejects(graph.remove('m'), { code: 'node-not-found' });
});

test('auto-read-only opens for reading what cannot be written', async () => {
  const { graph } = testGraph(undefined, [counted({ opened: 0, closed: 0 })]);
  await assert.rejects(graph.add({ driver: 'counted', 'node-name': 'c', readable: false }), { code: 'access-denied' });
  const node = await graph.add({ driver: 'counted', 'node-name': 'c', readable: false, 'auto-read-only': true });
  assert.equal(node.readOnly, true);
  await assert.rejects(graph.use('c', parent('a'), writer), { code: 'read-only' });
});

test('nodes inside nodes have a limit', async () => {
  const { graph } = testGraph();
  let options: Record<string, unknown> = { driver: 'memory', size };
  for (let i = 0; i <= nestingMax; i += 1) options = { driver: 'raw', file: options };
  await assert.rejects(graph.add({ ...options, 'node-name': 'deep' }), { message: /nodes inside each other/ });
  assert.deepEqual(graph.list(), []);
});

test('a circle is refused', async () => {
  const { graph } = testGraph();
  for (const name of ['a', 'b']) await graph.add({ driver: 'memory', 'node-name': name, size });
  await graph.add({ driver: 'quorum', 'node-name': 'q', children: ['a'], 'vote-threshold': 1 });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'q' });
  await assert.rejects(graph.addChild('q', 'r'), { message: /would close a circle/ });
  await assert.rejects(graph.addChild('q', 'q'), { message: /would close a circle/ });
  await assert.rejects(graph.replace('a', 'r'), { message: /would close a circle/ });
  assert.deepEqual(
    graph.find('q').children.map((child) => child.nodeName),
    ['a'],
  );
});

test('the common options work on every driver: discard, detect-zeroes, no-flush', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'm', size, discard: 'unmap' });
  await graph.add({ driver: 'raw', 'node-name': 'ignores', file: 'm' });
  await graph.add({ driver: 'raw', 'node-name': 'detects', file: 'm', 'detect-zeroes': 'unmap', discard: 'unmap' });
  const [m, ignores, detects] = ['m', 'ignores', 'detects'].map((name) => graph.find(name).node);
  const ones = new Uint8Array(size).fill(1);
  await m?.write(0, ones, 0);
  await ignores?.discard(0, size);
  assert.deepEqual(await m?.blockStatus(0, size), [{ length: size, zero: false, allocated: true }]);
  await ignores?.writeZeroes(0, size, 0);
  assert.deepEqual(await m?.blockStatus(0, size), [{ length: size, zero: false, allocated: true }]);
  await m?.write(0, ones, 0);
  await detects?.write(0, new Uint8Array(size), 0);
  assert.deepEqual(await m?.blockStatus(0, size), [{ length: size, zero: true, allocated: false }]);
  await graph.add({
    driver: 'blkdebug',
    'node-name': 'failing',
    image: 'm',
    faults: [{ operation: 'flush', errno: 'EIO' }],
    cache: { 'no-flush': true },
  });
  await graph.find('failing').node.flush();
});

test('a resize needs the permission, reaches the file below, and tells who stands above', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'm', size });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'm', offset: 4096 });
  let told = 0;
  const above = parent('a', {
    nodeChanged: () => {
      told += 1;
    },
  });
  const use = await graph.use('r', above, writer);
  await assert.rejects(graph.resize('r', 8192), { code: 'permission-conflict', message: /'resize'/ });
  await use.setPermissions({ needs: 3, shares: 15 });
  await graph.resize('r', 8192);
  assert.equal(graph.find('m').node.length, 12288);
  assert.equal(use.node.length, 8192);
  assert.ok(told > 0);
  await assert.rejects(graph.resize('r', -1), { code: 'invalid-option' });
  await graph.add({ driver: 'null-co', 'node-name': 'n' });
  await assert.rejects(graph.resize('n', 1), { code: 'not-supported' });
});
