import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../qmp/fake-target.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

type Row = Record<string, unknown>;
const size = 1024 * 1024;

async function withNodes(checked: CheckedEngine): Promise<void> {
  await checked.execute('blockdev-add', memoryNode('s', size));
  await checked.execute('blockdev-add', memoryNode('t', size));
  await checked.engine.graph.find('s').node.write(4096, new Uint8Array(8192).fill(5), 0);
}

async function byteAt(checked: CheckedEngine, node: string, offset: number): Promise<number | undefined> {
  const into = new Uint8Array(1);
  await checked.engine.graph.find(node).node.read(offset, into);
  return into[0];
}

const states = ({ events }: CheckedEngine): unknown[] =>
  events.filter(({ event }) => event === 'JOB_STATUS_CHANGE').map(({ data }) => data.status);

test('blockdev-mirror goes through the states of QEMU, and complete puts the target in place of the node', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine, events } = checked;
  await withNodes(checked);
  await execute('blockdev-add', { driver: 'raw', 'node-name': 'user', file: 's' });
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full' });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  const [job] = (await execute('query-jobs')) as Row[];
  assert.deepEqual(job, { id: 'j', type: 'mirror', status: 'ready', 'current-progress': size, 'total-progress': size });
  const [blockJob] = (await execute('query-block-jobs')) as Row[];
  assert.deepEqual([blockJob?.device, blockJob?.ready, blockJob?.['io-status']], ['j', true, 'ok']);
  assert.equal(await byteAt(checked, 't', 4096), 5);
  await execute('job-complete', { id: 'j' });
  await until(() => engine.jobs.list().length === 0);
  assert.deepEqual(states(checked), ['created', 'running', 'ready', 'waiting', 'pending', 'concluded', 'null']);
  const completed = events.find(({ event }) => event === 'BLOCK_JOB_COMPLETED');
  assert.deepEqual(completed?.data, { type: 'mirror', device: 'j', len: size, offset: size, speed: 0 });
  assert.deepEqual(
    engine.graph.find('user').children.map(({ nodeName }) => nodeName),
    ['t'],
  );
  await execute('blockdev-del', { 'node-name': 's' });
});

test('block-job-cancel of a ready mirror leaves the node where it was', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine, events } = checked;
  await withNodes(checked);
  await execute('blockdev-add', { driver: 'raw', 'node-name': 'user', file: 's' });
  await execute('blockdev-mirror', { device: 's', target: 't', sync: 'full' });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  await execute('block-job-cancel', { device: 's' });
  await until(() => engine.jobs.list().length === 0);
  assert.deepEqual(
    engine.graph.find('user').children.map(({ nodeName }) => nodeName),
    ['s'],
  );
});

test('a paused job is told as such, refuses what a paused job refuses, and ends when cancelled', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine, events } = checked;
  await withNodes(checked);
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full', speed: 1 });
  await execute('job-pause', { id: 'j' });
  await until(() => events.some(({ data }) => data.status === 'paused'));
  await assert.rejects(execute('job-pause', { id: 'j' }), { code: /./ });
  await assert.rejects(execute('job-complete', { id: 'j' }), { code: /./ });
  await execute('block-job-set-speed', { device: 'j', speed: 4096 });
  const [job] = (await execute('query-block-jobs')) as Row[];
  assert.deepEqual([job?.paused, job?.status, job?.speed], [true, 'paused', 4096]);
  await execute('job-resume', { id: 'j' });
  await execute('job-cancel', { id: 'j' });
  await until(() => engine.jobs.list().length === 0);
});

test('a job made with auto-finalize and auto-dismiss off waits for both', async (t) => {
  const checked = checkedEngine(t);
  const { execute, events } = checked;
  await withNodes(checked);
  await execute('blockdev-mirror', {
    'job-id': 'j',
    device: 's',
    target: 't',
    sync: 'full',
    'auto-finalize': false,
    'auto-dismiss': false,
  });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  await execute('block-job-complete', { device: 'j' });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_PENDING'));
  await assert.rejects(execute('job-dismiss', { id: 'j' }), { code: /./ });
  await execute('job-finalize', { id: 'j' });
  await until(() => events.some(({ data }) => data.status === 'concluded'));
  assert.equal(((await execute('query-jobs')) as Row[]).length, 1);
  await execute('job-dismiss', { id: 'j' });
  assert.deepEqual(await execute('query-jobs'), []);
});

