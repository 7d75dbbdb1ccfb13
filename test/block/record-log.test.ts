import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { physicalBlockBytes, recordHeaderBytes, recordKinds } from '../../src/block/record-format.ts';
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

const mebi = 1024 * 1024;
const full = (value: number, length = 4096): Uint8Array => new Uint8Array(length).fill(value);
const turns = () => new Promise<void>((resolve) => setTimeout(resolve, 5));

test('after damage no sequence is given again, so that a sync of what follows is one', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  for (let i = 0; i < 5; i++) await log.append(recordKinds.data, 1, 0, 4096, full(i));
  await log.sync();
  await log.setUser({});
  file.bytes[superblockAreaBytes + 200] = 77;
  const { log: damaged } = await open(file);
  assert.match(damaged.lost ?? '', /record 1 does not hold, though records up to 5 were durable/);
  await damaged.dropAll({});
  for (let i = 0; i < 5; i++) await damaged.append(recordKinds.data, 2, 0, 4096, full(i));
  await damaged.sync();
  const { log: after, records } = await open(file.crash());
  assert.deepEqual([after.lost, records.map(({ header }) => header.sequence)], [null, [6, 7, 8, 9, 10]]);
});

/** Reads from now on take until the promise resolves, and find what is there then. */
function slowReads(file: CrashFile): () => void {
  const ended = deferred();
  file.read = ((offset: number, into: Uint8Array) =>
    ended.promise.then(() => into.set(file.bytes.subarray(offset, offset + into.length)))) as never;
  return ended.resolve;
}

for (const how of ['drop', 'retire'] as const) {
  test(`record-log 6: a place is not used anew while a read of it is under way: ${how}`, async () => {
    const file = new CrashFile(() => 0.9);
    const { log } = await open(file);
    // A life that is long enough for another one in its place.
    await log.append(recordKinds.data, 1, 0, 4096, full(1));
    const first = log.appendedAt;
    for (let i = 0; i < 20; i++) await log.append(recordKinds.data, 1, 0, 4096, full(1));
    const read = new Uint8Array(4096);
    const end = slowReads(file);
    const reading = log.read(first, read);
    let retired: Promise<void> | null = null;
    if (how === 'drop') log.drop();
    else {
      const stretch = log.endLife();
      await log.append(recordKinds.data, 1, 0, 4096, full(2));
      retired = log.retire(stretch);
      await turns();
      log.endLife();
    }
    for (let i = 0; i < 3; i++) await log.append(recordKinds.data, 2, 0, 4096, full(3));
    const during = log.appendedAt;
    end();
    await Promise.all([reading, retired]);
    assert.deepEqual(read, full(1));
    // Afterwards it is free.
    await turns();
    log.drop();
    await log.append(recordKinds.data, 2, 0, 4096, full(4));
    assert.ok(log.appendedAt < during);
  });
}

test('record-log 8: a log that syncs nothing is lost after another boot as soon as it has a record', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file, { durable: false });
  await log.append(recordKinds.data, 1, 0, 4096, full(1));
  assert.match((await open(file.kill(), { durable: false, bootId: 'c' })).log.lost ?? '', /machine went down/);
  const { log: same, records } = await open(file.kill(), { durable: false });
  assert.deepEqual([same.lost, records.length], [null, 1]);
  // Emptied, it stands on what lies below, which is not durable either.
  await log.dropAll({});
  assert.match((await open(file.kill(), { durable: false, bootId: 'c' })).log.lost ?? '', /machine went down/);
});

test('record-log 8: a log is durably unclean before what it refers to is changed', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file, { durable: false });
  await log.setUser({});
  await file.flush();
  const flush = file.flush.bind(file);
  file.flush = () => turns().then(flush);
  await log.markUnclean();
  assert.match((await open(file.crash(), { durable: false, bootId: 'c' })).log.lost ?? '', /machine went down/);
});

