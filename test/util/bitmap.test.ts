import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Bitmap, bitmapBitsMax } from '../../src/util/bitmap.ts';

/** What a bitmap means: an array of booleans. */
function nextOf(model: readonly boolean[], value: boolean, from: number, end: number): number {
  for (let i = from; i < Math.min(end, model.length); i += 1) if (model[i] === value) return i;
  return -1;
}

const change = fc.record({
  kind: fc.constantFrom('set', 'clear', 'clearAll', 'or'),
  from: fc.nat(5000),
  count: fc.oneof(fc.nat(3), fc.nat(70), fc.nat(5000)),
});

test('a bitmap does what an array of booleans does, whatever its size', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 5000 }), fc.array(change, { maxLength: 30 }), (bits, changes) => {
      const bitmap = new Bitmap(bits);
      const model: boolean[] = new Array<boolean>(bits).fill(false);
      for (const { kind, from: wanted, count: most } of changes) {
        const from = Math.min(wanted, bits);
        const count = Math.min(most, bits - from);
        if (kind === 'clearAll') {
          bitmap.clearAll();
          model.fill(false);
        } else if (kind === 'or') {
          const other = new Bitmap(bits);
          other.set(from, count);
          bitmap.or(other);
          model.fill(true, from, from + count);
        } else {
          bitmap[kind as 'set' | 'clear'](from, count);
          model.fill(kind === 'set', from, from + count);
        }
        assert.equal(bitmap.count, model.filter(Boolean).length);
        assert.equal(bitmap.nextSet(from), nextOf(model, true, from, bits));
        assert.equal(bitmap.nextClear(from), nextOf(model, false, from, bits));
        const end = Math.min(bits, from + 40);
        assert.equal(bitmap.nextSet(from, end), nextOf(model, true, from, end));
        assert.equal(bitmap.nextClear(from, end), nextOf(model, false, from, end));
        assert.equal(bitmap.any(from, count), model.slice(from, from + count).includes(true));
      }
      for (const [i, value] of model.entries()) assert.equal(bitmap.get(i), value);
    }),
    { numRuns: 300 },
  );
});

test('a bitmap of half a billion bits finds, joins and clears its last bit', () => {
  const bits = 2 ** 29;
  const bitmap = new Bitmap(bits);
  bitmap.set(bits - 1, 1);
  const other = new Bitmap(bits);
  other.or(bitmap);
  assert.equal(other.nextSet(0), bits - 1);
  assert.equal(other.nextClear(bits - 1), -1);
  other.clearAll();
  assert.equal(other.nextSet(0), -1);
});

test('a bitmap counts above what 32 bits hold, and says what to do where it cannot', () => {
  const bits = 2 ** 33 + 5;
  const bitmap = new Bitmap(bits);
  const runs = [
    [2 ** 32 - 40, 80],
    [2 ** 32 + 2 ** 31, 1],
    [bits - 3, 3],
  ] as const;
  for (const [from, count] of runs) bitmap.set(from, count);
  assert.equal(bitmap.count, 84);
  assert.equal(bitmap.get(2 ** 32 + 39), true);
  assert.equal(bitmap.get(39), false);
  const other = new Bitmap(bits);
  other.or(bitmap);
  let at = 0;
  for (const [from, count] of runs) {
    assert.equal(other.nextSet(at), from);
    at = other.nextClear(from);
    assert.equal(at, from + count === bits ? -1 : from + count);
  }
  other.clear(2 ** 32 - 32, 64);
  assert.equal(other.count, 20);
  assert.equal(other.nextSet(2 ** 32 - 32), 2 ** 32 + 32);
  bitmap.clearAll();
  assert.equal(bitmap.nextSet(0), -1);
  assert.throws(() => new Bitmap(bitmapBitsMax + 1), /say a larger granularity/);
});

test('a range outside a bitmap is refused', () => {
  const bitmap = new Bitmap(10);
  assert.throws(() => bitmap.set(5, 6), RangeError);
  assert.throws(() => bitmap.clear(-1, 1), RangeError);
  assert.throws(() => bitmap.get(10), RangeError);
});
