import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { createHost, type SocketAddress } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import type { BlockError } from '../../src/util/errors.ts';
import { until } from '../qmp/fake-target.ts';
import { temporaryFolder } from '../support/temp.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

type Row = Record<string, unknown>;
const host = createHost();

interface Served extends CheckedEngine {
  readonly address: SocketAddress;
  readonly path: string;
  connect(exportName: string): Promise<NbdClient>;
}

/** An engine with the memory node `m` and an NBD server on a unix socket. */
async function served(t: TestContext, more: Row = {}): Promise<Served> {
  const checked = checkedEngine(t);
  const path = join(await temporaryFolder(t), 'nbd.sock');
  await checked.execute('blockdev-add', memoryNode('m'));
  await checked.execute('nbd-server-start', { addr: { type: 'unix', data: { path } }, ...more });
  const address: SocketAddress = { type: 'unix', path };
  return {
    ...checked,
    address,
    path,
    connect: async (exportName) => {
      const client = await NbdClient.connect(host, { address, exportName });
      t.after(() => client.close().catch(() => undefined));
      return client;
    },
  };
}

const nbdExport = (id: string, more: Row = {}): Row => ({ type: 'nbd', id, 'node-name': 'm', ...more });

test('a node is exported under its own name or another, and what clients write is in it', async (t) => {
  const { engine, execute, connect } = await served(t);
  await execute('block-export-add', nbdExport('e', { writable: true }));
  await execute('block-export-add', nbdExport('e2', { name: 'other/né', description: 'a disk' }));
  const client = await connect('m');
  assert.equal(client.info.size, 65536);
  assert.equal(client.info.readOnly, false);
  await client.write(4096, new Uint8Array(10).fill(7), 0);
  const back = new Uint8Array(10);
  await engine.graph.find('m').node.read(4096, back);
  assert.deepEqual(back, new Uint8Array(10).fill(7));
  const reader = await connect('other/né');
  assert.equal(reader.info.readOnly, true);
  const rows = (await execute('query-block-exports')) as Row[];
  assert.deepEqual(
    rows.map((row) => [row.id, row.name, row['node-name'], row.writable, row.connections, row['shutting-down']]),
    [
      ['e', 'm', 'm', true, 1, false],
      ['e2', 'other/né', 'm', false, 1, false],
    ],
  );
});

test('ids and names are taken once, also by two commands at the same time', async (t) => {
  const { execute } = await served(t);
  const results = await Promise.allSettled([
    execute('block-export-add', nbdExport('e')),
    execute('block-export-add', nbdExport('e', { name: 'n' })),
    execute('block-export-add', nbdExport('f')),
  ]);
  assert.deepEqual(
    results.map((result) => (result.status === 'fulfilled' ? 'done' : (result.reason as BlockError).code)),
    ['done', 'name-in-use', 'name-in-use'],
  );
  await execute('block-export-del', { id: 'e' });
  await execute('block-export-add', nbdExport('e'));
});

test('an export that cannot be opened leaves its id and name free', async (t) => {
  const { execute } = await served(t);
  await assert.rejects(execute('block-export-add', nbdExport('e', { 'node-name': 'absent', name: 'x' })), {
    code: 'node-not-found',
  });
  assert.deepEqual(await execute('query-block-exports'), []);
  await execute('block-export-add', nbdExport('e', { name: 'x' }));
});

test('safe refuses to take an export from a client, hard hangs it up; the event comes when it is gone', async (t) => {
  const { execute, events, connect } = await served(t);
  await execute('block-export-add', nbdExport('e'));
  const client = await connect('m');
  const closed = new Promise((resolve) => client.onClosed(resolve));
  await assert.rejects(execute('block-export-del', { id: 'e' }), { code: 'in-use' });
  await assert.rejects(execute('block-export-del', { id: 'e', mode: 'safe' }), { code: 'in-use' });
  assert.deepEqual(events, []);
  await execute('block-export-del', { id: 'e', mode: 'hard' });
  assert.deepEqual(
    events.map(({ event, data }) => [event, data]),
    [['BLOCK_EXPORT_DELETED', { id: 'e' }]],
  );
  await closed;
  await assert.rejects(connect('m'), { code: /./ });
  await assert.rejects(execute('block-export-del', { id: 'e' }), { code: 'node-not-found' });
  await execute('blockdev-del', { 'node-name': 'm' });
});

test('two deletions of one export at the same time end together, with one event', async (t) => {
  const { execute, events, connect } = await served(t);
  await execute('block-export-add', nbdExport('e'));
  await connect('m');
  await Promise.all([
    execute('block-export-del', { id: 'e', mode: 'hard' }),
    execute('block-export-del', { id: 'e', mode: 'safe' }),
  ]);
  assert.equal(events.length, 1);
});

test('a refused name is not listed, its clients are told why, and it is taken back', async (t) => {
  const { execute, connect } = await served(t);
  await execute('block-export-add', nbdExport('e'));
  await execute('nbd-export-refuse', { name: 'm', reason: 'beta is secondary; the primary is alpha' });
  await assert.rejects(connect('m'), { message: /beta is secondary; the primary is alpha/ });
  await execute('nbd-export-refuse', { name: 'm', reason: null });
  await connect('m');
  await assert.rejects(execute('nbd-export-refuse', { name: 'm', reason: 'x', server: 'absent' }), {
    code: 'wrong-state',
  });
});

