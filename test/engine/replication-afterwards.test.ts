/** What a secondary has taken, and what is given back when its replication ends, in whichever way. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { z } from 'zod';
import { defineDriver, filterOver } from '../../src/block/driver.ts';
import { nodeReference } from '../../src/block/options.ts';
import { createHost } from '../../src/host/index.ts';
import { parent, reader, writer } from '../block/fixture.ts';
import { checkedEngine } from './checked.ts';
import { assertFilled, contentOf, fill, Secondary, type SecondaryOptions } from './replication-secondary-world.ts';

const length = 2 * 2 ** 20;
const blkdebug = { driver: 'blkdebug', image: { driver: 'memory', size: length } };
const readOnly = { 'read-only': true };

async function sideOf(t: TestContext, more: Partial<SecondaryOptions> = {}): Promise<Secondary> {
  return await Secondary.open(t, { length, local: blkdebug, ...more });
}

async function fault(side: Secondary, nodeName: string, rule: Record<string, unknown>): Promise<void> {
  const { node } = side.checked.engine.graph.find(nodeName);
  await node.control?.({ action: 'add-fault', fault: { errno: 'EIO', count: 1, ...rule } });
}

/** The commit of a failover cannot have its filter. */
async function noCommit(side: Secondary): Promise<void> {
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-d-top', size: 512 });
}

const jobEvents = ({ checked }: Secondary) =>
  checked.events.filter(({ event }) => event.startsWith('JOB_') || event.startsWith('BLOCK_JOB_'));

const readOnlyNodes = async (side: Secondary) =>
  new Set((await side.list('query-named-block-nodes')).filter(({ ro }) => ro).map((node) => node['node-name']));
const threeNodes = new Set(['d-hidden', 'd-local', 'image']);

/** The copy-before-write job of a side has ended by itself. */
async function jobEnded(t: TestContext): Promise<Secondary> {
  const side = await sideOf(t);
  await fill(await side.client('d-local'), 0, 65_536, 1);
  await side.start();
  await side.checked.engine.jobs.close();
  await side.until('the record', async () => (await side.row()).error !== null);
  return side;
}

// ---------------------------------------------------------------- start

test('record-log 8, start: its checkpoint, like every one, begins with a sync of the secondary disk', async (t) => {
  const side = await sideOf(t);
  await fault(side, 'd-local', { operation: 'flush' });
  await assert.rejects(side.start(), /injected EIO/);
  assert.equal(await side.stage(), 'none');
  assert.deepEqual(await side.list('query-block-jobs'), []);
  await side.start();
  // Nobody is held by what failed.
  await fill(await side.client('d-local'), 0, 4096, 1);
});

test('replication-filter, start: refused while a job of a user writes to the hidden disk', async (t) => {
  const side = await sideOf(t);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'other', size: length });
  await side.run('blockdev-backup', { 'job-id': 'b', device: 'other', target: 'd-hidden', sync: 'none' });
  await assert.rejects(side.start(), /node 'd-hidden' is busy.*job 'b' works on it/);
  await side.run('job-cancel', { id: 'b' });
  await side.until('the end of the job', () => side.checked.engine.jobs.list().length === 0);
  await side.start();
});

test('replication-filter, start: an overlay that cannot be emptied is refused, as active and as hidden', async (t) => {
  // QEMU has such formats.
  const full = defineDriver({
    name: 'full',
    summary: 'an overlay for good',
    options: z.strictObject({ backing: nodeReference }),
    open: async (options, context) => filterOver(await context.attach('backing', 'backing', options.backing), {}),
  });
  const shadow = { driver: 'shadow', file: { driver: 'memory', size: 0 } };
  for (const [hidden, active] of [
    ['full', 'shadow'],
    ['shadow', 'full'],
  ]) {
    const { execute, engine } = checkedEngine(t, createHost(), [full]);
    const overlay = (driver: string | undefined) => (driver === 'full' ? { driver } : shadow);
    await execute('blockdev-add', { driver: 'memory', 'node-name': 'local', size: length });
    await execute('blockdev-add', { ...overlay(hidden), 'node-name': 'hidden', backing: 'local' });
    await execute('blockdev-add', { ...overlay(active), 'node-name': 'active', backing: 'hidden' });
    const filter = { driver: 'replication', mode: 'secondary', 'top-id': 'top', file: 'active' };
    await execute('blockdev-add', { ...filter, 'node-name': 'top' });
    const user = await engine.graph.use('local', parent('an export'), writer);
    const name = hidden === 'full' ? 'hidden' : 'active';
    const start = execute('xen-set-replication', { enable: true, primary: false });
    await assert.rejects(start, new RegExp(`the overlay '${name}' cannot be emptied`));
    await user.release();
  }
});

