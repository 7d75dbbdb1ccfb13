/** The ranges that copies have taken, against a set of bytes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { TakenRanges } from '../../src/block/copy-target.ts';
import type { DirtyRange } from '../../src/block/dirty-bitmap.ts';

const size = 40;
const range = fc
  .tuple(fc.integer({ min: 0, max: size - 1 }), fc.integer({ min: 1, max: 12 }))
  .map(([offset, length]) => ({ offset, length: Math.min(length, size - offset) }));

test('what is taken overlaps, to the byte, and what is free of a range is found', () => {
  fc.assert(
    fc.property(fc.array(range, { maxLength: 6 }), range, fc.integer({ min: 0, max: size }), (all, asked, from) => {
      const ranges = new TakenRanges();
      const taken = new Uint8Array(size);
      for (const one of all) {
        if (ranges.overlaps(one.offset, one.length)) continue;
        ranges.add(one);
        taken.fill(1, one.offset, one.offset + one.length);
      }
      const { offset, length } = asked;
      assert.equal(ranges.overlaps(offset, length), taken.subarray(offset, offset + length).includes(1));
      assert.equal(
        ranges.bytes,
        taken.reduce((sum, byte) => sum + byte, 0),
      );
      // Dirty is all there is: the first free run at or after `from`.
      const dirty = (at: number): DirtyRange | null => (at < size ? { offset: at, length: size - at } : null);
      const start = taken.indexOf(0, from);
      const end = taken.indexOf(1, start);
      const free = start < 0 ? null : { offset: start, length: (end < 0 ? size : end) - start };
      assert.deepEqual(ranges.nextFree(from, dirty), free);
    }),
  );
});
