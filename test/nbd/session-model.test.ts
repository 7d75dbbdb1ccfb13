import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { NbdBackend } from '../../src/nbd/backend.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { BlockError } from '../../src/util/errors.ts';
import type { Extent } from '../../src/util/extents.ts';
import { type Deferred, deferred } from '../../src/util/later.ts';
import { settle } from './fake-host.ts';
import { serving, TestClient } from './serving.ts';
import type { RequestFields } from './wire.ts';

const length = 256 * 1024;
type Fate = 'now' | 'later' | 'fails now' | 'fails later';

/**
 * A backend whose k-th call has the k-th fate. It takes effect when it is called; a late read fills its buffer only
 * when it ends, and a late write looks then whether its buffer still holds what it was given: memory has one owner.
 */
class FatefulBackend implements NbdBackend {
  readonly length = length;
  readonly bytes = new Uint8Array(length);
  readonly late: (() => void)[] = [];
  readonly #fates: readonly Fate[];
  #calls = 0;

  constructor(fates: readonly Fate[]) {
    this.#fates = fates;
  }

  #call(effect: () => void, end: () => void = () => undefined): undefined | Promise<void> {
    const fate = this.#fates[this.#calls % this.#fates.length] ?? 'now';
    this.#calls += 1;
    if (fate === 'fails now') throw new BlockError('no-space', 'full');
    if (fate !== 'fails later') effect();
    if (fate === 'now') {
      end();
      return undefined;
    }
    const done: Deferred = deferred();
    this.late.push(() => {
      if (fate === 'fails later') done.reject(new BlockError('io-error', 'broken'));
      else {
        end();
        done.resolve();
      }
    });
    return done.promise;
  }

  read(offset: number, into: Uint8Array) {
    const found = this.bytes.slice(offset, offset + into.length);
    return this.#call(
      () => undefined,
      () => into.set(found),
    );
  }

  write(offset: number, from: Uint8Array) {
    const given = from.slice();
    return this.#call(
      () => this.bytes.set(given, offset),
      () => assert.deepEqual(from, given, 'the buffer of a pending write was written over'),
    );
  }

  writeZeroes(offset: number, count: number) {
    return this.#call(() => this.bytes.fill(0, offset, offset + count));
  }

  discard(offset: number, count: number) {
    return this.#call(() => this.bytes.fill(0xdd, offset, offset + count));
  }

  flush() {
    return this.#call(() => undefined);
  }

  blockStatus(_offset: number, count: number): Extent[] | Promise<Extent[]> {
    const extents = [{ length: count, zero: false, allocated: true }];
    const done = this.#call(() => undefined);
    return done === undefined ? extents : done.then(() => extents);
  }
}

const errnos: Record<Fate, number> = { now: 0, later: 0, 'fails now': 28, 'fails later': 5 };
const changes = new Set<number>([nbd.NBD_CMD_WRITE, nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_TRIM]);

/** What a request does to an array, and what it answers. */
function model(bytes: Uint8Array, fields: RequestFields, fate: Fate): { error: number; data: Uint8Array | null } {
  const error = errnos[fate];
  const from = Number(fields.offset);
  const to = from + (fields.length ?? fields.payload?.length ?? 0);
  if (fields.type === nbd.NBD_CMD_READ) return { error, data: error === 0 ? bytes.slice(from, to) : null };
  if (error === 0 && changes.has(fields.type)) {
    if (fields.type === nbd.NBD_CMD_WRITE) bytes.set(fields.payload ?? [], from);
    else bytes.fill(fields.type === nbd.NBD_CMD_TRIM ? 0xdd : 0, from, to);
  }
  return { error, data: null };
}

