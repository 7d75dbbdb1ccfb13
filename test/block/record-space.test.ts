/** The room that a record log's file has: whoever needs more waits for that much, not for all that is made ahead. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type LogFile, LogSpace } from '../../src/block/record-space.ts';
import { isZero } from '../../src/util/bytes.ts';
import { CrashFile, open } from './crash-file.ts';

const mebi = 1024 * 1024;

function growingFile(): LogFile & { written: number } {
  return {
    length: 0,
    written: 0,
    read: () => undefined,
    write(offset, from) {
      assert.equal(offset, this.written, 'zeroes are written one behind the other');
      this.written = offset + from.length;
      return undefined;
    },
    flush: () => undefined,
    async resize(length) {
      Object.assign(this, { length });
    },
    turn: () => new Promise((resolve) => setImmediate(resolve)),
  };
}

test('a need is met as soon as there is room for it, while the file is still being made longer', async () => {
  const file = growingFile();
  const space = new LogSpace(file, 16 * mebi, true);
  await Promise.all([space.need(4096), space.need(mebi + 1), space.need(4096)]);
  assert.ok(file.written > mebi, 'there is room for the largest');
  assert.ok(file.written < 4 * mebi, `waited for ${file.written} bytes of 16 MiB`);
  await space.stop();
});

test('needs that come together make the file longer one after the other', async () => {
  const file = growingFile();
  const space = new LogSpace(file, 65536, true);
  for (let end = 4096; end < 3 * mebi; end += 300_000) {
    await Promise.all([space.need(end), space.need(end + 200_000), space.need(end + 100_000)]);
    assert.ok(space.room >= end + 200_000 && space.room <= file.length);
  }
  await space.stop();
});

test('where nothing is synced no zeroes are written: the file is only made longer', async () => {
  const file = growingFile();
  const space = new LogSpace(file, 16 * mebi, false);
  await space.need(4096);
  assert.ok(space.room >= 4096 && space.room <= file.length);
  assert.equal(file.written, 0);
  await space.stop();
});

test('record-log 5: where the log is synced a record stands only where zeroes were written before', async () => {
  for (const durable of [true, false]) {
    const file = new CrashFile(() => 0.9);
    const { log } = await open(file, { durable });
    let zeroedTo = 0;
    let zeroes = 0;
    const write = file.write.bind(file);
    file.write = (offset, from) => {
      if (isZero(from)) {
        zeroes += from.length;
        zeroedTo = Math.max(zeroedTo, offset + from.length);
      } else if (durable) assert.ok(offset + from.length <= zeroedTo, `${offset} was never written`);
      return write(offset, from);
    };
    for (let i = 0; i < 40; i++) await log.append(1, 1, i * 4096, 4096, new Uint8Array(4096).fill(1));
    await log.close(() => undefined);
    assert.equal(zeroes > 0, durable);
  }
});

test('record-log 5: a file is shortened step by step, in the background, and never below what is used', async () => {
  const file = growingFile();
  await file.resize(100 * mebi);
  const space = new LogSpace(file, 65536, false);
  const lengths: number[] = [];
  let usedEnd = mebi;
  file.resize = async (length) => {
    lengths.push(length / mebi);
    Object.assign(file, { length });
    if (length < 60 * mebi) usedEnd = 40 * mebi;
  };
  space.shrink(4 * mebi, () => usedEnd);
  await untilQuiet(() => lengths.length);
  assert.deepEqual(lengths, [84, 68, 52], 'the next one would cut off what is used');
  assert.equal(space.room, 52 * mebi);
  usedEnd = mebi;
  space.shrink(4 * mebi, () => usedEnd);
  // Who needs room meanwhile has it.
  await space.need(70 * mebi);
  assert.ok(space.room >= 70 * mebi && file.length >= 70 * mebi);
  await space.stop();
  lengths.length = 0;
  new LogSpace(file, 65536, false).shrink(file.length - mebi, () => 0);
  await untilQuiet(() => lengths.length);
  assert.deepEqual(lengths, [], 'it is not worth it');
});

/** Some turns in which nothing more was done. */
async function untilQuiet(done: () => number): Promise<void> {
  for (let before = -1; before < done(); ) {
    before = done();
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
  }
}