test('an export, and what is asked by its name, is of the node that stands below it now', async (t) => {
  const { execute, events } = await served(t);
  await execute('blockdev-add', memoryNode('n'));
  await execute('block-export-add', nbdExport('e', { writable: true }));
  await execute('blockdev-mirror', { 'job-id': 'j', device: 'm', target: 'n', sync: 'full' });
  const names = async () => {
    const [row] = (await execute('query-block-exports')) as Row[];
    const [block] = (await execute('query-block')) as { inserted: Row }[];
    return [row?.['node-name'], block?.inserted['node-name']];
  };
  assert.deepEqual(await names(), ['mirror-top-j', 'mirror-top-j']);
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  await execute('job-complete', { id: 'j' });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_COMPLETED'));
  await execute('blockdev-del', { 'node-name': 'm' });
  assert.deepEqual(await names(), ['n', 'n']);
});

test('two servers have exports of the same name, each its own', async (t) => {
  const { execute, connect, address } = await served(t);
  await execute('blockdev-add', memoryNode('n', 4096));
  await execute('nbd-server-start', {
    server: 'second',
    addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } },
    'more-addrs': [{ type: 'inet', data: { host: '127.0.0.1', port: '0' } }],
  });
  await execute('block-export-add', nbdExport('e1', { name: 'disk' }));
  await execute('block-export-add', nbdExport('e2', { name: 'disk', 'node-name': 'n', server: 'second' }));
  const [first, second] = (await execute('query-nbd-server')) as { server: string; addrs: Row[]; exports: number }[];
  assert.deepEqual(
    [first?.server, first?.exports, first?.addrs],
    ['nbd', 1, [{ type: 'unix', data: { path: address.type === 'unix' ? address.path : '' } }]],
  );
  assert.deepEqual([second?.server, second?.exports, second?.addrs.length], ['second', 1, 2]);
  for (const { data } of (second?.addrs ?? []) as { data: { port: string } }[]) {
    const at: SocketAddress = { type: 'inet', host: '127.0.0.1', port: Number(data.port) };
    const client = await NbdClient.connect(host, { address: at, exportName: 'disk' });
    assert.equal(client.info.size, 4096);
    await client.close();
  }
  assert.equal((await connect('disk')).info.size, 65536);
});

test('nbd-server-stop closes the exports with an event each, hangs clients up, and removes the socket', async (t) => {
  const { execute, events, connect, path } = await served(t);
  await execute('block-export-add', nbdExport('e', { name: 'a' }));
  await execute('block-export-add', nbdExport('f', { name: 'b' }));
  const client = await connect('a');
  const closed = new Promise((resolve) => client.onClosed(resolve));
  await execute('nbd-server-stop');
  await closed;
  assert.deepEqual(new Set(events.map(({ data }) => data.id)), new Set(['e', 'f']));
  assert.equal(events.length, 2);
  assert.equal(existsSync(path), false);
  assert.deepEqual(await execute('query-nbd-server'), []);
  await assert.rejects(execute('nbd-server-stop'), { code: 'wrong-state' });
  await assert.rejects(execute('block-export-add', nbdExport('e')), { code: 'wrong-state' });
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
});

test('a server stopped while an export is being made leaves nothing of it', async (t) => {
  const { engine, execute } = await served(t);
  const added = assert.rejects(execute('block-export-add', nbdExport('e')), { code: 'shutting-down' });
  await execute('nbd-server-stop');
  await added;
  assert.deepEqual(engine.graph.find('m').parents, []);
  assert.deepEqual(await execute('query-block-exports'), []);
});

test('an address that is taken starts no server, and its name is free afterwards', async (t) => {
  const { execute, path } = await served(t);
  const other = join(path, '..', 'second.sock');
  const taken = { type: 'unix', data: { path } };
  await assert.rejects(
    execute('nbd-server-start', { server: 's', addr: { type: 'unix', data: { path: other } }, 'more-addrs': [taken] }),
    { code: 'address-in-use' },
  );
  assert.equal(existsSync(other), false);
  await execute('nbd-server-start', { server: 's', addr: { type: 'unix', data: { path: other } } });
  await assert.rejects(execute('nbd-server-start', { server: 's', addr: taken }), { code: 'in-use' });
});

test('TLS is refused in words, not left out in silence', async (t) => {
  const { execute } = checkedEngine(t);
  const addr = { type: 'inet', data: { host: '127.0.0.1', port: '0' } };
  await assert.rejects(execute('nbd-server-start', { addr, 'tls-creds': 'tls0' }), {
    code: 'not-supported',
    message: /tls-creds/,
  });
});

test('several connections are announced as QEMU does: not with max-connections=1, nor when turned off', async (t) => {
  const { execute, connect } = await served(t);
  await execute('block-export-add', nbdExport('a', { name: 'auto' }));
  await execute('block-export-add', nbdExport('b', { name: 'off', 'multi-conn': 'off' }));
  const multiConn = 1 << 8;
  assert.equal((await connect('auto')).info.flags & multiConn, multiConn);
  assert.equal((await connect('off')).info.flags & multiConn, 0);
  const single = await served(t, { 'max-connections': 1 });
  await single.execute('block-export-add', nbdExport('a'));
  assert.equal((await single.connect('m')).info.flags & multiConn, 0);
});

test('close of the engine ends exports with clients connected, and gives the nodes back', async (t) => {
  const { engine, execute, events, connect } = await served(t);
  await execute('block-export-add', nbdExport('e', { writable: true }));
  const client = await connect('m');
  const closed = new Promise((resolve) => client.onClosed(resolve));
  await engine.close();
  await closed;
  assert.deepEqual(
    events.map(({ event }) => event),
    ['BLOCK_EXPORT_DELETED'],
  );
});
