/** When and how the client sends: batches, order, limits, what the server did not announce, borrowed buffers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as nbd from '../../src/nbd/constants.ts';
import { NBD_META_BLOCKSTEP_ORDERED } from '../../src/nbd/constants.ts';
import { BlockError } from '../../src/util/errors.ts';
import { fakePeer } from './client-fake.ts';
import { allFlags, dataChunk, doneChunk, errorChunk, simpleReply } from './client-wire.ts';
import { settle } from './fake-host.ts';

const ordered = { contexts: { [NBD_META_BLOCKSTEP_ORDERED]: 1 } };
const payload = (length: number, value = 7): Uint8Array => new Uint8Array(length).fill(value);
const isCode =
  (code: string) =>
  (error: unknown): boolean =>
    error instanceof BlockError && error.code === code;
const commandNames = ['read', 'write', 'disc', 'flush', 'trim', 'cache', 'zero', 'status'];
/** A request as text: command, offset, length. */
const shape = (request: { type: number; offset: number; length: number }): string =>
  `${commandNames[request.type]} ${request.offset} ${request.length}`;

/** Watches a promise. */
function watch(done: undefined | Promise<unknown>): { state: string } {
  const seen = { state: 'pending' };
  assert.ok(done !== undefined);
  done.then(
    () => {
      seen.state = 'done';
    },
    (error: unknown) => {
      seen.state = error instanceof BlockError ? error.code : String(error);
    },
  );
  return seen;
}

test('all that is issued in one turn leaves in one send, with small payloads in it', async () => {
  const peer = await fakePeer();
  for (let index = 0; index < 20; index += 1) {
    watch(peer.client.write(index * 4096, payload(4096, index), 0));
    watch(peer.client.read(512 * 1024 + index * 512, new Uint8Array(512)));
  }
  assert.equal(peer.sends, 0);
  await settle();
  assert.equal(peer.sends, 1);
  const seen = await peer.requests();
  assert.equal(seen.length, 40);
  assert.deepEqual(seen[38]?.payload, Buffer.alloc(4096, 19));
  assert.equal(new Set(seen.map((request) => request.cookie)).size, 40);
});

test('small payloads are copied at the call, so later changes of the buffer do not reach the server', async () => {
  const peer = await fakePeer();
  const buffer = payload(512, 1);
  watch(peer.client.write(0, buffer, 0));
  buffer.fill(2);
  assert.deepEqual((await peer.requests())[0]?.payload, Buffer.alloc(512, 1));
});

test('a large payload leaves between its neighbours, from the memory of the caller', async () => {
  const peer = await fakePeer();
  watch(peer.client.read(0, new Uint8Array(16)));
  watch(peer.client.write(4096, payload(100_000, 5), 0));
  watch(peer.client.write(200_000, payload(50_000, 6), 0));
  watch(peer.client.flush());
  const seen = await peer.requests();
  assert.deepEqual(seen.map(shape), ['read 0 16', 'write 4096 100000', 'write 200000 50000', 'flush 0 0']);
  assert.deepEqual(seen[1]?.payload, Buffer.alloc(100_000, 5));
  assert.deepEqual(seen[2]?.payload, Buffer.alloc(50_000, 6));
});

test('more than an arena holds leaves whole and in order', async () => {
  const peer = await fakePeer({ size: 1 << 30, ...ordered });
  for (let index = 0; index < 100; index += 1) watch(peer.client.write(index * 16_384, payload(16_384, index), 0));
  const seen = await peer.requests();
  assert.deepEqual(
    seen.map((request) => [request.offset, request.payload[0], request.payload.at(-1)]),
    Array.from({ length: 100 }, (_, index) => [index * 16_384, index, index]),
  );
});

