/** Mode secondary of the replication filter, rule after rule (spec: replication-filter). */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { assertFilled, contentOf, eio, fill, Secondary, type SecondaryOptions } from './replication-secondary-world.ts';

const length = 2 * 2 ** 20;
const half = length / 2;

async function sideOf(t: TestContext, more: Partial<SecondaryOptions> = {}): Promise<Secondary> {
  return await Secondary.open(t, { length, ...more });
}

/** Everything about the graph that a start changes. */
async function picture(side: Secondary): Promise<unknown> {
  const nodes = await side.list('query-named-block-nodes');
  return {
    nodes: nodes.map((node) => [node['node-name'], node.ro, node.children, node.parents]),
    row: await side.row(),
    jobs: side.checked.engine.jobs.list().length,
    stages: side.checked.events.filter(({ event }) => event === 'REPLICATION_STAGE').length,
  };
}

async function startFails(side: Secondary, message: RegExp): Promise<void> {
  const before = await picture(side);
  await assert.rejects(side.start(), message);
  assert.deepEqual(await picture(side), before);
  for (const node of ['d-top', 'd-hidden', 'd-local']) side.checked.engine.graph.blockers.check(node, 'delete');
}

const fault = (side: Secondary, node: string, rule: Record<string, unknown>) => {
  const control = side.checked.engine.graph.find(node).node.control ?? assert.fail('no blkdebug');
  return control.call(side.checked.engine.graph.find(node).node, {
    action: 'add-fault',
    fault: { errno: 'EIO', ...rule },
  });
};

// ---------------------------------------------------------------- options

test('replication-filter, options: mode is required; top-id and file are required in mode secondary', async (t) => {
  const side = await sideOf(t);
  const add = (more: Record<string, unknown>) =>
    side.run('blockdev-add', { driver: 'replication', 'node-name': 'x', file: 'd-active', ...more });
  await assert.rejects(add({ 'top-id': 'x' }), /mode/);
  await assert.rejects(add({ mode: 'secondary' }), /top-id: is required/);
  await assert.rejects(add({ mode: 'primary', 'top-id': 'x' }), /top-id: only for mode secondary/);
  await assert.rejects(add({ mode: 'secondary', 'top-id': 'x', file: null }), /file: is required/);
});

// ---------------------------------------------------------------- start

test('replication-filter, start: an active disk without a backing, a hidden disk without a backing', async (t) => {
  await startFails(
    await sideOf(t, { active: { backing: null, size: length } }),
    /active disk 'd-active' has no backing/,
  );
  await startFails(
    await sideOf(t, { hidden: { backing: null, size: length } }),
    /hidden disk 'd-hidden' has no backing/,
  );
});

test('replication-filter, start: the secondary disk needs a user of its own; the overlays above it are none', async (t) => {
  const side = await sideOf(t);
  await side.run('block-export-del', { id: 's' });
  await startFails(side, /'d-local' has no export or other user/);
  await side.run('blockdev-add', { driver: 'raw', 'node-name': 'through', file: 'd-local' });
  await side.run('block-export-add', { type: 'nbd', id: 's2', 'node-name': 'through', writable: true });
  await side.start();
});

test('replication-filter, start: the three lengths must be equal', async (t) => {
  await startFails(await sideOf(t, { active: { size: length + 4096 } }), /differ in length: 2101248, 2097152, 2097152/);
  await startFails(await sideOf(t, { hidden: { size: length + 4096 } }), /differ in length/);
});

test('replication-filter, start: active and hidden must be such as can be emptied', async (t) => {
  const side = await sideOf(t);
  await side.run('block-export-del', { id: 't' });
  await side.run('blockdev-del', { 'node-name': 'd-top' });
  const filter = { driver: 'replication', mode: 'secondary', 'node-name': 'd-top', 'top-id': 'd-top' };
  await side.run('blockdev-add', { ...filter, file: 'd-local' });
  await startFails(side, /has no backing/);
});

test('record-log 8, start: active and hidden have the epoch of a group both, or neither: else a crash parts them', async (t) => {
  const text = /'d-active' and 'd-hidden' need the epoch of a group both, or neither/;
  await startFails(await sideOf(t, { hidden: { epoch: 1 } }), text);
  await startFails(await sideOf(t, { active: { epoch: 1 } }), text);
});

