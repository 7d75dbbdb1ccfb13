import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '../../src/nbd/constants.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { inflightBytesMax, inflightMax } from '../../src/nbd/session.ts';
import { FakeHost, settle } from './fake-host.ts';
import { MemoryBackend } from './memory-backend.ts';
import { serving, TestClient } from './serving.ts';
import { SlowBackend } from './slow-backend.ts';
import { bytes, clientFlags, infoData, option, type RequestFields, request } from './wire.ts';

const MiB = 1024 * 1024;

const read = (cookie: number, length = 512): RequestFields => ({ type: nbd.NBD_CMD_READ, cookie, length });
const write = (cookie: number, fill = 1): RequestFields => ({
  type: nbd.NBD_CMD_WRITE,
  cookie,
  payload: new Uint8Array(512).fill(fill),
});
const flush = (cookie: number): RequestFields => ({ type: nbd.NBD_CMD_FLUSH, cookie });
const cookies = (client: TestClient) => client.answers().map(({ cookie }) => Number(cookie));

test('a batch of requests is answered with one send', async () => {
  const { host } = await serving();
  const client = new TestClient(host);
  const before = client.stream.sent.length;
  client.send(...Array.from({ length: 40 }, (_, cookie) => (cookie % 2 === 0 ? read(cookie, 4096) : write(cookie))));
  assert.equal(client.stream.sent.length, before + 1);
  assert.equal(client.answers().length, 40);
});

test('late replies of one turn leave together', async () => {
  const backend = new SlowBackend(MiB);
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  client.send(...Array.from({ length: 20 }, (_, cookie) => read(cookie)));
  const before = client.stream.sent.length;
  backend.endAll();
  await settle();
  assert.equal(client.answers().length, 20);
  assert.equal(client.stream.sent.length, before + 1);
});

test('no more requests are in flight than the limit, the socket is not read on, and all are answered', async () => {
  const backend = new SlowBackend(MiB);
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  const count = inflightMax * 3;
  for (let cookie = 0; cookie < count; cookie += 1) client.send(read(cookie));
  assert.equal(backend.calls.length, inflightMax);
  assert.ok(client.stream.paused && client.stream.undelivered > 0);
  while (client.answers().length < count) {
    assert.ok(backend.calls.length > 0 && backend.calls.length <= inflightMax);
    backend.endAll();
    await settle();
  }
  assert.deepEqual(
    cookies(client).sort((a, b) => a - b),
    Array.from({ length: count }, (_, cookie) => cookie),
  );
});

test('the bytes in flight are bounded', async () => {
  const backend = new SlowBackend(64 * MiB);
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  for (let cookie = 0; cookie < 20; cookie += 1) client.send(read(cookie, 16 * MiB));
  assert.equal(backend.calls.length, inflightBytesMax / (16 * MiB));
  client.stream.close();
  backend.endAll();
  await settle();
});

test('a client that does not read its replies is not read from, and gets them all when it reads again', async () => {
  const { host } = await serving();
  const client = new TestClient(host);
  client.stream.stalled = true;
  for (let cookie = 0; cookie < 200; cookie += 1) client.send(read(cookie, 4096));
  await settle();
  assert.ok(client.stream.undelivered > 0);
  client.stream.drain();
  await settle();
  assert.equal(client.answers().length, 200);
});

test('paused, an export issues nothing; resumed as often, it goes on with what has arrived', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  client.send(write(1));
  const drained = server.pause('disk');
  assert.ok(drained instanceof Promise, 'a request is in flight');
  assert.equal(server.pause('other'), undefined);
  let done = false;
  void drained.then(() => {
    done = true;
  });
  client.send(write(2), read(3));
  const late = new TestClient(host);
  late.send(read(4));
  await settle();
  assert.equal(done, false);
  assert.deepEqual(backend.names, ['write']);
  backend.endAll();
  await drained;
  assert.equal(server.pause('disk'), undefined);
  await settle();
  server.resume('disk');
  await settle();
  assert.deepEqual(backend.names, []);
  server.resume('disk');
  await settle();
  assert.deepEqual(backend.names, ['write', 'read', 'read']);
  backend.endAll();
  await settle();
  assert.deepEqual(cookies(client), [1, 2, 3]);
});

test('hung up: nothing new is issued, replies still go out, done when nothing is in flight', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  const other = new TestClient(host);
  client.send(write(1));
  let done = false;
  const gone = server.hangUp('disk').then(() => {
    done = true;
  });
  client.send(write(2));
  await settle();
  assert.equal(other.stream.ending, true, 'an idle client is hung up at once');
  assert.deepEqual([done, backend.names.length], [false, 1]);
  backend.endAll();
  await gone;
  await settle();
  assert.deepEqual(cookies(client), [1]);
  assert.equal(client.stream.ending, true);
});

