/** Servers that lie, break off or hang, over a real unix socket: one clear error for every request, and no hang. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { listExports } from '../../src/nbd/list-exports.ts';
import { BlockError, type BlockErrorCode } from '../../src/util/errors.ts';
import { cleanup } from '../support/cleanup.ts';
import { temporaryFolder } from '../support/temp.ts';
import {
  dataChunk,
  doneChunk,
  errorChunk,
  greeting,
  infoExport,
  optionReply,
  type Peer,
  type SeenRequest,
  scriptedServer,
  simpleReply,
  statusChunk,
} from './client-wire.ts';
import { bytes, u32 } from './wire.ts';

const host = createHost();
const connect = (address: SocketAddress, more: { timeoutMs?: number; structured?: boolean } = {}): Promise<NbdClient> =>
  NbdClient.connect(host, { address, exportName: 'disk', ...more });

async function failureOf(what: Promise<unknown> | undefined): Promise<BlockError> {
  try {
    await what;
  } catch (error) {
    assert.ok(error instanceof BlockError, String(error));
    return error;
  }
  assert.fail('it did not fail');
}

/** A client of a server that shakes hands and then plays `script`; it is cut after the test. */
async function client(
  t: TestContext,
  script: (peer: Peer) => Promise<void>,
  offer: Parameters<Peer['accept']>[0] = { contexts: { 'base:allocation': 3 } },
): Promise<NbdClient> {
  const address = await scriptedServer(t, async (peer) => {
    await peer.accept(offer);
    await script(peer);
  });
  const connected = await connect(address);
  cleanup(t, () => connected.destroy('the test is over'));
  return connected;
}

const wrongReplies: [string, (read: SeenRequest) => Uint8Array, RegExp][] = [
  ['garbage', () => bytes('HTTP/1.1 200 OK\r\n\r\n........'), /magic number/],
  ['an unknown cookie', () => simpleReply(0xdead_beefn), /not in flight/],
  ['data beyond the request', (read) => dataChunk(read.cookie, read.offset + 1, Buffer.alloc(read.length)), /outside/],
  ['too little data', (read) => dataChunk(read.cookie, read.offset, Buffer.alloc(read.length - 1)), /only 511 of 512/],
  [
    'a simple reply to a read',
    (read) => simpleReply(read.cookie, 0, Buffer.alloc(read.length)),
    /simple reply to a read/,
  ],
  ['a status for a read', (read) => statusChunk(read.cookie, 3, [[512, 0]]), /not asked for/],
];
for (const [name, reply, message] of wrongReplies) {
  test(`${name}: every request in flight fails, later ones too, and the connection is closed`, async (t) => {
    const nbd = await client(t, async (peer) => {
      const [read] = await peer.requests(2);
      if (read !== undefined) peer.send(reply(read));
      await peer.closed();
    });
    const told = new Promise<BlockError | null>((resolve) => nbd.onClosed(resolve));
    const inFlight = [nbd.read(4096, new Uint8Array(512)), nbd.write(0, new Uint8Array(16), 0)];
    const errors = await Promise.all(inFlight.map((one) => failureOf(one ?? Promise.resolve())));
    for (const error of errors) {
      assert.equal(error.code, 'protocol-error');
      assert.match(error.message, message);
    }
    assert.equal((await told)?.code, 'protocol-error');
    assert.throws(() => nbd.flush(), message);
    await nbd.close();
  });
}

for (const how of ['end', 'reset'] as const) {
  test(`a server that goes (${how}) fails all in flight with connection-lost, and those that waited`, async (t) => {
    const nbd = await client(t, async (peer) => {
      const [first] = await peer.requests(3);
      peer.send(doneChunk(first?.cookie ?? 0n));
      await peer.request().catch(() => undefined);
      peer[how]();
    });
    const told = new Promise<BlockError | null>((resolve) => nbd.onClosed(resolve));
    const writes = Array.from({ length: 300 }, (_, index) => nbd.write((index % 40) * 512, new Uint8Array(512), 0));
    const ends = await Promise.allSettled(writes);
    const lost = ends.filter((end) => end.status === 'rejected');
    assert.equal(lost.length, 299);
    for (const end of lost) assert.equal(end.reason.code, 'connection-lost');
    assert.equal((await told)?.code, 'connection-lost');
    assert.throws(() => nbd.read(0, new Uint8Array(1)), /was lost/);
    await nbd.close();
  });
}

test('a server that goes while nothing is in flight is told at once', async (t) => {
  const nbd = await client(t, async (peer) => peer.end());
  const error = await new Promise<BlockError | null>((resolve) => nbd.onClosed(resolve));
  assert.equal(error?.code, 'connection-lost');
  const again = await new Promise<BlockError | null>((resolve) => nbd.onClosed(resolve));
  assert.equal(again, error);
});

test('a server that goes in the middle of data fails the read', async (t) => {
  const nbd = await client(t, async (peer) => {
    const read = await peer.request();
    peer.send(dataChunk(read.cookie, 0, Buffer.alloc(read.length)).subarray(0, 300_000));
    peer.end();
  });
  assert.equal((await failureOf(nbd.read(0, new Uint8Array(500_000)) ?? undefined)).code, 'connection-lost');
});

test('destroy ends what waits for a server that hangs', async (t) => {
  const nbd = await client(
    t,
    async (peer) => {
      peer.pause();
      await peer.closed();
    },
    { size: 1 << 30 },
  );
  const both = [nbd.write(0, new Uint8Array(16 << 20), 0), nbd.read(1 << 25, new Uint8Array(512))];
  const failures = Promise.all(both.map((one) => failureOf(one ?? undefined)));
  await new Promise((resolve) => {
    setTimeout(resolve, 20);
  });
  nbd.destroy('it hangs');
  for (const error of await failures) assert.match(error.message, /was cut: it hangs/);
});

