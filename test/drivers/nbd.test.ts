/**
 * The nbd driver: its options, lost connections and new ones, servers that take only whole blocks or know no zeroes.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { asBreakable } from '../../src/block/breakable.ts';
import type { DriverNode } from '../../src/block/driver.ts';
import { BlockGraph } from '../../src/block/graph.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { nbdDriver } from '../../src/drivers/nbd.ts';
import { AlignedBackend } from '../../src/drivers/nbd-aligned.ts';
import type { Host, SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import type { NbdBackend, NbdServerExport } from '../../src/nbd/backend.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { BlockError } from '../../src/util/errors.ts';
import { compareAll, DiskModel, random, randomOperations, seedOf } from '../nbd/client-operations.ts';
import { allFlags, dataChunk, type Peer, scriptedServer, simpleReply } from '../nbd/client-wire.ts';
import { FakeHost } from '../nbd/fake-host.ts';
import { MemoryBackend } from '../nbd/memory-backend.ts';
import { cleanup } from '../support/cleanup.ts';
import { temporaryFolder } from '../support/temp.ts';

const realHost = createHost();
const diskBytes = 1024 * 1024;
const isCode =
  (...codes: string[]) =>
  (error: unknown): boolean =>
    error instanceof BlockError && codes.includes(error.code);

interface Opened {
  readonly node: DriverNode;
  readonly graph: BlockGraph;
  readonly events: [string, Record<string, unknown>][];
}

async function open(t: TestContext, options: Record<string, unknown>, host: Host = realHost): Promise<Opened> {
  const events: [string, Record<string, unknown>][] = [];
  const graph = new BlockGraph(host, new DriverRegistry([nbdDriver]), new Map(), (name, data) =>
    events.push([name, data]),
  );
  const { node } = await graph.add({ driver: 'nbd', 'node-name': 'n', discard: 'unmap', ...options });
  cleanup(t, () => graph.close());
  return { node, graph, events };
}

/** A server of ours that can go and come back on the same socket, with the same disk. */
class Restartable {
  readonly path: string;
  exported: NbdServerExport;
  #server: NbdServer | null = null;

  constructor(path: string, more: Partial<NbdServerExport> = {}) {
    this.path = path;
    this.exported = {
      name: 'disk',
      description: '',
      backend: new MemoryBackend(diskBytes),
      readOnly: false,
      multiConn: true,
      ordered: false,
      blockSizes: [1, 4096, 32 * 1024 * 1024],
      ...more,
    };
  }

  async up(): Promise<void> {
    const find = (name: string) => (name === 'disk' ? this.exported : null);
    const server = new NbdServer(realHost, { list: () => [this.exported], find });
    await server.listen({ type: 'unix', path: this.path });
    this.#server = server;
  }

  async down(): Promise<void> {
    await this.#server?.close();
    this.#server = null;
  }

  get connections(): number {
    return this.#server?.connections('disk') ?? 0;
  }

  get options(): Record<string, unknown> {
    return { server: { type: 'unix', path: this.path }, export: 'disk' };
  }
}

async function serve(t: TestContext, more: Partial<NbdServerExport> = {}): Promise<Restartable> {
  const server = new Restartable(join(await temporaryFolder(t), 's'), more);
  await server.up();
  cleanup(t, () => server.down());
  return server;
}

async function until(what: () => boolean): Promise<void> {
  while (!what()) {
    await new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
  }
}

test('a node reads and writes its export, tells of itself, and closes its connection politely', async (t) => {
  const server = await serve(t);
  const { node, graph, events } = await open(t, server.options);
  await node.write(5, new Uint8Array(10).fill(1), 1);
  const into = new Uint8Array(20);
  await node.read(0, into);
  assert.deepEqual([...into], [...new Array(5).fill(0), ...new Array(10).fill(1), ...new Array(5).fill(0)]);
  assert.equal(node.length, diskBytes);
  assert.equal(node.ordered, false);
  const info = node.info?.() ?? {};
  assert.equal(info.uri, `nbd+unix:///disk?socket=${server.path}`);
  assert.deepEqual([info.connected, info.error, info.flush], [true, null, true]);
  assert.equal(server.connections, 1);
  await graph.remove('n');
  await until(() => server.connections === 0);
  assert.deepEqual(events, []);
});

