/** Who comes to the nodes of a job while it runs, over QMP and NBD: the job knows of it, or it is refused. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { RootUse } from '../../src/block/graph-view.ts';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { deferred } from '../../src/util/later.ts';
import { parent, reader, writer } from '../block/fixture.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from '../engine/checked.ts';
import { assertFilled, fill, Secondary } from '../engine/replication-secondary-world.ts';
import { until } from '../qmp/fake-target.ts';
import { temporaryFolder } from '../support/temp.ts';

const size = 2 ** 20;
const block = 4096;

interface Run extends CheckedEngine {
  add(options: Record<string, unknown>): Promise<unknown>;
  /** An export, under its id. */
  serve(id: string, nodeName: string, writable?: boolean): Promise<unknown>;
  client(exportName: string): Promise<NbdClient>;
  /** The node below an export now. */
  under(id: string): Promise<unknown>;
  names(): string[];
  event(name: string, id: string): Promise<Record<string, unknown>>;
}

async function runOf(t: TestContext): Promise<Run> {
  const checked = checkedEngine(t);
  const { engine, execute, events } = checked;
  const path = join(await temporaryFolder(t), 'nbd.sock');
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  return {
    ...checked,
    add: (options) => execute('blockdev-add', options),
    serve: (id, nodeName, writable = true) =>
      execute('block-export-add', { type: 'nbd', id, name: id, 'node-name': nodeName, writable }),
    client: async (exportName) => {
      const client = await NbdClient.connect(createHost(), { address: { type: 'unix', path }, exportName });
      t.after(() => client.close().catch(() => undefined));
      return client;
    },
    under: async (id) => {
      const exports = (await execute('query-block-exports')) as Record<string, unknown>[];
      return exports.find((one) => one.id === id)?.['node-name'];
    },
    names: () =>
      engine.graph
        .list()
        .map(({ nodeName }) => nodeName)
        .filter((name) => !name.startsWith('#')),
    event: async (name, id) => {
      const isIt = ({ event, data }: (typeof events)[number]) => event === name && data.device === id;
      await until(() => events.some(isIt));
      return events.find(isIt)?.data ?? assert.fail();
    },
  };
}

const overlay = (name: string, backing: string) => ({
  driver: 'shadow',
  'node-name': name,
  file: { driver: 'memory', size: 0 },
  backing,
  'grow-bytes': 65536,
});

test('mirror: who comes late writes through the filter or is refused; at the end all stand on the target', async (t) => {
  const { add, serve, client, under, names, execute, event } = await runOf(t);
  for (const name of ['s', 't']) await add(memoryNode(name, size));
  await serve('before', 's');
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full' });
  await event('BLOCK_JOB_READY', 'j');
  await assert.rejects(serve('late', 's'), { code: 'permission-conflict', message: /'mirror-top-j'/ });
  await assert.rejects(serve('wrong', 't'), { code: 'permission-conflict', message: /job "j"/ });
  await serve('late', 'mirror-top-j');
  await add({ driver: 'raw', 'node-name': 'above', file: 'mirror-top-j' });
  await serve('node', 'above');
  await serve('reads', 's', false);
  const [before, late, node, reads] = await Promise.all(['before', 'late', 'node', 'reads'].map(client));
  if (before === undefined || late === undefined || node === undefined || reads === undefined) return assert.fail();
  await fill(before, 0, block, 1);
  await fill(late, block, block, 2);
  await fill(node, 2 * block, block, 3);
  await execute('job-complete', { id: 'j' });
  assert.equal((await event('BLOCK_JOB_COMPLETED', 'j')).error, undefined);
  for (const id of ['before', 'late', 'reads']) assert.equal(await under(id), 't');
  for (const i of [0, 1, 2]) await assertFilled(reads, i * block, block, i + 1);
  await fill(late, 0, block, 9);
  await assertFilled(reads, 0, block, 9);
  assert.deepEqual(names(), ['s', 't', 'above']);
  await execute('blockdev-del', { 'node-name': 's' });
});

test('block-commit: nobody comes late to what lies below its filter but to read the top or the base', async (t) => {
  const { add, serve, client, under, names, execute, event, engine } = await runOf(t);
  await add(memoryNode('base', size));
  await add(overlay('middle', 'base'));
  await engine.graph.find('middle').node.write(0, new Uint8Array(block).fill(1), 0);
  await add(overlay('top', 'middle'));
  await serve('before', 'top');
  await execute('block-commit', { 'job-id': 'j', device: 'top' });
  await event('BLOCK_JOB_READY', 'j');
  await assert.rejects(serve('wrong', 'top'), { code: 'permission-conflict', message: /'commit-top-j'/ });
  const ours = { code: 'permission-conflict', message: /job "j"/ };
  await assert.rejects(serve('wrong', 'middle'), ours);
  await assert.rejects(serve('wrong', 'middle', false), ours);
  await assert.rejects(serve('wrong', 'base'), ours);
  await serve('base', 'base', false);
  await assert.rejects(serve('reads', 'top', false), ours);
  await serve('late', 'commit-top-j');
  const late = await client('late');
  await fill(late, block, block, 2);
  await execute('job-complete', { id: 'j' });
  assert.equal((await event('BLOCK_JOB_COMPLETED', 'j')).error, undefined);
  for (const id of ['before', 'late']) assert.equal(await under(id), 'base');
  const base = await client('base');
  for (const i of [0, 1]) await assertFilled(base, i * block, block, i + 1);
  await fill(late, 0, block, 3);
  await assertFilled(base, 0, block, 3);
  assert.deepEqual(names(), ['base', 'middle', 'top']);
});

