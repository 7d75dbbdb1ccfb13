/** Mode secondary of the replication filter: rules that matter only at a moment that seldom comes. */
import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { copiesBeforeWrite } from '../../src/block/copies-before-write.ts';
import { writeFlags } from '../../src/block/node.ts';
import { attempt } from '../../src/util/later.ts';
import { parent, writer } from '../block/fixture.ts';
import { settleTurns } from '../drivers/replication-world.ts';
import { temporaryFolder } from '../support/temp.ts';
import { checkedEngine, memoryNode } from './checked.ts';
import { assertFilled, contentOf, eio, fill, Secondary, type SecondaryOptions } from './replication-secondary-world.ts';

const length = 2 * 2 ** 20;
const blkdebug = { driver: 'blkdebug', image: { driver: 'memory', size: length } };

async function sideOf(t: TestContext, more: Partial<SecondaryOptions> = {}): Promise<Secondary> {
  return await Secondary.open(t, { length, local: blkdebug, ...more });
}

async function fault(side: Secondary, nodeName: string, rule: Record<string, unknown>): Promise<void> {
  const { node } = side.checked.engine.graph.find(nodeName);
  await node.control?.({ action: 'add-fault', fault: { errno: 'EIO', count: 1, ...rule } });
}

/** Block 1 is in active, block 3 in hidden, and the commit of the failover cannot start. */
async function failedOver(t: TestContext): Promise<Secondary> {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await side.start();
  await fill(top, 4096, 4096, 2);
  await fill(s, 3 * 4096, 4096, 9);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-d-top', size: 512 });
  await side.failover();
  await side.untilStage('failover-failed');
  return side;
}

test('replication-filter, stages: a discard has no effect where the node would pass one on', async (t) => {
  const side = await sideOf(t, { filter: { discard: 'unmap' } });
  const top = await side.client('d-top');
  await side.start();
  await fill(top, 0, 8192, 7);
  await top.discard(0, 8192);
  await assertFilled(top, 0, 8192, 7);
});

test('replication-filter, start: where the secondary disk cannot be opened for writing hidden stays read-only', async (t) => {
  const filename = join(await temporaryFolder(t), 'disk');
  await writeFile(filename, new Uint8Array(length));
  const local = { driver: 'file', filename, 'read-only': true };
  const side = await sideOf(t, { local, hidden: { 'read-only': true }, writable: false });
  await rm(filename);
  await assert.rejects(side.start(), /disk/);
  const { graph } = side.checked.engine;
  assert.deepEqual(
    ['d-hidden', 'd-local'].map((name) => graph.find(name).readOnly),
    [true, true],
  );
});

test('replication-filter, start: refused while a job, or another filter, has hidden or secondary', async (t) => {
  const side = await sideOf(t);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'other', size: length });
  await side.run('blockdev-mirror', { 'job-id': 'm', device: 'd-local', target: 'other', sync: 'full' });
  // It would put its target in the place of the disk whose old content is kept.
  await assert.rejects(side.start(), /node 'd-local' is busy.*job 'm'/);
  assert.equal(await side.stage(), 'none');
  await side.run('job-cancel', { id: 'm' });
  await side.until('the end of the mirror', () => side.checked.engine.jobs.list().length === 0);
  const filter = {
    driver: 'replication',
    mode: 'secondary',
    'node-name': 'second',
    'top-id': 'second',
    file: 'd-active',
  };
  await side.run('blockdev-add', filter);
  await assert.rejects(side.start(), /node 'd-(hidden|local)' is busy.*replication 'second' is running/);
  await side.run('blockdev-del', { 'node-name': 'second' });
  await side.start();
});

test('record-log 8: old content that could not be made durable is not taken for kept by a later write', async (t) => {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await fill(s, 0, 4096, 1);
  await side.start();
  await fault(side, 'd-hidden-file', { operation: 'write', errno: undefined, 'delay-ms': 5 });
  await fault(side, 'd-hidden-file', { operation: 'flush', skip: 1 });
  for (let attempts = 0; attempts < 2; attempts += 1) await eio(fill(s, 0, 4096, 2));
  await assertFilled(s, 0, 4096, 1);
  await side.stop();
  await assert.rejects(contentOf(top, 0, 4096), 'what hidden holds may be lost');
});

