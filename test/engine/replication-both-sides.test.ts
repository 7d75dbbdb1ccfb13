/** Primary and secondary of the spec's hand-built graph, two engines over NBD; and groups of several disks. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { RootUse } from '../../src/block/graph-view.ts';
import { attempt } from '../../src/util/later.ts';
import { parent, reader, writer } from '../block/fixture.ts';
import { type CheckedEngine, checkedEngine } from './checked.ts';
import { assertFilled, eio, fill, Secondary } from './replication-secondary-world.ts';

const length = 2 ** 20;

interface Pair {
  readonly s: Secondary;
  readonly p: CheckedEngine;
  /** the primary's user, on the quorum */
  readonly user: RootUse;
  start(): Promise<void>;
}

async function pairOf(t: TestContext): Promise<Pair> {
  const image = { driver: 'memory', size: length };
  const s = await Secondary.open(t, { length, local: { driver: 'blkdebug', image } });
  const p = checkedEngine(t);
  const { execute } = p;
  await execute('blockdev-add', { driver: 'blkdebug', 'node-name': 'p-local', image });
  const server = { type: 'unix', path: s.socket };
  await execute('blockdev-add', { driver: 'nbd', 'node-name': 'p-remote', server, export: 'd-local' });
  const filter = { driver: 'replication', 'node-name': 'p-replication', mode: 'primary', file: 'p-remote' };
  await execute('blockdev-add', filter);
  const quorum = { driver: 'quorum', 'node-name': 'p', 'read-pattern': 'fifo', 'vote-threshold': 1 };
  await execute('blockdev-add', { ...quorum, children: ['p-local', 'p-replication'] });
  const user = await p.engine.graph.use('p', parent('the primary’s user'), writer);
  t.after(() => user.release().catch(() => undefined));
  return {
    s,
    p,
    user,
    start: async () => {
      await s.start();
      await execute('xen-set-replication', { enable: true, primary: true });
    },
  };
}

const write = (use: RootUse, offset: number, size: number, value: number) =>
  attempt(() => use.node.write(offset, new Uint8Array(size).fill(value), 0)) ?? Promise.resolve();

test('replay: the primary filter: EIO before start; then writes succeed and reads are EIO', async (t) => {
  const { p, s, start } = await pairOf(t);
  const only = await p.engine.graph.use('p-replication', parent('a test'), reader);
  const { node } = p.engine.graph.find('p-replication');
  await eio(Promise.resolve(attempt(() => node.read(0, new Uint8Array(512)))));
  await eio(Promise.resolve(attempt(() => node.write(0, new Uint8Array(512), 0))));
  await start();
  await eio(Promise.resolve(attempt(() => node.read(0, new Uint8Array(512)))));
  await attempt(() => node.write(0, new Uint8Array(512).fill(5), 0));
  await assertFilled(await s.client('d-local'), 0, 512, 5);
  await only.release();
});

test('a round: what the primary writes shows on the other side at the checkpoint, and the failover keeps that', async (t) => {
  const { p, s, user, start } = await pairOf(t);
  const top = await s.client('d-top');
  await start();
  await write(user, 0, 65536, 1);
  await assertFilled(top, 0, 65536, 0);
  await p.execute('xen-colo-do-checkpoint');
  await s.checkpoint();
  await assertFilled(top, 0, 65536, 1);
  await write(user, 0, 65536, 2);
  await fill(top, 70_000, 100, 9);
  await p.execute('x-blockdev-change', { parent: 'p', child: 'children.1' });
  await p.execute('xen-set-replication', { enable: false, primary: true });
  await s.run('block-export-del', { id: 's', mode: 'hard' });
  await s.failover();
  await s.untilStage('done');
  await assertFilled(top, 0, 65536, 1);
  await assertFilled(top, 70_000, 100, 9);
  // The promoted side takes part in the next round as a primary.
  await s.run('blockdev-add', { driver: 'memory', 'node-name': 'n', size: length });
  await s.run('blockdev-add', { driver: 'replication', 'node-name': 'next', mode: 'primary', file: 'n' });
  await s.run('xen-set-replication', { enable: true, primary: true });
  const stages = (await s.list('query-replication')).map(({ node, stage }) => [node, stage]);
  assert.deepEqual(stages, [
    ['next', 'running'],
    ['d-top', 'done'],
  ]);
});

test('failure: an I/O error on the primary disk is the primary’s user’s', async (t) => {
  const { p, user, start } = await pairOf(t);
  await start();
  const fault = { operation: 'write', errno: 'EIO', count: 1 };
  await p.engine.graph.find('p-local').node.control?.({ action: 'add-fault', fault });
  await eio(write(user, 0, 4096, 1));
});