test('errors of the server keep their code, and its words', async (t) => {
  const cases: [number, BlockErrorCode, string][] = [
    [1, 'read-only', 'EPERM'],
    [5, 'io-error', 'EIO'],
    [12, 'no-memory', 'ENOMEM'],
    [22, 'invalid-request', 'EINVAL'],
    [28, 'no-space', 'ENOSPC'],
    [75, 'invalid-request', 'EOVERFLOW'],
    [95, 'not-supported', 'ENOTSUP'],
    [4711, 'invalid-request', 'EINVAL'],
  ];
  const nbd = await client(t, async (peer) => {
    for (const [errno] of cases) peer.send(errorChunk((await peer.request()).cookie, errno, 'because'));
    for (const [errno] of cases) peer.send(simpleReply((await peer.request()).cookie, errno));
    await peer.closed();
  });
  for (const [, code, errno] of cases) {
    const error = await failureOf(nbd.read(0, new Uint8Array(512)) ?? undefined);
    assert.deepEqual([error.code, error.errno], [code, errno]);
    assert.match(error.message, /failed a read of 512 bytes at 0: .*\(it says: because\)/);
  }
  for (const [, code] of cases)
    assert.equal((await failureOf(nbd.write(0, new Uint8Array(1), 0) ?? undefined)).code, code);
  assert.equal(nbd.error, null);
});

test('a server without structured replies gives data by simple ones', async (t) => {
  const nbd = await client(
    t,
    async (peer) => {
      const read = await peer.request();
      peer.send(simpleReply(read.cookie, 0, Buffer.alloc(read.length, 9)));
      await peer.closed();
    },
    { structured: false },
  );
  const into = new Uint8Array(300_000);
  await nbd.read(0, into);
  assert.ok(into.every((value) => value === 9));
});

test('nobody there, a file, a port that is closed: connection-failed, naming the address', async (t) => {
  const folder = await temporaryFolder(t);
  await writeFile(join(folder, 'file'), 'x');
  for (const path of [join(folder, 'nothing'), join(folder, 'file')]) {
    const error = await failureOf(connect({ type: 'unix', path }));
    assert.ok(error.message.includes(path), error.message);
  }
  const closed = await failureOf(connect({ type: 'inet', host: '127.0.0.1', port: 1 }));
  assert.equal(closed.code, 'connection-failed');
});

test('a server that shakes no hand, or half of one, times out with a sentence', async (t) => {
  const silent = await scriptedServer(t, (peer) => peer.closed());
  const silence = await failureOf(connect(silent, { timeoutMs: 50 }));
  assert.equal(silence.code, 'timed-out');
  assert.match(silence.message, /sent no NBD greeting within 50 ms/);
  const slow = await scriptedServer(t, async (peer) => {
    peer.send(greeting());
    await peer.closed();
  });
  assert.match(
    (await failureOf(connect(slow, { timeoutMs: 50 }))).message,
    /did not finish the NBD handshake within 50 ms/,
  );
});

test('a server that closes during the handshake, or is no NBD server, fails the connect with one sentence', async (t) => {
  const early = await scriptedServer(t, async (peer) => {
    peer.send(greeting());
    await peer.read(4);
    peer.end();
  });
  assert.match((await failureOf(connect(early))).message, /handshake broke off/);
  const foreign = await scriptedServer(t, async (peer) => {
    peer.send(bytes('220 mail.example.org ESMTP\r\n'));
    await peer.closed();
  });
  assert.match(
    (await failureOf(connect(foreign))).message,
    /is not an NBD server: it sent "220 mail.example.org ESMTP"/,
  );
  assert.match((await failureOf(listExports(host, { address: foreign }))).message, /is not an NBD server/);
});

test('a refusal is answered by NBD_OPT_ABORT before the connection closes', async (t) => {
  const { promise, resolve } = Promise.withResolvers<number>();
  const address = await scriptedServer(t, async (peer) => {
    peer.send(greeting());
    await peer.read(4);
    for (;;) {
      const { option } = await peer.option();
      if (option === 2) {
        resolve(option);
        return;
      }
      const error = option === 7 ? 0x8000_0002 : 0x8000_0001;
      peer.send(optionReply(option, error, 'this disk is secondary; the primary is host-a'));
    }
  });
  const error = await failureOf(connect(address));
  assert.match(error.message, /refused export "disk": .*this disk is secondary; the primary is host-a/);
  assert.equal(await promise, 2);
});

test('bytes behind the handshake are judged as replies', async (t) => {
  const address = await scriptedServer(t, async (peer) => {
    peer.send(greeting());
    await peer.read(4);
    await peer.option();
    peer.send(optionReply(8, 0x8000_0001));
    await peer.option();
    peer.send(optionReply(7, 3, infoExport(4096)), optionReply(7, 1), bytes('surprise', u32(0)));
    await peer.closed();
  });
  const nbd = await connect(address);
  const error = await new Promise<BlockError | null>((resolve) => nbd.onClosed(resolve));
  assert.equal(error?.code, 'protocol-error');
});

test('NBD_OPT_LIST gives names and descriptions', async (t) => {
  const address = await scriptedServer(t, async (peer) => {
    peer.send(greeting());
    await peer.read(4);
    await peer.option();
    for (const name of ['a', 'b']) peer.send(optionReply(3, 2, bytes(u32(1), name, `disk ${name}`)));
    peer.send(optionReply(3, 1));
    await peer.closed();
  });
  assert.deepEqual(await listExports(host, { address }), [
    { name: 'a', description: 'disk a' },
    { name: 'b', description: 'disk b' },
  ]);
});