test('replication-filter, start: top-id names a root that has the filter in its tree; a device of that name first', async (t) => {
  const side = await sideOf(t, { filter: { 'top-id': 'nobody' } });
  await startFails(side, /no node 'nobody'/);
  const other = await sideOf(t, { filter: { 'top-id': 'd-active' } });
  await startFails(other, /'d-active' is no root, it stands below 'd-top'/);
  const third = await sideOf(t, { filter: { 'top-id': 's' } });
  await startFails(third, /'d-local' is no root/);
  const fourth = await sideOf(t, { filter: { 'top-id': 'elsewhere' } });
  await fourth.run('blockdev-add', { driver: 'memory', 'node-name': 'elsewhere', size: 512 });
  await startFails(fourth, /'d-top' is not in the tree of 'elsewhere'/);
  // A device of that name comes first: the export `elsewhere` is over the filter.
  await fourth.run('block-export-add', { type: 'nbd', id: 'elsewhere', 'node-name': 'd-top', name: 'e' });
  await fourth.start();
  const fifth = await sideOf(t, { filter: { 'top-id': 'above' } });
  await fifth.run('block-export-del', { id: 't' });
  await fifth.run('blockdev-add', { driver: 'raw', 'node-name': 'above', file: 'd-top' });
  await fifth.start();
});

test('replication-filter, start: a mode that is not the filter’s, and any stage but none, are errors', async (t) => {
  const side = await sideOf(t);
  await assert.rejects(side.run('xen-set-replication', { enable: true, primary: true }), /cannot start as primary/);
  await side.start();
  await assert.rejects(side.start(), /cannot start in stage running/);
});

test('replication-filter, start: an overlay that cannot be emptied at the first checkpoint undoes it all', async (t) => {
  for (const file of ['d-active-file', 'd-hidden-file']) {
    const side = await sideOf(t);
    await fault(side, file, { operation: 'flush' });
    await fault(side, file, { operation: 'write' });
    await startFails(side, /injected EIO/);
  }
});

test('replication-filter, start: hidden and secondary become writable, both or neither, and get their state back', async (t) => {
  const readOnly = { 'read-only': true };
  const side = await sideOf(t, { hidden: readOnly });
  const ro = async () => {
    const nodes = await side.list('query-named-block-nodes');
    return nodes.filter((node) => node.ro).map((node) => node['node-name']);
  };
  assert.deepEqual(await ro(), ['d-hidden']);
  const s = await side.client('d-local');
  const top = await side.client('d-top');
  await side.start();
  assert.deepEqual(await ro(), []);
  await fill(s, 0, half, 0x22);
  await assertFilled(top, 0, half, 0);
  await side.stop();
  assert.deepEqual(await ro(), ['d-hidden']);
});

test('replication-filter, start: where one of both cannot become writable the other does not either', async (t) => {
  const readOnly = { 'read-only': true };
  const image = { driver: 'raw', 'node-name': 'image', file: { driver: 'memory', size: length }, ...readOnly };
  const side = await sideOf(t, {
    hidden: readOnly,
    local: { driver: 'raw', ...readOnly, file: image },
    writable: false,
  });
  // What stands below the secondary disk was added by itself: it is not reopened along with it.
  const { engine } = side.checked;
  const keeper = { description: 'a keeper', drainBegin: () => undefined, drainEnd: () => undefined };
  const keep = await engine.graph.use('image', keeper, { needs: 1, shares: 1 });
  await startFails(side, /needs 'write'.*on node 'image', which its use by a keeper does not allow/);
  await keep.release();
  await side.start();
  assert.equal(engine.graph.find('image').readOnly, false);
  await side.stop();
  assert.deepEqual(
    ['d-hidden', 'd-local', 'image'].map((name) => engine.graph.find(name).readOnly),
    [true, true, true],
  );
});