test('pair 3: a node over an ordered server is ordered, unless it may reconnect or has parts of blocks to read first', async (t) => {
  const ordered = async (more: Partial<NbdServerExport>, options: Record<string, unknown> = {}) => {
    const server = await serve(t, more);
    const { node } = await open(t, { ...server.options, ...options });
    return [node.ordered, node.flushesInOrder];
  };
  assert.deepEqual(await ordered({ ordered: true }), [true, true]);
  assert.deepEqual(await ordered({ ordered: true }, { 'reconnect-delay': 1 }), [false, false]);
  assert.deepEqual(await ordered({ ordered: true, blockSizes: [512, 4096, 2 ** 25] }), [true, false]);
  assert.deepEqual(await ordered({ ordered: false }), [false, false]);
});

test('the server is given as QEMU gives it, in three ways', async (t) => {
  const server = await serve(t);
  const inetServer = new NbdServer(realHost, { list: () => [], find: () => server.exported });
  cleanup(t, () => inetServer.close());
  const inet = await inetServer.listen({ type: 'inet', host: '127.0.0.1', port: 0 });
  assert.ok(inet.type === 'inet');
  const ways: Record<string, unknown>[] = [
    { path: server.path, export: 'disk' },
    { server: { type: 'inet', host: '127.0.0.1', port: String(inet.port) } },
    { host: '127.0.0.1', port: inet.port },
  ];
  for (const way of ways) assert.equal((await open(t, way)).node.length, diskBytes);
});

const wrong: [Record<string, unknown>, RegExp][] = [
  [{}, /exactly one of "server", "path" and "host"/],
  [{ path: '/a', host: 'h' }, /exactly one of/],
  [{ path: '/a', port: 5 }, /port/],
  [{ server: { type: 'unix' } }, /server\.path/],
  [{ server: { type: 'vsock', cid: '1' } }, /server\.type/],
  [{ server: { type: 'inet', host: 'h', port: 'nbd' } }, /server\.port/],
  [{ server: { type: 'inet', host: 'h', port: '70000' } }, /port/],
  [{ path: '/a', 'reconnect-delay': -1 }, /reconnect-delay/],
  [{ path: '/a', exports: 'x' }, /exports/],
  [{ path: '/a', 'tls-creds': 'tls0' }, /tls-creds: not supported/],
  [{ path: '/a', 'x-dirty-bitmap': 'b' }, /x-dirty-bitmap: not supported/],
];
for (const [options, message] of wrong) {
  test(`${JSON.stringify(options)} is refused, naming the option`, async (t) => {
    await assert.rejects(open(t, options), (error) => error instanceof BlockError && message.test(error.message));
  });
}

test('a read-only export is opened only read-only', async (t) => {
  const server = await serve(t, { readOnly: true });
  await assert.rejects(
    open(t, server.options),
    (error) => isCode('read-only')(error) && /"disk" is read-only/.test(String(error)),
  );
  assert.equal(server.connections, 0);
  const { node } = await open(t, { ...server.options, 'read-only': true });
  await node.read(0, new Uint8Array(10));
});

test('an export that is not there, and a server that is not there, are errors of the open', async (t) => {
  const server = await serve(t);
  await assert.rejects(open(t, { ...server.options, export: 'other' }), /refused export "other"/);
  await assert.rejects(open(t, { path: `${server.path}x` }), isCode('connection-failed', 'file-not-found'));
});

test('with open-timeout the open waits for a server that comes later', async (t) => {
  const server = new Restartable(join(await temporaryFolder(t), 's'));
  cleanup(t, () => server.down());
  const opening = open(t, { ...server.options, 'open-timeout': 100 });
  await server.up();
  assert.equal((await opening).node.length, diskBytes);
});

test('without reconnect-delay a lost connection fails requests at once, is told, and is made anew behind them', async (t) => {
  const server = await serve(t);
  const { node, events } = await open(t, server.options);
  const broken: BlockError[] = [];
  asBreakable(node)?.onBroken((error) => broken.push(error));
  await server.down();
  await until(() => broken.length > 0);
  assert.equal(broken[0]?.code, 'connection-lost');
  assert.deepEqual(
    events.map(([name, data]) => [name, data['node-name'], typeof data.reason]),
    [['NBD_CONNECTION_LOST', 'n', 'string']],
  );
  assert.equal(node.info?.().connected, false);
  for (let count = 0; count < 3; count += 1)
    assert.throws(() => node.read(0, new Uint8Array(1)), isCode('connection-lost'));
  await server.up();
  const write = async (): Promise<void> => node.write(0, new Uint8Array([9]), 0);
  await until(() => {
    write().catch(() => undefined);
    return node.info?.().connected === true;
  });
  await write();
  assert.equal(events.at(-1)?.[0], 'NBD_CONNECTION_RESTORED');
  assert.equal(broken.length, 1);
});

