import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { handshakeMsMax } from '../../src/nbd/connection.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { BlockError } from '../../src/util/errors.ts';
import { settle } from './fake-host.ts';
import { MemoryBackend } from './memory-backend.ts';
import { serving, TestClient } from './serving.ts';
import { bytes, clientFlags, contextData, infoData, option, type RequestFields, request } from './wire.ts';

const EPERM = 1;
const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;
const size = 1024 * 1024;

const wrongRequests: readonly (readonly [string, RequestFields, number])[] = [
  ['a read past the end', { type: nbd.NBD_CMD_READ, offset: size - 1, length: 2 }, EINVAL],
  ['a read from far outside', { type: nbd.NBD_CMD_READ, offset: 2n ** 64n - 1n, length: 4096 }, EINVAL],
  ['a read longer than the maximum payload', { type: nbd.NBD_CMD_READ, length: 0xffff_ffff }, EOVERFLOW],
  ['a write past the end', { type: nbd.NBD_CMD_WRITE, offset: size, payload: bytes('x') }, ENOSPC],
  ['a large write past the end', { type: nbd.NBD_CMD_WRITE, offset: 1, payload: new Uint8Array(size) }, ENOSPC],
  ['zeroes past the end', { type: nbd.NBD_CMD_WRITE_ZEROES, offset: 1, length: size }, ENOSPC],
  ['a trim past the end', { type: nbd.NBD_CMD_TRIM, offset: 1, length: size }, EINVAL],
  ['a status past the end', { type: nbd.NBD_CMD_BLOCK_STATUS, offset: size, length: 1 }, EINVAL],
  ['a status of nothing', { type: nbd.NBD_CMD_BLOCK_STATUS, offset: 0, length: 0 }, EINVAL],
  ['an unknown request', { type: 4711, length: 5 }, EINVAL],
  ['a cache request, which was not announced', { type: nbd.NBD_CMD_CACHE, length: 4096 }, EINVAL],
  ['a resize request, which was not announced', { type: nbd.NBD_CMD_RESIZE, length: 4096 }, EINVAL],
  ['an unknown flag', { type: nbd.NBD_CMD_READ, length: 1, flags: 1 << 15 }, EINVAL],
  [
    'a flag of another request',
    { type: nbd.NBD_CMD_WRITE, payload: bytes('x'), flags: nbd.NBD_CMD_FLAG_NO_HOLE },
    EINVAL,
  ],
  [
    'an extended payload flag',
    { type: nbd.NBD_CMD_WRITE, payload: bytes('x'), flags: nbd.NBD_CMD_FLAG_PAYLOAD_LEN },
    EINVAL,
  ],
  ['a flush with an offset', { type: nbd.NBD_CMD_FLUSH, offset: 4096 }, EINVAL],
];

test('every wrong request is answered with the error of the document, and the connection goes on', async () => {
  const { host } = await serving();
  const client = new TestClient(host, { contexts: ['base:allocation'] });
  let cookie = 0;
  for (const [what, fields, error] of wrongRequests) {
    const answer = await client.ask({ ...fields, cookie: ++cookie });
    assert.equal(answer.error, error, what);
    assert.ok(answer.message.length > 0, `${what}: a readable message`);
    const good = await client.ask({ type: nbd.NBD_CMD_READ, length: 4, cookie: ++cookie });
    assert.equal(good.error, 0, `after ${what}`);
  }
});

test('without structured replies the errors are simple, and what needs them is refused', async () => {
  const { host } = await serving();
  const client = new TestClient(host, { structured: false });
  let cookie = 0;
  const ask = (fields: RequestFields) => client.ask({ ...fields, cookie: ++cookie });
  const status = await ask({ type: nbd.NBD_CMD_BLOCK_STATUS, length: 1 });
  assert.deepEqual([status.error, status.structured], [EINVAL, false]);
  assert.equal((await ask({ type: nbd.NBD_CMD_READ, length: 1, flags: nbd.NBD_CMD_FLAG_DF })).error, EINVAL);
  assert.equal((await ask({ type: nbd.NBD_CMD_READ, length: nbd.NBD_PAYLOAD_BYTES_MAX + 1 })).error, EINVAL);
  assert.equal((await ask({ type: nbd.NBD_CMD_READ, offset: size, length: 1 })).error, EINVAL);
  assert.equal((await ask({ type: nbd.NBD_CMD_READ, length: 16 })).data?.length, 16);
});

