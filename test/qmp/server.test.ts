import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { QmpServer, qmpServerLimits } from '../../src/qmp/server.ts';
import { temporaryFolder } from '../support/temp.ts';
import { FakeTarget, until } from './fake-target.ts';
import { type RawClient, rawClient } from './raw-client.ts';

interface Setting {
  target: FakeTarget;
  server: QmpServer;
  path: string;
}

async function setting(t: TestContext): Promise<Setting> {
  const target = new FakeTarget();
  const server = new QmpServer(createHost(), target);
  const path = join(await temporaryFolder(t), 'qmp.sock');
  await server.listen({ type: 'unix', path });
  t.after(() => {
    target.release();
    return server.close();
  });
  return { target, server, path };
}

async function negotiated(t: TestContext, path: string): Promise<RawClient> {
  const client = await rawClient(t, path);
  await client.next();
  assert.deepEqual(await client.command('qmp_capabilities'), { return: {} });
  return client;
}

const classAndText = (answer: Record<string, unknown>): unknown[] => {
  const error = answer.error as Record<string, unknown>;
  return [error.class, typeof error.desc, answer.id];
};

test('a client is greeted in the shape of QMP', async (t) => {
  const { path } = await setting(t);
  const client = await rawClient(t, path);
  const { QMP } = (await client.next()) as { QMP: Record<string, Record<string, unknown>> };
  assert.deepEqual(Object.keys(QMP), ['version', 'capabilities']);
  assert.deepEqual(QMP.capabilities, []);
  assert.deepEqual(Object.keys(QMP.version?.qemu as object), ['major', 'minor', 'micro']);
  assert.match(String(QMP.version?.package), /^blockstep /);
});

test('before the negotiation only qmp_capabilities is taken and no event told; later it is refused', async (t) => {
  const { target, path } = await setting(t);
  const client = await rawClient(t, path);
  await client.next();
  assert.deepEqual(classAndText(await client.command('echo')), ['CommandNotFound', 'string', undefined]);
  assert.deepEqual(target.calls, []);
  target.emit('EARLY');
  assert.deepEqual(await client.command('qmp_capabilities'), { return: {} });
  assert.deepEqual(classAndText(await client.command('qmp_capabilities')), ['CommandNotFound', 'string', undefined]);
  assert.deepEqual(target.calls, [], 'the target, which a disk may hold up, has no part in it');
  target.emit('LATE', { a: 1 });
  assert.deepEqual(await client.next(), {
    timestamp: { seconds: 1, microseconds: 2 },
    event: 'LATE',
    data: { a: 1 },
  });
});

test('the id is echoed, whatever JSON value it is, in answers and errors', async (t) => {
  const { path } = await setting(t);
  const client = await negotiated(t, path);
  for (const id of [1, 'é', null, [1, { a: 2 }], { b: 'c' }, false]) {
    client.send(JSON.stringify({ execute: 'nothing', id }));
    assert.deepEqual(await client.next(), { return: {}, id });
    client.send(JSON.stringify({ execute: 'absent', id }));
    assert.deepEqual(classAndText(await client.next()), ['CommandNotFound', 'string', id]);
  }
});

test('a command of a wrong shape is an error, and the session goes on', async (t) => {
  const { path } = await setting(t);
  const client = await negotiated(t, path);
  const wrong: [string, unknown][] = [
    ['[1]', undefined],
    ['5 ', undefined],
    ['"x"', undefined],
    ['null ', undefined],
    ['{"execute":5,"id":7}', 7],
    ['{"id":8}', 8],
    ['{"exec":1}', undefined],
    ['{"execute":"echo","more":1,"id":9}', 9],
    ['{"exec-oob":"echo","id":2}', 2],
    ['{"execute":"echo","arguments":[]}', undefined],
    ['{"execute":"echo","arguments":null}', undefined],
    ['{"execute":}', undefined],
    ['\xff\n', undefined],
    ['{"execute":"ec\n', undefined],
  ];
  for (const [text, id] of wrong) {
    client.send(Buffer.from(text, 'latin1'));
    assert.deepEqual(classAndText(await client.next()), ['GenericError', 'string', id], text);
  }
  assert.deepEqual(await client.command('echo', { still: 'here' }), { return: { still: 'here' } });
});