test('a payload stays borrowed until the stream has let go of it, even if the reply is there', async () => {
  const peer = await fakePeer();
  peer.stream.stalled = true;
  const small = watch(peer.client.write(0, payload(16), 0));
  const large = watch(peer.client.write(4096, payload(100_000), 0));
  await settle();
  peer.stream.arrive(simpleReply(cookieOf(0)));
  peer.stream.arrive(simpleReply(cookieOf(1)));
  await settle();
  assert.deepEqual([small.state, large.state], ['done', 'pending']);
  peer.stream.drain();
  await settle();
  assert.equal(large.state, 'done');
});

test('a connection that breaks gives a payload back only when the stream has let go of it', async () => {
  const peer = await fakePeer();
  peer.stream.stalled = true;
  const large = watch(peer.client.write(4096, payload(100_000), 0));
  const small = watch(peer.client.write(0, payload(16), 0));
  await settle();
  peer.client.destroy('a test');
  await Promise.resolve();
  const early = [small.state, large.state];
  await settle();
  assert.deepEqual(early, ['connection-lost', 'pending']);
  assert.equal(large.state, 'connection-lost');
});

test('an arena that the stream still holds is not written to', async () => {
  const peer = await fakePeer();
  peer.stream.stalled = true;
  for (let turn = 0; turn < 6; turn += 1) {
    watch(peer.client.write(turn * 512, payload(512, turn + 1), 0));
    await settle();
  }
  peer.stream.drain();
  const seen = await peer.requests();
  assert.deepEqual(
    seen.map((request) => request.payload[100]),
    [1, 2, 3, 4, 5, 6],
  );
});

test('towards a server that is not ordered, overlapping requests are never in flight together', async () => {
  const peer = await fakePeer();
  const { client } = peer;
  const states = [
    watch(client.write(0, payload(1024, 1), 0)),
    watch(client.write(512, payload(1024, 2), 0)), // after the first
    watch(client.read(0, new Uint8Array(512))), // after the first; not the second
    watch(client.write(1024, payload(512, 3), 0)), // overlaps only the second, which waits
    watch(client.write(4096, payload(512, 4), 0)), // free
    watch(client.discard(4096, 4096)), // after the one before
    watch(client.writeZeroes(6000, 10, 0)), // after the discard
    watch(client.flush()),
  ];
  const first = await peer.requests();
  assert.deepEqual(first.map(shape), ['write 0 1024', 'write 4096 512', 'flush 0 0']);
  peer.stream.arrive(simpleReply(first[0]?.cookie ?? 0n));
  assert.deepEqual((await peer.requests()).map(shape), ['write 512 1024', 'read 0 512']);
  peer.stream.arrive(simpleReply(first[1]?.cookie ?? 0n));
  assert.deepEqual((await peer.requests()).map(shape), ['trim 4096 4096']);
  assert.deepEqual(states.map((seen) => seen.state).slice(4), ['done', 'pending', 'pending', 'pending']);
});

test('reads of the same range are in flight together, and a write waits for both', async () => {
  const peer = await fakePeer();
  const one = new Uint8Array(512);
  watch(peer.client.read(0, one));
  watch(peer.client.read(0, new Uint8Array(1024)));
  watch(peer.client.write(256, payload(16), 0));
  watch(peer.client.read(600, new Uint8Array(16)));
  const reads = await peer.requests();
  assert.deepEqual(reads.map(shape), ['read 0 512', 'read 0 1024', 'read 600 16']);
  peer.stream.arrive(dataChunk(reads[1]?.cookie ?? 0n, 0, payload(1024)));
  assert.deepEqual(await peer.requests(), []);
  peer.stream.arrive(dataChunk(reads[0]?.cookie ?? 0n, 0, payload(512)));
  assert.deepEqual((await peer.requests()).map(shape), ['write 256 16']);
});

test('pair 3: an ordered server gets overlapping writes and the flush behind them at once, in the order issued', async () => {
  const peer = await fakePeer(ordered);
  assert.equal(peer.client.info.ordered, true);
  for (let index = 0; index < 5; index += 1) watch(peer.client.write(index, payload(1000, index), 0));
  watch(peer.client.flush());
  watch(peer.client.read(0, new Uint8Array(10)));
  assert.deepEqual((await peer.requests()).map(shape), [
    ...[0, 1, 2, 3, 4].map((at) => `write ${at} 1000`),
    'flush 0 0',
    'read 0 10',
  ]);
});