test('block-commit of one overlay: who reads it meanwhile reads the base when it has taken its place', async (t) => {
  const { add, serve, client, under, execute, event } = await runOf(t);
  await add(memoryNode('base', size));
  await add(overlay('top', 'base'));
  await serve('user', 'top');
  const user = await client('user');
  await fill(user, 0, block, 1);
  await execute('block-commit', { 'job-id': 'j', device: 'top' });
  await event('BLOCK_JOB_READY', 'j');
  await serve('reads', 'top', false);
  const reads = await client('reads');
  await execute('job-complete', { id: 'j' });
  await event('BLOCK_JOB_COMPLETED', 'j');
  await fill(user, 0, block, 2);
  assert.equal(await under('reads'), 'base');
  await assertFilled(reads, 0, block, 2);
});

test('block-commit is refused while somebody writes to what it commits into, or uses what it commits', async (t) => {
  const { add, serve, under, names, execute } = await runOf(t);
  await add(memoryNode('base', size));
  await add(overlay('middle', 'base'));
  await add(overlay('top', 'middle'));
  await serve('user', 'top');
  for (const [node, writable] of [
    ['base', true],
    ['middle', true],
    ['middle', false],
  ] as const) {
    await serve('other', node, writable);
    await assert.rejects(execute('block-commit', { 'job-id': 'j', device: 'top' }), {
      code: 'permission-conflict',
      message: /export "other".*job "j"|job "j".*export "other"/,
    });
    await execute('block-export-del', { id: 'other' });
    assert.equal(await under('user'), 'top');
    assert.deepEqual(names(), ['base', 'middle', 'top']);
  }
  await execute('block-commit', { 'job-id': 'j', device: 'top' });
});

test('failover: who comes late to what is committed writes through the filter or is refused, and loses nothing', async (t) => {
  const overlays = { hidden: { epoch: 1 }, active: { epoch: 1 } };
  const side = await Secondary.open(t, { length: size, ...overlays });
  await side.start();
  await side.run('block-export-del', { id: 's' });
  await side.failover();
  await side.until('the commit', () => side.checked.events.some(({ event }) => event === 'REPLICATION_COMMIT_READY'));
  const come = (node: string) =>
    side.run('block-export-add', { type: 'nbd', id: 'late', 'node-name': node, name: 'late', writable: true });
  await assert.rejects(come('d-active'), { code: 'permission-conflict', message: /'commit-top-d-top'/ });
  await come('commit-top-d-top');
  const [late, top] = [await side.client('late'), await side.client('d-top')];
  await fill(late, 0, block, 5);
  await side.run('replication-prepare');
  await side.run('replication-commit', { epoch: 2 });
  await side.untilStage('done');
  await assertFilled(top, 0, block, 5);
  await fill(late, 0, block, 6);
  await assertFilled(top, 0, block, 6);
});

const pivots = [
  ['blockdev-mirror', { device: 's', target: 'other', sync: 'full', 'filter-node-name': 'filter' }],
  ['block-commit', { device: 'over', 'filter-node-name': 'filter' }],
] as const;

for (const [command, args] of pivots) {
  test(`${command}: nobody gets above its filter once the others have left it`, async (t) => {
    const { add, serve, under, names, execute, event, engine } = await runOf(t);
    for (const name of ['s', 'other']) await add(memoryNode(name, size));
    await add(overlay('over', 's'));
    const place = command === 'block-commit' ? 's' : 'other';
    const late = deferred();
    late.promise.catch(() => undefined);
    let user: RootUse | null = null;
    // Told at the pivot, before anything else is done.
    const nodeChanged = (): void => {
      if (user?.nodeName === place) serve('late', 'filter').then(() => late.resolve(), late.reject);
    };
    user = await engine.graph.use(args.device, parent('a user', { nodeChanged }), writer);
    await execute(command, { 'job-id': 'j', ...args });
    await event('BLOCK_JOB_READY', 'j');
    await serve('before', 'filter');
    await execute('job-complete', { id: 'j' });
    assert.equal((await event('BLOCK_JOB_COMPLETED', 'j')).error, undefined);
    await assert.rejects(late.promise, { code: 'node-not-found' });
    assert.deepEqual([user.nodeName, await under('before')], [place, place]);
    assert.deepEqual(names(), ['s', 'other', 'over']);
    await user.release();
  });
}

