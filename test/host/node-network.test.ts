/** The real host's streams against sockets that are not ours, and what they leave behind. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import * as net from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { HostStream, SocketAddress, StreamReceiver } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { BlockError } from '../../src/util/errors.ts';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { fails, Inbox, pattern, text } from './tools.ts';

const host = createHost();
const anyPort = { type: 'inet', host: '127.0.0.1', port: 0 } as const;

test('a socket file whose process was killed is replaced, one that is served is not, a file never', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 's');
  const socket = JSON.stringify(path);
  const die = `require('net').createServer().listen(${socket}, () => process.kill(process.pid, 'SIGKILL'))`;
  await run(process.execPath, ['-e', die]);
  assert.ok(existsSync(path));
  const listener = await host.network.listen({ type: 'unix', path }, (stream) => stream.destroy());
  await fails('address-in-use', path, () => host.network.listen({ type: 'unix', path }, () => undefined));
  await listener.close();
  assert.equal(existsSync(path), false);
  const file = join(folder, 'file');
  writeFileSync(file, 'mine');
  await fails('address-in-use', file, () => host.network.listen({ type: 'unix', path: file }, () => undefined));
  assert.ok(existsSync(file));
});

test('an address that is not ours, and a folder that is not there, are refused in words', async (t) => {
  const folder = await temporaryFolder(t);
  await fails('invalid-option', '192.0.2.1', () =>
    host.network.listen({ type: 'inet', host: '192.0.2.1', port: 0 }, () => undefined),
  );
  const path = join(folder, 'no', 's');
  await assert.rejects(
    host.network.listen({ type: 'unix', path }, () => undefined),
    BlockError,
  );
  await fails('connection-failed', path, () => host.network.connect({ type: 'unix', path }));
});

test('who cannot be connected to is told in words, with the name of the error and the address once', async (t) => {
  const messageOf = (address: SocketAddress): Promise<string> =>
    host.network.connect(address).then(
      () => assert.fail('connected'),
      (error: Error) => error.message,
    );
  const closed = await messageOf({ type: 'inet', host: '127.0.0.1', port: 1 });
  assert.equal(closed, 'connect to 127.0.0.1:1: nothing listens there (ECONNREFUSED)');
  const path = join(await temporaryFolder(t), 's');
  assert.equal(await messageOf({ type: 'unix', path }), `connect to unix:${path}: there is no such socket (ENOENT)`);
});

test('nothing arrives, and nothing is read, before start and while paused', async (t) => {
  const { stream, peer } = await accepted(t);
  const piece = pattern(1 << 20, 1);
  for (let i = 0; i < 64; i++) peer.write(piece);
  await turns(20);
  // The other side's system keeps what ours does not take.
  assert.ok(peer.writableLength > 0);
  const inbox = new Inbox();
  stream.start(inbox);
  stream.pause();
  await turns(20);
  assert.equal(inbox.deliveries, 0);
  stream.resume();
  while (inbox.length < 64 << 20) await turns(1);
  assert.equal(inbox.length, 64 << 20);
});

test('bytes land in the very memory that the receiver gave, a byte at a time too', async (t) => {
  const { stream, peer } = await accepted(t);
  const memory = new Uint8Array(4096);
  let filled = 0;
  let foreign = 0;
  const ended = new Promise<void>((resolve) => {
    const receiver: StreamReceiver = {
      space: () => memory.subarray(filled),
      received(count) {
        for (let i = 0; i < count; i++) if (memory[filled + i] !== ((filled + i) & 0xff)) foreign++;
        filled += count;
      },
      ended: () => resolve(),
    };
    stream.start(receiver);
  });
  for (let i = 0; i < 300; i++) {
    peer.write(Uint8Array.of(i & 0xff));
    if (i % 3 === 0) await turns(1);
  }
  peer.end();
  await ended;
  assert.equal(filled, 300);
  assert.equal(foreign, 0);
});

test('the memory of a receiver that paused within received is not touched until it is asked for room again', async (t) => {
  const { stream, peer } = await accepted(t);
  const rooms: Uint8Array[] = [];
  let arrived = 0;
  stream.start({
    space() {
      const room = new Uint8Array(1000);
      rooms.push(room);
      return room;
    },
    received(count) {
      arrived += count;
      if (arrived !== 5) return;
      stream.pause();
      for (const room of rooms) room.fill(0xaa); // used for something else now
    },
    ended: () => undefined,
  });
  peer.write('first');
  while (arrived < 5) await turns(1);
  peer.write('second');
  await turns(10);
  const before = [...rooms];
  assert.equal(arrived, 5);
  stream.resume();
  while (arrived < 11) await turns(1);
  assert.ok(before.every((room) => room.every((byte) => byte === 0xaa)));
  assert.ok(rooms.some((room) => Buffer.from(room.subarray(0, 6)).toString() === 'second'));
});

test('a peer that resets ends the stream once, with connection-lost', async (t) => {
  const { stream, peer } = await accepted(t);
  const inbox = new Inbox();
  stream.start(inbox);
  peer.resetAndDestroy();
  while (inbox.ends.length === 0) await turns(1);
  for (let i = 0; i < 10; i++) {
    await stream.send(pattern(1 << 20, 1));
    await turns(1);
  }
  assert.equal(inbox.ends.length, 1);
  const [error] = inbox.ends;
  assert.ok(error instanceof BlockError);
  assert.equal(error.code, 'connection-lost');
  assert.match(error.message, /127\.0\.0\.1/);
});

test('a send into a connection that the peer has closed does not throw, and the stream ends', async (t) => {
  const { stream, peer } = await accepted(t);
  peer.destroy();
  await once(peer, 'close');
  await turns(5);
  for (let i = 0; i < 5; i++) await stream.send(pattern(1 << 20, 1)); // EPIPE or ECONNRESET on the descriptor
  const inbox = new Inbox();
  stream.start(inbox);
  while (inbox.ends.length === 0) await turns(1);
  assert.equal(inbox.ends.length, 1);
});

test('a peer that only closes its half gets what is pending and what is sent in ended', async (t) => {
  const { stream, peer } = await accepted(t);
  const data = pattern(20_000_000, 3);
  const inbox = new Inbox();
  inbox.onEnded = () => void stream.send(text('bye'));
  stream.start(inbox);
  const sent = stream.send(data);
  assert.notEqual(sent, undefined);
  peer.end('last words');
  const pieces: Buffer[] = [];
  peer.on('data', (piece: Buffer) => pieces.push(piece));
  await once(peer, 'close');
  await sent;
  assert.equal(inbox.text(), 'last words');
  const all = Buffer.concat(pieces);
  assert.equal(all.length, data.length + 3);
  assert.ok(all.subarray(0, data.length).equals(data));
  assert.equal(all.subarray(data.length).toString(), 'bye');
});

test('a peer that closes its half and reads nothing of what is pending is let go in the end', async (t) => {
  const { stream, peer } = await accepted(t);
  const inbox = new Inbox();
  stream.start(inbox);
  let taken = false;
  void stream.send(pattern(20_000_000, 3))?.then(() => {
    taken = true;
  });
  t.mock.timers.enable({ apis: ['setTimeout'] });
  peer.end('last words');
  while (inbox.ends.length === 0) await immediates(1);
  t.mock.timers.tick(29_999);
  await immediates(20);
  assert.equal(taken, false);
  t.mock.timers.tick(1);
  await immediates(20);
  assert.ok(taken, 'the socket is gone, and with it what it held');
});

test('end waits for a peer that takes its time, longer than it lingers after that', async (t) => {
  const { stream, peer } = await accepted(t);
  const data = pattern(30_000_000, 3);
  stream.start(new Inbox());
  void stream.send(data);
  stream.end();
  await turns(600);
  const pieces: Buffer[] = [];
  peer.on('data', (piece: Buffer) => pieces.push(piece));
  await once(peer, 'end');
  assert.ok(Buffer.concat(pieces).equals(data));
});

test('end closes although the peer never does', async (t) => {
  const { stream, peer } = await accepted(t);
  const inbox = new Inbox();
  stream.start(inbox);
  stream.end();
  peer.resume();
  while (inbox.ends.length === 0) await turns(5);
  assert.deepEqual(inbox.ends, [null]);
});

/** A stream of ours, accepted, with a plain socket at its other end that may be left half open. */
async function accepted(t: { after(call: () => unknown): void }): Promise<{ stream: HostStream; peer: net.Socket }> {
  const arriving = Promise.withResolvers<HostStream>();
  const listener = await host.network.listen(anyPort, arriving.resolve);
  assert.ok(listener.address.type === 'inet');
  const peer = net.connect({ port: listener.address.port, host: '127.0.0.1', allowHalfOpen: true });
  peer.on('error', () => undefined);
  const stream = await arriving.promise;
  t.after(async () => {
    peer.destroy();
    stream.destroy();
    await listener.close();
  });
  return { stream, peer };
}

/** So many turns of the event loop, a little apart. */
async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setTimeout(resolve, 2));
}

async function immediates(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}