test('replication-filter, options: what is held while it runs stays writable, and keeps its length', async (t) => {
  const side = await sideOf(t);
  await side.start();
  const { graph } = side.checked.engine;
  for (const node of ['d-local', 'd-hidden', 'd-active']) {
    const keeper = { description: 'somebody', drainBegin: () => undefined, drainEnd: () => undefined };
    await assert.rejects(graph.use(node, keeper, { needs: 8, shares: 15 }), { code: 'permission-conflict' });
    await assert.rejects(graph.use(node, keeper, { needs: 0, shares: 1 }), { code: 'permission-conflict' });
    await assert.rejects(graph.use(node, keeper, { needs: 0, shares: 14 }), { code: 'permission-conflict' });
  }
  await assert.rejects(graph.reopen([{ nodeName: 'd-hidden', readOnly: true }]), { code: 'read-only' });
});

// ---------------------------------------------------------------- checkpoint

test('replication-filter, checkpoint: one that is refused when all are prepared leaves nobody held', async (t) => {
  const side = await sideOf(t, { hidden: { epoch: 3 }, active: { epoch: 3 } });
  const top = await side.client('d-top');
  await side.start();
  // The epoch is its owner's.
  await assert.rejects(side.checkpoint(), /use replication-prepare and replication-commit/);
  await fill(top, 0, 4096, 1);
  await side.run('replication-prepare');
  await assert.rejects(side.run('replication-commit', { epoch: 3 }), /epoch 3 is not above 3/);
  await fill(top, 0, 4096, 2);
  await assert.rejects(side.run('replication-commit', { epoch: 4 }), /no checkpoint is prepared/);
});

test('replication-filter, close: a filter that is closed while it is prepared lets its users go, and is left out', async (t) => {
  const side = await sideOf(t);
  const s = await side.client('d-local');
  await side.start();
  await side.run('replication-prepare');
  const written = fill(s, 0, 4096, 1);
  await side.run('block-export-del', { id: 't' });
  await side.checked.engine.graph.remove('d-top');
  await written;
  await side.run('replication-commit', { epoch: 2 });
});

// ---------------------------------------------------------------- the job has ended by itself

test('replication-filter, stop: a clean stop after the job has ended by itself clears what was recorded', async (t) => {
  const side = await jobEnded(t);
  await side.stop();
  const { stage, error } = await side.row();
  assert.deepEqual([stage, error], ['done', null]);
});

test('failover-failed: writes are split also where the job had ended by itself, and what it held with it', async (t) => {
  const side = await jobEnded(t);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await noCommit(side);
  await side.failover();
  assert.equal(await side.stage(), 'failover-failed');
  const top = await side.client('d-top');
  await fill(top, 0, 8192, 5);
  await assertFilled(top, 0, 8192, 5);
  const disk = new Uint8Array(8192);
  await side.checked.engine.graph.find('d-local').node.read(0, disk);
  assert.ok(disk.every((byte) => byte === 5));
});

// ---------------------------------------------------------------- failover

/** Hidden and the secondary disk are read-only until it starts. */
async function readOnlySide(t: TestContext): Promise<Secondary> {
  const image = { driver: 'memory', 'node-name': 'image', size: length, ...readOnly };
  const local = { driver: 'raw', file: image, ...readOnly };
  const side = await sideOf(t, { local, hidden: readOnly, writable: false });
  assert.deepEqual(await readOnlyNodes(side), threeNodes);
  await side.start();
  return side;
}

