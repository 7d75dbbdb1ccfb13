/** Our QMP client drives a real QEMU, and the same words get answers of the same shape from our engine. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import { createHost } from '../../src/host/index.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { QmpServer } from '../../src/qmp/server.ts';
import type { QmpEvent, QmpTarget } from '../../src/qmp/target.ts';
import type { BlockError } from '../../src/util/errors.ts';
import { until } from '../qmp/fake-target.ts';
import { rawClient } from '../qmp/raw-client.ts';
import { spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-system-x86_64');

type Row = Record<string, unknown>;
const host = createHost();

/** The path of a QEMU's QMP socket; the QEMU has no machine and runs nothing. */
async function qemu(t: TestContext, folder: string): Promise<string> {
  const path = join(folder, 'qemu.sock');
  const args = '-M none -S -display none -nodefaults -qmp'.split(' ');
  await spawnDaemon(t, 'qemu-system-x86_64', [...args, `unix:${path},server=on,wait=off`]);
  await until(() => existsSync(path));
  return path;
}

async function connect(t: TestContext, path: string): Promise<QmpClient> {
  const client = await QmpClient.connect(host, { type: 'unix', path }, { commandMs: 10_000 });
  t.after(() => client.close());
  return client;
}

/** Everything that is asked of both, and what came back. */
async function script(
  target: QmpTarget,
  socket: string,
): Promise<{ answers: Map<string, unknown>; events: QmpEvent[] }> {
  const answers = new Map<string, unknown>();
  const events: QmpEvent[] = [];
  target.subscribe((event) => events.push(event));
  const ask = async (name: string, command: string, args?: Row): Promise<void> => {
    try {
      answers.set(name, await target.execute(command, args));
    } catch (error) {
      answers.set(name, { refused: (error as BlockError).qmpClass });
    }
  };
  const node = (name: string): Row => ({ driver: 'null-co', 'node-name': name, size: 1048576, 'read-zeroes': true });
  await ask('version', 'query-version');
  await ask('status', 'query-status');
  await ask('unknown command', 'no-such-command');
  await ask('unknown argument', 'query-version', { x: 1 });
  await ask('unknown driver', 'blockdev-add', { driver: 'nope', 'node-name': 'x' });
  await ask('no driver', 'blockdev-add', { 'node-name': 'x' });
  await ask('no node-name', 'blockdev-add', { driver: 'null-co' });
  await ask('wrong type', 'blockdev-add', { ...node('x'), size: 'x' });
  await ask('wrong node-name', 'blockdev-add', node('9x'));
  await ask('add', 'blockdev-add', node('a'));
  await ask('add twice', 'blockdev-add', node('a'));
  await ask('add target', 'blockdev-add', node('t'));
  await ask('nodes', 'query-named-block-nodes');
  await ask('delete absent', 'blockdev-del', { 'node-name': 'absent' });
  await ask('export without server', 'block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a' });
  await ask('server', 'nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  await ask('server twice', 'nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  await ask('flat address', 'nbd-server-start', { addr: { type: 'unix', path: socket } });
  await ask('export', 'block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', writable: true });
  await ask('export id twice', 'block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', name: 'n' });
  await ask('export name twice', 'block-export-add', { type: 'nbd', id: 'e2', 'node-name': 'a' });
  await ask('exports', 'query-block-exports');
  await ask('delete in use', 'blockdev-del', { 'node-name': 'a' });
  await ask('export delete absent', 'block-export-del', { id: 'absent' });
  await ask('export delete', 'block-export-del', { id: 'e' });
  await until(() => events.some(({ event }) => event === 'BLOCK_EXPORT_DELETED'));
  await ask('server stop', 'nbd-server-stop');
  await ask('server stop twice', 'nbd-server-stop');
  await ask('mirror to nowhere', 'blockdev-mirror', { 'job-id': 'm', device: 'a', target: 'absent', sync: 'full' });
  await ask('mirror', 'blockdev-mirror', { 'job-id': 'm', device: 'a', target: 't', sync: 'full' });
  await until(() => events.some(({ event }) => event === 'BLOCK_JOB_READY'));
  await ask('jobs', 'query-jobs');
  await ask('block jobs', 'query-block-jobs');
  await ask('resume a running job', 'job-resume', { id: 'm' });
  await ask('absent block job', 'block-job-cancel', { device: 'absent' });
  await ask('complete', 'job-complete', { id: 'm' });
  await until(() => events.some(({ data }) => data.status === 'null'));
  await ask('change without either', 'x-blockdev-change', { parent: 'a' });
  return { answers, events };
}

/** The shape of a value: types, and members by name; of a list its first entry. */
function missingIn(ours: unknown, theirs: unknown, path: string): string[] {
  if (Array.isArray(theirs)) {
    if (!Array.isArray(ours)) return [`${path}: a list`];
    return theirs.length === 0 ? [] : missingIn(ours[0], theirs[0], `${path}.0`);
  }
  if (typeof theirs !== 'object' || theirs === null)
    return typeof ours === typeof theirs ? [] : [`${path}: ${typeof theirs}`];
  if (typeof ours !== 'object' || ours === null) return [`${path}: an object`];
  return Object.entries(theirs).flatMap(([name, value]) => missingIn((ours as Row)[name], value, `${path}.${name}`));
}

