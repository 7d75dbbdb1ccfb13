/** The superblock of a record log: what a reader makes of its two copies (record-log.md 1). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { recordKinds } from '../../src/block/record-format.ts';
import { encodeSuperblock, superblockBytes, superblockPosition } from '../../src/block/record-superblock.ts';
import { viewOf } from '../../src/util/bytes.ts';
import { loadHash64 } from '../../src/util/xxhash.ts';
import { CrashFile, open } from './crash-file.ts';

/** A log with one record, as its process left it. */
async function oneRecord(): Promise<CrashFile> {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 4, Uint8Array.of(1, 2, 3, 4));
  await log.sync();
  return file.kill();
}

test('record-log 1: an unknown version is refused, saying which, whatever else the copy holds', async () => {
  const hash = await loadHash64();
  for (const place of [0, 1]) {
    const file = await oneRecord();
    const copy = file.bytes.subarray(place * superblockBytes, (place + 1) * superblockBytes);
    const view = viewOf(copy);
    view.setUint32(4, 7);
    view.setBigUint64(16, hash(copy.subarray(24, 24 + view.getUint32(8)), 7n));
    await assert.rejects(open(file), { code: 'bad-image', message: /record log format 7; this program knows 1/ });
  }
});

test('record-log 1: before the first record both copies stand: either of them leads to it when the other is torn', async () => {
  for (const place of [0, 1]) {
    const file = await oneRecord();
    file.bytes.fill(0, place * superblockBytes + 100, (place + 1) * superblockBytes);
    const { log, records } = await open(file);
    assert.deepEqual([log.lost, records.map(({ payload }) => [...payload])], [null, [[1, 2, 3, 4]]]);
  }
});

test('record-log 1: a first superblock that was torn is a new log; what stands there otherwise is none', async () => {
  const made = new CrashFile(() => 0.9);
  await (await open(made)).log.setUser({});
  const first = made.bytes.slice(superblockBytes, superblockBytes + 4096);
  const holding = (...pieces: readonly (readonly [number, Uint8Array])[]) => {
    const bytes = new Uint8Array(2 * superblockBytes);
    for (const [at, piece] of pieces) bytes.set(piece, at);
    return CrashFile.holding(bytes, () => 0.9);
  };
  // Its first sector alone, and all but that.
  const long = new Uint8Array(4096).fill(1);
  long.set(first.subarray(0, 30));
  for (const torn of [first.subarray(0, 100), long]) {
    const { log, records } = await open(holding([superblockBytes, torn]));
    assert.deepEqual([log.lost, records], [null, []]);
  }
  const { log } = await open(holding([superblockBytes + 512, first.subarray(0, 512)]));
  assert.equal(log.lost, null);
  for (const other of [
    holding([superblockBytes, new TextEncoder().encode('not a log')]),
    holding([0, first.subarray(0, 100)]),
    holding([0, Uint8Array.of(1)], [superblockBytes, first.subarray(0, 100)]),
    holding([superblockBytes, first.subarray(0, 100)], [superblockBytes + 4096, Uint8Array.of(1)]),
  ]) {
    await assert.rejects(open(other), { code: 'bad-image', message: /not a record log/ });
  }
});

test('record-log 1: a superblock whose lives make no sense is not believed, though its checksum holds', async () => {
  const hash = await loadHash64();
  const salt = '0123456789abcdef';
  const start = 2 * superblockBytes;
  const end = { sequence: 5, chain: salt, position: start + 4096 };
  const life = { salt, start, firstSequence: 1, end: null };
  const wrong = [
    [{ ...life, start: 4096 }],
    [{ ...life, firstSequence: 0 }],
    [life, { ...life, firstSequence: 6 }],
    [
      { ...life, end },
      { ...life, firstSequence: 5 },
    ],
    [{ ...life, firstSequence: 6, end }],
    [{ ...life, start: start + 8192, end }],
  ];
  const good = [
    { ...life, end },
    { ...life, firstSequence: 6, start: start + 8192 },
  ];
  for (const lives of [good, ...wrong]) {
    const superblock = { volume: 'v', generation: '', bootId: 'boot', clean: true, syncedTo: 0, user: {}, lives };
    const bytes = new Uint8Array(2 * superblockBytes);
    for (const sequence of [1, 2]) {
      bytes.set(encodeSuperblock(hash, { ...superblock, sequence }), superblockPosition(sequence));
    }
    const opening = open(CrashFile.holding(bytes, () => 0.9));
    if (lives === good) assert.match((await opening).log.lost ?? '', /damaged/);
    else await assert.rejects(opening, { code: 'bad-image', message: /both copies of its superblock are damaged/ });
  }
});
