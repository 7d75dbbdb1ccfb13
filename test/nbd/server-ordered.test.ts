import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '../../src/nbd/constants.ts';
import { BlockError } from '../../src/util/errors.ts';
import { settle } from './fake-host.ts';
import { MemoryBackend } from './memory-backend.ts';
import { serving, TestClient } from './serving.ts';
import { SlowBackend } from './slow-backend.ts';
import type { RequestFields } from './wire.ts';

const MiB = 1024 * 1024;

const read = (cookie: number, length = 512): RequestFields => ({ type: nbd.NBD_CMD_READ, cookie, length });
const write = (cookie: number, fill = 1): RequestFields => ({
  type: nbd.NBD_CMD_WRITE,
  cookie,
  payload: new Uint8Array(512).fill(fill),
});
const flush = (cookie: number): RequestFields => ({ type: nbd.NBD_CMD_FLUSH, cookie });

test('pair 3: an ordered flush is issued only after every earlier request has ended', async () => {
  const backend = new SlowBackend(MiB);
  const { host } = await serving({ backend, ordered: true });
  const client = new TestClient(host, { contexts: ['blockstep:ordered'] });
  client.send(write(1), write(2), flush(3), write(4));
  await settle();
  assert.deepEqual(backend.names, ['write', 'write']);
  backend.calls[0]?.end.resolve();
  await settle();
  assert.deepEqual(backend.names, ['write', 'write']);
  backend.calls[1]?.end.resolve();
  await settle();
  assert.deepEqual(backend.names, ['write', 'write', 'flush', 'write']);
  backend.endAll();
  await settle();
  assert.deepEqual(
    client.answers().map(({ error }) => error),
    [0, 0, 0, 0],
  );
});

test('pair 3: without the ordered context a flush overtakes what was not answered', async () => {
  const backend = new SlowBackend(MiB);
  const { host } = await serving({ backend, ordered: true });
  new TestClient(host).send(write(1), flush(2));
  await settle();
  assert.deepEqual(backend.names, ['write', 'flush']);
  backend.endAll();
});

test('pair 3: after a failed write an ordered flush fails, and all that follows until a new connection', async () => {
  for (const later of [false, true]) {
    const backend = new MemoryBackend(MiB);
    let failing = true;
    const flushes: string[] = [];
    Object.assign(backend, {
      write: () => {
        if (!failing) return undefined;
        const error = new BlockError('no-space', 'full');
        if (later) return Promise.reject(error);
        throw error;
      },
      flush: () => void flushes.push('flush'),
    });
    const { host } = await serving({ backend, ordered: true });
    const client = new TestClient(host, { contexts: ['blockstep:ordered'] });
    client.send(write(1), flush(2), write(3), read(4), flush(5));
    await settle();
    failing = false;
    client.send(write(6));
    await settle();
    const errors = new Map(client.answers().map(({ cookie, error }) => [Number(cookie), error]));
    assert.deepEqual([errors.get(1), errors.get(2), errors.get(5), errors.get(6)], [28, 5, 5, 5]);
    assert.deepEqual(flushes, []);
    const again = new TestClient(host, { contexts: ['blockstep:ordered'] });
    again.send(write(7), flush(8));
    await settle();
    assert.deepEqual(
      again.answers().map(({ error }) => error),
      [0, 0],
    );
  }
});

for (const [operation, type, poisons] of [
  ['writeZeroes', nbd.NBD_CMD_WRITE_ZEROES, true],
  ['discard', nbd.NBD_CMD_TRIM, true],
  ['flush', nbd.NBD_CMD_FLUSH, true],
  ['read', nbd.NBD_CMD_READ, false],
] as const)
  test(`pair 3: on an ordered connection a failed ${operation} ${poisons ? 'fails' : 'leaves alone'} what follows`, async () => {
    const backend = new MemoryBackend(MiB);
    Object.assign(backend, { [operation]: () => Promise.reject(new BlockError('io-error', 'bad disk')) });
    const { host } = await serving({ backend, ordered: true });
    const client = new TestClient(host, { contexts: ['blockstep:ordered'] });
    client.send({ type, cookie: 1, length: operation === 'flush' ? 0 : 512 });
    await settle();
    client.send(write(2));
    await settle();
    assert.deepEqual(
      client.answers().map(({ error }) => error),
      [5, poisons ? 5 : 0],
    );
  });

test('pair 3: an ordered flush that waits is held by a drain, and dropped by a hang-up', async () => {
  const backend = new SlowBackend(MiB);
  const { host, server } = await serving({ backend, ordered: true });
  const client = new TestClient(host, { contexts: ['blockstep:ordered'] });
  client.send(write(1), flush(2));
  const drained = server.pause('disk');
  backend.endAll();
  await drained;
  await settle();
  assert.deepEqual(backend.names, []);
  server.resume('disk');
  await settle();
  assert.deepEqual(backend.names, ['flush']);
  client.send(write(3), flush(4));
  const gone = server.hangUp('disk');
  backend.endAll();
  await gone;
  await settle();
  assert.deepEqual(backend.names, []);
});
