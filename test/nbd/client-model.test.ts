/** Our client against our own server, over real sockets: random operations against an array. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { listExports } from '../../src/nbd/list-exports.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { cleanup } from '../support/cleanup.ts';
import { temporaryFolder } from '../support/temp.ts';
import { compareAll, DiskModel, patterned, randomOperations, seedOf } from './client-operations.ts';
import { MemoryBackend } from './memory-backend.ts';

const host = createHost();
const diskBytes = 4 * 1024 * 1024;

/** A backend that answers some requests at once and others later, out of order. */
class UnevenBackend extends MemoryBackend {
  #count = 0;

  override read(offset: number, into: Uint8Array): undefined {
    return this.#late(() => super.read(offset, into));
  }

  override write(offset: number, from: Uint8Array): undefined {
    return this.#late(() => super.write(offset, from));
  }

  /**
   * The contract lets a backend reorder what does not overlap; the server or the client must keep the rest in order.
   */
  #late(work: () => undefined): undefined {
    this.#count += 1;
    if (this.#count % 3 !== 0) return work();
    const delay = (this.#count * 7) % 5;
    return new Promise((resolve) => {
      setTimeout(() => resolve(work()), delay);
    }) as unknown as undefined;
  }
}

async function serve(t: TestContext, ordered: boolean, inet: boolean, uneven: boolean): Promise<SocketAddress> {
  const exported = {
    name: 'disk',
    description: 'of a test',
    backend: uneven ? new UnevenBackend(diskBytes) : new MemoryBackend(diskBytes),
    readOnly: false,
    multiConn: true,
    ordered,
    blockSizes: [1, 4096, 32 * 1024 * 1024] as const,
  };
  const server = new NbdServer(host, { list: () => [exported], find: (name) => (name === 'disk' ? exported : null) });
  cleanup(t, () => server.close());
  const path = join(await temporaryFolder(t), 's');
  return await server.listen(inet ? { type: 'inet', host: '127.0.0.1', port: 0 } : { type: 'unix', path });
}

for (const ordered of [false, true]) {
  for (const inet of [false, true]) {
    for (const structured of [true, false]) {
      // Without structured replies no context can be asked for, so nothing is ordered by the server then.
      const replies = structured ? 'structured' : 'simple';
      const name = `${ordered ? 'ordered' : 'plain'} server, ${inet ? 'TCP' : 'unix'}, ${replies} replies`;
      test(`random overlapping operations give what an array gives: ${name}`, async (t) => {
        const address = await serve(t, ordered, inet, !ordered);
        const client = await NbdClient.connect(host, { address, exportName: 'disk', structured });
        cleanup(t, () => client.close());
        assert.equal(client.info.ordered, ordered && structured);
        const model = new DiskModel(diskBytes);
        const seed = seedOf(t);
        await randomOperations(client, model, seed, { count: 1500, lengthMax: 20_000, depth: 64 });
        await randomOperations(client, model, seed + 1, { count: 60, lengthMax: 2_000_000, depth: 8 });
        await compareAll(client, model);
        await client.close();
      });
    }
  }
}

test('a request larger than 32 MiB goes through both ways', async (t) => {
  const backend = new MemoryBackend(48 * 1024 * 1024);
  const exported = {
    name: '',
    description: '',
    backend,
    readOnly: false,
    multiConn: true,
    ordered: true,
    blockSizes: [1, 4096, 32 * 1024 * 1024] as const,
  };
  const server = new NbdServer(host, { list: () => [exported], find: () => exported });
  cleanup(t, () => server.close());
  const address = await server.listen({ type: 'unix', path: join(await temporaryFolder(t), 's') });
  const client = await NbdClient.connect(host, { address, exportName: '' });
  cleanup(t, () => client.close());
  const content = patterned(40 * 1024 * 1024);
  await client.write(1000, content, 1);
  assert.ok(Buffer.from(backend.bytes.subarray(1000, 1000 + content.length)).equals(content));
  const into = new Uint8Array(content.length);
  await client.read(1000, into);
  assert.ok(Buffer.from(into).equals(content));
  await client.writeZeroes(0, backend.length, 0);
  assert.ok(Buffer.from(backend.bytes.buffer).equals(Buffer.alloc(backend.length)));
});

test('exports of our server are listed with their descriptions', async (t) => {
  const address = await serve(t, false, false, false);
  assert.deepEqual(await listExports(host, { address }), [{ name: 'disk', description: 'of a test' }]);
});
