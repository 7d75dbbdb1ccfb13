/** Our NBD client against the real nbdkit and its filters. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { listExports } from '../../src/nbd/list-exports.ts';
import { BlockError } from '../../src/util/errors.ts';
import { compareAll, DiskModel, type RandomOptions, randomOperations, seedOf } from '../nbd/client-operations.ts';
import { cleanup } from '../support/cleanup.ts';
import { type Daemon, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nbdkit');
const host = createHost();
const diskBytes = 4 * 1024 * 1024;

interface Served {
  readonly address: SocketAddress;
  readonly daemon: Daemon;
}

async function nbdkit(t: TestContext, args: readonly string[]): Promise<Served> {
  const path = join(await temporaryFolder(t), 's');
  const daemon = await spawnDaemon(t, 'nbdkit', ['-f', '--exit-with-parent', '-U', path, ...args]);
  const address = { type: 'unix', path } as const;
  for (let tries = 0; ; tries += 1) {
    try {
      await listExports(host, { address });
      return { address, daemon };
    } catch (error) {
      if (tries > 200) throw new Error(`${daemon.stderr()}`, { cause: error });
      await delay(20);
    }
  }
}

async function connect(t: TestContext, args: readonly string[], structured = true): Promise<NbdClient> {
  const { address } = await nbdkit(t, args);
  const client = await NbdClient.connect(host, { address, exportName: '', structured });
  cleanup(t, () => client.close());
  return client;
}

const memory = ['memory', String(diskBytes)];
const cases: [string, string[], Partial<RandomOptions>][] = [
  ['memory', memory, {}],
  ['requests one after another (noparallel)', ['--filter=noparallel', ...memory], {}],
  ['replies late and out of order (delay)', ['--filter=delay', ...memory, 'rdelay=1ms', 'wdelay=2ms'], { count: 200 }],
  ['no write-zeroes (nozero)', ['--filter=nozero', ...memory], { zeroes: false }],
  ['no FUA (fua)', ['--filter=fua', ...memory], {}],
  ['no structured replies (-no-sr)', ['--no-sr', ...memory], {}],
  [
    'at least 4 KiB, at most 16 KiB (blocksize-policy)',
    [
      '--filter=blocksize-policy',
      ...memory,
      'blocksize-minimum=4096',
      'blocksize-preferred=4096',
      'blocksize-maximum=16384',
      'blocksize-error-policy=error',
    ],
    { align: 4096, lengthMax: 100_000 },
  ],
];
for (const [name, args, more] of cases) {
  for (const structured of [true, false]) {
    test(`random operations give what an array gives: ${name}, ${structured ? 'structured' : 'simple'} replies`, async (t) => {
      const client = await connect(t, args, structured);
      const model = new DiskModel(diskBytes);
      // nbdkit refuses FAST_ZERO where it is not fast: that is an answer, too.
      const mayFail = (error: unknown): boolean => error instanceof BlockError && error.code === 'not-supported';
      await randomOperations(client, model, seedOf(t), { count: 500, lengthMax: 20_000, mayFail, ...more });
      await compareAll(client, model);
      await client.close();
    });
  }
}

test('errors that the server makes up are errors of their requests, and nothing more', async (t) => {
  const client = await connect(t, ['--filter=error', ...memory, 'error=EIO', 'error-rate=20%']);
  const model = new DiskModel(diskBytes);
  const mayFail = (error: unknown): boolean =>
    error instanceof BlockError && ['io-error', 'not-supported'].includes(error.code);
  // One at a time: what an overlapping request sees of one that failed is nobody's promise.
  const failed = await randomOperations(client, model, seedOf(t), { count: 500, lengthMax: 20_000, mayFail, depth: 1 });
  assert.ok(failed > 0);
  assert.equal(client.error, null);
  await client.close();
});

test('each error of the server has its code', async (t) => {
  for (const [errno, code] of [
    ['ENOSPC', 'no-space'],
    ['EPERM', 'read-only'],
    ['ENOMEM', 'no-memory'],
    ['EINVAL', 'invalid-request'],
    ['ESHUTDOWN', 'shutting-down'],
  ]) {
    const client = await connect(t, ['--filter=error', ...memory, `error-pwrite=${errno}`, 'error-pwrite-rate=100%']);
    await assert.rejects(
      async () => client.write(0, new Uint8Array(512), 0),
      (error) => error instanceof BlockError && error.code === code,
    );
    await client.close();
  }
});

test('a disk of 2^53 bytes less 512 is used to its end', async (t) => {
  const size = 2 ** 53 - 512;
  const client = await connect(t, ['memory', String(size)]);
  assert.equal(client.length, size);
  await client.write(size - 1000, new Uint8Array(1000).fill(3), 0);
  const into = new Uint8Array(2000);
  await client.read(size - 2000, into);
  assert.deepEqual([into[999], into[1000], into[1999]], [0, 3, 3]);
  assert.ok((await client.blockStatus(0, size)).length > 0);
  await client.close();
});

test('a server without flush, FUA, trim and zeroes is written to all the same', async (t) => {
  const client = await connect(t, [
    'eval',
    `get_size=echo ${diskBytes}`,
    'pread=dd if=/dev/zero count=$3 iflag=count_bytes status=none',
    'pwrite=cat >/dev/null',
  ]);
  await client.write(0, new Uint8Array(1000), 1);
  assert.equal(client.discard(0, 512), undefined);
  await client.flush();
  const into = new Uint8Array(512).fill(1);
  await client.read(512, into);
  assert.ok(into.every((value) => value === 0));
  await client.close();
});

test('exports of a folder are listed, and each is reached by its name', async (t) => {
  const folder = await temporaryFolder(t);
  for (const name of ['one', 'zwölf']) await writeFile(join(folder, name), Buffer.alloc(4096, name.length));
  const { address } = await nbdkit(t, ['file', `dir=${folder}`]);
  const listed = await listExports(host, { address });
  assert.deepEqual(new Set(listed.map((entry) => entry.name)), new Set(['one', 'zwölf']));
  for (const { name } of listed) {
    const client = await NbdClient.connect(host, { address, exportName: name });
    const into = new Uint8Array(1);
    await client.read(0, into);
    assert.equal(into[0], name.length);
    await client.close();
  }
});
