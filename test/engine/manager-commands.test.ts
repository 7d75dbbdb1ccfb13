/** The words of QEMU that a manager of replication gives, in QEMU's shapes. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../qmp/fake-target.ts';
import { temporaryFolder } from '../support/temp.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

const size = 1024 * 1024;
const names = ({ engine }: CheckedEngine): string[] => engine.graph.list().map(({ nodeName }) => nodeName);
const ready = ({ events }: CheckedEngine): Promise<void> =>
  until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));

function human(checked: CheckedEngine, line: string): Promise<unknown> {
  return checked.execute('human-monitor-command', { 'command-line': line });
}

test('drive_add makes the replication filter over an NBD server spelt the old way, drive_del takes it away', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine } = checked;
  const folder = await temporaryFolder(t);
  await execute('blockdev-add', memoryNode('local', size));
  await execute('blockdev-add', memoryNode('remote', size));
  const inet = { type: 'inet', data: { host: '127.0.0.1', port: '0' } };
  const path = join(folder, 's');
  await execute('nbd-server-start', { addr: inet, 'more-addrs': [{ type: 'unix', data: { path } }] });
  await execute('nbd-server-add', { device: 'remote', name: 'colo1', writable: true });
  const [server] = (await execute('query-nbd-server')) as { addrs: { data: { port: string } }[] }[];
  const port = server?.addrs[0]?.data.port;
  await execute('blockdev-add', {
    driver: 'quorum',
    'node-name': 'disk',
    'read-pattern': 'fifo',
    'vote-threshold': 1,
    children: ['local'],
  });
  const options = `driver=replication,mode=primary,file.driver=nbd,file.host=127.0.0.1,file.port=${port}`;
  assert.equal(await human(checked, `drive_add -n buddy ${options},file.export=colo1,node-name=client`), '');
  await execute('x-blockdev-change', { parent: 'disk', node: 'client' });
  await execute('xen-set-replication', { enable: true, primary: true });
  await engine.graph.find('disk').node.write(0, new Uint8Array(512).fill(7), 0);
  const there = new Uint8Array(512);
  await engine.graph.find('remote').node.read(0, there);
  assert.deepEqual(new Set(there), new Set([7]));

  assert.match(String(await human(checked, 'drive_del client')), /disk.*\r\n$/);
  await execute('xen-set-replication', { enable: false, primary: true });
  await execute('x-blockdev-change', { parent: 'disk', child: 'children.1' });
  assert.equal(await human(checked, 'drive_del client'), '');
  assert.equal(names(checked).includes('client'), false);
  assert.equal(await human(checked, `drive_add -n buddy driver=nbd,path=${path},export=colo1,node-name=n`), '');
});

test('what a line for people gets wrong is told in its answer, and nothing is made', async (t) => {
  const checked = checkedEngine(t);
  const wrong: [string, RegExp][] = [
    ['drive_add -n buddy driver=null-co', /node-name/],
    ['drive_add -n buddy driver=nonsense,node-name=n', /nonsense/],
    ['drive_add -n buddy', /options/],
    ['drive_add 0 if=none,id=d', /-n/],
    ['drive_add -n buddy node-name=n,driver=null-co extra', /options/],
    ['drive_del nobody', /nobody/],
    ['drive_del', /name/],
    ['bogus', /^unknown command: 'bogus'\r\n$/],
    ['', /unknown/],
  ];
  for (const [line, answer] of wrong) {
    const said = String(await human(checked, line));
    assert.match(said, answer);
    assert(said.endsWith('\r\n'), line);
  }
  assert.deepEqual(names(checked), []);
});

test('drive-mirror to a file makes it; cancelled, its node is gone and the file is the copy', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine } = checked;
  const target = join(await temporaryFolder(t), 'copy.raw');
  writeFileSync(target, 'older content, and more than that');
  await execute('blockdev-add', memoryNode('s', size));
  await engine.graph.find('s').node.write(4096, new Uint8Array(8192).fill(5), 0);
  await execute('drive-mirror', { device: 's', target, sync: 'full', format: 'raw', 'job-id': 'j' });
  await ready(checked);
  await execute('block-job-cancel', { device: 'j' });
  await until(() => engine.jobs.list().length === 0 && names(checked).length === 1);
  const copy = readFileSync(target);
  assert.equal(copy.length, size);
  assert.deepEqual([copy[0], copy[4095], copy[4096], copy[12287], copy[12288]], [0, 0, 5, 5, 0]);
});

test('drive-mirror of an export to an NBD URI, as a manager copies a disk before replication', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine } = checked;
  const path = join(await temporaryFolder(t), 's');
  await execute('blockdev-add', memoryNode('s', size));
  await execute('blockdev-add', memoryNode('far', size));
  await engine.graph.find('s').node.write(0, new Uint8Array(512).fill(9), 0);
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  await execute('nbd-server-add', { device: 's', name: 'disk0', writable: true });
  await execute('nbd-server-add', { device: 'far', name: 'parent0', writable: true });
  const target = `nbd+unix:///parent0?socket=${path}`;
  await execute('drive-mirror', { device: 'disk0', target, mode: 'existing', sync: 'full', 'job-id': 'resync' });
  await ready(checked);
  await execute('block-job-complete', { device: 'resync' });
  await until(() => engine.jobs.list().length === 0);
  const there = new Uint8Array(512);
  await engine.graph.find('far').node.read(0, there);
  assert.deepEqual(new Set(there), new Set([9]));
  // The target is in the place of the source now: its node stays.
  assert(names(checked).includes('drive-mirror-resync'));
  assert.deepEqual(engine.graph.find('s').parents, []);
});

test('drive-mirror onto the file of its own source is refused, and the file is as it was', async (t) => {
  const checked = checkedEngine(t);
  const { execute } = checked;
  const folder = await temporaryFolder(t);
  const filename = join(folder, 'disk.raw');
  writeFileSync(filename, new Uint8Array(size).fill(3));
  await execute('blockdev-add', { driver: 'raw', 'node-name': 's', file: { driver: 'file', filename } });
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path: join(folder, 's') } } });
  await execute('nbd-server-add', { device: 's', writable: true });
  await assert.rejects(execute('drive-mirror', { device: 's', target: filename, sync: 'full' }), { code: 'locked' });
  const content = readFileSync(filename);
  assert.equal(content.length, size);
  assert(content.every((byte) => byte === 3));
  assert.equal(names(checked).includes('drive-mirror-s'), false);
});

test('drive-mirror whose target cannot be opened leaves no node and no job', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine } = checked;
  const folder = await temporaryFolder(t);
  await execute('blockdev-add', memoryNode('s', size));
  const absent = join(folder, 'absent');
  for (const more of [{ target: absent, mode: 'existing' }, { target: join(absent, 'x') }, { target: 'nbd:///x' }]) {
    await assert.rejects(execute('drive-mirror', { device: 's', sync: 'full', ...more }));
  }
  writeFileSync(join(folder, 'short'), 'short');
  const short = { target: join(folder, 'short'), mode: 'existing' };
  await assert.rejects(execute('drive-mirror', { device: 's', sync: 'full', ...short }), { code: 'invalid-option' });
  assert.deepEqual([names(checked), engine.jobs.list().length, existsSync(absent)], [['s'], 0, false]);
});

test('stop flushes and is told as paused, cont takes it back; both are events, once', async (t) => {
  const checked = checkedEngine(t);
  const { execute, engine, events } = checked;
  await execute('blockdev-add', memoryNode('s', size));
  const { node } = engine.graph.find('s');
  const flush = t.mock.method(node, 'flush');
  await execute('cont');
  for (let i = 0; i < 2; i += 1) await execute('stop');
  assert.deepEqual(await execute('query-status'), { status: 'paused', running: false, singlestep: false });
  assert.equal(flush.mock.callCount(), 1);
  for (let i = 0; i < 2; i += 1) await execute('cont');
  assert.deepEqual(await execute('query-status'), { status: 'running', running: true, singlestep: false });
  assert.deepEqual(
    events.map(({ event }) => event),
    ['STOP', 'RESUME'],
  );
});