test('replication-filter, afterwards: a failover leaves hidden and secondary writable, in done and after close', async (t) => {
  const side = await readOnlySide(t);
  const top = await side.client('d-top');
  await fill(top, 0, 4096, 3);
  await side.failover();
  await side.untilStage('done');
  assert.deepEqual(await readOnlyNodes(side), new Set());
  await fill(top, 4096, 4096, 4);
  await side.run('block-export-del', { id: 't', mode: 'hard' });
  await side.run('blockdev-del', { 'node-name': 'd-top' });
  assert.deepEqual(await readOnlyNodes(side), new Set());
});

test('replication-filter, afterwards: they stay writable in failover-failed; a close gives everything back', async (t) => {
  const side = await readOnlySide(t);
  await noCommit(side);
  await side.failover();
  assert.deepEqual([await side.stage(), await readOnlyNodes(side)], ['failover-failed', new Set()]);
  await side.run('block-export-del', { id: 't' });
  await side.run('blockdev-del', { 'node-name': 'd-top' });
  for (const node of ['d-active', 'd-hidden']) await side.run('blockdev-del', { 'node-name': node });
  assert.deepEqual(await side.list('query-replication'), []);
});

test('replication-filter, close: while running hidden and secondary get their read-only state back', async (t) => {
  const side = await readOnlySide(t);
  await side.run('block-export-del', { id: 't' });
  await side.checked.engine.graph.remove('d-top');
  assert.deepEqual(await readOnlyNodes(side), threeNodes);
});

test('replication-filter, stop: after a failover active and hidden are released, with their content', async (t) => {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await fill(s, 0, 65_536, 1);
  await side.start();
  await fill(s, 0, 65_536, 2);
  await fill(top, 4096, 4096, 3);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  const { graph } = side.checked.engine;
  await side.failover();
  await side.untilStage('done');
  const held = (node: string) => graph.find(node).node.info?.()['held-bytes'];
  assert.deepEqual([held('d-active'), held('d-hidden')], [4096, 65_536]);
  for (const node of ['d-top', 'd-active', 'd-hidden', 'd-local']) assert.deepEqual(graph.blockers.reasons(node), []);
  for (const node of ['d-active', 'd-hidden']) await side.run('blockdev-del', { 'node-name': node });
  await assertFilled(top, 0, 4096, 1);
  await assertFilled(top, 4096, 4096, 3);
});

test('replication-filter: both jobs are internal: not listed, not to be cancelled, and without an event', async (t) => {
  const side = await sideOf(t);
  const s = await side.client('d-local');
  await fill(s, 0, length, 1);
  await side.start();
  await fill(s, 0, length, 2);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  const lists = async () => [await side.list('query-jobs'), await side.list('query-block-jobs')];
  const cancels = async (...ids: string[]) => {
    for (const id of ids) {
      await assert.rejects(side.run('job-cancel', { id }), { code: 'job-not-found' });
      await assert.rejects(side.run('block-job-cancel', { device: id }));
    }
  };
  assert.deepEqual(await lists(), [[], []]);
  await cancels('#replication-d-top', 'd-local');
  await fault(side, 'd-local', { operation: 'write', errno: undefined, 'delay-ms': 50 });
  await side.failover();
  assert.equal(await side.stage(), 'failover');
  assert.deepEqual(await lists(), [[], []]);
  await cancels('#commit-d-top', 'd-active');
  await side.untilStage('done');
  assert.deepEqual(jobEvents(side), []);
});

test('replication-filter, stop: the first error ends the commit of a failover, also one that would pass', async (t) => {
  for (const [node, operation] of [
    ['d-local', 'write'],
    ['d-hidden-file', 'read'],
  ] as const) {
    const side = await sideOf(t);
    const [s, top] = [await side.client('d-local'), await side.client('d-top')];
    await fill(s, 0, 65_536, 1);
    await side.start();
    await fill(s, 0, 65_536, 2);
    await side.run('block-export-del', { id: 's', mode: 'hard' });
    await fault(side, node, { operation });
    await side.failover();
    await side.untilStage('failover-failed');
    assert.match(String((await side.row()).error), /injected EIO/);
    await assertFilled(top, 0, 65_536, 1);
    await assert.rejects(side.stop(), /failover-failed/);
  }
});

