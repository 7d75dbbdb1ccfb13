import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { permissionBits } from '../../src/block/child.ts';
import { defineDriver } from '../../src/block/driver.ts';
import { BlockGraph } from '../../src/block/graph.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { drivers } from '../../src/drivers/index.ts';
import { NbdExport, type NbdExportOptions } from '../../src/engine/nbd-export.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { BlockError } from '../../src/util/errors.ts';
import { type Deferred, deferred } from '../../src/util/later.ts';
import { FakeHost, settle } from '../nbd/fake-host.ts';
import { TestClient } from '../nbd/serving.ts';
import { bytes } from '../nbd/wire.ts';

const size = 1024 * 1024;

/** A node whose requests, flushes excepted, end when the test says so. */
function slowDriver(waits: Deferred[]) {
  const wait = () => {
    const end = deferred();
    waits.push(end);
    return end.promise;
  };
  return defineDriver({
    name: 'slow',
    summary: 'for tests',
    options: z.strictObject({ ordered: z.boolean().optional() }),
    open: async (options) => ({
      length: size,
      ordered: options.ordered ?? true,
      read: wait,
      write: wait,
      writeZeroes: wait,
      discard: wait,
      flush: () => undefined,
      blockStatus: (_offset: number, length: number) => [{ length, zero: false, allocated: true }],
    }),
  });
}

async function world() {
  const host = new FakeHost();
  const waits: Deferred[] = [];
  const graph = new BlockGraph(host, new DriverRegistry([...drivers, slowDriver(waits)]), new Map(), () => undefined);
  const exports = new Map<string, NbdExport>();
  const server = new NbdServer(host, {
    list: () => [...exports.values()],
    find: (name) => exports.get(name) ?? null,
  });
  await server.listen({ type: 'unix', path: '/fake' });
  const open = async (more: Partial<NbdExportOptions> = {}) => {
    const opened = await NbdExport.open({
      id: 'e0',
      name: 'disk',
      graph,
      nodeName: 'disk0',
      writable: true,
      server,
      ...more,
    });
    exports.set(opened.name, opened);
    return opened;
  };
  return { host, graph, server, exports, open, waits };
}

const memory = (name = 'disk0') => ({ driver: 'memory', 'node-name': name, size });
const slow = (name = 'disk0') => ({ driver: 'slow', 'node-name': name });
const write = (cookie: number, fill = 1) => ({
  type: nbd.NBD_CMD_WRITE,
  cookie,
  payload: new Uint8Array(4096).fill(fill),
});
const read = (cookie: number) => ({ type: nbd.NBD_CMD_READ, cookie, length: 4096 });
const isCode = (code: string) => (error: unknown) => error instanceof BlockError && error.code === code;

test('what a client writes is in the node, and a read-only export refuses it', async () => {
  const { host, graph, open } = await world();
  await graph.add(memory());
  const exported = await open();
  const client = new TestClient(host);
  assert.equal((await client.ask(write(1, 9))).error, 0);
  const found = new Uint8Array(4096);
  await graph.find('disk0').node.read(0, found);
  assert.ok(found.every((byte) => byte === 9));
  client.stream.close();
  await exported.close();
  await open({ writable: false });
  assert.equal((await new TestClient(host).ask(write(2))).error, 1);
});

test('an export holds what it needs of its node, is named in a conflict, and gives the node back', async () => {
  const { graph, open } = await world();
  await graph.add(memory());
  const exported = await open();
  const selfish = { description: 'job "j0"', drainBegin: () => undefined, drainEnd: () => undefined };
  const need = { needs: permissionBits.write, shares: permissionBits['consistent-read'] };
  await assert.rejects(graph.use('disk0', selfish, need), (error) => {
    assert.ok(error instanceof BlockError && error.code === 'permission-conflict');
    assert.match(error.message, /export "e0"/);
    return true;
  });
  await assert.rejects(graph.remove('disk0'), isCode('in-use'));
  await Promise.all([exported.close(), exported.close()]);
  await graph.remove('disk0');
});