test('replication-filter, start: operations on top, hidden and secondary are blocked, with the reason, until it stops', async (t) => {
  const side = await sideOf(t);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'other', size: length });
  await side.start();
  // The filter of the job, on which the export stands, is as good as the secondary disk.
  for (const node of ['d-top', 'd-hidden', 'd-local', 'copy-before-write-d-top']) {
    const because = /replication 'd-top' is running/;
    await assert.rejects(side.run('blockdev-del', { 'node-name': node }), because);
    await assert.rejects(side.run('block_resize', { 'node-name': node, size: length }), because);
    await assert.rejects(side.run('blockdev-mirror', { device: node, target: 'other', sync: 'full' }), because);
    await assert.rejects(side.run('blockdev-mirror', { device: 'other', target: node, sync: 'full' }), because);
    await assert.rejects(side.run('blockdev-backup', { device: node, target: 'other', sync: 'full' }), because);
    await assert.rejects(side.run('blockdev-backup', { device: 'other', target: node, sync: 'full' }), because);
  }
  await assert.rejects(side.run('block-commit', { device: 'd-top', 'job-id': 'c' }), /replication 'd-top' is running/);
  // Not blocked: exports and queries.
  await side.run('block-export-add', { type: 'nbd', id: 'more', 'node-name': 'd-local', name: 'more' });
  await side.list('query-named-block-nodes');
  await side.stop();
  await assert.rejects(side.run('blockdev-del', { 'node-name': 'd-top' }), /in use by export/);
});

// ---------------------------------------------------------------- stages and operations

test('replication-filter, stages: none: EIO for reads and writes; stop and get_error fail, and so does a checkpoint', async (t) => {
  const side = await sideOf(t);
  const top = await side.client('d-top');
  await eio(Promise.resolve(top.read(0, new Uint8Array(512))));
  await eio(Promise.resolve(top.write(0, new Uint8Array(512), 0)));
  await eio(Promise.resolve(top.writeZeroes(0, 512, 0)));
  await top.discard(0, 4096);
  await top.flush();
  await assert.rejects(side.stop(), /stage none/);
  await assert.rejects(side.checkpoint(), /stage none/);
  await side.failover();
  assert.equal(await side.stage(), 'none');
  const status = await side.run('query-xen-replication-status');
  assert.equal(status.error, true);
});

test('replication-filter, stages: running: reads and writes go to the child; discards succeed without effect', async (t) => {
  const side = await sideOf(t);
  const top = await side.client('d-top');
  await side.start();
  await fill(top, 0, 8192, 7);
  await top.discard(0, 8192);
  await assertFilled(top, 0, 8192, 7);
  await top.writeZeroes(4096, 4096, 0);
  await assertFilled(top, 4096, 4096, 0);
  await top.flush();
  assert.deepEqual(await side.run('query-xen-replication-status'), { error: false });
  const row = await side.row();
  assert.deepEqual([row['active-bytes'], row['hidden-bytes'], row.commit], [8192, 0, null]);
});

test('replication-filter, stages: done: reads and writes go to the child; every further operation is passed over', async (t) => {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await side.start();
  await side.stop();
  await fill(top, 0, 4096, 5);
  await assertFilled(top, 0, 4096, 5);
  await assertFilled(s, 0, 4096, 0);
  await side.start();
  await side.checkpoint();
  await side.failover();
  await side.stop();
  assert.deepEqual([await side.stage(), await side.run('query-xen-replication-status')], ['done', { error: false }]);
});

test('replication-filter, close: in stage none, running and done nothing is left behind', async (t) => {
  for (const stage of ['none', 'running', 'done']) {
    const side = await sideOf(t);
    const s = await side.client('d-local');
    if (stage !== 'none') await side.start();
    if (stage === 'done') await side.stop();
    await side.run('block-export-del', { id: 't' });
    if (stage === 'running') {
      // The command is refused; the graph itself closes it.
      await assert.rejects(side.run('blockdev-del', { 'node-name': 'd-top' }), /replication 'd-top' is running/);
      await side.checked.engine.graph.remove('d-top');
    } else await side.run('blockdev-del', { 'node-name': 'd-top' });
    assert.deepEqual(await side.list('query-replication'), []);
    const names = (await side.list('query-named-block-nodes')).map((node) => node['node-name']);
    assert.deepEqual(
      names.filter((name) => String(name).startsWith('copy-')),
      [],
    );
    await fill(s, 0, 4096, 1);
    await side.run('blockdev-del', { 'node-name': 'd-active' });
    await side.run('blockdev-del', { 'node-name': 'd-hidden' });
  }
});

