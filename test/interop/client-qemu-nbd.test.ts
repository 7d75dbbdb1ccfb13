/** Our NBD client against the real qemu-nbd. */
import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockGraph } from '../../src/block/graph.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { nbdDriver } from '../../src/drivers/nbd.ts';
import type { SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { listExports } from '../../src/nbd/list-exports.ts';
import { BlockError } from '../../src/util/errors.ts';
import { compareAll, DiskModel, patterned, randomOperations, seedOf } from '../nbd/client-operations.ts';
import { cleanup } from '../support/cleanup.ts';
import { type Daemon, run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-nbd', 'qemu-img');
const host = createHost();
const diskBytes = 8 * 1024 * 1024;

const isCode =
  (code: string) =>
  (error: unknown): boolean =>
    error instanceof BlockError && error.code === code;

interface Served {
  readonly address: SocketAddress;
  readonly file: string;
  readonly daemon: Daemon;
}

async function qemuNbd(t: TestContext, args: readonly string[] = [], size = diskBytes): Promise<Served> {
  const folder = await temporaryFolder(t);
  const file = join(folder, 'disk');
  await writeFile(file, '');
  await truncate(file, size);
  return await serveFile(t, file, join(folder, 's'), args);
}

async function serveFile(t: TestContext, file: string, path: string, args: readonly string[] = []): Promise<Served> {
  // A flush that reaches the disk takes seconds on a busy machine, and a killed process loses nothing of the page
  // cache.
  const daemon = await spawnDaemon(t, 'qemu-nbd', [
    '--persistent',
    '--format=raw',
    '--cache=unsafe',
    // With its default of one client, a node that has reconnected would keep out the question whether it is ready.
    '--shared=8',
    '-k',
    path,
    '-x',
    'disk',
    ...args,
    file,
  ]);
  const address = { type: 'unix', path } as const;
  // qemu-nbd says nothing when it is ready.
  for (let tries = 0; ; tries += 1) {
    try {
      await listExports(host, { address, timeoutMs: 2000 });
      break;
    } catch (error) {
      if (tries > 200 || isCode('timed-out')(error)) throw error;
      await new Promise((resolve) => {
        setTimeout(resolve, 20);
      });
    }
  }
  return { address, file, daemon };
}

async function connect(t: TestContext, served: Served, structured = true): Promise<NbdClient> {
  const client = await NbdClient.connect(host, { address: served.address, exportName: 'disk', structured });
  cleanup(t, () => client.close());
  return client;
}

for (const structured of [true, false]) {
  test(`random operations give what an array gives, with ${structured ? 'structured' : 'simple'} replies`, async (t) => {
    const served = await qemuNbd(t, ['--discard=unmap']);
    const client = await connect(t, served, structured);
    assert.equal(client.info.structured, structured);
    assert.equal(client.info.ordered, false);
    const model = new DiskModel(diskBytes);
    const seed = seedOf(t);
    await randomOperations(client, model, seed, { count: 600, lengthMax: 30_000 });
    await randomOperations(client, model, seed + 1, { count: 40, lengthMax: 3_000_000, depth: 6 });
    await compareAll(client, model);
    await client.flush();
    await client.close();
  });
}

test('what we write is in the file, and qemu-img sees the same map as our block status', async (t) => {
  const served = await qemuNbd(t, ['--discard=unmap']);
  const client = await connect(t, served);
  await client.write(1 << 20, new Uint8Array(1 << 20).fill(1), 0);
  await client.write(4 << 20, new Uint8Array(1 << 16).fill(2), 1);
  await client.writeZeroes((1 << 20) + (1 << 18), 1 << 18, 0);
  await client.flush();
  const map = await client.blockStatus(0, diskBytes);
  await client.close();
  const { stdout } = await run('qemu-img', ['map', '--output=json', '-f', 'raw', served.file]);
  const theirs = (JSON.parse(stdout) as { length: number; zero: boolean; data: boolean }[]).map((extent) => ({
    length: extent.length,
    zero: extent.zero,
    allocated: extent.data,
  }));
  assert.deepEqual(map, theirs);
});

test('requests of more than 32 MiB go through both ways', async (t) => {
  const served = await qemuNbd(t, [], 48 * 1024 * 1024);
  const client = await connect(t, served);
  const content = patterned(40 * 1024 * 1024);
  await client.write(777, content, 1);
  const into = new Uint8Array(content.length);
  await client.read(777, into);
  assert.ok(Buffer.from(into).equals(content));
  await client.close();
});

test('a read-only server is known as such', async (t) => {
  const client = await connect(t, await qemuNbd(t, ['-r']));
  assert.equal(client.info.readOnly, true);
  assert.throws(() => client.write(0, new Uint8Array(1), 0), /read-only/);
  await client.close();
});

test('an export that is not there is refused in words', async (t) => {
  const { address } = await qemuNbd(t);
  await assert.rejects(
    NbdClient.connect(host, { address, exportName: 'other' }),
    (error) => error instanceof BlockError && error.code === 'file-not-found' && /export "other"/.test(error.message),
  );
  assert.deepEqual(
    (await listExports(host, { address })).map((entry) => entry.name),
    ['disk'],
  );
});

test('a server killed in mid-flight fails what is in flight with connection-lost, and hangs nothing', async (t) => {
  const served = await qemuNbd(t);
  const client = await connect(t, served);
  const model = new DiskModel(diskBytes);
  const told = new Promise<BlockError | null>((resolve) => client.onClosed(resolve));
  const seed = seedOf(t);
  setTimeout(() => served.daemon.kill('SIGKILL'), 60);
  const lost = isCode('connection-lost');
  const running = randomOperations(client, model, seed, { count: 1_000_000, lengthMax: 40_000, mayFail: lost });
  // The run ends at the first call that throws at once: the connection is gone by then.
  await assert.rejects(running, lost);
  assert.equal((await told)?.code, 'connection-lost');
  assert.equal(client.inflightCount, 0);
});

test('a server that is stopped and killed does not keep a client that is cut', async (t) => {
  const served = await qemuNbd(t);
  const client = await connect(t, served);
  served.daemon.kill('SIGSTOP');
  const writes = Array.from({ length: 50 }, (_, index) => client.write(index * 65_536, new Uint8Array(65_536), 0));
  const settled = Promise.allSettled(writes);
  client.destroy('it hangs');
  for (const end of await settled) assert.equal(end.status, 'rejected');
});

test('the nbd driver with a reconnect-delay loses nothing that a killed and restarted qemu-nbd had answered', async (t) => {
  const served = await qemuNbd(t, ['--discard=unmap']);
  const { address, file } = served;
  assert.ok(address.type === 'unix');
  const events: string[] = [];
  const graph = new BlockGraph(host, new DriverRegistry([nbdDriver]), new Map(), (name) => events.push(name));
  const options = { driver: 'nbd', 'node-name': 'n', path: address.path, export: 'disk', 'reconnect-delay': 30 };
  const { node } = await graph.add(options);
  const model = new DiskModel(diskBytes);
  const seed = seedOf(t);
  let { daemon } = served;
  for (let life = 0; life < 3; life += 1) {
    const running = randomOperations(node, model, seed + life, { count: 300, lengthMax: 60_000 });
    await new Promise((resolve) => {
      setTimeout(resolve, 30);
    });
    daemon.kill('SIGKILL');
    await daemon.exited;
    ({ daemon } = await serveFile(t, file, address.path, ['--discard=unmap']));
    await running;
  }
  await compareAll(node, model);
  await node.flush();
  // Now, not after the test: with its last flush a node waits for a server that is gone.
  await graph.close();
  assert.equal(events.filter((name) => name === 'NBD_CONNECTION_RESTORED').length, 3);
});