const anyLength = fc.oneof(
  { weight: 8, arbitrary: fc.integer({ min: 1, max: 8192 }) },
  fc.integer({ min: 1, max: 120_000 }),
);
const anyRequest = fc
  .tuple(fc.constantFrom(0, 0, 0, 1, 1, 1, 3, 4, 6, 7), anyLength, fc.nat(length), fc.nat(255))
  .map(([type, count, place, fill]): RequestFields => {
    if (type === nbd.NBD_CMD_FLUSH) return { type, offset: 0, length: 0 };
    const offset = Math.min(place, length - count);
    if (type === nbd.NBD_CMD_WRITE) return { type, offset, payload: new Uint8Array(count).fill(fill) };
    return { type, offset, length: count };
  });

interface Run {
  readonly batches: readonly (readonly RequestFields[])[];
  readonly fates: readonly Fate[];
  readonly structured: boolean;
  readonly moves: readonly number[];
}

const anyRun: fc.Arbitrary<Run> = fc.record({
  batches: fc.array(fc.array(anyRequest, { maxLength: 40 }), { maxLength: 6 }),
  fates: fc.oneof(
    fc.constant<Fate[]>(['now']),
    fc.constant<Fate[]>(['later']),
    fc.array(fc.constantFrom<Fate>('now', 'now', 'now', 'later', 'fails now', 'fails later'), {
      minLength: 1,
      maxLength: 37,
    }),
  ),
  structured: fc.boolean(),
  moves: fc.array(fc.nat(9), { minLength: 1, maxLength: 30 }),
});

/** Ends what is late, in an order that is not the order of the requests. */
function endLate(backend: FatefulBackend, move: number): void {
  const late = backend.late.splice(0);
  for (let count = late.length; count > 0; count -= 1) late.splice((move * 7) % late.length, 1)[0]?.();
}

async function play(run: Run): Promise<void> {
  const backend = new FatefulBackend(run.fates);
  const { host, server } = await serving({ backend });
  const contexts = run.structured ? ['base:allocation'] : [];
  const client = new TestClient(host, { structured: run.structured, contexts });
  const expected = new Map<bigint, { error: number; data: Uint8Array | null }>();
  const bytes = new Uint8Array(length);
  let cookie = 0;
  let turn = 0;
  for (const batch of run.batches) {
    const requests = batch
      .filter(({ type }) => run.structured || type !== nbd.NBD_CMD_BLOCK_STATUS)
      .map((fields) => ({ ...fields, cookie: ++cookie }));
    for (const fields of requests) {
      const fate = run.fates[(fields.cookie - 1) % run.fates.length] ?? 'now';
      expected.set(BigInt(fields.cookie), model(bytes, fields, fate));
    }
    const move = run.moves[turn++ % run.moves.length] ?? 0;
    if (move === 1) client.stream.stalled = true;
    if (move === 2) void server.pause('disk');
    client.send(...requests);
    if (move < 5) await settle();
    if (move === 2) server.resume('disk');
    client.stream.drain();
    if (move > 3) endLate(backend, move);
    if (move % 2 === 0) await settle();
  }
  for (let count = 0; client.answers().length < expected.size; count += 1) {
    assert.ok(count < 100, `${client.answers().length} of ${expected.size} answered`);
    client.stream.drain();
    endLate(backend, count);
    await settle();
  }
  const answers = client.answers();
  assert.equal(answers.length, expected.size, 'every request has one answer');
  for (const { cookie: name, error, data } of answers) {
    const wanted = expected.get(name);
    assert.equal(error, wanted?.error, `request ${name}`);
    if (wanted?.data) assert.deepEqual(data, Buffer.from(wanted.data), `request ${name}`);
  }
  assert.deepEqual(backend.bytes, bytes);
  client.stream.close();
  await server.hangUp('disk');
  await settle();
  assert.equal(server.connections('disk'), 0);
  assert.equal(server.bufferBytes, 0, 'every buffer was given back');
}

test('random requests, answered at once or later, well or with an error, do what they do to an array', async () => {
  await fc.assert(fc.asyncProperty(anyRun, play), { numRuns: 120 });
});
