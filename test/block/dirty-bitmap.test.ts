import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';

const change = fc.record({ mark: fc.boolean(), offset: fc.nat(9000), length: fc.nat(4000) });

test('marking rounds outward, clearing inward, as a set of granules would', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 9000 }), fc.array(change, { maxLength: 20 }), (length, changes) => {
      const bitmap = new DirtyBitmap(length, 512);
      const model = new Set<number>();
      for (const { mark, offset: wanted, length: most } of changes) {
        const offset = Math.min(wanted, length);
        const count = Math.min(most, length - offset);
        for (let granule = 0; granule * 512 < length; granule += 1) {
          const [start, end] = [granule * 512, Math.min(length, (granule + 1) * 512)];
          if (mark && count > 0 && offset < end && start < offset + count) model.add(granule);
          if (!mark && offset <= start && end <= offset + count) model.delete(granule);
        }
        if (mark) bitmap.mark(offset, count);
        else bitmap.clear(offset, count);
        const bytes = [...model].reduce((sum, granule) => sum + Math.min(512, length - granule * 512), 0);
        assert.equal(bitmap.bytes, bytes);
        assert.equal(bitmap.count, model.size);
        assert.equal(bitmap.empty, model.size === 0);
        const any = [...model].some((g) => offset < Math.min(length, g * 512 + 512) && g * 512 < offset + count);
        assert.equal(bitmap.any(offset, count), any && count > 0);
        const ranges = [...bitmap.ranges()];
        assert.equal(
          ranges.reduce((sum, range) => sum + range.length, 0),
          bytes,
        );
        for (const range of ranges) assert.ok(model.has(range.offset / 512));
      }
    }),
    { numRuns: 200 },
  );
});

test('next clips the run to where the search began and ends', () => {
  const bitmap = new DirtyBitmap(10_000, 1024);
  bitmap.mark(1024, 2048);
  assert.deepEqual(bitmap.next(0), { offset: 1024, length: 2048 });
  assert.deepEqual(bitmap.next(1500, 2000), { offset: 1500, length: 500 });
  assert.equal(bitmap.next(3072), null);
  assert.equal(bitmap.next(0, 1024), null);
  bitmap.markAll();
  assert.deepEqual(bitmap.next(9000), { offset: 9000, length: 1000 });
});

test('a granularity that is no power of two, or out of bounds, is refused', () => {
  for (const granularity of [0, 511, 1000, 2 ** 32, Number.NaN]) {
    assert.throws(() => new DirtyBitmap(4096, granularity), /granularity/);
  }
});

test('or joins bitmaps of one shape only', () => {
  const one = new DirtyBitmap(4096, 512);
  const other = new DirtyBitmap(4096, 512);
  other.mark(600, 1);
  one.or(other);
  assert.deepEqual([...one.ranges()], [{ offset: 512, length: 512 }]);
  assert.throws(() => one.or(new DirtyBitmap(4096, 1024)), RangeError);
});
