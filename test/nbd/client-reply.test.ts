/** Replies as a pure codec: bytes in, completed requests out, each chunk bounded by the request that it answers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import * as nbd from '../../src/nbd/constants.ts';
import { PendingRequest, replyPiecesMax } from '../../src/nbd/pending.ts';
import { type PendingReplies, ReplyReader } from '../../src/nbd/reply.ts';
import { BlockError } from '../../src/util/errors.ts';
import { chunk, dataChunk, doneChunk, errorChunk, holeChunk, simpleReply, statusChunk } from './client-wire.ts';
import { bytes, u16, u32, u64 } from './wire.ts';

/** The table of a client, without one: cookie (1, n) is the n-th request. */
class Table implements PendingReplies {
  readonly requests = new Map<number, PendingRequest>();
  readonly done: number[] = [];

  add(id: number, command: number, offset: number, length: number): PendingRequest {
    const request = new PendingRequest();
    const buffer = new Uint8Array(command === nbd.NBD_CMD_READ ? length : 0).fill(0xee);
    request.begin(command, 0, offset, length, buffer);
    this.requests.set(id, request);
    return request;
  }

  find(high: number, low: number): PendingRequest | undefined {
    return high === 1 && !this.done.includes(low) ? this.requests.get(low) : undefined;
  }

  replied(request: PendingRequest): void {
    for (const [id, one] of this.requests) if (one === request) this.done.push(id);
  }
}

const cookie = (id: number): bigint => (1n << 32n) | BigInt(id);
const structuredForm = { structured: true, contextIds: new Set([5, 6]), allocationId: 5 };
const simpleForm = { structured: false, contextIds: new Set<number>(), allocationId: null };

/** Hands bytes over as a stream does: never more than the reader has room for. */
function feed(reader: ReplyReader, input: Uint8Array, pieces: readonly number[] = [input.length]): void {
  let at = 0;
  for (let turn = 0; at < input.length; turn += 1) {
    const arrival = Math.min(pieces[turn % pieces.length] ?? 1, input.length - at);
    for (let left = arrival; left > 0; ) {
      const space = reader.space();
      const count = Math.min(space.length, left);
      assert.ok(count > 0, 'there is always room');
      space.set(input.subarray(at, at + count));
      reader.received(count);
      at += count;
      left -= count;
    }
  }
}

const disk = Uint8Array.from({ length: 200_000 }, (_, index) => (index * 7 + (index >> 8)) % 251);

/** A read's reply in chunks: cut anywhere, in any order, holes where the model is zero. */
const readReply = (id: number, offset: number, length: number) =>
  fc
    .tuple(
      fc.array(fc.integer({ min: 1, max: Math.max(1, length - 1) }), { maxLength: 6 }),
      fc.array(fc.nat()),
      fc.boolean(),
    )
    .map(([cuts, order, endsAlone]) => {
      const ends = [...new Set([...cuts.filter((cut) => cut < length), length])].sort((a, b) => a - b);
      const ranges = ends.map((end, index) => ({ from: ends[index - 1] ?? 0, end, key: order[index] ?? index }));
      ranges.sort((a, b) => a.key - b.key);
      const chunks = ranges.map(({ from, end }, index) => {
        const flags = !endsAlone && index === ranges.length - 1 ? 1 : 0;
        const hole = (offset + from) % 3 === 0;
        const content = disk.slice(offset + from, offset + end);
        if (hole)
          return { bytes: holeChunk(cookie(id), offset + from, end - from, flags), from, content: content.fill(0) };
        return { bytes: dataChunk(cookie(id), offset + from, content, flags), from, content };
      });
      const expected = new Uint8Array(length);
      for (const { from, content } of chunks) expected.set(content, from);
      const wire = chunks.map((one) => one.bytes);
      return { id, offset, length, expected, wire: endsAlone ? [...wire, doneChunk(cookie(id))] : wire };
    });

const conversation = fc
  .array(
    fc.tuple(fc.nat(100_000), fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 30_000, max: 90_000 }))),
    {
      minLength: 1,
      maxLength: 4,
    },
  )
  .chain((reads) => fc.tuple(...reads.map(([offset, length], id) => readReply(id, offset, length))));

const pieceSizes = fc.oneof(
  fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 20 }),
  fc.array(fc.integer({ min: 1, max: 60_000 }), { minLength: 1, maxLength: 20 }),
);