test('with reconnect-delay requests wait for a server that comes back, those in flight too', async (t) => {
  const server = await serve(t);
  const { node, events } = await open(t, { ...server.options, 'reconnect-delay': 100 });
  await server.down();
  const content = new Uint8Array(100_000).fill(4);
  const waiting = [node.write(0, content, 0), node.writeZeroes(500, 100, 0), node.flush(), node.blockStatus(0, 4096)];
  await server.up();
  await Promise.all(waiting);
  content.fill(0, 500, 600);
  const into = new Uint8Array(100_000);
  await node.read(0, into);
  assert.deepEqual(Buffer.from(into), Buffer.from(content));
  assert.deepEqual(
    events.map(([name]) => name),
    ['NBD_CONNECTION_LOST', 'NBD_CONNECTION_RESTORED'],
  );
});

test('random operations give what an array gives while the server goes and comes back', async (t) => {
  const server = await serve(t);
  const { node, events } = await open(t, { ...server.options, 'reconnect-delay': 100 });
  const seed = seedOf(t);
  const pick = random(seed);
  let over = false;
  const restarts = (async () => {
    while (!over) {
      await new Promise((resolve) => {
        setTimeout(resolve, pick(60));
      });
      await server.down();
      await server.up();
    }
  })();
  const model = new DiskModel(diskBytes);
  await randomOperations(node, model, seed, { count: 2000, lengthMax: 30_000 });
  over = true;
  await restarts;
  await compareAll(node, model);
  assert.ok(events.filter(([name]) => name === 'NBD_CONNECTION_RESTORED').length > 0);
});

test('when reconnect-delay is over, what waited fails, and later requests fail at once', async (t) => {
  const server = await serve(t);
  const clock = new FakeHost();
  const host: Host = { ...realHost, clock: clock.clock };
  const { node } = await open(t, { ...server.options, 'reconnect-delay': 10 }, host);
  await server.down();
  await until(() => node.info?.().connected === false);
  const waiting = Promise.allSettled([node.write(0, new Uint8Array(1), 0), node.flush()]);
  clock.advance(9_000);
  const early = await Promise.race([waiting, new Promise((resolve) => setImmediate(() => resolve('waiting')))]);
  assert.equal(early, 'waiting');
  clock.advance(1_000);
  for (const end of await waiting) assert.ok(end.status === 'rejected' && isCode('connection-lost')(end.reason));
  await assert.rejects(async () => node.read(0, new Uint8Array(1)), isCode('connection-lost'));
  assert.equal(clock.timers, 0);
});

test('a disk of another size after a reconnect is not taken for the same', async (t) => {
  const server = await serve(t);
  const { node } = await open(t, { ...server.options, 'reconnect-delay': 1 });
  await server.down();
  server.exported = { ...server.exported, backend: new MemoryBackend(diskBytes / 2) };
  await server.up();
  await assert.rejects(async () => node.write(0, new Uint8Array(1), 0), /the export is another one/);
});

test('pair 6: breakConnection frees what waits for a server that hangs, for good', async (t) => {
  const address = await scriptedServer(t, async (peer) => {
    await peer.accept({ size: 1 << 26 });
    peer.pause();
    await peer.closed();
  });
  const { node, graph, events } = await open(t, { ...socketOf(address), 'reconnect-delay': 100 });
  const broken: BlockError[] = [];
  const breakable = asBreakable(node);
  assert.ok(breakable !== null);
  breakable.onBroken((error) => broken.push(error));
  const waiting = Promise.allSettled([
    node.write(0, new Uint8Array(1 << 24), 0),
    node.read(1 << 25, new Uint8Array(5)),
    node.flush(),
  ]);
  breakable.breakConnection('it hangs');
  assert.equal(broken.length, 1);
  for (const end of await waiting) assert.ok(end.status === 'rejected' && isCode('connection-lost')(end.reason));
  await assert.rejects(async () => node.flush(), /it hangs/);
  breakable.breakConnection('again');
  assert.equal(broken.length, 1);
  assert.deepEqual(
    events.map(([name]) => name),
    ['NBD_CONNECTION_LOST'],
  );
  await graph.remove('n');
});

test('pair 5: who begins to listen when the connection is lost already hears of it', async (t) => {
  const server = await serve(t);
  const { node } = await open(t, server.options);
  await server.down();
  await until(() => node.info?.().connected === false);
  const broken: BlockError[] = [];
  asBreakable(node)?.onBroken((error) => broken.push(error));
  await Promise.resolve();
  assert.deepEqual(
    broken.map(({ code }) => code),
    ['connection-lost'],
  );
});