test('a superblock that cannot be written closes the log', async () => {
  for (const failNext of ['write', 'flush'] as const) {
    const file = new CrashFile(() => 0.9);
    const { log } = await open(file);
    await log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4));
    file.failNext = failNext;
    await assert.rejects(log.setUser({ version: 2 }), /injected \w+ error/);
    await assert.rejects(log.setUser({ version: 3 }), /injected \w+ error.*reopened/);
    assert.throws(() => log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4)), /reopened/);
  }
});

test('record-log 1: a superblock that was found in memory alone is durable before the other one is written over', async () => {
  let sectors = 0;
  let tears = false;
  const file = new CrashFile(() => (tears && sectors++ % 2 === 0 ? 0.1 : 0.9));
  const user = (version: number) => ({ version, filled: String(version).repeat(2000) });
  const { log } = await open(file);
  for (const version of [0, 1]) await log.setUser(user(version));
  const flush = file.flush.bind(file);
  file.flush = () => new Promise(() => undefined);
  void log.setUser(user(2));
  await turns();
  // The process is killed in that write; the next one finds it, and is cut off in its own.
  const next = file.kill();
  const { log: found } = await open(next);
  assert.equal(found.user.version, 2);
  let torn: CrashFile | null = null;
  const write = next.write.bind(next);
  next.write = (offset, from) => {
    const done = write(offset, from);
    tears = true;
    torn ??= next.crash();
    tears = false;
    return done;
  };
  await found.setUser(user(3));
  file.flush = flush;
  assert.ok(torn !== null);
  assert.equal((await open(torn)).log.user.version, 2);
});

test('closing makes durable what was appended, in a log that syncs nothing before it says that it is clean', async () => {
  for (const durable of [true, false]) {
    const file = new CrashFile(() => 0.9);
    const { log } = await open(file, { durable });
    await log.append(recordKinds.data, 1, 0, 4096, full(1));
    const crashes: CrashFile[] = [];
    const write = file.write.bind(file);
    file.write = (offset, from) => {
      const done = write(offset, from);
      // The superblock reaches the disk, nothing else does.
      const crashed = file.crash();
      crashed.bytes.set(from, offset);
      crashes.push(crashed);
      return done;
    };
    await log.close(() => undefined);
    crashes.push(file.crash());
    for (const crashed of crashes) {
      const { log: again, records } = await open(crashed, { durable, bootId: 'c' });
      assert.deepEqual([again.lost, records.length], [null, 1]);
    }
  }
});

test('closing waits for a superblock that is being written', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.setUser({ version: 1 });
  const flush = file.flush.bind(file);
  file.flush = () => turns().then(flush);
  const writing = log.setUser({ version: 2 });
  await log.close(() => undefined);
  assert.equal((await open(file.crash())).log.user.version, 2);
  await writing;
});

test('record-log 3: a life begins in a physical block that no other has a byte in', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  for (let i = 0; i < 3; i++) {
    await log.append(recordKinds.data, 1, 0, 100, full(1, 100));
    if (i === 1) await log.sync();
    log.endLife();
    await log.append(recordKinds.data, 1, 0, 100, full(1, 100));
    assert.equal((log.appendedAt - recordHeaderBytes) % physicalBlockBytes, 0);
  }
});

test('record-log 2: what the superblock knows to be durable is missed, though no record behind it says so', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  for (let i = 0; i < 5; i++) await log.append(recordKinds.data, 1, 0, 100, full(i, 100));
  const last = log.appendedAt;
  await log.sync();
  await log.setUser({});
  file.bytes.fill(0, last - recordHeaderBytes, last + 100);
  assert.match((await open(file)).log.lost ?? '', /record 5 does not hold, though records up to 5 were durable/);
});