test('reads answered in chunks of any size and order, interleaved, arriving in any pieces, give the data', () => {
  fc.assert(
    fc.property(
      conversation,
      fc.array(fc.nat(), { minLength: 40, maxLength: 40 }),
      pieceSizes,
      (reads, weave, pieces) => {
        const table = new Table();
        const queues = reads.map((read) => ({
          ...read,
          request: table.add(read.id, nbd.NBD_CMD_READ, read.offset, read.length),
          next: 0,
        }));
        const wire: Uint8Array[] = [];
        for (let turn = 0; ; turn += 1) {
          const open = queues.filter((queue) => queue.next < queue.wire.length);
          const queue = open[(weave[turn % weave.length] ?? 0) % Math.max(1, open.length)];
          if (queue === undefined) break;
          wire.push(queue.wire[queue.next] ?? new Uint8Array(0));
          queue.next += 1;
        }
        const reader = new ReplyReader(structuredForm, table, 'peer');
        feed(reader, bytes(...wire), pieces);
        assert.equal(table.done.length, reads.length);
        for (const { request, expected } of queues) {
          assert.equal(request.errno, 0);
          assert.deepEqual(Buffer.from(request.buffer), Buffer.from(expected));
        }
        assert.equal(reader.midReply, false);
      },
    ),
    { numRuns: 150 },
  );
});

test('simple replies arriving byte by byte give data, errors and completions', () => {
  const table = new Table();
  const read = table.add(0, nbd.NBD_CMD_READ, 10, 5);
  table.add(1, nbd.NBD_CMD_WRITE, 0, 5);
  const failed = table.add(2, nbd.NBD_CMD_READ, 0, 5);
  const reader = new ReplyReader(simpleForm, table, 'peer');
  const wire = bytes(simpleReply(cookie(1)), simpleReply(cookie(0), 0, [1, 2, 3, 4, 5]), simpleReply(cookie(2), 5));
  feed(reader, wire, [1]);
  assert.deepEqual(table.done, [1, 0, 2]);
  assert.deepEqual([...read.buffer], [1, 2, 3, 4, 5]);
  assert.equal(failed.errno, 5);
});

test('the data of a large read is received in the memory of the caller', () => {
  for (const form of [simpleForm, structuredForm]) {
    const table = new Table();
    const read = table.add(0, nbd.NBD_CMD_READ, 0, 100_000);
    const reader = new ReplyReader(form, table, 'peer');
    feed(
      reader,
      form.structured ? dataChunk(cookie(0), 0, disk.subarray(0, 100_000)).subarray(0, 28) : simpleReply(cookie(0)),
    );
    assert.equal(reader.space().buffer, read.buffer.buffer);
    assert.equal(reader.space().length, 100_000);
    feed(reader, disk.subarray(0, 100_000), [999]);
    assert.deepEqual(table.done, [0]);
    assert.deepEqual(Buffer.from(read.buffer), Buffer.from(disk.subarray(0, 100_000)));
  }
});

test('block status keeps the extents of base:allocation, joined and cut to what was asked for', () => {
  const table = new Table();
  const request = table.add(0, nbd.NBD_CMD_BLOCK_STATUS, 4096, 10_000);
  const reader = new ReplyReader(structuredForm, table, 'peer');
  const extents: [number, number][] = [
    [1000, 0],
    [1000, 0],
    [3000, 3],
    [4000, 2 | 0x100],
    [9000, 1],
    [5000, 0],
  ];
  feed(reader, bytes(statusChunk(cookie(0), 6, [[1, 0]], 0), statusChunk(cookie(0), 5, extents)), [3]);
  assert.deepEqual(request.extents, [
    { length: 2000, zero: false, allocated: true },
    { length: 3000, zero: true, allocated: false },
    { length: 4000, zero: true, allocated: true },
    { length: 1000, zero: false, allocated: false },
  ]);
});

test('the first error of a reply counts, with its message made fit to print; an unknown error type is an error too', () => {
  const table = new Table();
  const request = table.add(0, nbd.NBD_CMD_READ, 0, 100);
  const other = table.add(1, nbd.NBD_CMD_WRITE, 0, 100);
  const reader = new ReplyReader(structuredForm, table, 'peer');
  const atOffset = chunk(cookie(0), 0x8002, bytes(u32(5), u16(4), 'bad\x07', u64(50)), 0);
  feed(
    reader,
    bytes(
      dataChunk(cookie(0), 0, disk.subarray(0, 100), 0),
      atOffset,
      errorChunk(cookie(0), 22, 'late', 0),
      doneChunk(cookie(0)),
    ),
  );
  feed(reader, chunk(cookie(1), 0x8123, bytes(u32(28), u16(4), 'full', 'and more that we do not know')));
  assert.deepEqual(table.done, [0, 1]);
  assert.equal(request.errno, 5);
  assert.equal(request.errorMessage, 'bad.');
  assert.equal(other.errno, 28);
  assert.equal(other.errorMessage, 'full');
});

