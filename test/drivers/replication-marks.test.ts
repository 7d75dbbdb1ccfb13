/** The bitmaps against a model that knows every write and every proof (pair.md 4), alone and under a whole filter. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bitmapRangesMax, ReplicationMarks } from '../../src/drivers/replication-marks.ts';
import { BlockError } from '../../src/util/errors.ts';
import { bytes, fc, ReplicationWorld, seeded, settleTurns, watch } from './replication-world.ts';

const block = 512;
const blocks = 32;

/** What a block is in the model. */
interface Block {
  missing: boolean;
  written: boolean;
  proving: boolean;
}

const range = fc
  .tuple(fc.nat(blocks * block - 1), fc.integer({ min: 1, max: 5 * block }))
  .map(([offset, length]) => ({ offset, length: Math.min(length, blocks * block - offset) }));

const step = fc.oneof(
  range.map((at) => ({ do: 'write' as const, ...at })),
  range.map((at) => ({ do: 'miss' as const, ...at })),
  fc.record({ do: fc.constant('copy' as const), first: fc.nat(blocks - 1), count: fc.integer({ min: 1, max: 4 }) }),
  fc.constantFrom({ do: 'begin' as const }, { do: 'prove' as const }, { do: 'fail' as const }),
  fc.constantFrom({ do: 'unproven' as const }),
);

test('pair 4: mayDiffer and missing are exactly what a model of writes and proofs says', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const marks = new ReplicationMarks(blocks * block, block);
      const model: Block[] = Array.from({ length: blocks }, () => ({ missing: false, written: false, proving: false }));
      const touched = (offset: number, length: number): Block[] =>
        model.slice(Math.floor(offset / block), Math.ceil((offset + length) / block));
      let proving = false;
      for (const one of steps) {
        switch (one.do) {
          case 'write':
            marks.markWritten(one.offset, one.length);
            for (const each of touched(one.offset, one.length)) each.written = true;
            break;
          case 'miss':
            marks.markMissing(one.offset, one.length);
            for (const each of touched(one.offset, one.length)) each.missing = true;
            break;
          case 'copy': {
            const count = Math.min(one.count, blocks - one.first);
            marks.markCopied(one.first * block, count * block);
            for (const each of model.slice(one.first, one.first + count))
              Object.assign(each, { missing: false, written: true });
            break;
          }
          case 'begin':
            if (proving) break;
            proving = true;
            marks.beginProof();
            for (const each of model) Object.assign(each, { proving: each.written, written: false });
            break;
          case 'prove':
          case 'fail':
            if (!proving) break;
            proving = false;
            marks.endProof(one.do === 'prove');
            for (const each of model) {
              if (one.do === 'fail') each.written ||= each.proving;
              each.proving = false;
            }
            break;
          case 'unproven':
            marks.markUnprovenMissing();
            for (const each of model) each.missing ||= each.written || each.proving;
            break;
        }
        const differs = model.map((each) => each.missing || each.written || each.proving);
        assert.equal(marks.missingBytes, model.filter(({ missing }) => missing).length * block);
        assert.equal(marks.mayDifferBytes, differs.filter(Boolean).length * block);
        assert.deepEqual(
          differs.map((_, index) => marks.mayDiffer(index * block, block)),
          differs,
        );
        const told = marks
          .bitmap([])
          .mayDiffer.flatMap(([offset, length]) =>
            Array.from({ length: length / block }, (_, i) => offset / block + i),
          );
        assert.deepEqual(
          told,
          differs.flatMap((each, index) => (each ? [index] : [])),
        );
      }
    }),
    seeded(300),
  );
});

test('pair 4: too many ranges are joined with what lies between: a superset, within the limit', () => {
  const count = 3 * bitmapRangesMax;
  const marks = new ReplicationMarks(2 * count * block, block);
  for (let i = 0; i < count; i += 1) marks.markMissing(2 * i * block, block);
  const { mayDiffer, missingBytes } = marks.bitmap([]);
  assert.ok(mayDiffer.length <= bitmapRangesMax);
  assert.equal(missingBytes, count * block);
  let at = 0;
  for (let i = 0; i < count; i += 1) {
    while ((mayDiffer[at]?.[0] ?? 0) + (mayDiffer[at]?.[1] ?? 0) <= 2 * i * block) at += 1;
    const [offset, length] = mayDiffer[at] ?? [0, 0];
    assert.ok(offset <= 2 * i * block && (2 * i + 1) * block <= offset + length);
  }
});

test('pair 4: a block leaves mayDiffer exactly when a flush that went out after its writes were answered succeeds', async () => {
  const use = fc.oneof(
    fc.record({ do: fc.constant('write' as const), at: fc.nat(15) }),
    fc.record({ do: fc.constant('flush' as const), how: fc.constantFrom('done', 'done', 'lost', 'error') }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(use, { maxLength: 25 }), async (steps) => {
      const world = new ReplicationWorld();
      const filter = await world.recordFilter(16 * block, { acknowledge: 'flush', granularity: block });
      await world.group.start('primary');
      filter.remote.mode = 'by-hand';
      const unproven = new Set<number>();
      const missing = new Set<number>();
      for (const one of steps) {
        if (one.do === 'write') {
          watch(() => filter.use.node.write(one.at * block, bytes(block, 1), 0));
          unproven.add(one.at);
        } else {
          const flush = watch(() => filter.use.node.flush());
          while (filter.remote.waiting('write').length > 0) filter.remote.answer(filter.remote.waiting('write')[0]);
          await settleTurns(2);
          // A write that comes while the flush is under way is not covered by it.
          watch(() => filter.use.node.write(0, bytes(block, 2), 0));
          const code = one.how === 'lost' ? 'connection-lost' : 'io-error';
          const error = one.how === 'done' ? undefined : new BlockError(code, 'no');
          filter.remote.answer(filter.remote.waiting('flush')[0], error);
          await settleTurns(2);
          assert.ok(flush.done);
          if (one.how === 'done') unproven.clear();
          unproven.add(0);
          // What a side could not make durable it may have dropped: none of it counts as being there.
          if (one.how === 'error') for (const each of unproven) missing.add(each);
        }
        const info = world.group.info()[0];
        assert.equal(info?.['may-differ-bytes'], new Set([...unproven, ...missing]).size * block);
        assert.equal(info?.['missing-bytes'], missing.size * block);
      }
    }),
    seeded(60),
  );
});