test('pair 3: an ordered server gets requests in the order issued when slots are short, too', async () => {
  const peer = await fakePeer({ ...ordered, size: 1 << 20 }, { inflightMax: 2 });
  const issued: string[] = [];
  for (let index = 0; index < 9; index += 1) {
    if (index % 3 === 2) watch(peer.client.flush());
    else watch(peer.client.write(index * 10, payload(100), 0));
    issued.push(index % 3 === 2 ? 'flush 0 0' : `write ${index * 10} 100`);
  }
  const seen: string[] = [];
  for (let more = await peer.requests(); more.length > 0; more = await peer.requests()) {
    assert.ok(more.length <= 2);
    seen.push(...more.map(shape));
    // Answered in the other order: what follows stays in order all the same.
    for (const request of more.reverse()) peer.stream.arrive(simpleReply(request.cookie));
  }
  assert.deepEqual(seen, issued);
});

test('no more requests are in flight than inflightMax, and all are answered', async () => {
  const peer = await fakePeer({}, { inflightMax: 3 });
  const states = Array.from({ length: 20 }, (_, index) => watch(peer.client.write(index * 512, payload(512), 0)));
  assert.equal(peer.client.inflightCount, 20);
  for (let more = await peer.requests(); more.length > 0; more = await peer.requests()) {
    assert.ok(more.length <= 3, `${more.length} in flight`);
    for (const request of more) peer.stream.arrive(simpleReply(request.cookie));
  }
  assert.ok(states.every((seen) => seen.state === 'done'));
  assert.equal(peer.client.inflightCount, 0);
});

test('requests larger than the server takes are split at multiples of its minimum block size', async () => {
  const peer = await fakePeer({ size: 1 << 20, blockSizes: [512, 4096, 10_000] });
  const into = new Uint8Array(20_480);
  const reading = watch(peer.client.read(1024, into));
  watch(peer.client.write(512 * 100, payload(10_240), 0));
  watch(peer.client.writeZeroes(512 * 1000, 19_456, 0));
  const seen = await peer.requests();
  assert.deepEqual(seen.map(shape), [
    'read 1024 9728',
    'read 10752 9728',
    'read 20480 1024',
    'write 51200 9728',
    'write 60928 512',
    'zero 512000 9728',
    'zero 521728 9728',
  ]);
  // Answered backwards, each with its own bytes.
  for (const request of seen.slice(0, 3).reverse()) {
    peer.stream.arrive(dataChunk(request.cookie, request.offset, payload(request.length, request.offset & 0xff)));
  }
  await settle();
  assert.equal(reading.state, 'done');
  for (const { offset, length } of seen.slice(0, 3)) {
    assert.deepEqual(
      Buffer.from(into.subarray(offset - 1024, offset - 1024 + length)),
      Buffer.alloc(length, offset & 0xff),
    );
  }
});

test('a split request fails with the first error, once all its parts are back', async () => {
  const peer = await fakePeer({ size: 1 << 20, blockSizes: [1, 4096, 4096] });
  const state = watch(peer.client.read(0, new Uint8Array(12_288)));
  const seen = await peer.requests();
  peer.stream.arrive(errorChunk(seen[2]?.cookie ?? 0n, 28));
  peer.stream.arrive(errorChunk(seen[1]?.cookie ?? 0n, 5));
  await settle();
  assert.equal(state.state, 'pending');
  peer.stream.arrive(dataChunk(seen[0]?.cookie ?? 0n, 0, payload(4096)));
  await settle();
  assert.equal(state.state, 'io-error');
});

test('a server without a maximum gets 32 MiB at most', async () => {
  const peer = await fakePeer({ size: 2 ** 40, blockSizes: [1, 4096, 0xffff_ffff] });
  watch(peer.client.writeZeroes(0, 100 * 1024 * 1024, 0));
  assert.deepEqual(
    (await peer.requests()).map((request) => request.length / (1024 * 1024)),
    [32, 32, 32, 4],
  );
});