test('record-log 9: of what was kept only whole blocks are taken for copied', async (t) => {
  const { execute, engine } = checkedEngine(t);
  for (const name of ['disk', 'old']) await execute('blockdev-add', memoryNode(name, 4 * 4096 + 512));
  const filter = { driver: 'copy-before-write', 'node-name': 'copies', file: 'disk', target: 'old' };
  await execute('blockdev-add', filter);
  const copies = copiesBeforeWrite(engine.graph.find('copies').node);
  copies?.markCopied(100, 8192);
  assert.equal(copies?.copiedBytes, 4096);
  // The last one is as long as the disk.
  copies?.markCopied(4 * 4096, 512);
  assert.equal(copies?.copiedBytes, 2 * 4096);
});

test('replication-filter, checkpoint: the job forgets nothing when the active disk could not be emptied', async (t) => {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await side.start();
  await fill(s, 0, 8192, 1);
  await fill(top, 65_536, 4096, 3);
  await fault(side, 'd-active-file', { operation: 'write' });
  await assert.rejects(side.checkpoint(), /injected EIO/);
  await fill(s, 0, 8192, 2);
  await assertFilled(top, 0, 8192, 0);
});

test('replication-filter, copy-before-write: a change that is quick does not overtake one that has to copy', async (t) => {
  const side = await sideOf(t);
  const s = await side.client('d-local');
  await side.start();
  const { graph } = side.checked.engine;
  const user = await graph.use('copy-before-write-d-top', parent('a user'), writer);
  const write = (length: number, value: number) =>
    attempt(() => user.node.write(4096, new Uint8Array(length).fill(value), writeFlags.none));
  await write(4096, 1);
  await fault(side, 'd-hidden-file', { operation: 'write', errno: undefined, 'delay-ms': 50 });
  // Of the first one a block has to be copied, of the second one none.
  await Promise.all([write(8192, 2), write(4096, 3)]);
  await assertFilled(s, 4096, 4096, 3);
  await assertFilled(s, 8192, 4096, 2);
  await user.release();
});

test('replication-filter, copy-before-write: a discard, and a write of zeroes, begin when the old content is in hidden', async (t) => {
  const discard = 'unmap';
  const side = await sideOf(t, { local: { driver: 'memory', size: length, discard } });
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await fill(s, 0, length, 1);
  await side.start();
  await s.discard(0, 2 ** 20);
  await s.writeZeroes(2 ** 20, 2 ** 20, 0);
  await assertFilled(s, 0, length, 0);
  await assertFilled(top, 0, length, 1);
});

test('replication-filter, copy-before-write: a drain waits for the copies under way, and what follows them', async (t) => {
  const side = await sideOf(t);
  await side.start();
  const { graph } = side.checked.engine;
  const user = await graph.use('copy-before-write-d-top', parent('a user'), writer);
  await fault(side, 'd-hidden-file', { operation: 'write', errno: undefined, 'delay-ms': 50 });
  let done = false;
  const write = attempt(() => user.node.write(0, new Uint8Array(4096).fill(1), writeFlags.none));
  void Promise.resolve(write).then(() => {
    done = true;
  });
  const drained = await graph.drain('copy-before-write-d-top');
  assert.ok(done);
  drained.end();
  await user.release();
});

/** A failover of a group's overlays whose commit has copied everything. */
async function readyToTakeOver(t: TestContext): Promise<Secondary> {
  const side = await sideOf(t, { hidden: { epoch: 1 }, active: { epoch: 1 } });
  const s = await side.client('d-local');
  await side.start();
  await fill(s, 0, 65_536, 1);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.failover();
  const commit = async () => (await side.row()).commit as { status: string } | null;
  await side.until('the end of the copying', async () => (await commit())?.status === 'ready');
  return side;
}

