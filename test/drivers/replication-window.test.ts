/** The ring of the window against a plain list. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ReplicationWindow, type WindowPiece, windowPiecesMax } from '../../src/drivers/replication-window.ts';
import { fc, seeded } from './replication-world.ts';

const step = fc.oneof(
  fc.record({ do: fc.constant('take' as const), length: fc.integer({ min: 0, max: 70 }) }),
  fc.record({ do: fc.constant('give-back' as const), which: fc.nat(20) }),
);

test('pair 2: a piece keeps its bytes until it is given back, in whatever order; an empty window takes all it has', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const window = new ReplicationWindow(64);
      const taken: { piece: WindowPiece; value: number; length: number }[] = [];
      let value = 0;
      for (const one of steps) {
        if (one.do === 'take') {
          value = (value + 1) % 256;
          const piece = window.take(new Uint8Array(one.length).fill(value));
          if (piece === null) assert.ok(one.length > 64 || taken.length > 0, 'an empty ring refuses nothing that fits');
          else taken.push({ piece, value, length: one.length });
          assert.ok(taken.reduce((sum, { length }) => sum + length, 0) <= 64, 'never more than its size');
        } else if (taken.length > 0) {
          const [gone] = taken.splice(one.which % taken.length, 1);
          if (gone !== undefined) window.giveBack(gone.piece);
        }
        assert.equal(window.empty, taken.length === 0);
        for (const each of taken) {
          assert.deepEqual(each.piece.bytes, new Uint8Array(each.length).fill(each.value));
        }
      }
      for (const { piece } of taken) window.giveBack(piece);
      const whole = window.take(new Uint8Array(64));
      assert.ok(whole !== null);
    }),
    seeded(500),
  );
});

test('pair 2: requests without bytes are bounded in number', () => {
  const window = new ReplicationWindow(4096);
  const pieces: WindowPiece[] = [];
  for (let piece = window.takeEmpty(); piece !== null; piece = window.takeEmpty()) pieces.push(piece);
  assert.equal(pieces.length, windowPiecesMax);
  const [first] = pieces;
  if (first !== undefined) window.giveBack(first);
  assert.ok(window.takeEmpty() !== null);
});
