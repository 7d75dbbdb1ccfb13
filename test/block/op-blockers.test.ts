import assert from 'node:assert/strict';
import { test } from 'node:test';
import { blockOperations, OpBlockers } from '../../src/block/op-blockers.ts';
import { parent, testGraph, writer } from './fixture.ts';

test('an operation is blocked as long as one block of it stands, with its reason', () => {
  const blockers = new OpBlockers();
  const first = blockers.block('n', ['resize', 'delete'], 'the first');
  const second = blockers.block('n', ['delete'], 'the second');
  assert.throws(() => blockers.check('n', 'resize'), { code: 'op-blocked', message: /'n' is busy.*the first/ });
  blockers.check('n', 'stream');
  blockers.check('other', 'resize');
  first.lift();
  first.lift();
  blockers.check('n', 'resize');
  assert.throws(() => blockers.check('n', 'delete'), /the second/);
  assert.deepEqual(blockers.reasons('n'), ['the second']);
  second.lift();
  for (const operation of blockOperations) blockers.check('n', operation);
});

test('a block goes with its node: another of that name starts without; lifting it then does nothing', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'n', size: 512 });
  const block = graph.blockers.block('n', ['delete'], 'a test');
  await graph.remove('n');
  await graph.add({ driver: 'memory', 'node-name': 'n', size: 512 });
  graph.blockers.check('n', 'delete');
  const other = graph.blockers.block('n', ['delete'], 'another');
  block.lift();
  assert.throws(() => graph.blockers.check('n', 'delete'), /another/);
  other.lift();
});

test('a filter put above a node takes its users, but not those that stand below the filter', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'disk', size: 65536 });
  const file = { driver: 'memory', size: 0 };
  await graph.add({ driver: 'shadow', 'node-name': 'overlay', file, backing: 'disk', 'grow-bytes': 65536 });
  await graph.add({ driver: 'raw', 'node-name': 'beside', file: 'disk' });
  const user = await graph.use('disk', parent('a user'), writer);
  await graph.add({ driver: 'copy-before-write', 'node-name': 'filter', file: 'disk', target: 'overlay' });
  await assert.rejects(graph.replace('disk', 'filter'), { message: /would close a circle/ });
  await graph.insertAbove('disk', 'filter');
  const childOf = (name: string, role: string) =>
    graph.find(name).children.find((child) => child.role === role)?.nodeName;
  assert.deepEqual(
    [user.nodeName, childOf('beside', 'file'), childOf('overlay', 'backing'), childOf('filter', 'filtered')],
    ['filter', 'filter', 'disk', 'disk'],
  );
  const close = await graph.takeOut('filter');
  assert.deepEqual([user.nodeName, childOf('beside', 'file')], ['disk', 'disk']);
  assert.throws(() => graph.find('filter'), { code: 'node-not-found' });
  await close();
  await user.release();
});