test('mirror: users go on at the target while the source is still flushed for the last time', async (t) => {
  const { add, names, execute, event, engine } = await runOf(t);
  await add({ driver: 'blkdebug', 'node-name': 's', image: { driver: 'memory', size } });
  await add(memoryNode('t', size));
  let held = 0;
  const drains = {
    drainBegin: (): undefined => {
      held += 1;
    },
    drainEnd: (): void => {
      held -= 1;
    },
  };
  const user = await engine.graph.use('s', parent('a user', drains), writer);
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full' });
  await event('BLOCK_JOB_READY', 'j');
  let flushing = false;
  const flushed = deferred();
  const { node } = engine.graph.find('s');
  node.flush = () => {
    flushing = true;
    return flushed.promise;
  };
  await execute('job-complete', { id: 'j' });
  await until(() => flushing);
  assert.deepEqual([user.nodeName, held], ['t', 0]);
  flushed.resolve();
  await event('BLOCK_JOB_COMPLETED', 'j');
  assert.deepEqual(names(), ['s', 't']);
  await user.release();
});

test('mirror to an overlay over its own source: the overlay stands on the source, no filter is left', async (t) => {
  const { add, names, execute, event, engine } = await runOf(t);
  await add(memoryNode('s', size));
  await add(overlay('t', 's'));
  await engine.graph.find('s').node.write(0, new Uint8Array(size).fill(1), 0);
  const user = await engine.graph.use('s', parent('a user'), reader);
  await execute('blockdev-mirror', { 'job-id': 'j', device: 's', target: 't', sync: 'full' });
  await event('BLOCK_JOB_READY', 'j');
  await execute('job-complete', { id: 'j' });
  assert.equal((await event('BLOCK_JOB_COMPLETED', 'j')).error, undefined);
  assert.equal(user.nodeName, 't');
  assert.equal(engine.graph.find('t').children.find(({ role }) => role === 'backing')?.nodeName, 's');
  assert.deepEqual(names(), ['s', 't']);
  await user.release();
});

for (const [command, args] of [
  ['blockdev-backup', { device: 's', target: 'other', sync: 'none', 'filter-node-name': 'filter' }],
  ...pivots,
] as const) {
  test(`${command}: its filter cannot be deleted under it`, async (t) => {
    const { add, names, execute, event } = await runOf(t);
    for (const name of ['s', 'other']) await add(memoryNode(name, size));
    await add(overlay('over', 's'));
    await execute(command, { 'job-id': 'j', ...args });
    const refused = { code: 'op-blocked', message: /it belongs to job 'j'/ };
    await assert.rejects(execute('blockdev-del', { 'node-name': 'filter' }), refused);
    await execute('job-cancel', { id: 'j' });
    await event('BLOCK_JOB_CANCELLED', 'j');
    assert.deepEqual(names(), ['s', 'other', 'over']);
    await add(memoryNode('filter', size));
    await execute('blockdev-del', { 'node-name': 'filter' });
  });
}

for (const [command, args] of [
  ['blockdev-backup', { device: 's', target: 'other', sync: 'none', 'filter-node-name': 'filter' }],
  ['blockdev-mirror', { device: 's', target: 'other', sync: 'full', 'filter-node-name': 'filter' }],
  ['block-commit', { device: 'over', 'filter-node-name': 'filter' }],
] as const) {
  for (const users of [0, 1]) {
    test(`${command} of a node with ${users} users: nobody else writes to what it stands on`, async (t) => {
      const { add, serve, names, execute, event, engine } = await runOf(t);
      for (const name of ['file', 'other']) await add(memoryNode(name, size));
      await add({ driver: 'raw', 'node-name': 's', file: 'file' });
      await add(overlay('over', 's'));
      if (users > 0) await serve('user', args.device);
      const refused = { code: 'permission-conflict', message: /'write' on node '(file|s)'.*('filter'|job "j")/ };
      await serve('below', 'file');
      await assert.rejects(execute(command, { 'job-id': 'j', ...args }), { code: 'permission-conflict' });
      assert.deepEqual(names(), ['file', 'other', 's', 'over']);
      assert.deepEqual(engine.jobs.list(), []);
      await execute('block-export-del', { id: 'below' });
      await execute(command, { 'job-id': 'j', ...args });
      await assert.rejects(serve('below', 'file'), refused);
      await serve('reads', 'file', false);
      await execute('job-cancel', { id: 'j' });
      await event('BLOCK_JOB_CANCELLED', 'j');
      await serve('below', 'file');
      assert.deepEqual(names(), ['file', 'other', 's', 'over']);
    });
  }
}