for (const block of [512, 4096]) {
  test(`any range works over a server that takes only multiples of ${block} bytes`, async (t) => {
    const server = await serve(t, { blockSizes: [block, 4096, 65_536] });
    const { node } = await open(t, server.options);
    assert.equal(node.info?.()['minimum-block-size'], block);
    const model = new DiskModel(diskBytes);
    const seed = seedOf(t);
    await randomOperations(node, model, seed, { count: 1200, lengthMax: 3 * block });
    await randomOperations(node, model, seed + 1, { count: 100, lengthMax: 200_000 });
    await compareAll(node, model);
  });
}

test('FUA on parts of blocks is FUA on the blocks that are written for it', async () => {
  const written: [number, number, number][] = [];
  const below = Object.assign(new MemoryBackend(diskBytes), {
    write: (offset: number, from: Uint8Array, flags: number) => void written.push([offset, from.length, flags]),
    writeZeroes: (offset: number, length: number, flags: number) => void written.push([offset, length, flags]),
  });
  const aligned = new AlignedBackend(below, 512);
  await aligned.write(100, new Uint8Array(1024), 1);
  await aligned.writeZeroes(2100, 1024, 1);
  assert.deepEqual(written, [
    [0, 512, 1],
    [512, 512, 1],
    [1024, 512, 1],
    [2048, 512, 1],
    [2560, 512, 1],
    [3072, 512, 1],
  ]);
});

test('a size that is no multiple of the minimum block size is refused', async (t) => {
  const address = await scriptedServer(t, async (peer) => {
    await peer.accept({ size: 1000, blockSizes: [512, 4096, 65_536] });
    await peer.closed();
  });
  await assert.rejects(open(t, socketOf(address)), /no multiple of its minimum block size 512/);
});

/** Serves a memory by hand, with whatever flags. */
async function serveMemory(peer: Peer, flags: number, memory: MemoryBackend): Promise<void> {
  await peer.accept({ size: memory.length, flags });
  for (;;) {
    const request = await peer.request();
    if (request.type === nbd.NBD_CMD_DISC) return peer.end();
    assert.ok([nbd.NBD_CMD_READ, nbd.NBD_CMD_WRITE, nbd.NBD_CMD_FLUSH].includes(request.type as 0 | 1 | 3));
    if (request.type === nbd.NBD_CMD_WRITE) memory.write(request.offset, request.payload);
    const content = memory.bytes.subarray(request.offset, request.offset + request.length);
    peer.send(
      request.type === nbd.NBD_CMD_READ
        ? dataChunk(request.cookie, request.offset, content)
        : simpleReply(request.cookie),
    );
  }
}

test('zeroes that a server cannot write are written as data; fast ones are refused', async (t) => {
  const memory = new MemoryBackend(8 * 1024 * 1024);
  memory.bytes.fill(1);
  const flags = allFlags & ~(nbd.NBD_FLAG_SEND_WRITE_ZEROES | nbd.NBD_FLAG_SEND_FAST_ZERO | nbd.NBD_FLAG_SEND_TRIM);
  const { node } = await open(t, socketOf(await scriptedServer(t, (peer) => serveMemory(peer, flags, memory))));
  await node.writeZeroes(1000, 3_000_000, 1);
  assert.deepEqual(
    [memory.bytes[999], memory.bytes[1000], memory.bytes[3_000_999], memory.bytes[3_001_000]],
    [1, 0, 0, 1],
  );
  assert.equal(memory.bytes.indexOf(1, 1000), 3_001_000);
  await assert.rejects(async () => node.writeZeroes(0, 512, 4), isCode('not-supported'));
  await node.discard(0, 512);
  assert.equal(memory.bytes[0], 1);
});

test('errors of the server are errors of the request, and the connection stays', async (t) => {
  const failing: NbdBackend = new MemoryBackend(diskBytes);
  failing.write = () => {
    throw new BlockError('no-space', 'full');
  };
  const server = await serve(t, { backend: failing });
  const { node, events } = await open(t, server.options);
  await assert.rejects(async () => node.write(0, new Uint8Array(512), 0), isCode('no-space'));
  await node.read(0, new Uint8Array(512));
  assert.deepEqual(events, []);
});

function socketOf(address: SocketAddress): Record<string, unknown> {
  assert.ok(address.type === 'unix');
  return { path: address.path, export: 'disk' };
}