test('refused: writing on a read-only node, order where the node keeps none, names that are too long', async () => {
  const { graph, open } = await world();
  await graph.add({ ...memory(), 'read-only': true });
  await graph.add({ ...slow('unordered'), ordered: false });
  await assert.rejects(open(), isCode('read-only'));
  await assert.rejects(open({ nodeName: 'unordered', ordered: true }), isCode('invalid-option'));
  await assert.rejects(open({ nodeName: 'nothing' }), isCode('node-not-found'));
  await assert.rejects(open({ name: 'é'.repeat(2049) }), isCode('invalid-option'));
  await assert.rejects(open({ description: 'a\0b' }), isCode('invalid-option'));
  await graph.remove('disk0');
  await graph.remove('unordered');
});

test('a drain waits for requests in flight and holds new ones; another node put there then serves them', async () => {
  const { host, graph, open, waits } = await world();
  await graph.add(slow());
  await graph.add(memory('disk1'));
  await open();
  const client = new TestClient(host);
  client.send(write(1));
  assert.equal(waits.length, 1);
  let replaced = false;
  const replacing = graph.replace('disk0', 'disk1').then(() => {
    replaced = true;
  });
  await settle();
  client.send(write(2, 5), read(3));
  await settle();
  assert.deepEqual([replaced, waits.length, client.answers().length], [false, 1, 0]);
  waits[0]?.resolve();
  await replacing;
  await settle();
  const answers = client.answers();
  assert.deepEqual(
    answers.map(({ cookie, error }) => [Number(cookie), error]),
    [
      [1, 0],
      [2, 0],
      [3, 0],
    ],
  );
  assert.ok(answers[2]?.data?.every((byte) => byte === 5));
});

test('close hangs clients up, waits for their requests, and leaves no hold of a drain behind', async () => {
  const { host, graph, server, exports, open, waits } = await world();
  await graph.add(slow());
  const exported = await open();
  const client = new TestClient(host);
  client.send(write(1));
  const draining = graph.drain('disk0');
  exports.delete('disk');
  let closed = false;
  const closing = exported.close().then(() => {
    closed = true;
  });
  await settle();
  assert.equal(closed, false);
  await assert.rejects(graph.remove('disk0'), isCode('in-use'), 'a request of it is in flight in the node');
  waits[0]?.resolve();
  const drained = await draining;
  await settle();
  assert.equal(client.answers().length, 1);
  client.stream.close();
  drained.end();
  await closing;
  await open();
  const next = new TestClient(host);
  next.send(write(2));
  assert.equal(waits.length, 2, 'a new export of the same name issues requests at once');
  waits[1]?.resolve();
  await settle();
  assert.equal(server.connections('disk'), 1);
});

test('writethrough makes every write and zero durable before it is answered', async () => {
  const { host, graph, open } = await world();
  const flags: number[] = [];
  await graph.add(memory());
  const { node } = graph.find('disk0');
  const below = node.write.bind(node);
  const zeroesBelow = node.writeZeroes.bind(node);
  node.write = (offset, from, given) => {
    flags.push(given);
    return below(offset, from, given);
  };
  node.writeZeroes = (offset, length, given) => {
    flags.push(given);
    return zeroesBelow(offset, length, given);
  };
  await open({ writethrough: true });
  const client = new TestClient(host);
  await client.ask(write(1));
  await client.ask({ type: nbd.NBD_CMD_WRITE_ZEROES, cookie: 2, length: 512 });
  assert.deepEqual(flags, [1, 1]);
});

test('multi-conn is announced unless the export is ordered or it was turned off', async () => {
  const { graph, open } = await world();
  await graph.add(memory());
  const shown: boolean[] = [];
  for (const more of [{}, { ordered: true }, { multiConn: false }, { ordered: true, multiConn: true }]) {
    const exported = await open(more);
    shown.push(exported.multiConn);
    await exported.close();
  }
  assert.deepEqual(shown, [true, false, false, true]);
});

test('an error of the node reaches the client as one of the protocol, with its sentence', async () => {
  const { host, graph, open } = await world();
  await graph.add(memory());
  const { node } = graph.find('disk0');
  node.write = () => {
    throw new BlockError('no-space', 'the disk is full');
  };
  await open();
  const answer = await new TestClient(host).ask({ type: nbd.NBD_CMD_WRITE, payload: bytes('abc') });
  assert.deepEqual([answer.error, answer.message], [28, 'the disk is full']);
});
