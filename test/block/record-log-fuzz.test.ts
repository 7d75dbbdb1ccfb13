/** Whatever a log's file is made of: never a crash, never a record that was not written in a life that counts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { recordKinds } from '../../src/block/record-format.ts';
import { superblockAreaBytes, superblockBytes } from '../../src/block/record-superblock.ts';
import { BlockError } from '../../src/util/errors.ts';
import { CrashFile, open, randomFrom } from './crash-file.ts';

const below = (random: () => number, limit: number): number => Math.floor(random() * limit);

/** A log of some lives, the last with and without syncs, and what its records held. */
async function written(random: () => number, dropAfter: number) {
  let file = new CrashFile(random);
  const payloads = new Map<number, number>();
  const states: Uint8Array[] = [];
  for (let life = 0; life < 4; life++) {
    const { log } = await open(file);
    for (let i = 0; i < 8; i++) {
      const fill = below(random, 256);
      const length = 1 + below(random, 6000);
      await log.append(recordKinds.data, 1, i * 4096, length, new Uint8Array(length).fill(fill));
      payloads.set(log.lastSequence, fill * 65536 + length);
      if (random() < 0.3) await log.sync();
    }
    if (life === dropAfter) log.drop();
    states.push(file.bytes.slice());
    file = file.kill();
  }
  return { file, payloads, states };
}

const damages: Record<string, (bytes: Uint8Array, random: () => number, older: Uint8Array) => Uint8Array> = {
  flip: (bytes, random) => {
    for (let i = 0; i < 1 + below(random, 4); i++) {
      const at = below(random, bytes.length);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << below(random, 8));
    }
    return bytes;
  },
  cut: (bytes, random) => bytes.slice(0, below(random, bytes.length + 1)),
  swap: (bytes, random) => {
    const length = 512 * (1 + below(random, 16));
    const [a, b] = [0, 0].map(() => 512 * below(random, (bytes.length - length) / 512)) as [number, number];
    const piece = bytes.slice(a, a + length);
    bytes.copyWithin(a, b, b + length);
    bytes.set(piece, b);
    return bytes;
  },
  'older copy of a place': (bytes, random, older) => {
    const at = superblockAreaBytes + 4096 * below(random, (older.length - superblockAreaBytes) / 4096);
    const end = Math.min(at + 4096 * (1 + below(random, 20)), older.length, bytes.length);
    if (end > at) bytes.set(older.subarray(at, end), at);
    return bytes;
  },
  'older lives appended': (bytes, _random, older) => {
    const joined = new Uint8Array(bytes.length + older.length);
    joined.set(bytes);
    joined.set(older.subarray(superblockAreaBytes), bytes.length);
    return joined;
  },
  'superblock of random bytes': (bytes, random) => {
    const start = superblockBytes * below(random, 2);
    for (let i = 0; i < 600; i++) bytes[start + i] = below(random, 256);
    return bytes;
  },
  zeroes: (bytes, random) => bytes.fill(0, below(random, bytes.length), bytes.length),
};

for (const [name, damage] of Object.entries(damages)) {
  test(`no record is believed that was not written in a life that counts: ${name}`, async () => {
    const property = fc.asyncProperty(fc.integer({ min: 1, max: 2 ** 31 }), async (seed) => {
      const random = randomFrom(seed);
      const { file: whole, payloads, states } = await written(random, below(random, 4));
      const { file: other } = await written(random, -1);
      // A file of the same size and shape, and an earlier state of this one.
      const older = random() < 0.5 ? other.bytes : (states[below(random, states.length)] ?? other.bytes);
      const file = CrashFile.holding(damage(whole.bytes, random, older), random);
      let opened: Awaited<ReturnType<typeof open>>;
      try {
        opened = await open(file);
      } catch (error) {
        assert.ok(error instanceof BlockError && error.code === 'bad-image', `seed ${seed}: ${error}`);
        return;
      }
      for (const { header, payload } of opened.records) {
        const expected = payloads.get(header.sequence);
        assert.equal((payload[0] ?? 0) * 65536 + payload.length, expected, `seed ${seed}, record ${header.sequence}`);
        assert.ok(
          payload.every((byte) => byte === payload[0]),
          `seed ${seed}, record ${header.sequence}`,
        );
      }
      if (opened.log.lost !== null) return;
      // And it goes on as a log.
      await opened.log.append(recordKinds.data, 1, 0, 3, Uint8Array.of(1, 2, 3));
      await opened.log.sync();
      const again = await open(file.kill());
      assert.equal(again.log.lost, null, `seed ${seed}`);
      assert.deepEqual([...(again.records.at(-1)?.payload ?? [])], [1, 2, 3], `seed ${seed}`);
    });
    await fc.assert(property, { numRuns: 30 });
  });
}