test('a message may come byte by byte, and many in one piece', async (t) => {
  const { path } = await setting(t);
  const client = await negotiated(t, path);
  for (const byte of Buffer.from('{"execute":"echo","arguments":{"a":"é"},"id":1}')) {
    client.send(Uint8Array.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual(await client.next(), { return: { a: 'é' }, id: 1 });
  client.send(Array.from({ length: 500 }, (_, id) => JSON.stringify({ execute: 'echo', id })).join(''));
  for (let id = 0; id < 500; id += 1) assert.deepEqual(await client.next(), { return: {}, id });
});

test('commands of one client are answered in order, those of another do not wait', async (t) => {
  const { target, path } = await setting(t);
  const first = await negotiated(t, path);
  const second = await negotiated(t, path);
  first.send('{"execute":"slow","id":1}{"execute":"echo","id":2}@{"execute":"nothing","id":3}');
  await until(() => target.waiting === 1);
  assert.deepEqual(await second.command('echo', { b: 1 }), { return: { b: 1 } });
  target.release();
  assert.deepEqual(await first.next(), { return: 'slow', id: 1 });
  assert.deepEqual(await first.next(), { return: {}, id: 2 });
  assert.deepEqual(classAndText(await first.next()), ['GenericError', 'string', undefined]);
  assert.deepEqual(await first.next(), { return: {}, id: 3 });
});

test('events go to every client that has negotiated', async (t) => {
  const { target, path } = await setting(t);
  const clients = [await negotiated(t, path), await negotiated(t, path)];
  target.emit('SOMETHING', { n: 1 });
  for (const client of clients) assert.equal((await client.next()).event, 'SOMETHING');
});

test('a client that is gone is forgotten, its listeners with it', async (t) => {
  const { target, server, path } = await setting(t);
  const client = await negotiated(t, path);
  await until(() => target.listeners === 1);
  client.socket.destroy();
  await until(() => server.clients === 0);
  assert.equal(target.listeners, 0);
});

test('an error of any kind is an answer', async (t) => {
  const { path } = await setting(t);
  const client = await negotiated(t, path);
  assert.deepEqual(classAndText(await client.command('fail', { code: 'job-not-active' })), [
    'DeviceNotActive',
    'string',
    undefined,
  ]);
  assert.deepEqual(classAndText(await client.command('throw')), ['GenericError', 'string', undefined]);
});

test('a client that does not read what waits for it is hung up', async (t) => {
  const { target, server, path } = await setting(t);
  const client = await negotiated(t, path);
  client.socket.pause();
  const data = { text: 'x'.repeat(1024 * 1024) };
  for (let n = 0; n <= qmpServerLimits.unsentBytesMax / data.text.length + 4; n += 1) target.emit('LARGE', data);
  await until(() => server.clients === 0);
  assert.equal(target.listeners, 0);
});

test('a client that sends faster than its commands run is not read without end', async (t) => {
  const { target, path } = await setting(t);
  const client = await negotiated(t, path);
  client.send('{"execute":"slow"}');
  await until(() => target.waiting === 1);
  const line = `${JSON.stringify({ execute: 'echo', arguments: { text: 'x'.repeat(1000) } })}\n`;
  let refused = false;
  for (let n = 0; n < 20_000 && !refused; n += 1) refused = !client.socket.write(line);
  await new Promise((resolve) => setTimeout(resolve, 100));
  // 20 MB were offered; what the kernel and a few chunks do not hold is still with the sender.
  assert.ok(client.socket.writableLength > 0);
  target.release();
  assert.deepEqual(await client.next(), { return: 'slow' });
  assert.deepEqual(await client.next(), { return: { text: 'x'.repeat(1000) } });
});

test('a client that sends no more is answered everything it asked, then hung up', async (t) => {
  const { target, path } = await setting(t);
  const client = await negotiated(t, path);
  client.send('{"execute": "slow", "id": 1}{"execute": "echo", "id": 2}');
  client.socket.end();
  await until(() => target.calls.includes('slow'));
  await new Promise((resolve) => setTimeout(resolve, 50));
  target.release();
  assert.equal((await client.next()).id, 1);
  assert.equal((await client.next()).id, 2);
  await client.closed;
});

test('close answers the command that runs, drops those behind it, hangs up and removes the socket', async (t) => {
  const { target, server, path } = await setting(t);
  const client = await negotiated(t, path);
  const idle = await negotiated(t, path);
  client.send('{"execute":"slow","id":1}{"execute":"echo","id":2}');
  await until(() => target.waiting === 1);
  const closed = server.close();
  await idle.closed;
  target.release();
  assert.deepEqual(await client.next(), { return: 'slow', id: 1 });
  await client.closed;
  await closed;
  await assert.rejects(client.next(), /closed/);
  assert.equal(existsSync(path), false);
  assert.ok(!target.calls.includes('echo'));
});

test('one client too many is hung up, the others go on', async (t) => {
  const { server, path } = await setting(t);
  const clients = await Promise.all(Array.from({ length: qmpServerLimits.clientsMax }, () => rawClient(t, path)));
  await until(() => server.clients === qmpServerLimits.clientsMax);
  const late = await rawClient(t, path);
  await late.closed;
  await clients[0]?.next();
  assert.deepEqual(await clients[0]?.command('qmp_capabilities'), { return: {} });
});