test('a reply to anything but a read may be a simple one where structured ones were agreed on', () => {
  const table = new Table();
  for (const [id, command] of [
    nbd.NBD_CMD_WRITE,
    nbd.NBD_CMD_FLUSH,
    nbd.NBD_CMD_TRIM,
    nbd.NBD_CMD_WRITE_ZEROES,
  ].entries()) {
    table.add(id, command, 0, 512);
  }
  table.add(4, nbd.NBD_CMD_BLOCK_STATUS, 0, 512);
  feed(
    new ReplyReader(structuredForm, table, 'peer'),
    bytes(...[0, 1, 2, 3].map((id) => simpleReply(cookie(id))), simpleReply(cookie(4), 22)),
  );
  assert.deepEqual(table.done, [0, 1, 2, 3, 4]);
});

const read = 0;
const write = 1;
const status = 2;
/** Requests in flight: a read of 100 bytes at 1000, a write, a block status. */
const hostile: [string, Uint8Array, RegExp][] = [
  ['a wrong magic number', bytes(u32(0x12345678), Buffer.alloc(16)), /magic number 0x12345678/],
  ['an unknown cookie', simpleReply(99n), /not in flight/],
  ['a cookie of another sequence', simpleReply(cookie(77)), /not in flight/],
  ['a second reply', bytes(simpleReply(cookie(write)), simpleReply(cookie(write))), /not in flight/],
  ['a chunk after the last', bytes(doneChunk(cookie(write)), doneChunk(cookie(write))), /not in flight/],
  ['a simple reply to a read', simpleReply(cookie(read), 0, Buffer.alloc(100)), /simple reply to a read/],
  ['a simple error to a read', simpleReply(cookie(read), 5), /simple reply to a read/],
  ['a simple reply to a block status request', simpleReply(cookie(status)), /simple reply to a block status/],
  ['an empty chunk with a payload', chunk(cookie(write), 0, Buffer.alloc(1)), /empty chunk/],
  ['an empty chunk that is not the last', chunk(cookie(write), 0, Buffer.alloc(0), 0), /empty chunk/],
  ['an unknown chunk type', chunk(cookie(read), 3, Buffer.alloc(20)), /unknown type 3/],
  ['an extended chunk', chunk(cookie(status), 6, Buffer.alloc(20)), /unknown type 6/],
  ['data for a write', dataChunk(cookie(write), 0, Buffer.alloc(1)), /not a read/],
  ['a hole for a write', holeChunk(cookie(write), 0, 1), /not a read/],
  ['a data chunk without data', chunk(cookie(read), 1, u64(1000)), /data chunk of 8 bytes/],
  ['data before the request', dataChunk(cookie(read), 999, Buffer.alloc(2)), /outside/],
  ['data behind the request', dataChunk(cookie(read), 1099, Buffer.alloc(2)), /outside/],
  ['more data than was asked for', dataChunk(cookie(read), 1000, Buffer.alloc(101)), /outside/],
  ['data of 4 GiB', chunk(cookie(read), 1, u64(1000), 1, 0xffff_ffff), /outside/],
  ['data at an offset beyond 2^53', chunk(cookie(read), 1, bytes(u64(2n ** 63n + 1000n), 'x')), /outside/],
  [
    'overlapping data',
    bytes(dataChunk(cookie(read), 1000, Buffer.alloc(50), 0), dataChunk(cookie(read), 1049, Buffer.alloc(51), 0)),
    /twice/,
  ],
  [
    'overlapping data out of order',
    bytes(dataChunk(cookie(read), 1050, Buffer.alloc(50), 0), dataChunk(cookie(read), 1000, Buffer.alloc(51), 0)),
    /twice/,
  ],
  ['the same hole twice', bytes(holeChunk(cookie(read), 1010, 10, 0), holeChunk(cookie(read), 1010, 10, 0)), /twice/],
  ['too little data', dataChunk(cookie(read), 1000, Buffer.alloc(99)), /only 99 of 100 bytes/],
  ['no data at all', doneChunk(cookie(read)), /only 0 of 100 bytes/],
  ['a hole of no bytes', holeChunk(cookie(read), 1000, 0), /hole of no bytes/],
  ['a hole beyond the request', holeChunk(cookie(read), 1000, 101), /outside/],
  ['a hole chunk of another length', chunk(cookie(read), 2, Buffer.alloc(13)), /hole chunk of 13 bytes/],
  ['block status for a read', statusChunk(cookie(read), 5, [[1, 0]]), /not asked for/],
  ['block status of an unknown context', statusChunk(cookie(status), 7, [[1, 0]]), /not selected/],
  [
    'block status of a context twice',
    bytes(statusChunk(cookie(status), 5, [[1, 0]], 0), statusChunk(cookie(status), 5, [[1, 0]])),
    /twice/,
  ],
  ['block status of one context of two', statusChunk(cookie(status), 5, [[1, 0]]), /1 instead of 2 contexts/],
  ['success without block status', doneChunk(cookie(status)), /0 instead of 2/],
  ['block status without extents', statusChunk(cookie(status), 5, []), /chunk of 4 bytes/],
  ['block status of an odd length', chunk(cookie(status), 5, Buffer.alloc(13)), /chunk of 13 bytes/],
  ['block status of 16 MiB', chunk(cookie(status), 5, u32(5), 1, (1 << 24) + 4), /16777220 bytes/],
  ['an extent of no bytes', statusChunk(cookie(status), 5, [[0, 0]]), /extent of no bytes/],
  ['an error without an error', errorChunk(cookie(read), 0), /without an error/],
  ['an error chunk too short', chunk(cookie(read), 0x8001, Buffer.alloc(5)), /error chunk of 5 bytes/],
  ['an error chunk with an offset too short', chunk(cookie(read), 0x8002, Buffer.alloc(13)), /error chunk of 13 bytes/],
  ['an endless error chunk', chunk(cookie(read), 0x8001, Buffer.alloc(0), 1, 0xffff_ffff), /error chunk of 4294967295/],
  [
    'a message longer than its chunk',
    chunk(cookie(read), 0x8001, bytes(u32(5), u16(9), 'short')),
    /longer than its chunk/,
  ],
  [
    'a message longer than its chunk with an offset',
    chunk(cookie(read), 0x8002, bytes(u32(5), u16(3), u64(1000), 'x')),
    /longer than its chunk/,
  ],
  [
    'an error outside of its request',
    chunk(cookie(read), 0x8002, bytes(u32(5), u16(0), u64(1100))),
    /outside of its request/,
  ],
];
for (const [name, wire, message] of hostile) {
  test(`${name} is a protocol error`, () => {
    for (const pieces of [[wire.length], [1]]) {
      const table = new Table();
      table.add(read, nbd.NBD_CMD_READ, 1000, 100);
      table.add(write, nbd.NBD_CMD_WRITE, 0, 100);
      table.add(status, nbd.NBD_CMD_BLOCK_STATUS, 0, 100);
      const reader = new ReplyReader(structuredForm, table, 'peer');
      assert.throws(
        () => feed(reader, wire, pieces),
        (error) =>
          error instanceof BlockError &&
          error.code === 'protocol-error' &&
          error.message.startsWith('peer broke the NBD protocol: it sent ') &&
          message.test(error.message),
      );
    }
  });
}

