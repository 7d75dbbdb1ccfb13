/** Older clients' words for exports, what stands on the nodes, and reopening nodes under their users. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { temporaryFolder } from '../support/temp.ts';
import { checkedEngine, memoryNode } from './checked.ts';

type Row = Record<string, unknown>;

test('nbd-server-add and -remove; query-block and query-blockstats tell of every export', async (t) => {
  const { execute } = checkedEngine(t);
  const path = join(await temporaryFolder(t), 'n.sock');
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  await execute('blockdev-add', memoryNode('m'));
  await execute('nbd-server-add', { device: 'm', writable: true });
  await execute('nbd-server-add', { device: 'm', name: 'again' });
  await assert.rejects(execute('nbd-server-add', { device: 'm' }), { code: 'name-in-use' });
  await assert.rejects(execute('nbd-server-add', { device: 'nobody' }), { code: 'node-not-found' });
  const client = await NbdClient.connect(createHost(), { address: { type: 'unix', path }, exportName: 'm' });
  await client.write(4096, new Uint8Array(512), 0);
  await client.writeZeroes(8192, 1024, 0);
  await client.read(0, new Uint8Array(100));
  await client.discard(0, 4096);
  await client.flush();
  const blocks = (await execute('query-block')) as Row[];
  assert.deepEqual(
    blocks.map((block) => [block.device, (block.inserted as Row)['node-name']]),
    [
      ['m', 'm'],
      ['again', 'm'],
    ],
  );
  const [row] = (await execute('query-blockstats')) as { stats: Row }[];
  const { rd_bytes, wr_bytes, unmap_bytes, rd_operations, wr_operations, flush_operations, wr_highest_offset } =
    row?.stats ?? {};
  assert.deepEqual(
    [rd_bytes, wr_bytes, unmap_bytes, rd_operations, wr_operations, flush_operations, wr_highest_offset],
    [100, 1536, 4096, 1, 2, 1, 9216],
  );
  assert.deepEqual(await execute('query-blockstats', { 'query-nodes': true }), []);
  await assert.rejects(execute('nbd-server-remove', { name: 'm' }), { code: 'in-use' });
  await execute('nbd-server-remove', { name: 'm', mode: 'hard' });
  await execute('nbd-server-remove', { name: 'again' });
  assert.deepEqual(await execute('query-block'), []);
  await client.close().catch(() => undefined);
});

test('blockdev-reopen: read-only and back under a user; all or none; other changes are refused, naming them', async (t) => {
  const { execute, engine } = checkedEngine(t);
  const folder = await temporaryFolder(t);
  const image = (name: string) => ({ driver: 'file', 'node-name': name, filename: join(folder, name) });
  for (const name of ['a', 'b']) {
    const file = await createHost().files.open(join(folder, name), { access: 'write', create: 'exclusive' });
    await file.truncate(65536);
    await file.close();
    await execute('blockdev-add', image(name));
  }
  const overA = { driver: 'raw', 'node-name': 'over', file: 'a' };
  await execute('blockdev-add', overA);
  const ro = () =>
    engine.graph
      .list()
      .filter(({ readOnly }) => readOnly)
      .map(({ nodeName }) => nodeName);
  const parent = { description: 'a writer', drainBegin: () => undefined, drainEnd: () => undefined };
  const use = await engine.graph.use('over', parent, { needs: 3, shares: 15 });
  const reopen = (...options: Row[]) => execute('blockdev-reopen', { options });
  await assert.rejects(reopen({ ...overA, 'read-only': true }), /read-only, and a writer needs 'write'/);
  // The second one is refused, so the first stays as it was.
  await assert.rejects(reopen({ ...image('b'), 'read-only': true }, { ...image('a'), 'read-only': true }), /read-only/);
  assert.deepEqual(ro(), []);
  await use.setPermissions({ needs: 1, shares: 15 });
  await reopen({ ...image('b'), 'read-only': true }, { ...image('a'), 'read-only': true });
  assert.deepEqual(ro(), ['a', 'b']);
  await assert.rejects(use.setPermissions({ needs: 3, shares: 15 }), /'a' is read-only/);
  await reopen(image('a'));
  await use.setPermissions({ needs: 3, shares: 15 });
  await use.node.write(0, new Uint8Array([1, 2, 3]), 0);
  const back = new Uint8Array(3);
  await use.node.read(0, back);
  assert.deepEqual([...back], [1, 2, 3]);
  assert.deepEqual(ro(), ['b']);
  await assert.rejects(reopen({ ...image('a'), filename: '/elsewhere' }), /filename: of node 'a' cannot be changed/);
  await assert.rejects(reopen({ ...image('a'), locking: 'off' }), /locking: of node 'a'/);
  await assert.rejects(reopen({ ...image('a'), driver: 'raw' }), /driver: of node 'a'/);
  await assert.rejects(reopen({ ...image('nobody') }), { code: 'node-not-found' });
  await assert.rejects(reopen({ ...image('a'), 'read-only': 1 }), /read-only: expected true or false/);
  await use.release();
});

test('blockdev-reopen: a node made in place goes with the one it was made for, and only with it', async (t) => {
  const { execute, engine } = checkedEngine(t);
  const options = {
    driver: 'raw',
    'node-name': 'top',
    'read-only': true,
    file: { driver: 'raw', 'node-name': 'inner', file: { driver: 'memory', 'node-name': 'disk', size: 512 } },
  };
  await execute('blockdev-add', options);
  const ro = () => engine.graph.list().map(({ nodeName, readOnly }) => [nodeName, readOnly]);
  await execute('blockdev-add', { driver: 'raw', 'node-name': 'other', file: 'disk', 'read-only': true });
  await execute('blockdev-reopen', { options: [{ ...options, 'read-only': false }] });
  assert.deepEqual(
    new Map(ro() as [string, boolean][]),
    new Map([
      ['top', false],
      ['inner', false],
      ['disk', true],
      ['other', true],
    ]),
  );
});

test('blockdev-reopen: a child is named as it is now, whether it was made in place or the graph has changed', async (t) => {
  const { execute, engine } = checkedEngine(t);
  const file = { driver: 'memory', 'node-name': 'log', size: 0 };
  for (const name of ['base', 'other']) await execute('blockdev-add', memoryNode(name));
  const overlay = { driver: 'shadow', 'node-name': 'middle', file, backing: 'base' };
  await execute('blockdev-add', overlay);
  await execute('blockdev-add', { driver: 'raw', 'node-name': 'top', file: 'middle' });
  const reopen = (...options: Row[]) => execute('blockdev-reopen', { options });
  await reopen({ ...overlay, file: 'log' });
  await assert.rejects(reopen({ ...overlay, file: 'other' }), /file: of node 'middle' cannot be changed/);
  await assert.rejects(reopen({ ...overlay, file: 'log', backing: 'other' }), /backing: of node 'middle'/);
  await execute('block-commit', { 'job-id': 'c', device: 'middle', 'auto-dismiss': false });
  for (let i = 0; engine.jobs.find('c').status !== 'ready'; i += 1) await new Promise((done) => setTimeout(done, i));
  await execute('job-complete', { id: 'c' });
  for (let i = 0; engine.jobs.find('c').status !== 'concluded'; i += 1)
    await new Promise((done) => setTimeout(done, i));
  // The file of `top` is `base` by now.
  await reopen({ driver: 'raw', 'node-name': 'top', file: 'base' });
  await assert.rejects(reopen({ driver: 'raw', 'node-name': 'top', file: 'middle' }), /file: of node 'top'/);
});