// ---------------------------------------------------------------- the end of a failover, by its owner

/** A failover of a group's overlays, whose commit has 64 KiB to copy. */
async function groupFailover(t: TestContext): Promise<Secondary> {
  const side = await sideOf(t, { hidden: { epoch: 1 }, active: { epoch: 1 } });
  const s = await side.client('d-local');
  await fill(s, 0, 65_536, 1);
  await side.start();
  await fill(s, 0, 65_536, 2);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.failover();
  return side;
}

const isReady = async (side: Secondary) => ((await side.row()).commit as { status: string } | null)?.status === 'ready';

test('record-log 10: the end of a failover is not prepared while its commit still copies', async (t) => {
  const side = await groupFailover(t);
  await fault(side, 'd-local', { operation: 'write', errno: undefined, 'delay-ms': 50 });
  await assert.rejects(side.run('replication-prepare'), /the commit of the failover is still under way/);
  await fill(await side.client('d-top'), 0, 4096, 3);
  await side.until('the end of the copying', () => isReady(side));
  await side.run('replication-prepare');
  await side.run('replication-commit', { epoch: 2 });
  assert.equal(await side.stage(), 'done');
});

test('replication-filter: query-replication tells what the overlays hold, and how far the commit of a failover is', async (t) => {
  const side = await groupFailover(t);
  await fill(await side.client('d-top'), 0, 4096, 3);
  await side.until('the end of the copying', () => isReady(side));
  const row = await side.row();
  const commit = { status: 'ready', 'current-progress': 65_536, 'total-progress': 65_536 };
  assert.deepEqual([row['hidden-bytes'], row['active-bytes'], row.commit], [65_536, 4096, commit]);
});

test('record-log 10: where the disk cannot take the place of the chain the owner is told, and nothing is lost', async (t) => {
  const side = await groupFailover(t);
  await side.until('the end of the copying', () => isReady(side));
  await side.run('replication-prepare');
  await fault(side, 'd-local', { operation: 'flush' });
  await assert.rejects(
    side.run('replication-commit', { epoch: 2 }),
    /the commit of the failover failed: .*injected EIO/,
  );
  assert.equal(await side.stage(), 'failover-failed');
  const top = await side.client('d-top');
  await assertFilled(top, 0, 65_536, 1);
  await fill(top, 4096, 4096, 3);
  assert.ok((await contentOf(top, 4096, 4096)).every((byte) => byte === 3));
});

test('close: a filter that is closed when its commit is too late to be cancelled is done', async (t) => {
  const side = await sideOf(t);
  const s = await side.client('d-local');
  await fill(s, 0, 65_536, 1);
  await side.start();
  await fill(s, 0, 65_536, 2);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.run('block-export-del', { id: 't' });
  const { engine, events } = side.checked;
  let held = 0;
  const drainBegin = () => {
    held += 1;
    return undefined;
  };
  const user = await engine.graph.use('d-top', parent('a user', { drainBegin }), reader);
  // Users are held, and the sync of the disk comes last; the first one is that of the job that is taken away.
  await fault(side, 'd-local', { operation: 'flush', errno: undefined, skip: 1, 'delay-ms': 200 });
  await side.failover();
  held = 0;
  await side.until('the end of the commit', () => held > 0);
  await user.release();
  await side.run('blockdev-del', { 'node-name': 'd-top' });
  const stages = events.filter(({ event }) => event === 'REPLICATION_STAGE').map(({ data }) => data.stage);
  assert.deepEqual(stages, ['running', 'failover', 'done']);
  const disk = new Uint8Array(65_536);
  await engine.graph.find('d-local').node.read(0, disk);
  assert.ok(disk.every((byte) => byte === 1));
});