test('a structured reply that was not agreed on is a protocol error', () => {
  const table = new Table();
  table.add(0, nbd.NBD_CMD_WRITE, 0, 1);
  assert.throws(() => feed(new ReplyReader(simpleForm, table, 'peer'), doneChunk(cookie(0))), /not agreed on/);
});

test('a read in more pieces than can be kept apart is a protocol error', () => {
  const table = new Table();
  table.add(0, nbd.NBD_CMD_READ, 0, 4 * replyPiecesMax);
  const reader = new ReplyReader(structuredForm, table, 'peer');
  const piece = (index: number) => dataChunk(cookie(0), 2 * index + 1, Buffer.alloc(1), 0);
  for (let index = 0; index < replyPiecesMax; index += 1) feed(reader, piece(index));
  assert.throws(() => feed(reader, piece(replyPiecesMax)), /too many pieces/);
});

test('whatever a peer sends, the reader waits for more or throws a protocol error', () => {
  const valid = bytes(
    dataChunk(cookie(0), 1000, disk.subarray(0, 100), 0),
    errorChunk(cookie(0), 5, 'x'),
    statusChunk(cookie(2), 5, [[9, 1]], 0),
  );
  const mutated = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 5 }).map((changes) => {
    const copy = Uint8Array.from(valid);
    for (const [at, value] of changes) copy[at % copy.length] = value;
    return copy;
  });
  fc.assert(
    fc.property(fc.oneof(mutated, fc.uint8Array({ maxLength: 100 })), pieceSizes, (wire, pieces) => {
      const table = new Table();
      table.add(0, nbd.NBD_CMD_READ, 1000, 100);
      table.add(1, nbd.NBD_CMD_WRITE, 0, 100);
      table.add(2, nbd.NBD_CMD_BLOCK_STATUS, 0, 100);
      try {
        feed(new ReplyReader(structuredForm, table, 'peer'), wire, pieces);
      } catch (error) {
        assert.ok(error instanceof BlockError && error.code === 'protocol-error', String(error));
      }
    }),
    { numRuns: 1000 },
  );
});
