import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import * as nbd from '../../src/nbd/constants.ts';
import { Framer } from '../../src/nbd/framer.ts';
import type { RequestHeader } from '../../src/nbd/request.ts';
import { type Slab, SlabPool } from '../../src/nbd/slab.ts';
import { bytes, type RequestFields, request } from './wire.ts';

interface Cut extends RequestHeader {
  readonly refusal: number;
  readonly payload: string | null;
}

/** Requests at an odd offset are refused, to see that their payload is passed over. */
const check = (header: RequestHeader) => header.offset % 2;

/**
 * Feeds a stream in arrivals of the given sizes. Every `hold`-th payload is kept, and looked at again in the end.
 */
function cut(stream: Uint8Array, arrivals: readonly number[], hold = 0) {
  const pool = new SlabPool();
  const framer = new Framer(pool, check);
  const cuts: Cut[] = [];
  const held: { slab: Slab; payload: Uint8Array; copy: Buffer }[] = [];
  let writes = 0;
  for (let at = 0, turn = 0; at < stream.length && framer.broken === null; turn += 1) {
    const space = framer.space();
    assert.ok(space.length > 0, 'there is always room');
    const wanted = arrivals.length === 0 ? stream.length : (arrivals[turn % arrivals.length] ?? 1);
    const count = Math.min(space.length, stream.length - at, Math.max(1, wanted));
    space.set(stream.subarray(at, at + count));
    at += count;
    framer.received(count);
    while (framer.next()) {
      const { type, flags, cookieHigh, cookieLow, offset, length, refusal } = framer;
      const isWrite = type === nbd.NBD_CMD_WRITE && refusal === 0;
      const payload = isWrite ? Buffer.from(framer.payload()).toString('latin1') : null;
      cuts.push({ type, flags, cookieHigh, cookieLow, offset, length, refusal, payload });
      if (isWrite && hold > 0 && ++writes % hold === 0) {
        held.push({ slab: framer.holdPayload(), payload: framer.payload(), copy: Buffer.from(framer.payload()) });
      }
    }
  }
  for (const { slab, payload, copy } of held) {
    assert.ok(copy.equals(payload), 'a payload that is held is not written over');
    pool.release(slab);
  }
  framer.close();
  return { cuts, broken: framer.broken };
}

const payload = (length: number, seed: number) => Buffer.alloc(length, `${seed}-payload-`);

const anyRequest: fc.Arbitrary<RequestFields> = fc
  .oneof(
    { weight: 5, arbitrary: fc.record({ type: fc.nat(9).filter((type) => type !== 1), length: fc.nat() }) },
    {
      weight: 5,
      arbitrary: fc
        .tuple(fc.oneof({ weight: 8, arbitrary: fc.nat(9000) }, { weight: 1, arbitrary: fc.nat(200_000) }), fc.nat(99))
        .map(([length, seed]) => ({ type: nbd.NBD_CMD_WRITE, payload: payload(length, seed) })),
    },
  )
  .chain((fields) =>
    fc
      .record({ cookie: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), offset: fc.nat(), flags: fc.nat(0xffff) })
      .map((more) => ({
        ...fields,
        ...more,
      })),
  );

test('however a stream is cut into arrivals, and whatever payloads are held, the requests are the same', () => {
  fc.assert(
    fc.property(
      fc.array(anyRequest, { maxLength: 60 }),
      fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.nat(70_000)), { minLength: 1, maxLength: 20 }),
      fc.nat(3),
      (requests, arrivals, hold) => {
        const stream = bytes(...requests.map(request));
        const whole = cut(stream, []);
        assert.equal(whole.cuts.length, requests.length);
        for (const [index, fields] of requests.entries()) {
          const one = whole.cuts[index];
          assert.ok(one !== undefined);
          assert.equal(one.type, fields.type);
          assert.equal((BigInt(one.cookieHigh) << 32n) | BigInt(one.cookieLow), fields.cookie);
          assert.equal(one.offset, fields.offset);
          if (one.payload !== null)
            assert.ok(Buffer.from(one.payload, 'latin1').equals(fields.payload ?? Buffer.alloc(0)));
        }
        assert.deepEqual(cut(stream, arrivals, hold), whole);
      },
    ),
    { numRuns: 150 },
  );
});

test('byte by byte is the same as whole', () => {
  const stream = bytes(
    request({ type: nbd.NBD_CMD_READ, cookie: 1, offset: 2n ** 53n - 2n, length: 4096 }),
    request({ type: nbd.NBD_CMD_WRITE, cookie: 2n ** 64n - 1n, offset: 4, payload: payload(70_000, 1) }),
    request({ type: nbd.NBD_CMD_WRITE, cookie: 3, offset: 5, payload: payload(1000, 2) }),
    request({ type: nbd.NBD_CMD_WRITE, cookie: 4, offset: 6, payload: payload(1000, 3) }),
    request({ type: nbd.NBD_CMD_FLUSH, cookie: 5 }),
  );
  assert.deepEqual(cut(stream, [1]), cut(stream, []));
});

test('a wrong magic and a payload beyond all bounds break the stream, and what came before is cut', () => {
  const good = request({ type: nbd.NBD_CMD_READ, length: 1 });
  const wrong = cut(bytes(good, request({ type: nbd.NBD_CMD_READ, magic: 0x12560953 }), good), [7]);
  assert.equal(wrong.cuts.length, 1);
  assert.match(wrong.broken ?? '', /0x12560953/);
  const long = cut(bytes(good, request({ type: nbd.NBD_CMD_WRITE, length: nbd.NBD_PAYLOAD_BYTES_MAX + 1 })), [7]);
  assert.equal(long.cuts.length, 1);
  assert.match(long.broken ?? '', /larger than the maximum payload/);
});

test('a connection held in the middle of batches loses nothing, however much arrives meanwhile', () => {
  const pool = new SlabPool();
  const framer = new Framer(pool, () => 0);
  const stream = bytes(...Array.from({ length: 20_000 }, (_, cookie) => request({ type: nbd.NBD_CMD_READ, cookie })));
  for (let at = 0; at < stream.length; ) {
    const space = framer.space();
    const count = Math.min(space.length, stream.length - at);
    space.set(stream.subarray(at, at + count));
    framer.received(count);
    at += count;
  }
  for (let cookie = 0; cookie < 20_000; cookie += 1) {
    assert.ok(framer.next());
    assert.equal(framer.cookieLow, cookie);
  }
  assert.equal(framer.next(), false);
});