test('QmpClient talks to a real QEMU: greeting, answers, errors, events', async (t) => {
  const client = await connect(t, await qemu(t, await temporaryFolder(t)));
  assert.deepEqual(Object.keys(client.greeting as object), ['version', 'capabilities']);
  const { qemu: numbers } = (await client.execute('query-version')) as { qemu: Row };
  assert.equal(typeof numbers.major, 'number');
  await assert.rejects(client.execute('nope'), { code: 'command-not-found' });
  await assert.rejects(client.execute('blockdev-del', { 'node-name': 'x' }), {
    code: 'command-failed',
    message: /'x'/,
  });
  await assert.rejects(client.execute('block-job-pause', { device: 'x' }), { code: 'job-not-active' });
  const names = (await client.execute('query-commands')) as { name: string }[];
  assert.ok(names.length > 100);
  const closed = new Promise((resolve) => client.onClosed(resolve));
  const events: string[] = [];
  client.subscribe(({ event }) => events.push(event));
  await client.execute('quit');
  assert.equal(((await closed) as BlockError).code, 'connection-lost');
  assert.deepEqual(events, ['SHUTDOWN']);
});

test('the same commands get the same shapes, error classes and events from QEMU and from us', async (t) => {
  const folder = await temporaryFolder(t);
  const engine = new Engine(host, drivers);
  const server = new QmpServer(host, engine);
  const path = join(folder, 'ours.sock');
  await server.listen({ type: 'unix', path });
  t.after(async () => {
    await engine.close();
    await server.close();
  });
  const theirs = await script(await connect(t, await qemu(t, folder)), join(folder, 'nbd1'));
  const ours = await script(await connect(t, path), join(folder, 'nbd2'));
  const missing = [...theirs.answers].flatMap(([name, answer]) => missingIn(ours.answers.get(name), answer, name));
  // It may be left out, and memory takes nothing of a disk.
  assert.deepEqual(missing, ['nodes.0.image.actual-size: number']);
  for (const [name, answer] of theirs.answers) {
    const refused = (answer as Row).refused;
    assert.equal((ours.answers.get(name) as Row).refused, refused, name);
  }
  const jobEvents = ({ events }: { events: QmpEvent[] }): unknown[] =>
    events.filter(({ event }) => /JOB/.test(event)).map(({ event, data }) => [event, data]);
  assert.deepEqual(jobEvents(ours).filter(isStatus), jobEvents(theirs).filter(isStatus));
  for (const name of ['BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED', 'BLOCK_EXPORT_DELETED']) {
    const of = (side: { events: QmpEvent[] }): unknown => side.events.find(({ event }) => event === name)?.data;
    assert.deepEqual(of(ours), of(theirs), name);
  }
});

/** The states that only a drain shows are left out: QEMU drains the job around an export's end, we need not. */
function isStatus(entry: unknown): boolean {
  const [event, data] = entry as [string, Row];
  return event === 'JOB_STATUS_CHANGE' && data.status !== 'standby';
}

test('what is not JSON, or no command, gets the same number of answers of the same class and id', async (t) => {
  const folder = await temporaryFolder(t);
  const engine = new Engine(host, drivers);
  const server = new QmpServer(host, engine);
  const path = join(folder, 'ours.sock');
  await server.listen({ type: 'unix', path });
  t.after(() => server.close());
  const inputs = [
    '{"execute":"query-version","id":1}',
    '@@@ {"execute":"query-version","id":2}',
    '\x01{"execute":"query-version","id":3}',
    '{"a": [1, 2\xff{"execute":"query-version","id":4}',
    '{"execute": "query\n{"execute":"query-version","id":5}',
    'foo bar\n',
    '12 \n',
    '"x"[1]{}',
    '{bad}',
    '{"execute":5,"id":7}',
    '{"id":8}',
    '{"execute":"x","more":1,"id":9}',
    '{"exec-oob":"query-version","id":10}',
    '{"execute":"query-version" "id":11}',
    '{"execute":"query-version","id":null}',
    '{"execute":"query-version","arguments":[],"id":12}',
    "{'execute':'no-such','id':'a\"b\\'c'}",
    '{"execute":"qmp_capabilities","id":13}',
    '[[[\n]]]',
  ];
  const outcome = async (socket: string): Promise<unknown[]> => {
    const client = await rawClient(t, socket);
    await client.next();
    await client.command('qmp_capabilities');
    const seen: unknown[] = [];
    for (const [index, input] of inputs.entries()) {
      client.send(Buffer.from(input, 'latin1'));
      const end = `end${index}`;
      client.send(`{"execute":"query-version","id":"${end}"}`);
      for (let answer = await client.next(); answer.id !== end; answer = await client.next()) {
        const error = answer.error as Row | undefined;
        seen.push([index, error === undefined ? 'return' : error.class, answer.id, 'id' in answer]);
      }
    }
    return seen;
  };
  assert.deepEqual(await outcome(path), await outcome(await qemu(t, folder)));
});