test('failure: forwarding a write fails: the user has success, the manager is told; forwarding goes on', async (t) => {
  const { p, s, user, start } = await pairOf(t);
  await start();
  const control = s.checked.engine.graph.find('d-local').node;
  await control.control?.({ action: 'add-fault', fault: { operation: 'write', errno: 'EIO', count: 1 } });
  await write(user, 0, 4096, 1);
  const status = (await p.execute('query-xen-replication-status')) as { error: boolean };
  assert.equal(status.error, true);
  await write(user, 4096, 4096, 2);
  await assertFilled(await s.client('d-local'), 4096, 4096, 2);
  // Asking and checkpoints do not clear it.
  await p.execute('xen-colo-do-checkpoint');
  assert.equal(((await p.execute('query-xen-replication-status')) as { error: boolean }).error, true);
});

test('failure: copy-before-write fails: recorded on the primary, not on the secondary', async (t) => {
  const { p, s, user, start } = await pairOf(t);
  await start();
  const hidden = s.checked.engine.graph.find('d-hidden-file').node;
  await hidden.control?.({ action: 'add-fault', fault: { operation: 'write', errno: 'ENOSPC', count: 1 } });
  await write(user, 0, 4096, 1);
  assert.equal(((await p.execute('query-xen-replication-status')) as { error: boolean }).error, true);
  assert.deepEqual(await s.run('query-xen-replication-status'), { error: false });
  await assertFilled(await s.client('d-local'), 0, 4096, 0);
});

// ---------------------------------------------------------------- several disks

/** A second disk beside `d`: `e-local`, `e-hidden`, `e-active`, `e-top`. */
async function secondDisk(side: Secondary, top = 'e-top'): Promise<void> {
  const file = { driver: 'memory', size: 0 };
  const overlay = { driver: 'shadow', file, 'grow-bytes': 65536 };
  const image = { driver: 'memory', size: length };
  await side.run('blockdev-add', { driver: 'blkdebug', 'node-name': 'e-local', image });
  await side.run('blockdev-add', { ...overlay, 'node-name': 'e-hidden', backing: 'e-local' });
  await side.run('blockdev-add', { ...overlay, 'node-name': 'e-active', backing: 'e-hidden' });
  const filter = { driver: 'replication', mode: 'secondary', 'top-id': top, file: 'e-active' };
  await side.run('blockdev-add', { ...filter, 'node-name': 'e-top' });
  await side.run('block-export-add', { type: 'nbd', id: 'es', 'node-name': 'e-local', writable: true });
}

const stagesOf = async (side: Secondary) =>
  Object.fromEntries((await side.list('query-replication')).map(({ node, stage }) => [node, stage]));

test('group: a start round that fails stops the members that it had started', async (t) => {
  const side = await Secondary.open(t, { length, filter: { 'top-id': 'nobody' } });
  await secondDisk(side);
  await assert.rejects(side.start(), /no node 'nobody'/);
  // The newest was started first; it is done for good, the other never began.
  assert.deepEqual(await stagesOf(side), { 'e-top': 'done', 'd-top': 'none' });
  side.checked.engine.graph.blockers.check('e-top', 'delete');
});

test('group: a failover visits all members: one bad disk does not stop the others’; the command succeeds', async (t) => {
  const side = await Secondary.open(t, { length });
  await secondDisk(side);
  await side.start();
  const s = await side.client('d-local');
  const es = await side.client('e-local');
  const top = await side.client('d-top');
  await fill(s, 0, 8192, 1);
  await fill(es, 0, 8192, 1);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-e-top', size: 512 });
  for (const id of ['s', 'es']) await side.run('block-export-del', { id, mode: 'hard' });
  await side.failover();
  await side.until('the end', async () => !Object.values(await stagesOf(side)).includes('failover'));
  assert.deepEqual(await stagesOf(side), { 'e-top': 'failover-failed', 'd-top': 'done' });
  await assertFilled(top, 0, 8192, 0);
});

test('group: a member that is still in none makes stop, get_error and checkpoint rounds fail', async (t) => {
  const side = await Secondary.open(t, { length });
  await side.start();
  await secondDisk(side);
  await assert.rejects(side.checkpoint(), /'e-top'.*stage none/);
  await assert.rejects(side.stop(), /'e-top'.*stage none/);
  assert.equal((await side.run('query-xen-replication-status')).error, true);
  assert.deepEqual(await stagesOf(side), { 'e-top': 'none', 'd-top': 'running' });
  // A failover is not stopped by it.
  await side.failover();
  await side.until('done', async () => (await stagesOf(side))['d-top'] === 'done');
});