test('replication-filter, copy-before-write: who comes late to write is refused below the filter, and kept above it', async (t) => {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await side.start();
  await fill(s, 0, 8192, 1);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  const again = (nodeName: string) =>
    side.run('block-export-add', { type: 'nbd', id: 's', 'node-name': nodeName, name: 'again', writable: true });
  await assert.rejects(again('d-local'), /needs 'write' on node 'd-local'.*'copy-before-write-d-top'/);
  await again('copy-before-write-d-top');
  const late = await side.client('again');
  await fill(late, 4096, 8192, 2);
  await assertFilled(top, 0, 12_288, 0);
  await side.checkpoint();
  await assertFilled(top, 0, 4096, 1);
  await assertFilled(top, 4096, 8192, 2);
  await side.stop();
  await fill(late, 0, 4096, 3);
  await assertFilled(top, 0, 4096, 3);
});

// ---------------------------------------------------------------- the seven failures

test('failure: copy-before-write cannot store or read the old content: the write is not made and fails to the client', async (t) => {
  const side = await sideOf(t, {
    local: { driver: 'blkdebug', image: { driver: 'memory', size: length } },
  });
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await fill(s, 0, length, 1);
  await side.start();
  await fault(side, 'd-hidden-file', { operation: 'write', count: 1 });
  await eio(Promise.resolve(s.write(0, new Uint8Array(4096).fill(2), 0)));
  await assertFilled(s, 0, length, 1);
  await assertFilled(top, 0, length, 1);
  assert.equal(await side.stage(), 'running', 'the job goes on');
  assert.deepEqual(await side.run('query-xen-replication-status'), { error: false }, 'the primary records it');

  const other = await sideOf(t, {
    local: { driver: 'blkdebug', image: { driver: 'memory', size: length } },
  });
  const [s2, top2] = [await other.client('d-local'), await other.client('d-top')];
  await other.start();
  await fault(other, 'd-local', { operation: 'read', count: 1 });
  await eio(Promise.resolve(s2.write(8192, new Uint8Array(4096).fill(2), 0)));
  await fill(s2, 8192, 4096, 3);
  await assertFilled(s2, 8192, 4096, 3);
  await assertFilled(top2, 0, length, 0);
});

test('failure: an I/O error on the secondary disk fails to the NBD client', async (t) => {
  const side = await sideOf(t, {
    local: { driver: 'blkdebug', image: { driver: 'memory', size: length } },
  });
  const s = await side.client('d-local');
  await side.start();
  await fault(side, 'd-local', { operation: 'write', count: 1 });
  await eio(Promise.resolve(s.write(0, new Uint8Array(512), 0)));
  await fill(s, 0, 512, 1);
});

test('failure: an I/O error on the active disk is the secondary’s user’s, returned and not recorded', async (t) => {
  const side = await sideOf(t);
  const top = await side.client('d-top');
  await side.start();
  await fault(side, 'd-active-file', { operation: 'write', count: 1 });
  await eio(Promise.resolve(top.write(0, new Uint8Array(4096), 0)));
  assert.deepEqual(await side.run('query-xen-replication-status'), { error: false });
});

test('failure: active or hidden cannot be emptied: the checkpoint fails, running goes on, nothing is recorded', async (t) => {
  for (const file of ['d-active-file', 'd-hidden-file']) {
    const side = await sideOf(t);
    const s = await side.client('d-local');
    const top = await side.client('d-top');
    await side.start();
    await fill(s, 0, 65536, 2);
    // An overlay that holds nothing need not be emptied.
    await fill(top, 65536, 4096, 3);
    await fault(side, file, { operation: 'write' });
    await assert.rejects(side.checkpoint(), /injected EIO/);
    assert.deepEqual([await side.stage(), (await side.row()).error], ['running', null]);
    assert.deepEqual(await side.run('query-xen-replication-status'), { error: false });
    // Nobody is held, and the last checkpoint stays what it was.
    await assertFilled(top, 0, 65536, 0);
  }
});