test('record-log 2: what stands behind the end of an ended life is not believed, and is no damage', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  for (let i = 0; i < 3; i++) await log.append(recordKinds.data, 1, 0, 100, full(i, 100));
  const [start, end] = [log.appendedAt - recordHeaderBytes, log.appendedAt + 100];
  const third = file.bytes.slice(start, end);
  file.bytes.fill(0, start, end);
  const { log: next } = await open(file);
  await next.append(recordKinds.data, 1, 0, 100, full(9, 100));
  await next.sync();
  file.bytes.set(third, start);
  const { log: again, records } = await open(file);
  assert.equal(again.lost, null);
  assert.deepEqual(
    records.map(({ payload }) => payload[0]),
    [0, 1, 9],
  );
});

test('record-log 2: damage is seen wherever the header stands that tells of it, also across two windows of the scan', async () => {
  for (const behind of [false, true]) {
    const file = new CrashFile(() => 0.9);
    const { log } = await open(file, { growBytes: 8 * mebi });
    const sizes = [4096 + 40, ...[0, 1, 2].map(() => recordHeaderBytes + mebi), mebi - 288, ...(behind ? [mebi] : [])];
    for (const size of sizes) {
      await log.append(recordKinds.data, 1, 0, 512, full(1, size - recordHeaderBytes));
    }
    await log.sync();
    await log.append(recordKinds.data, 1, 0, 512, full(1, 512));
    // The scan breaks off behind the first record, and looks on from there.
    const window = superblockAreaBytes + 4096 + 40 + 4 * mebi;
    const header = log.appendedAt - recordHeaderBytes;
    assert.ok(behind ? window < header : header < window && window < log.appendedAt);
    file.bytes.fill(0, superblockAreaBytes + 4096 + 40, superblockAreaBytes + 8192);
    const text = `record 2 does not hold, though records up to ${sizes.length} were durable`;
    assert.ok((await open(file)).log.lost?.includes(text));
  }
});

test('a log that is lost with its boot goes on behind every sequence that it had', async () => {
  for (const isSynced of [true, false]) {
    let file = new CrashFile(() => 0.9);
    for (let life = 0; life < 2; life++) {
      const { log } = await open(file, { durable: false });
      for (let i = 0; i < 5; i++) await log.append(recordKinds.data, 1, 0, 100, full(i, 100));
      if (isSynced) await log.sync();
      if (isSynced) await log.setUser({});
      file = file.kill();
    }
    const { log } = await open(file, { durable: false, bootId: 'c' });
    assert.match(log.lost ?? '', /machine went down/);
    await log.dropAll({});
    await log.append(recordKinds.data, 2, 0, 100, full(9, 100));
    await log.sync();
    const { log: again, records } = await open(file.kill(), { durable: false, bootId: 'c' });
    assert.equal(again.lost, null);
    assert.ok((records[0]?.header.sequence ?? 0) > (isSynced ? 10 : 6));
    assert.deepEqual([...(records[0]?.payload ?? [])], [...full(9, 100)]);
  }
});

test('record-log 1: either copy of the superblock is enough, from the first record on', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 100, full(1, 100));
  await log.sync();
  for (const at of [0, superblockAreaBytes / 2]) {
    const damaged = file.kill();
    damaged.bytes.fill(0xee, at, at + 64);
    assert.equal((await open(damaged)).records.length, 1);
  }
});

test('record-log 1: a log that was cut off in its first superblock is a new one', async () => {
  let [sectors, tears] = [0, false];
  const file = new CrashFile(() => (tears && sectors++ % 2 === 0 ? 0.1 : 0.9));
  const user = { filled: 'x'.repeat(2000) };
  const { log } = await open(file, { user });
  const write = file.write.bind(file);
  let torn: CrashFile | null = null;
  file.write = (offset, from) => {
    const done = write(offset, from);
    tears = true;
    if (offset === superblockAreaBytes / 2) torn ??= file.crash();
    tears = false;
    return done;
  };
  await log.append(recordKinds.data, 1, 0, 100, full(1, 100));
  assert.ok(torn !== null && sectors > 2);
  const { log: again, records } = await open(torn, { user });
  assert.deepEqual([again.lost, records.length], [null, 0]);
});