test('close of the engine ends a job that is under way', async (t) => {
  const checked = checkedEngine(t);
  await withNodes(checked);
  await checked.execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full', speed: 1 });
  await checked.engine.close();
  assert.ok(checked.events.some(({ event }) => event === 'BLOCK_JOB_CANCELLED'));
});

for (const policy of ['stop', 'ignore']) {
  test(`at the pivot, while users are held, an error ends the mirror although on-target-error=${policy}`, async (t) => {
    const checked = checkedEngine(t);
    const { execute, engine, events } = checked;
    await execute('blockdev-add', memoryNode('s', size));
    await execute('blockdev-add', { driver: 'blkdebug', 'node-name': 't', image: { driver: 'memory', size } });
    await execute('blockdev-add', { driver: 'raw', 'node-name': 'user', file: 's' });
    const { node } = engine.graph.find('user');
    const mirror = { 'job-id': 'j', device: 's', target: 't', sync: 'full', 'on-target-error': policy };
    await execute('blockdev-mirror', { ...mirror, 'auto-finalize': false });
    await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
    await execute('job-complete', { id: 'j' });
    await until(() => events.some(({ event }) => event === 'BLOCK_JOB_PENDING'));
    await engine.graph
      .find('t')
      .node.control?.({ action: 'add-fault', fault: { operation: 'write', errno: 'ENOSPC' } });
    await node.write(0, new Uint8Array(512).fill(7), 0);
    await execute('job-finalize', { id: 'j' });
    await until(() => engine.jobs.list().length === 0);
    assert.match(String(events.find(({ event }) => event === 'BLOCK_JOB_COMPLETED')?.data.error), /ENOSPC/);
    assert.deepEqual(
      engine.graph.find('user').children.map(({ nodeName }) => nodeName),
      ['s'],
    );
    assert.equal(await byteAt(checked, 's', 0), 7);
  });
}

test('a speed limit does not hold users at the pivot', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine, events } = checked;
  await withNodes(checked);
  await execute('blockdev-add', { driver: 'raw', 'node-name': 'user', file: 's' });
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full', 'auto-finalize': false });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  await execute('block-job-set-speed', { device: 'j', speed: 1 });
  await execute('job-complete', { id: 'j' });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_PENDING'));
  for (const at of [0, 500_000]) await engine.graph.find('user').node.write(at, new Uint8Array(512).fill(7), 0);
  await execute('job-finalize', { id: 'j' });
  await until(() => engine.jobs.list().length === 0);
  for (const at of [0, 500_000]) assert.equal(await byteAt(checked, 't', at), 7);
});

test('a granule that is zero in part is copied whole, wherever the zeroes begin and end in it', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine, events } = checked;
  const log = { driver: 'memory', size: 0 };
  await execute('blockdev-add', { driver: 'shadow', 'node-name': 's', file: log, size, 'grow-bytes': 65536 });
  await execute('blockdev-add', memoryNode('t', size));
  const content = new Uint8Array(size);
  // In granules of 16 blocks: at the start, the end and in the middle of one, and over several.
  for (const [block, count] of [
    [0, 1],
    [31, 1],
    [52, 3],
    [79, 18],
    [130, 1],
    [255, 1],
  ] as const) {
    const bytes = new Uint8Array(count * 4096).fill(block + 1);
    await engine.graph.find('s').node.write(block * 4096, bytes, 0);
    content.set(bytes, block * 4096);
  }
  await engine.graph.find('t').node.write(0, new Uint8Array(size).fill(255), 0);
  const granularity = 65536;
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full', granularity });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  const copy = new Uint8Array(size);
  await engine.graph.find('t').node.read(0, copy);
  for (let at = 0; at < size; at += 512) assert.deepEqual([at, copy[at]], [at, content[at]]);
});