test('record-log 10: from the last sync of the disk until it has taken the place of the chain users are held', async (t) => {
  const side = await readyToTakeOver(t);
  const top = await side.client('d-top');
  await side.run('replication-prepare');
  let answered = false;
  const written = fill(top, 0, 4096, 2).then(() => {
    answered = true;
  });
  await settleTurns(200);
  assert.equal(answered, false);
  await side.run('replication-commit', { epoch: 2 });
  await written;
  const disk = new Uint8Array(4096);
  await side.checked.engine.graph.find('d-local').node.read(0, disk);
  assert.ok(disk.every((byte) => byte === 2));
});

test('record-log 10: a sync of the disk that fails at the end of a failover ends its commit: what was copied may be lost', async (t) => {
  const side = await readyToTakeOver(t);
  const top = await side.client('d-top');
  await fault(side, 'd-local', { operation: 'flush' });
  await assert.rejects(side.run('replication-prepare'), /injected EIO/);
  await side.untilStage('failover-failed');
  // A second one would succeed, whatever the first one has lost.
  await assert.rejects(side.run('replication-prepare'), /failover-failed/);
  await fill(top, 0, 4096, 2);
  await assertFilled(top, 0, 4096, 2);
  await assertFilled(top, 4096, 61_440, 0);
});

test('failover-failed: what cannot start is returned, and nothing is blocked any more', async (t) => {
  const side = await sideOf(t);
  await side.start();
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-d-top', size: 512 });
  const { graph, replicationGroup } = side.checked.engine;
  await assert.rejects(replicationGroup.stop(true), /already a node 'commit-top-d-top'/);
  for (const node of ['d-top', 'd-hidden', 'd-local']) assert.deepEqual(graph.blockers.reasons(node), []);
});

test('failover-failed: a write that is under way when the stage changes does not undo a later one beside it', async (t) => {
  const side = await sideOf(t);
  await side.start();
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-d-top', size: 512 });
  await fault(side, 'd-active-file', { operation: 'write', errno: undefined, 'delay-ms': 100 });
  // Block 8 is allocated nowhere. Its first half goes to the active disk, slowly, as soon as the job is gone.
  let first: Promise<void> | undefined;
  const half = (offset: number, value: number) =>
    attempt(() => user.node.write(8 * 4096 + offset, new Uint8Array(2048).fill(value), writeFlags.none));
  const drainEnd = () => {
    first ??= half(0, 5);
  };
  const user = await side.checked.engine.graph.use('d-top', parent('a user', { drainEnd }), writer);
  await side.failover();
  await half(2048, 6);
  await first;
  const top = await side.client('d-top');
  await assertFilled(top, 8 * 4096, 2048, 5);
  await assertFilled(top, 8 * 4096 + 2048, 2048, 6);
  await user.release();
});

test('failover-failed: a stop that is refused changes nothing: writes go on', async (t) => {
  const side = await failedOver(t);
  const top = await side.client('d-top');
  await assert.rejects(side.stop(), /cannot stop in stage failover-failed/);
  const { error } = await side.row();
  assert.match(String(error), /the commit of the failover failed/);
  await fill(top, 0, 8 * 4096, 5);
  await assertFilled(top, 0, 8 * 4096, 5);
});

test('failover-failed: a flush, and a write with FUA, cover the active disk and the secondary disk', async (t) => {
  const side = await failedOver(t);
  const top = await side.client('d-top');
  for (const change of [
    () => top.write(8 * 4096, new Uint8Array(4096), writeFlags.fua),
    () => top.writeZeroes(8 * 4096, 4096, writeFlags.fua),
  ]) {
    await fault(side, 'd-local', { operation: 'flush' });
    await eio(Promise.resolve(change()));
    await change();
  }
  await fill(top, 4096, 4096, 3);
  await fault(side, 'd-active-file', { operation: 'flush' });
  await eio(Promise.resolve(top.flush()));
});

test('failover-failed: hidden and secondary keep their length while the filter writes to them', async (t) => {
  const side = await failedOver(t);
  const { graph } = side.checked.engine;
  for (const node of ['d-local', 'd-hidden']) {
    const resize = graph.use(node, parent('somebody'), { needs: 8, shares: 15 });
    await assert.rejects(resize, /needs 'resize'.*node 'd-top'/);
  }
});