test('pair 4: a client that chose an export and read the answer only after that was gone issues nothing', async () => {
  const backend = new SlowBackend(MiB);
  const { exported } = await serving({ backend });
  const host = new FakeHost();
  const open = new Set([exported]);
  const find = (name: string) => [...open].find((one) => one.name === name) ?? null;
  const server = new NbdServer(host, { list: () => [...open], find });
  await server.listen({ type: 'unix', path: '/other' });
  const stream = host.connect();
  stream.arrive(bytes(clientFlags(), option(nbd.NBD_OPT_STRUCTURED_REPLY)));
  stream.stalled = true;
  stream.arrive(option(nbd.NBD_OPT_GO, infoData('disk')));
  open.delete(exported);
  await server.hangUp('disk');
  stream.drain();
  await settle();
  stream.arrive(request(write(1)));
  await settle();
  assert.deepEqual(backend.names, []);
  assert.equal(stream.ending, true);
});

test('while an export is hung up, nobody begins on it', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend });
  new TestClient(host).send(write(1));
  const gone = server.hangUp('disk');
  const late = new TestClient(host);
  late.send(write(2));
  await settle();
  assert.equal(backend.calls.length, 1);
  assert.equal(late.stream.ending, true);
  backend.endAll();
  await gone;
});

test('the requests of a client that vanished are awaited before an export is free', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  client.send(write(1), read(2));
  client.stream.close(new Error('reset'));
  await settle();
  assert.equal(server.connections('disk'), 1);
  let done = false;
  const gone = server.hangUp('disk').then(() => {
    done = true;
  });
  await settle();
  assert.equal(done, false);
  backend.endAll();
  await gone;
  assert.equal(server.connections('disk'), 0);
});

test('a client that does not go is cut off, whatever is stuck', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  client.send(write(1));
  const gone = server.hangUp('disk');
  host.advance(1000);
  assert.equal(client.stream.destroyed, true);
  backend.endAll();
  await gone;
});

test('NBD_CMD_DISC: what came before is answered, then the connection is closed', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  client.send(write(1), { type: nbd.NBD_CMD_DISC }, write(2));
  await settle();
  assert.deepEqual([client.stream.ending, backend.names], [false, ['write']]);
  backend.endAll();
  await settle();
  assert.deepEqual(cookies(client), [1]);
  assert.equal(client.stream.ending, true);
  client.stream.close();
  assert.equal(server.connections('disk'), 0);
  assert.equal(host.timers, 0);
});

test('a hung-up client with requests in flight keeps its place until they have ended', async () => {
  const backend = new SlowBackend(MiB);
  const { host } = await serving({ backend }, 1);
  const client = new TestClient(host);
  client.send(write(1));
  client.stream.close();
  assert.equal(host.connect().destroyed, true);
  backend.endAll();
  await settle();
  assert.equal(host.connect().destroyed, false);
});

