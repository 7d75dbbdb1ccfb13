import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { engineFamilies } from '../../src/qmp/schema.ts';
import { temporaryFolder } from '../support/temp.ts';
import { checkedEngine, memoryNode } from './checked.ts';

type Row = Record<string, unknown>;

function rowOf(rows: unknown, name: string): Row & { image: Row } {
  const row = (rows as (Row & { image: Row })[]).find((one) => one['node-name'] === name);
  assert.ok(row !== undefined, `there is a node ${name}`);
  return row;
}

test('query-commands tells every command of the schema, and each has a handler', async (t) => {
  const { execute } = checkedEngine(t);
  const names = (await execute('query-commands')) as { name: string }[];
  const described = engineFamilies.flatMap(({ commands }) => commands.map(({ name }) => name));
  assert.deepEqual(new Set(names.map(({ name }) => name)), new Set(described));
  assert.equal(names.length, described.length);
});

test('the commands of a session without state answer in QEMU shapes', async (t) => {
  const { execute } = checkedEngine(t);
  assert.deepEqual(await execute('query-status'), { status: 'running', running: true, singlestep: false });
  assert.match(((await execute('query-version')) as { package: string }).package, /^blockstep \d/);
  assert.deepEqual(await execute('qmp_capabilities'), {});
  await assert.rejects(execute('qmp_capabilities', { enable: ['oob'] }), { code: 'invalid-option', message: /"oob"/ });
});

test('an unknown command, unknown members and wrong types are refused, and named', async (t) => {
  const { execute } = checkedEngine(t);
  await assert.rejects(execute('no-such-command'), { code: 'command-not-found', qmpClass: 'CommandNotFound' });
  await assert.rejects(execute('blockdev-del', { 'node-name': 'a', force: true }), {
    code: 'invalid-option',
    message: 'arguments.force: is unexpected',
  });
  await assert.rejects(execute('blockdev-add', { driver: 'memory', size: 1 }), {
    message: 'arguments.node-name: is missing',
  });
  await assert.rejects(execute('blockdev-add', { ...memoryNode('a'), size: 'x' }), { message: /size: / });
  await assert.rejects(execute('blockdev-add', { ...memoryNode('a'), sizes: 1 }), { message: 'sizes: is unexpected' });
  await assert.rejects(execute('blockdev-add', { driver: 'nope', 'node-name': 'a' }), { message: /nope.*memory/ });
  assert.deepEqual(await execute('query-named-block-nodes'), []);
});