test('a read-only export answers everything that writes with EPERM', async () => {
  const { host } = await serving({ readOnly: true });
  const client = new TestClient(host);
  for (const fields of [
    { type: nbd.NBD_CMD_WRITE, payload: bytes('x') },
    { type: nbd.NBD_CMD_WRITE_ZEROES, length: 1 },
    { type: nbd.NBD_CMD_TRIM, length: 1 },
  ]) {
    // The flags of write-zeroes and trim are not announced either, but read-only is what a person must read.
    const answer = await client.ask(fields);
    assert.equal(answer.error, EPERM);
    assert.match(answer.message, /read-only/);
  }
  assert.equal((await client.ask({ type: nbd.NBD_CMD_READ, length: 1, cookie: 9 })).error, 0);
});

test('what is not aligned to the minimum block size is refused and changes nothing', async () => {
  const backend = new MemoryBackend(size);
  const { host } = await serving({ backend, blockSizes: [512, 4096, nbd.NBD_PAYLOAD_BYTES_MAX] });
  const client = new TestClient(host);
  assert.equal((await client.ask({ type: nbd.NBD_CMD_READ, offset: 256, length: 512 })).error, EINVAL);
  assert.equal((await client.ask({ type: nbd.NBD_CMD_WRITE, payload: new Uint8Array(100).fill(1) })).error, EINVAL);
  assert.ok(backend.bytes.every((byte) => byte === 0));
  assert.equal((await client.ask({ type: nbd.NBD_CMD_WRITE, payload: new Uint8Array(512).fill(1) })).error, 0);
});

test('a node that became shorter below the export refuses what lies beyond it', async () => {
  class Shrinking extends MemoryBackend {
    now = size;
    override get length(): number {
      return this.now;
    }
  }
  const backend = new Shrinking(size);
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  assert.equal((await client.ask({ type: nbd.NBD_CMD_READ, offset: size - 8, length: 8 })).error, 0);
  backend.now = size / 2;
  assert.equal((await client.ask({ type: nbd.NBD_CMD_READ, offset: size - 8, length: 8 })).error, EINVAL);
  assert.equal((await client.ask({ type: nbd.NBD_CMD_WRITE, offset: size / 2, payload: bytes('x') })).error, ENOSPC);
  backend.now = size * 2;
  // What was announced stays: this protocol has no way to tell a client of more.
  assert.equal((await client.ask({ type: nbd.NBD_CMD_READ, offset: size, length: 8 })).error, EINVAL);
});

test('requests of length 0 are answered and do nothing', async () => {
  const { host } = await serving();
  for (const structured of [true, false]) {
    const client = new TestClient(host, { structured });
    const read = await client.ask({ type: nbd.NBD_CMD_READ, offset: 5 });
    assert.deepEqual([read.error, read.data?.length ?? 0], [0, 0]);
    for (const type of [nbd.NBD_CMD_WRITE, nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_TRIM]) {
      assert.equal((await client.ask({ type, offset: size })).error, 0);
    }
  }
});