test('a stream that ends within a send, and a drain asked within a request, do no harm', async () => {
  const backend = new MemoryBackend(MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  let drained: unknown;
  Object.assign(backend, {
    write: () => {
      drained ??= server.pause('disk');
      return undefined;
    },
  });
  client.send(write(1), write(2));
  assert.ok(drained instanceof Promise, 'the request that is being issued counts');
  await drained;
  assert.deepEqual(cookies(client), [1]);
  client.stream.send = () => {
    client.stream.close();
    return undefined;
  };
  server.resume('disk');
  client.send(...Array.from({ length: 100 }, (_, cookie) => read(cookie, 8192)));
  await settle();
  assert.equal(server.connections('disk'), 0);
  assert.equal(server.bufferBytes, 0);
});

test('a client that reads the last reply of its handshake late is served then', async () => {
  const { host, server } = await serving();
  const stream = host.connect();
  stream.stalled = true;
  stream.arrive(bytes(clientFlags(), option(nbd.NBD_OPT_GO, infoData('disk')), request(flush(7))));
  await settle();
  assert.equal(server.connections('disk'), 0);
  stream.drain();
  await settle();
  assert.equal(server.connections('disk'), 1);
  assert.equal(Buffer.from(stream.output()).readBigUInt64BE(stream.output().length - 8), 7n);
  stream.arrive(request(flush(8)));
  assert.equal(Buffer.from(stream.output()).readBigUInt64BE(stream.output().length - 8), 8n);
});

test('buffers are bounded by what is in flight, whatever a client sends', async () => {
  const backend = new SlowBackend(64 * MiB);
  const { host, server } = await serving({ backend });
  const client = new TestClient(host);
  for (let cookie = 0; cookie < 400 && client.stream.undelivered < 8 * MiB; cookie += 1) {
    client.send({ type: nbd.NBD_CMD_WRITE, cookie, payload: new Uint8Array(MiB) }, write(1000 + cookie));
  }
  assert.ok(client.stream.undelivered > 0);
  assert.ok(server.bufferBytes <= inflightBytesMax + 32 * MiB, `${server.bufferBytes} bytes`);
  client.stream.close();
  backend.endAll();
  await settle();
  assert.equal(server.bufferBytes, 0);
});

test('more connections than allowed are not served, and a place that is free is', async () => {
  const { host } = await serving({}, 2);
  const first = new TestClient(host);
  new TestClient(host);
  assert.equal(host.connect().destroyed, true);
  first.stream.close();
  assert.equal(host.connect().destroyed, false);
});

test('closed, the server listens no more, and who haggles is cut off', async () => {
  const { host, server } = await serving();
  const client = new TestClient(host);
  const haggling = host.connect();
  await server.close();
  assert.equal(host.listening, 0);
  assert.equal(haggling.destroyed, true);
  assert.equal(client.stream.ending, true);
  await assert.rejects(server.listen({ type: 'unix', path: '/again' }), /closed/);
});

test('FUA and write-zeroes flags reach the backend; a trim with FUA is flushed before it is answered', async () => {
  const calls: string[] = [];
  const backend = new MemoryBackend(MiB);
  Object.assign(backend, {
    write: (offset: number, _from: Uint8Array, flags: number) => void calls.push(`write ${offset} ${flags}`),
    writeZeroes: (offset: number, _length: number, flags: number) => void calls.push(`zeroes ${offset} ${flags}`),
    discard: (offset: number) => void calls.push(`discard ${offset}`),
    flush: () => void calls.push('flush'),
  });
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  const { NBD_CMD_FLAG_FUA: fua, NBD_CMD_FLAG_NO_HOLE: noHole, NBD_CMD_FLAG_FAST_ZERO: fast } = nbd;
  client.send({ ...write(1), flags: fua }, { type: nbd.NBD_CMD_WRITE_ZEROES, length: 1, flags: fua | noHole | fast });
  client.send({ type: nbd.NBD_CMD_TRIM, length: 1, offset: 7 }, { type: nbd.NBD_CMD_TRIM, length: 1, flags: fua });
  // "existing clients are known to set this bit on other commands" (Command flags, FUA).
  client.send({ ...read(2), flags: fua }, { ...flush(3), flags: fua });
  assert.deepEqual(calls, ['write 0 1', 'zeroes 0 7', 'discard 7', 'discard 0', 'flush', 'flush']);
  assert.ok(client.answers().every(({ error }) => error === 0));
});

test('block status: one chunk a context, one descriptor with REQ_ONE, never beyond the request', async () => {
  const backend = new MemoryBackend(MiB);
  Object.assign(backend, {
    blockStatus: () => [
      { length: 4096, zero: false, allocated: true },
      { length: 4096, zero: true, allocated: false },
      { length: 8192, zero: true, allocated: true },
    ],
  });
  const { host } = await serving({ backend, ordered: true });
  const client = new TestClient(host, { contexts: ['base:allocation', 'blockstep:ordered'] });
  const status = { type: nbd.NBD_CMD_BLOCK_STATUS, length: 10_000 };
  const answer = await client.ask(status);
  const { NBD_STATE_HOLE: hole, NBD_STATE_ZERO: zero } = nbd;
  assert.deepEqual(
    [...answer.status.values()],
    [
      [
        { length: 4096, flags: 0 },
        { length: 4096, flags: hole | zero },
        { length: 1808, flags: zero },
      ],
      [{ length: 10_000, flags: 0 }],
    ],
  );
  const one = await client.ask({ ...status, flags: nbd.NBD_CMD_FLAG_REQ_ONE });
  assert.deepEqual([...one.status.values()], [[{ length: 4096, flags: 0 }], [{ length: 10_000, flags: 0 }]]);
});

test('a block status that says nothing is sent as unknown, one that is nonsense as an error', async () => {
  for (const [extents, error] of [
    [[], 0],
    [[{ length: 0, zero: true, allocated: true }], 0],
    [[{ length: Number.NaN, zero: true, allocated: true }], 5],
  ] as const) {
    for (const later of [false, true]) {
      const backend = new MemoryBackend(MiB);
      Object.assign(backend, { blockStatus: () => (later ? Promise.resolve(extents) : extents) });
      const { host } = await serving({ backend });
      const client = new TestClient(host, { contexts: ['base:allocation'] });
      const answer = await client.ask({ type: nbd.NBD_CMD_BLOCK_STATUS, length: 512 });
      assert.equal(answer.error, error);
      if (error === 0) assert.deepEqual([...answer.status.values()], [[{ length: 512, flags: 0 }]]);
    }
  }
});

test('a request that comes with the last option is served', async () => {
  const { host } = await serving();
  const stream = host.connect();
  stream.arrive(bytes(clientFlags(), option(nbd.NBD_OPT_GO, infoData('disk')), request(flush(7))));
  await settle();
  const tail = Buffer.from(stream.output()).subarray(-16);
  assert.deepEqual(
    [tail.readUInt32BE(), tail.readUInt32BE(4), tail.readBigUInt64BE(8)],
    [nbd.NBD_SIMPLE_REPLY_MAGIC, 0, 7n],
  );
});
