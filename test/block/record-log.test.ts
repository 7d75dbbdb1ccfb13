import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type RecordHeader, recordKinds } from '../../src/block/record-format.ts';
import { type LogFile, RecordLog, type RecordLogOptions } from '../../src/block/record-log.ts';
import { superblockAreaBytes } from '../../src/block/record-superblock.ts';
import { BlockError } from '../../src/util/errors.ts';

/** A small deterministic generator, so that a failing seed can be run again. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 0x1_0000_0000;
  };
}

/** A file whose writes since the last flush can be lost, torn at 512 bytes and reordered by `crash`. */
class CrashFile implements LogFile {
  bytes = new Uint8Array(0);
  private durable = new Uint8Array(0);
  private unsynced: { offset: number; from: Uint8Array }[] = [];
  readonly random: () => number;
  failNext: 'write' | 'flush' | null = null;

  constructor(random: () => number) {
    this.random = random;
  }

  get length(): number {
    return this.bytes.length;
  }

  private maybeLater(): undefined | Promise<void> {
    return this.random() < 0.3 ? new Promise((resolve) => setImmediate(resolve)) : undefined;
  }

  private failing(what: 'write' | 'flush'): void {
    if (this.failNext !== what) return;
    this.failNext = null;
    throw new BlockError('io-error', `injected ${what} error`);
  }

  read(offset: number, into: Uint8Array): undefined {
    into.fill(0);
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): undefined | Promise<void> {
    this.failing('write');
    const copy = from.slice();
    this.bytes.set(copy, offset);
    this.unsynced.push({ offset, from: copy });
    return this.maybeLater();
  }

  flush(): undefined | Promise<void> {
    this.failing('flush');
    const covered = this.unsynced.length;
    const later = this.maybeLater();
    const finish = (): undefined => {
      for (const { offset, from } of this.unsynced.slice(0, covered)) this.durable.set(from, offset);
      this.unsynced = this.unsynced.slice(covered);
    };
    if (later === undefined) return finish();
    return later.then(finish);
  }

  async grow(length: number): Promise<void> {
    if (length <= this.bytes.length) return;
    for (const name of ['bytes', 'durable'] as const) {
      const grown = new Uint8Array(length);
      grown.set(this[name]);
      this[name] = grown;
    }
  }

  crash(): void {
    for (const { offset, from } of this.unsynced) {
      for (let at = 0; at < from.length; at += 512) {
        const sector = from.subarray(at, Math.min(at + 512, from.length));
        if (this.random() < 0.5) this.durable.set(sector, offset + at);
      }
    }
    this.unsynced = [];
    this.bytes = this.durable.slice();
  }
}

const options: RecordLogOptions = {
  where: 'log',
  volume: 'v',
  generation: 'g',
  bootId: 'b',
  durable: true,
  growBytes: 64 * 1024,
};

async function open(file: CrashFile, over: Partial<RecordLogOptions> = {}) {
  const records: { header: RecordHeader; payload: Uint8Array }[] = [];
  const hostRandom = {
    bytes: (count: number) => Uint8Array.from({ length: count }, () => Math.floor(file.random() * 256)),
    fraction: file.random,
  };
  const log = await RecordLog.open(file, hostRandom, { ...options, ...over }, (header, position) => {
    const payload = new Uint8Array(header.payloadBytes);
    file.read(position, payload);
    records.push({ header, payload });
  });
  return { log, records };
}

test('every synced record is found after a crash, of the others a prefix, over several lives', async () => {
  const property = fc.asyncProperty(fc.integer({ min: 1, max: 2 ** 31 }), async (seed) => {
    const random = randomFrom(seed);
    const file = new CrashFile(random);
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
      file.crash();
    }
  });
  await fc.assert(property, { numRuns: 300 });
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
    try {
      const { records } = await open(file);
      // The flip hit a gap between records: everything is there, as it was.
      assert.equal(records.length, 11);
      for (const [index, { payload }] of records.slice(0, 10).entries()) {
        assert.ok(payload.every((byte) => byte === index));
      }
    } catch (error) {
      assert.ok(error instanceof BlockError && error.code === 'bad-image', String(error));
      assert.match(error.message, /damaged/);
    }
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

test('a failed sync sticks: the next one fails too, though the file would let it pass', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 4, new Uint8Array(4));
  file.failNext = 'flush';
  assert.throws(() => log.sync(), /injected flush error/);
  assert.throws(() => log.sync(), /injected flush error/);
});

test('after a restart of the log only records of the new life are believed, and its space is used anew', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  for (let block = 0; block < 20; block++) {
    await log.append(recordKinds.data, 1, block * 4096, 4096, new Uint8Array(4096).fill(block));
  }
  await log.sync();
  const length = file.length;
  await log.restart({ epoch: 2 });
  await log.append(recordKinds.data, 2, 0, 4096, new Uint8Array(4096).fill(77));
  await log.close();
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
  await (await open(file)).log.close();
  await assert.rejects(open(file, { volume: 'w' }), /belongs to volume "v", not to "w"/);
  const text = new CrashFile(() => 0.9);
  await text.grow(8192);
  await text.write(0, new TextEncoder().encode('not a log'));
  await assert.rejects(open(text), /not a record log/);
});
