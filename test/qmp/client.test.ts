import assert from 'node:assert/strict';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { QmpServer } from '../../src/qmp/server.ts';
import type { QmpEvent } from '../../src/qmp/target.ts';
import type { BlockError } from '../../src/util/errors.ts';
import { temporaryFolder } from '../support/temp.ts';
import { FakeTarget, until } from './fake-target.ts';

const host = createHost();

async function pair(t: TestContext): Promise<{ target: FakeTarget; server: QmpServer; client: QmpClient }> {
  const target = new FakeTarget();
  const server = new QmpServer(host, target);
  const address: SocketAddress = { type: 'unix', path: join(await temporaryFolder(t), 'qmp.sock') };
  await server.listen(address);
  const client = await QmpClient.connect(host, address);
  t.after(async () => {
    client.close();
    target.release();
    await server.close();
  });
  return { target, server, client };
}

/** A server that says what the test tells it to. */
async function scripted(t: TestContext, talk: (socket: Socket) => void): Promise<SocketAddress> {
  const path = join(await temporaryFolder(t), 'qmp.sock');
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => undefined);
    talk(socket);
  });
  await new Promise<void>((resolve) => server.listen({ path }, resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { type: 'unix', path };
}

const greeting = '{"QMP":{"version":{},"capabilities":["oob"]}}\r\n';
const isCode =
  (code: string) =>
  (error: BlockError): boolean =>
    error.code === code;

test('a command goes to the server and its answer comes back', async (t) => {
  const { client } = await pair(t);
  assert.deepEqual(await client.execute('echo', { a: [1, 'é'] }), { a: [1, 'é'] });
  assert.deepEqual(await client.execute('nothing'), {});
  assert.deepEqual(
    await Promise.all([1, 2, 3].map((n) => client.execute('echo', { n }))),
    [1, 2, 3].map((n) => ({ n })),
  );
});

test('an error arrives with the code, the class and the sentence it was thrown with', async (t) => {
  const { client } = await pair(t);
  await assert.rejects(client.execute('fail', { code: 'wrong-state' }), {
    code: 'wrong-state',
    message: 'it failed',
    qmpClass: 'GenericError',
  });
  await assert.rejects(client.execute('nowhere'), { code: 'command-not-found', qmpClass: 'CommandNotFound' });
});

test('events come to every listener until it ends its subscription', async (t) => {
  const { target, client } = await pair(t);
  const seen: QmpEvent[] = [];
  const end = client.subscribe((event) => seen.push(event));
  target.emit('ONE', { a: 1 });
  await until(() => seen.length === 1);
  assert.deepEqual(seen, [{ event: 'ONE', data: { a: 1 }, timestamp: { seconds: 1, microseconds: 2 } }]);
  end();
  target.emit('TWO');
  await client.execute('echo');
  assert.equal(seen.length, 1);
});

test('a large answer and large arguments pass', async (t) => {
  const { client } = await pair(t);
  assert.equal(String(await client.execute('large', { bytes: 3_000_000 })).length, 3_000_000);
  const text = 'y'.repeat(3_000_000);
  assert.deepEqual(await client.execute('echo', { text }), { text });
});

test('a command that takes too long is given up, and its late answer is dropped', async (t) => {
  const { target, client } = await pair(t);
  await assert.rejects(client.execute('slow', {}, 20), isCode('timed-out'));
  target.release();
  assert.deepEqual(await client.execute('echo', { next: true }), { next: true });
});

test('when the server goes, commands under way fail and later ones fail at once', async (t) => {
  const { target, server, client } = await pair(t);
  let closed: BlockError | null | undefined;
  client.onClosed((error) => {
    closed = error;
  });
  const running = client.execute('slow');
  const failed = assert.rejects(client.execute('echo'), isCode('connection-lost'));
  await until(() => target.waiting === 1);
  const over = server.close();
  target.release();
  assert.equal(await running, 'slow');
  await failed;
  await over;
  assert.equal(closed?.code, 'connection-lost');
  await assert.rejects(client.execute('echo'), isCode('connection-lost'));
});

test('close fails what is under way and tells the listener that it was wanted', async (t) => {
  const { client } = await pair(t);
  let closed: BlockError | null | undefined;
  client.onClosed((error) => {
    closed = error;
  });
  const running = assert.rejects(client.execute('slow'), isCode('shutting-down'));
  client.close();
  await running;
  assert.equal(closed, null);
});

test('nobody listening is connection-failed', async (t) => {
  const address: SocketAddress = { type: 'unix', path: join(await temporaryFolder(t), 'none.sock') };
  await assert.rejects(QmpClient.connect(host, address), isCode('connection-failed'));
});

test('a server that does not greet is timed-out; one that says something else is protocol-error', async (t) => {
  const silent = await scripted(t, () => undefined);
  await assert.rejects(QmpClient.connect(host, silent, { connectMs: 50 }), isCode('timed-out'));
  const http = await scripted(t, (socket) => socket.write('HTTP/1.1 400 Bad Request\r\n\r\n'));
  await assert.rejects(QmpClient.connect(host, http), isCode('protocol-error'));
  const gone = await scripted(t, (socket) => socket.end());
  await assert.rejects(QmpClient.connect(host, gone), isCode('connection-lost'));
});

test('the error classes of a QEMU, which has no codes of ours, become codes', async (t) => {
  const answers: [string, string][] = [
    ['GenericError', 'command-failed'],
    ['CommandNotFound', 'command-not-found'],
    ['DeviceNotFound', 'device-not-found'],
    ['DeviceNotActive', 'job-not-active'],
    ['SomethingNew', 'command-failed'],
    ['__proto__', 'command-failed'],
  ];
  const address = await scripted(t, (socket) => {
    socket.write(greeting);
    let id = 0;
    socket.on('data', () => {
      const [qmpClass] = answers[id - 1] ?? [];
      const error = { class: qmpClass, desc: 'no' };
      socket.write(`${JSON.stringify(id === 0 ? { return: {}, id: 1 } : { error, id: id + 1 })}\r\n`);
      id += 1;
    });
  });
  const client = await QmpClient.connect(host, address);
  for (const [, code] of answers) await assert.rejects(client.execute('x'), isCode(code));
  client.close();
});

test('an error without an id belongs to the oldest command; an answer with an unknown id is dropped', async (t) => {
  const address = await scripted(t, (socket) => {
    socket.write(greeting);
    socket.once('data', () => {
      socket.write('{"return":{},"id":77}{"return":{},"id":1}');
      socket.once('data', () => socket.write('{"error":{"class":"GenericError","desc":"unreadable"}}'));
    });
  });
  const client = await QmpClient.connect(host, address);
  await assert.rejects(client.execute('x'), { message: 'unreadable' });
  client.close();
});