test('flags go out as the protocol spells them', async () => {
  const peer = await fakePeer();
  const { client } = peer;
  const issued = [
    client.write(0, payload(16), 1),
    client.writeZeroes(512, 16, 1 | 2 | 4),
    client.writeZeroes(1024, 16, 0),
  ];
  issued.forEach(watch);
  const flags = (await peer.requests()).map((request) => request.flags);
  assert.deepEqual(flags, [
    nbd.NBD_CMD_FLAG_FUA,
    nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_NO_HOLE | nbd.NBD_CMD_FLAG_FAST_ZERO,
    0,
  ]);
});

test('FUA towards a server that does not know it is a write, and then a flush', async () => {
  const peer = await fakePeer({ flags: allFlags & ~nbd.NBD_FLAG_SEND_FUA });
  const state = watch(peer.client.write(0, payload(16), 1));
  const [write, ...rest] = await peer.requests();
  assert.deepEqual([write?.flags, rest], [0, []]);
  peer.stream.arrive(simpleReply(write?.cookie ?? 0n));
  const [flush] = await peer.requests();
  assert.equal(flush?.type, nbd.NBD_CMD_FLUSH);
  assert.equal(state.state, 'pending');
  peer.stream.arrive(errorChunk(flush?.cookie ?? 0n, 5));
  await settle();
  assert.equal(state.state, 'io-error');
});

test('what the server did not announce is not sent', async () => {
  const { client } = await fakePeer({ flags: 1 });
  assert.throws(() => client.writeZeroes(0, 512, 0), isCode('not-supported'));
  assert.equal(client.discard(0, 512), undefined);
  assert.equal(client.flush(), undefined);
  assert.deepEqual(client.blockStatus(0, 512), [{ length: 512, zero: false, allocated: true }]);
  const slow = await fakePeer({ flags: allFlags & ~nbd.NBD_FLAG_SEND_FAST_ZERO });
  assert.throws(() => slow.client.writeZeroes(0, 512, 4), isCode('not-supported'));
  assert.deepEqual(await slow.requests(), []);
});

test('a request that is wrong is refused before it is sent', async () => {
  const peer = await fakePeer({ size: 1_048_576, blockSizes: [512, 4096, 4096], flags: allFlags });
  const wrong = [
    () => peer.client.read(1_048_576, new Uint8Array(512)),
    () => peer.client.read(-512, new Uint8Array(512)),
    () => peer.client.write(100, payload(512), 0),
    () => peer.client.write(512, payload(100), 0),
    () => peer.client.discard(Number.NaN, 512),
    () => peer.client.writeZeroes(0, 2 ** 53, 0),
    () => peer.client.blockStatus(512, 1_048_576),
  ];
  for (const call of wrong) assert.throws(call, isCode('invalid-request'));
  const readOnly = await fakePeer({ flags: allFlags | nbd.NBD_FLAG_READ_ONLY });
  for (const call of [
    () => readOnly.client.write(0, payload(16), 0),
    () => readOnly.client.writeZeroes(0, 16, 0),
    () => readOnly.client.discard(0, 16),
  ]) {
    assert.throws(call, isCode('read-only'));
  }
  assert.deepEqual(await peer.requests(), []);
});

test('requests of no bytes are done at once', async () => {
  const peer = await fakePeer();
  assert.equal(peer.client.read(0, new Uint8Array(0)), undefined);
  assert.equal(peer.client.write(1_048_576, payload(0), 1), undefined);
  assert.equal(peer.client.discard(0, 0), undefined);
  assert.deepEqual(await peer.requests(), []);
});

