import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { recordKinds } from '../../src/block/record-format.ts';
import { superblockAreaBytes } from '../../src/block/record-superblock.ts';
import { attempt, deferred } from '../../src/util/later.ts';
import { CrashFile, open, randomFrom } from './crash-file.ts';

test('every synced record is found after a crash, of the others a prefix, over several lives', async () => {
  const property = fc.asyncProperty(fc.integer({ min: 1, max: 2 ** 31 }), async (seed) => {
    const random = randomFrom(seed);
    let file = new CrashFile(random);
    let expected: { offset: number; fill: number; length: number }[] = [];
    for (let life = 0; life < 4; life++) {
      const { log, records } = await open(file);
      // What the last life left: at least what was synced (cut below), in order, and nothing else.
      assert.ok(records.length <= expected.length, `seed ${seed}: too many records`);
      for (const [index, { header, payload }] of records.entries()) {
        assert.equal(header.offset, expected[index]?.offset);
        assert.ok(payload.every((byte) => byte === expected[index]?.fill));
      }
      assert.ok(records.length >= syncedCount(expected), `seed ${seed}: a synced record is missing`);
      expected = expected.slice(0, records.length);
      marks.set(expected, records.length);
      const steps = Math.floor(random() * 30);
      for (let step = 0; step < steps; step++) {
        if (random() < 0.2) {
          const before = expected.length;
          await log.sync();
          marks.set(expected, before);
        } else {
          const length = 1 + Math.floor(random() * 9000);
          const fill = Math.floor(random() * 256);
          expected.push({ offset: step * 4096, fill, length });
          const done = log.append(recordKinds.data, 1, step * 4096, length, new Uint8Array(length).fill(fill));
          if (random() < 0.5) await done;
          else Promise.resolve(done).catch(() => undefined);
          if (random() < 0.5) await done;
        }
      }
      await new Promise((resolve) => setImmediate(resolve));
      await new Promise((resolve) => setImmediate(resolve));
      file = file.crash();
    }
  });
  await fc.assert(property, { numRuns: 120 });
});

const marks = new WeakMap<object, number>();
const syncedCount = (list: object): number => marks.get(list) ?? 0;

test('a flipped bit among durable records is damage, never a wrong record and never a torn end', async () => {
  const property = fc.asyncProperty(fc.integer({ min: 1, max: 2 ** 31 }), async (seed) => {
    const random = randomFrom(seed);
    const file = new CrashFile(random);
    const { log } = await open(file);
    for (let round = 0; round < 10; round++) {
      await log.append(recordKinds.data, 1, round * 4096, 4096, new Uint8Array(4096).fill(round));
      await log.sync();
    }
    // A last record without a sync carries what was durable before it.
    await log.append(recordKinds.data, 1, 0, 4096, new Uint8Array(4096).fill(99));
    const end = superblockAreaBytes + 10 * 8192;
    const at = superblockAreaBytes + Math.floor(random() * (end - superblockAreaBytes));
    const before = file.bytes[at] ?? 0;
    file.bytes[at] = before ^ (1 << Math.floor(random() * 8));
    const { log: again, records } = await open(file);
    for (const [index, { payload }] of records.slice(0, 10).entries()) {
      assert.ok(payload.every((byte) => byte === index));
    }
    if (again.lost === null) {
      // The flip hit a gap between records: everything is there, as it was.
      assert.equal(records.length, 11, `seed ${seed}`);
      return;
    }
    assert.match(again.lost, /damaged: record \d+ does not hold, though records up to 10 were durable/);
    assert.throws(() => again.append(recordKinds.data, 1, 0, 4, new Uint8Array(4)), /content is lost/);
    await assert.rejects(again.setUser({}), /content is lost/);
  });
  await fc.assert(property, { numRuns: 200 });
});

test('a failed append closes the log: nothing follows the gap, and no sync succeeds', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4));
  file.failNext = 'write';
  assert.throws(() => log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4)), /injected write error.*reopened/);
  assert.throws(() => log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4)), /reopened/);
  assert.throws(() => log.sync(), /reopened/);
});

test('an append is done only when all before it are: a torn one takes those behind it along', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  const append = (value: number) => attempt(() => log.append(1, 1, 0, 4096, new Uint8Array(4096).fill(value)));
  await append(1);
  await new Promise((resolve) => setImmediate(resolve));
  const written = deferred();
  const write = file.write.bind(file);
  file.write = (offset, from) => {
    write(offset, from);
    file.write = write;
    return written.promise;
  };
  const done: number[] = [];
  const both = [2, 3].map((value) => append(value)?.then(() => done.push(value)));
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(done, []);
  written.resolve();
  await Promise.all(both);
  assert.deepEqual(done, [2, 3]);
});

test('a failed sync sticks: the next one fails too, though the file would let it pass', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4));
  file.failNext = 'flush';
  await assert.rejects(async () => log.sync(), /injected flush error/);
  await assert.rejects(async () => log.sync(), /injected flush error/);
  assert.throws(() => log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4)), /reopened/);
});

test('after a restart of the log only records of the new life are believed, and its space is used anew', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  for (let block = 0; block < 20; block++) {
    await log.append(recordKinds.data, 1, block * 4096, 4096, new Uint8Array(4096).fill(block));
  }
  await log.sync();
  const length = file.length;
  await log.dropAll({ epoch: 2 });
  await log.append(recordKinds.data, 2, 0, 4096, new Uint8Array(4096).fill(77));
  await log.close(() => undefined);
  const { log: again, records } = await open(file);
  assert.deepEqual(
    records.map(({ header }) => [header.epoch, header.sequence]),
    [[2, 21]],
  );
  assert.deepEqual(again.user, { epoch: 2 });
  assert.equal(file.length, length);
});

test('another volume, and a file that is no log, are refused in words', async () => {
  const file = new CrashFile(() => 0.9);
  await (await open(file)).log.setUser({});
  await assert.rejects(open(file, { volume: 'w' }), /belongs to volume "v", not to "w"/);
  const text = new CrashFile(() => 0.9);
  await text.resize(8192);
  await text.write(0, new TextEncoder().encode('not a log'));
  await assert.rejects(open(text), /not a record log/);
});
