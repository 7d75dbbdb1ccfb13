import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { type PermissionMask, type PermissionNeed, permissionBits } from '../../src/block/child.ts';
import { defineDriver, filterOver } from '../../src/block/driver.ts';
import { nodeReference } from '../../src/block/options.ts';
import { BlockError } from '../../src/util/errors.ts';
import { parent, reader, testGraph, writer } from './fixture.ts';

/** A filter that is told of permissions and may refuse them. */
function guard(log: string[], refuses: (needs: PermissionMask, shares: PermissionMask) => boolean) {
  return defineDriver({
    name: 'guard',
    summary: 'refuses permissions',
    options: z.strictObject({ file: nodeReference }),
    isFilter: true,
    async open(options, context) {
      const child = await context.attach('file', 'filtered', options.file);
      return filterOver(child, {
        permissionsChanging: (needs, shares) => {
          if (refuses(needs, shares)) throw new BlockError('locked', 'guarded');
          log.push(`${needs}/${shares}`);
          return undefined;
        },
      });
    },
  });
}

const vm: PermissionNeed = { needs: 3, shares: permissionBits['consistent-read'] };

test('a conflict names both users, the permission and the node', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'disk', size: 4096 });
  await graph.use('disk', parent('vm "a"'), vm);
  await assert.rejects(graph.use('disk', parent('export "b"'), writer), {
    code: 'permission-conflict',
    message: /^export "b" needs 'write' on node 'disk', which its use by vm "a" does not allow$/,
  });
  await graph.use('disk', parent('export "c"'), reader);
});

test('a conflict deep in the graph refuses a user at its top, and leaves nothing behind', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'disk', size: 4096 });
  await graph.add({ driver: 'raw', 'node-name': 'r1', file: 'disk' });
  await graph.add({ driver: 'raw', 'node-name': 'r2', file: 'disk' });
  await graph.use('r1', parent('vm "a"'), vm);
  await assert.rejects(graph.use('r2', parent('export "b"'), writer), {
    code: 'permission-conflict',
    message: /node 'r2' as 'file' needs 'write' on node 'disk', which its use by node 'r1' as 'file' does not allow/,
  });
  assert.deepEqual(graph.find('r2').parents, []);
  const use = await graph.use('r2', parent('export "b"'), reader);
  await assert.rejects(use.setPermissions(writer), { code: 'permission-conflict' });
  await use.setPermissions({ needs: 0, shares: 15 });
});

test('a child of a quorum cannot be written beside it', async () => {
  const { graph } = testGraph();
  for (const name of ['a', 'b']) await graph.add({ driver: 'memory', 'node-name': name, size: 4096 });
  await graph.add({ driver: 'quorum', 'node-name': 'q', children: ['a', 'b'], 'vote-threshold': 1 });
  await graph.use('q', parent('export "q"'), writer);
  await assert.rejects(graph.use('b', parent('export "b"'), writer), {
    message: /export "b" needs 'write' on node 'b', which its use by node 'q' as 'children.1' does not allow/,
  });
  await graph.use('a', parent('job "copy"'), reader);
});

test('nobody writes to a read-only node, not even through others', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'disk', size: 4096, 'read-only': true });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'disk' });
  await assert.rejects(graph.use('r', parent('export "r"'), writer), {
    code: 'read-only',
    message: /node 'disk' is read-only, and node 'r' as 'file' needs 'write' on it/,
  });
  await graph.use('r', parent('export "r"'), reader);
});

test('a driver that refuses takes the whole change back, in every node that was asked before', async () => {
  const log: string[] = [];
  const { graph } = testGraph(undefined, [guard(log, (needs) => (needs & permissionBits.resize) !== 0)]);
  await graph.add({ driver: 'guard', 'node-name': 'g', file: { driver: 'memory', size: 4096 } });
  const use = await graph.use('g', parent('a'), writer);
  assert.deepEqual(log, ['3/7']);
  await assert.rejects(use.setPermissions({ needs: 11, shares: 15 }), { code: 'locked' });
  assert.deepEqual(graph.find('g').parents, ['a']);
});

test('drivers widen before a change and narrow after it', async () => {
  const log: string[] = [];
  const { graph } = testGraph(undefined, [guard(log, () => false)]);
  await graph.add({ driver: 'guard', 'node-name': 'g', file: { driver: 'memory', size: 4096 } });
  const use = await graph.use('g', parent('a'), { needs: 1, shares: 7 });
  // From read, not resizable, to write, not writable by others: both are held for a moment.
  await use.setPermissions({ needs: 2, shares: 13 });
  await use.release();
  assert.deepEqual(log, ['1/7', '3/5', '2/13', '0/15']);
});

test('a driver refuses after another has widened: that one is told the old state again', async () => {
  const log: string[] = [];
  const first = guard(log, () => false);
  const second = { ...guard([], (needs) => (needs & 2) !== 0), name: 'refuser' };
  const { graph } = testGraph(undefined, [first, second]);
  await graph.add({
    driver: 'guard',
    'node-name': 'g',
    file: { driver: 'refuser', file: { driver: 'memory', size: 4096 } },
  });
  await assert.rejects(graph.use('g', parent('a'), writer), { code: 'locked' });
  assert.deepEqual(log, ['3/7', '0/15']);
});

test('force-share lets others do what they like, and is for readers only', async () => {
  const { graph } = testGraph();
  await assert.rejects(graph.add({ driver: 'memory', 'node-name': 'x', size: 1, 'force-share': true }), {
    message: /force-share/,
  });
  await graph.add({ driver: 'memory', 'node-name': 'disk', size: 4096 });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'disk', 'read-only': true, 'force-share': true });
  await graph.use('r', parent('reader'), { needs: 1, shares: 1 });
  await graph.use('disk', parent('export "b"'), writer);
});