test('a polite close waits for what is in flight, says NBD_CMD_DISC, and takes no new requests', async () => {
  const peer = await fakePeer({}, { inflightMax: 1 });
  const states = [watch(peer.client.write(0, payload(16), 0)), watch(peer.client.write(512, payload(16), 0))];
  const told: (BlockError | null)[] = [];
  peer.client.onClosed((error) => told.push(error));
  const closing = watch(peer.client.close());
  assert.throws(() => peer.client.read(0, new Uint8Array(1)), isCode('shutting-down'));
  for (const expected of ['write 0 16', 'write 512 16']) {
    const [request] = await peer.requests();
    assert.equal(request === undefined ? '' : shape(request), expected);
    peer.stream.arrive(simpleReply(request?.cookie ?? 0n));
  }
  assert.deepEqual((await peer.requests()).map(shape), ['disc 0 0']);
  assert.ok(peer.stream.ending);
  assert.equal(closing.state, 'pending');
  peer.stream.close();
  await settle();
  assert.deepEqual([closing.state, states[0]?.state, states[1]?.state, told], ['done', 'done', 'done', [null]]);
  assert.equal(peer.host.timers, 0);
});

test('a close that the server does not follow is cut after a time, and what is in flight fails', async () => {
  const peer = await fakePeer();
  const state = watch(peer.client.write(0, payload(16), 0));
  const closing = watch(peer.client.close());
  await settle();
  peer.host.advance(60_000);
  await settle();
  assert.deepEqual([state.state, closing.state], ['connection-lost', 'done']);
  assert.ok(peer.stream.destroyed);
  const idle = await fakePeer();
  const leaving = watch(idle.client.close());
  idle.host.advance(10_000);
  await settle();
  assert.equal(leaving.state, 'done');
});

test("a reply that comes before its request has left settles it, when the payload is the caller's again", async () => {
  const peer = await fakePeer();
  const states = [watch(peer.client.write(0, payload(16), 0)), watch(peer.client.write(4096, payload(100_000), 0))];
  peer.stream.arrive(simpleReply(cookieOf(0)));
  peer.stream.arrive(simpleReply(cookieOf(1)));
  await settle();
  assert.deepEqual(
    states.map((seen) => seen.state),
    ['done', 'done'],
  );
  assert.deepEqual((await peer.requests()).map(shape), ['write 0 16', 'write 4096 100000']);
  assert.equal(peer.client.inflightCount, 0);
});

test('a server that says NBD_ESHUTDOWN gets what is in flight answered, and NBD_CMD_DISC', async () => {
  const peer = await fakePeer();
  const told: (BlockError | null)[] = [];
  peer.client.onClosed((error) => told.push(error));
  const refused = watch(peer.client.write(0, payload(16), 0));
  const kept = watch(peer.client.write(512, payload(16), 0));
  const [first, second] = await peer.requests();
  peer.stream.arrive(errorChunk(first?.cookie ?? 0n, 108, 'going down'));
  await settle();
  assert.deepEqual([refused.state, kept.state], ['shutting-down', 'pending']);
  assert.throws(() => peer.client.write(0, payload(1), 0), isCode('connection-lost'));
  peer.stream.arrive(doneChunk(second?.cookie ?? 0n));
  assert.deepEqual((await peer.requests()).map(shape), ['disc 0 0']);
  peer.stream.close();
  await settle();
  assert.equal(kept.state, 'done');
  assert.equal(told[0]?.code, 'connection-lost');
});

test('slots and cookies are used again, never while a request is in flight', async () => {
  const peer = await fakePeer({}, { inflightMax: 4 });
  const inFlight = new Set<bigint>();
  for (let round = 0; round < 50; round += 1) {
    watch(peer.client.write((round % 4) * 512, payload(16), 0));
    watch(peer.client.write(4096 + (round % 4) * 512, payload(16), 0));
    for (const request of await peer.requests()) {
      assert.equal(inFlight.has(request.cookie), false);
      inFlight.add(request.cookie);
    }
    for (const cookie of [...inFlight].slice(0, 2)) {
      inFlight.delete(cookie);
      peer.stream.arrive(simpleReply(cookie));
    }
  }
});

/** The cookie of the first use of a slot. */
function cookieOf(slot: number): bigint {
  return (BigInt(slot) << 32n) | 1n;
}
