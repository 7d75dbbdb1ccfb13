/** Orders that come while the barrier of a checkpoint ends (pair.md 21). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PairEvent } from '../../src/pair/pair-state.ts';
import { agreed, on, stateIn, steps } from './machine.ts';

const orders: Record<string, { readonly event: PairEvent; readonly phase: string }> = {
  'a switchover': { event: { type: 'message', message: { type: 'switch-request' } }, phase: 'switching' },
  'a stop': { event: { type: 'command', command: { name: 'stop' } }, phase: 'stopping' },
};

for (const [name, { event, phase }] of Object.entries(orders)) {
  test(`${name} that comes with the word that a checkpoint failed leaves no writer behind the barrier`, () => {
    const fresh = stateIn('in-step', { session: agreed, checkpointing: true, plan: 'checkpoint', request: 1 });
    const state = { ...fresh, self: { ...fresh.self, overlays: true, lockStep: true } };
    const failed = { type: 'checkpoint-failed', request: 1, reason: 'x' } as const;
    const ends = on(state, { type: 'message', message: failed });
    assert.deepEqual(steps(ends), ['mode in-sync']);
    const ordered = on(ends.state, event);
    assert.equal(ordered.plan, undefined, 'the mode that lets writers go is still to be set');
    const ended = on(ordered.state, { type: 'plan-done', plan: 'end-checkpoint' });
    assert.equal(ended.state.phase, phase);
  });
}