test('failure: the copy-before-write job ends by itself: recorded, and the checkpoint fails from then on', async (t) => {
  const side = await sideOf(t, { hidden: { 'read-only': true } });
  await side.start();
  // Nobody but the engine itself can end an internal job.
  assert.throws(() => side.checked.engine.jobs.find('#replication-d-top'), { code: 'job-not-found' });
  await side.checked.engine.jobs.close();
  await side.until('the record', async () => (await side.row()).error !== null);
  const status = await side.run('query-xen-replication-status');
  assert.equal(status.error, true);
  await assert.rejects(side.checkpoint(), /old content is not kept any more/);
  assert.equal(side.checked.engine.graph.find('d-hidden').readOnly, true);
  side.checked.engine.graph.blockers.check('d-top', 'delete');
  await side.run('block-export-del', { id: 's' });
  await side.failover();
  await side.untilStage('done');
  assert.equal((await side.row()).error, null, 'a finished failover clears it');
});

// ---------------------------------------------------------------- failover-failed

test('failover-failed: reads go to the chain; a write is split by allocation, byte for byte; a flush covers both', async (t) => {
  const side = await sideOf(t, {
    local: { driver: 'blkdebug', image: { driver: 'memory', size: length } },
  });
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  const model = Buffer.alloc(length, 1);
  await fill(s, 0, length, 1);
  await side.start();
  // In active: block 1. In hidden: blocks 3 and 4. In neither: the rest.
  await fill(top, 4096, 4096, 2);
  model.fill(2, 4096, 8192);
  await fill(s, 3 * 4096, 8192, 9);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await fault(side, 'd-local', { operation: 'write', count: 1, offset: 4 * 4096, length: 1 });
  await side.failover();
  await side.untilStage('failover-failed');
  assert.match(String((await side.row()).error), /the commit of the failover failed: .*injected EIO/);
  const status = await side.run('query-xen-replication-status');
  assert.equal(status.error, true);
  assert.ok((await contentOf(top, 0, length)).equals(model), 'reads are as before');

  const graph = side.checked.engine.graph;
  const nodeContent = async (name: string) => {
    const bytes = Buffer.alloc(length);
    await graph.find(name).node.read(0, bytes);
    return bytes;
  };
  const diskBefore = await nodeContent('d-local');
  const bytes = Buffer.from(Array.from({ length: 6 * 4096 }, (_, i) => 100 + (i % 97)));
  const at = 100;
  await top.write(at, bytes, 0);
  bytes.copy(model, at);
  assert.ok((await contentOf(top, 0, length)).equals(model));
  const disk = await nodeContent('d-local');
  const own = [4096, 8192, 3 * 4096, 5 * 4096] as const;
  for (let i = 0; i < length; i += 1) {
    const allocated = (i >= own[0] && i < own[1]) || (i >= own[2] && i < own[3]);
    const written = i >= at && i < at + bytes.length;
    const expected = allocated || !written ? diskBefore[i] : model[i];
    if (disk[i] !== expected) assert.fail(`byte ${i} of the disk is ${disk[i]}, not ${expected}`);
  }
  await top.writeZeroes(2 * 4096, 2 * 4096, 0);
  model.fill(0, 2 * 4096, 4 * 4096);
  assert.ok((await contentOf(top, 0, length)).equals(model));
  await fault(side, 'd-local', { operation: 'flush', count: 1 });
  await eio(Promise.resolve(top.flush()));
  await top.flush();
  // The first piece that fails ends the request; earlier pieces stay written.
  await fault(side, 'd-local', { operation: 'write', count: 1, offset: 2 * 4096, length: 4096 });
  await eio(Promise.resolve(top.write(4096, Buffer.alloc(3 * 4096, 0x77), 0)));
  await assertFilled(top, 4096, 4096, 0x77);
  await assertFilled(top, 3 * 4096, 4096, 0);
  await assert.rejects(side.stop(), /stage failover-failed/);
  await assert.rejects(side.checkpoint(), /stage failover-failed/);
});

test('failover-failed: a commit that cannot even start', async (t) => {
  const side = await sideOf(t);
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await side.start();
  await fill(s, 0, 4096, 9);
  await fill(top, 8192, 4096, 3);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-d-top', size: 512 });
  await side.failover();
  assert.equal(await side.stage(), 'failover-failed');
  assert.match(String((await side.row()).error), /already a node 'commit-top-d-top'/);
  await assertFilled(top, 0, 4096, 0);
  await fill(top, 4096, 8192, 4);
  await assertFilled(top, 4096, 8192, 4);
  await assertFilled(s, 4096, 4096, 4);
});