test('nodes are added, told and removed; one in use is not removed, and its user is named', async (t) => {
  const { execute } = checkedEngine(t);
  await execute('blockdev-add', memoryNode('m'));
  await assert.rejects(execute('blockdev-add', memoryNode('m')), { code: 'name-in-use' });
  await execute('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'm', offset: 4096, 'read-only': true });
  const rows = (await execute('query-named-block-nodes')) as (Row & { image: Row })[];
  assert.deepEqual(
    rows.map((row) => [row['node-name'], row.drv, row.ro, row.image['virtual-size'], row.children]),
    [
      ['m', 'memory', false, 65536, []],
      ['r', 'raw', true, 61440, [{ child: 'file', 'node-name': 'm' }]],
    ],
  );
  await assert.rejects(execute('blockdev-del', { 'node-name': 'm' }), { code: 'in-use', message: /'r'/ });
  await execute('blockdev-del', { 'node-name': 'r' });
  await execute('blockdev-del', { 'node-name': 'm' });
  await assert.rejects(execute('blockdev-del', { 'node-name': 'm' }), { code: 'node-not-found' });
});

test('a node over a file tells the name of the file', async (t) => {
  const { engine, execute } = checkedEngine(t);
  const filename = join(await temporaryFolder(t), 'disk');
  const file = await engine.host.files.open(filename, { access: 'write', create: 'exclusive' });
  await file.truncate(8192);
  await file.close();
  await execute('blockdev-add', {
    driver: 'raw',
    'node-name': 'r',
    cache: { 'no-flush': true },
    'detect-zeroes': 'on',
    file: { driver: 'file', 'node-name': 'f', filename },
  });
  const row = rowOf(await execute('query-named-block-nodes'), 'r');
  assert.equal(row.file, filename);
  assert.equal(row.image.filename, filename);
  assert.equal(row.image['actual-size'], 0);
  assert.deepEqual(row.cache, { writeback: true, direct: false, 'no-flush': true });
  assert.equal(row.detect_zeroes, 'on');
});

test('children of a quorum come and go by x-blockdev-change', async (t) => {
  const { execute } = checkedEngine(t);
  for (const name of ['a', 'b']) await execute('blockdev-add', memoryNode(name));
  await execute('blockdev-add', {
    driver: 'quorum',
    'node-name': 'q',
    'vote-threshold': 1,
    'read-pattern': 'fifo',
    children: ['a'],
  });
  const children = async (): Promise<unknown> => rowOf(await execute('query-named-block-nodes'), 'q').children;
  await execute('x-blockdev-change', { parent: 'q', node: 'b' });
  const [, added] = (await children()) as { child: string; 'node-name': string }[];
  assert.equal(added?.['node-name'], 'b');
  await execute('x-blockdev-change', { parent: 'q', child: added?.child });
  assert.deepEqual(await children(), [{ child: 'children.0', 'node-name': 'a' }]);
  await assert.rejects(execute('x-blockdev-change', { parent: 'q' }), { code: 'invalid-option' });
  await assert.rejects(execute('x-blockdev-change', { parent: 'q', child: 'x', node: 'b' }), {
    code: 'invalid-option',
  });
  await assert.rejects(execute('x-blockdev-change', { parent: 'a', node: 'b' }), { code: 'not-supported' });
});

test('block_resize takes a node by either name, and wants exactly one', async (t) => {
  const { execute } = checkedEngine(t);
  await execute('blockdev-add', memoryNode('m'));
  await execute('block_resize', { 'node-name': 'm', size: 131072 });
  await execute('block_resize', { device: 'm', size: 262144 });
  assert.equal(rowOf(await execute('query-named-block-nodes'), 'm').image['virtual-size'], 262144);
  await assert.rejects(execute('block_resize', { size: 1 }), { code: 'invalid-option' });
  await assert.rejects(execute('block_resize', { device: 'm', 'node-name': 'm', size: 1 }), { code: 'invalid-option' });
});

test('jobs that are not there are told so, in the class of QEMU', async (t) => {
  const { execute } = checkedEngine(t);
  assert.deepEqual(await execute('query-jobs'), []);
  assert.deepEqual(await execute('query-block-jobs'), []);
  for (const verb of ['cancel', 'pause', 'resume', 'complete']) {
    await assert.rejects(execute(`block-job-${verb}`, { device: 'x' }), { qmpClass: 'DeviceNotActive' });
    await assert.rejects(execute(`job-${verb}`, { id: 'x' }), { qmpClass: 'GenericError' });
  }
});

test('an event carries the wall time of the host', (t) => {
  const real = createHost();
  const clock = {
    now: () => real.clock.now(),
    wall: () => 1_700_000_000_123.75,
    after: (ms: number, call: () => void) => real.clock.after(ms, call),
    endOfTurn: (call: () => void) => real.clock.endOfTurn(call),
  };
  const { engine, events } = checkedEngine(t, { ...real, clock });
  engine.emit('SOMETHING', { a: 1 });
  assert.deepEqual(events, [
    { event: 'SOMETHING', data: { a: 1 }, timestamp: { seconds: 1_700_000_000, microseconds: 123_750 } },
  ]);
});

test('a listener that ends its subscription hears no more', (t) => {
  const { engine } = checkedEngine(t);
  let heard = 0;
  const end = engine.subscribe(() => {
    heard += 1;
    end();
  });
  engine.emit('ONE', {});
  engine.emit('TWO', {});
  assert.equal(heard, 1);
});

test('quit is told and asked for; close ends everything and later commands are refused', async (t) => {
  const { engine, events, execute } = checkedEngine(t);
  await execute('blockdev-add', memoryNode('m'));
  await execute('quit');
  await engine.quit;
  assert.deepEqual(events.at(-1)?.event, 'SHUTDOWN');
  const closing = engine.close();
  assert.equal(engine.close(), closing);
  await closing;
  assert.deepEqual(engine.graph.list(), []);
  await assert.rejects(execute('query-jobs'), { code: 'shutting-down' });
});

test('a flush that fails at the end is told by close, and everything is closed all the same', async (t) => {
  const { engine, execute } = checkedEngine(t);
  await execute('blockdev-add', memoryNode('m'));
  await execute('blockdev-add', memoryNode('n'));
  engine.graph.find('m').node.flush = () => {
    throw new TypeError('the disk is gone');
  };
  await assert.rejects(engine.close(), { message: /node 'm'.*the disk is gone/ });
  assert.deepEqual(engine.graph.list(), []);
});