test('a stream that cannot be understood is hung up, after the answers to what came before', async () => {
  const { host, server } = await serving();
  for (const bad of [
    request({ type: nbd.NBD_CMD_READ, magic: 1 }),
    request({ type: nbd.NBD_CMD_WRITE, length: nbd.NBD_PAYLOAD_BYTES_MAX + 1 }),
    bytes('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
  ]) {
    const client = new TestClient(host);
    client.stream.arrive(bytes(request({ type: nbd.NBD_CMD_FLUSH, cookie: 1 }), bad));
    await settle();
    assert.equal(client.answers().length, 1);
    assert.equal(client.stream.ending || client.stream.destroyed, true);
    client.stream.close();
  }
  assert.equal(server.connections('disk'), 0);
});

test('a client that goes in the middle of anything leaves nothing behind', async () => {
  const { host, server } = await serving();
  const whole = bytes(
    clientFlags(),
    option(nbd.NBD_OPT_GO, infoData('disk')),
    request({ type: nbd.NBD_CMD_WRITE, cookie: 1, payload: new Uint8Array(300) }),
    request({ type: nbd.NBD_CMD_WRITE, cookie: 2, payload: new Uint8Array(100_000) }),
  );
  for (let cut = 0; cut < whole.length; cut = cut < 500 ? cut + 1 : cut + 9973) {
    const stream = host.connect();
    stream.arrive(whole.subarray(0, cut));
    stream.close(cut % 2 === 0 ? null : new Error('reset'));
  }
  await settle();
  assert.equal(server.connections('disk'), 0);
  assert.equal(host.timers, 0);
});

test('a client that dawdles in the handshake is hung up', async () => {
  const { host } = await serving();
  const stream = host.connect();
  stream.arrive(clientFlags());
  host.advance(handshakeMsMax - 1);
  assert.equal(stream.destroyed, false);
  host.advance(1);
  assert.equal(stream.destroyed, true);
});

test('a client that does not read the answers of the handshake is not answered further', async () => {
  const { host } = await serving();
  const stream = host.connect();
  stream.stalled = true;
  stream.arrive(clientFlags());
  for (let count = 0; count < 100; count += 1) stream.arrive(option(nbd.NBD_OPT_LIST));
  await settle();
  const before = stream.sent.length;
  assert.ok(stream.undelivered > 0, 'the socket is not read on');
  stream.drain();
  await settle();
  assert.ok(stream.sent.length > before + 90, 'it goes on when the client reads');
  assert.equal(stream.undelivered, 0);
});

test('errors of the backend, thrown or rejected, become errors of the document', async () => {
  const thrown: (readonly [unknown, number])[] = [
    [new BlockError('no-space', 'full'), ENOSPC],
    [new BlockError('read-only', 'ro'), EPERM],
    [new BlockError('access-denied', 'no'), EPERM],
    [new BlockError('not-supported', 'no'), EINVAL],
    [new BlockError('no-memory', 'no'), 12],
    [new BlockError('connection-lost', 'gone'), 5],
    [new BlockError('shutting-down', 'stop'), 108],
    [Object.assign(new Error('raw'), { code: 'ENOSPC' }), ENOSPC],
    [new TypeError('a bug'), 5],
    ['not even an error', 5],
  ];
  for (const [error, errno] of thrown) {
    for (const later of [false, true]) {
      const backend = new MemoryBackend(size);
      const fail = () => {
        if (later) return Promise.reject(error) as never;
        throw error;
      };
      Object.assign(backend, {
        read: fail,
        write: fail,
        writeZeroes: fail,
        discard: fail,
        flush: fail,
        blockStatus: fail,
      });
      const { host } = await serving({ backend });
      const client = new TestClient(host, { contexts: ['base:allocation'] });
      for (const type of [0, 1, 3, 4, 6, 7]) {
        const fields: RequestFields =
          type === 1 ? { type, payload: bytes('abc') } : { type, length: type === 3 ? 0 : 3 };
        assert.equal((await client.ask(fields)).error, errno, `${String(error)} of request ${type}`);
      }
    }
  }
});

test('a fast zero that is not supported is ENOTSUP, a plain one is not', async () => {
  const backend = new MemoryBackend(size);
  const seen: number[] = [];
  Object.assign(backend, {
    writeZeroes: (_offset: number, _length: number, flags: number) => {
      seen.push(flags);
      throw new BlockError('not-supported', 'slow');
    },
  });
  const { host } = await serving({ backend });
  const client = new TestClient(host);
  const zeroes = { type: nbd.NBD_CMD_WRITE_ZEROES, length: 512 };
  assert.equal((await client.ask({ ...zeroes, flags: nbd.NBD_CMD_FLAG_FAST_ZERO })).error, 95);
  assert.equal((await client.ask({ ...zeroes, flags: nbd.NBD_CMD_FLAG_NO_HOLE | nbd.NBD_CMD_FLAG_FUA })).error, EINVAL);
  assert.deepEqual(seen, [4, 3]);
});

const goodSession = bytes(
  clientFlags(),
  option(nbd.NBD_OPT_STRUCTURED_REPLY),
  option(nbd.NBD_OPT_SET_META_CONTEXT, contextData('disk', ['base:allocation'])),
  option(nbd.NBD_OPT_GO, infoData('disk', [3])),
  ...[0, 1, 3, 4, 6, 7].map((type) =>
    request(type === 1 ? { type, payload: new Uint8Array(2000) } : { type, length: type === 3 ? 0 : 2000 }),
  ),
);

test('random bytes and spoiled sessions never crash the server nor make it hang', async () => {
  const { host, server } = await serving();
  const spoiled = fc
    .array(fc.tuple(fc.nat(goodSession.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 })
    .map((changes) => {
      const copy = Uint8Array.from(goodSession);
      for (const [at, value] of changes) copy[at] = value;
      return copy;
    });
  const cutOut = fc.tuple(fc.nat(goodSession.length), fc.nat(200)).map(([at, count]) => {
    return bytes(goodSession.subarray(0, at), goodSession.subarray(at + count));
  });
  const noise = fc.uint8Array({ maxLength: 4000 });
  const afterHandshake = noise.map((garbage) => bytes(goodSession.subarray(0, 130), garbage));
  await fc.assert(
    fc.asyncProperty(fc.oneof(spoiled, cutOut, noise, afterHandshake), fc.nat(500), async (input, step) => {
      const stream = host.connect();
      for (let at = 0; at < input.length; at += step + 1) stream.arrive(input.subarray(at, at + step + 1));
      stream.close();
      await settle();
      assert.equal(server.connections('disk'), 0);
    }),
    { numRuns: 400 },
  );
  const good = host.connect();
  good.arrive(goodSession);
  await settle();
  assert.ok(good.output().length > 2000, 'a good client is served after all of them');
  good.close();
  assert.equal(host.timers, 0);
});
