/** Offsets of 64 bits, by our client to our server and by hand: what is at 4 GiB is not what is at 0. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import type { NbdBackend } from '../../src/nbd/backend.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { cleanup } from '../support/cleanup.ts';
import { temporaryFolder } from '../support/temp.ts';
import { serving, TestClient } from './serving.ts';

const size = 2 ** 53 - 1;
const length = 512;

/** A disk without content: it says what it was asked, and reads as the low byte of the offset's 1 GiB. */
class FarDisk implements NbdBackend {
  readonly length = size;
  readonly asked: (readonly [string, number])[] = [];

  read(offset: number, into: Uint8Array): undefined {
    this.asked.push(['read', offset]);
    into.fill(offset / 2 ** 30);
  }
  write(offset: number): undefined {
    this.asked.push(['write', offset]);
  }
  writeZeroes(offset: number): undefined {
    this.asked.push(['zeroes', offset]);
  }
  discard(offset: number): undefined {
    this.asked.push(['discard', offset]);
  }
  flush(): undefined {
    return undefined;
  }
  blockStatus(offset: number, count: number) {
    this.asked.push(['status', offset]);
    return [{ length: count, zero: false, allocated: true }];
  }
}

const offsets = [0, 2 ** 31 - length, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 2 ** 31, 2 ** 40 + 5, size - length];

for (const structured of [true, false])
  test(`requests reach the offset that was meant, ${structured ? 'structured' : 'simple'} replies`, async (t) => {
    const host = createHost();
    const backend = new FarDisk();
    const { exported } = await serving({ backend });
    const server = new NbdServer(host, { list: () => [exported], find: () => exported });
    cleanup(t, () => server.close());
    const address = await server.listen({ type: 'unix', path: join(await temporaryFolder(t), 's') });
    const client = await NbdClient.connect(host, { address, exportName: 'disk', structured });
    cleanup(t, () => client.close());
    for (const offset of offsets) {
      const into = new Uint8Array(length);
      await client.read(offset, into);
      assert.equal(into[length - 1], Math.floor(offset / 2 ** 30) % 256);
      await client.write(offset, into, 0);
      await client.writeZeroes(offset, length, 0);
      await client.discard(offset, length);
      await client.blockStatus(offset, length);
      const kinds = ['read', 'write', 'zeroes', 'discard', ...(structured ? ['status'] : [])];
      assert.deepEqual(
        backend.asked.splice(0),
        kinds.map((kind) => [kind, offset]),
      );
    }
  });

test('offsets that no number of ours can tell are beyond the end, those of a sign too', async () => {
  const backend = new FarDisk();
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  let cookie = 0;
  for (const offset of [2n ** 53n - 1n, 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 512n, 2n ** 64n - 1n]) {
    for (const [type, error] of [
      [nbd.NBD_CMD_READ, 22],
      [nbd.NBD_CMD_TRIM, 22],
      [nbd.NBD_CMD_WRITE_ZEROES, 28],
    ] as const) {
      cookie += 1;
      assert.equal((await client.ask({ type, cookie, offset, length })).error, error, `${offset}`);
    }
    cookie += 1;
    const write = { type: nbd.NBD_CMD_WRITE, cookie, offset, payload: new Uint8Array(length) };
    assert.equal((await client.ask(write)).error, 28);
  }
  assert.deepEqual(backend.asked, []);
});
