/** The decisions of a failover that meets a busy primary, or a disk that fails (pair.md 14, 15). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { emptyRecord } from '../../src/pair/generation.ts';
import { decide } from '../../src/pair/pair.ts';
import { type Decision, initialState, type PairEvent, type PairState } from '../../src/pair/pair-state.ts';
import { helloOf, nameOf } from './machine.ts';

const id = '0000000000000001';

/** A secondary that holds a generation. */
function secondary(more: Partial<PairState>, store: 'clean' | 'incomplete'): PairState {
  const base = emptyRecord({ volume: 'v', name: 'beta', role: 'secondary', store, disks: { d: 512 } });
  const fresh = initialState({
    self: {
      name: 'beta',
      peer: 'alpha',
      degraded: 'continue',
      overlays: false,
      durable: false,
      lockStep: false,
      behindMs: 0,
      keepCheckpoint: false,
    },
    record: { ...base, generation: { id, number: 1 } },
    sequence: 5,
    proof: null,
    blank: false,
    built: false,
  });
  return { ...fresh, ...more };
}

const primary = helloOf('alpha', { role: 'primary', generation: { id, number: 1 } });

const on = (state: PairState, event: PairEvent): Decision => decide(state, event, { wallMs: 1000, id });

test('pair 15: a forced failover tells a busy primary again to stop, and goes on when it is gone', () => {
  const state = secondary({ phase: 'detached', connected: true, peer: primary }, 'incomplete');
  const asked = on(state, { type: 'command', command: { name: 'failover', force: true, to: null } });
  assert.deepEqual(asked.now?.map(nameOf), ['send stop-serving', 'retry-later']);
  const again = on(asked.state, { type: 'retry', phase: 'detached' });
  assert.deepEqual(again.now?.map(nameOf), ['send stop-serving', 'retry-later']);
  assert.equal(on(again.state, { type: 'link-lost', reason: 'x' }).state.phase, 'promoting');
});

test('pair 14: a failover that could not make the disks durable opens them anew, so that it can be tried again', () => {
  const state = secondary({ phase: 'promoting', pending: 'failover', plan: 'promote' }, 'clean');
  const failed = on(state, { type: 'plan-failed', plan: 'promote', step: 'flush-own', error: 'EIO' });
  assert.deepEqual(failed.now?.map(nameOf), ['answer']);
  assert.deepEqual(failed.plan?.steps.map(nameOf), ['close-replication', 'reopen-disks', 'drop-link']);
  assert.equal(on(failed.state, { type: 'plan-done', plan: 'reopen' }).state.phase, 'detached');
});

test('pair 7: a session that ended while its sync was being sealed is noted afterwards', () => {
  const state = secondary({ phase: 'detaching', plan: 'detach-secondary', asOfMs: 700 }, 'clean');
  const again = on(state, { type: 'plan-done', plan: 'detach-secondary' });
  const [change] = (again.plan?.steps ?? []).flatMap((step) => (step.do === 'commit' ? [step.change] : []));
  assert.deepEqual(change?.latest, { asOfMs: 700, goodbye: false });
  const record = { ...state.record, latest: { asOfMs: 700, goodbye: false } };
  const noted = on({ ...again.state, record }, { type: 'plan-done', plan: 'detach-secondary' });
  assert.equal(noted.state.phase, 'detached');
});

test('pair 10: a failover that waited is refused if the session had just made this side incomplete', () => {
  const waiting = secondary({ phase: 'detaching', plan: 'detach-secondary', pending: 'failover' }, 'incomplete');
  const refused = on(waiting, { type: 'plan-done', plan: 'detach-secondary' });
  assert.equal(refused.state.phase, 'detached');
  assert.ok(refused.now?.some((step) => step.do === 'answer' && step.error !== null));
  const forced = on({ ...waiting, forced: true }, { type: 'plan-done', plan: 'detach-secondary' });
  assert.equal(forced.state.phase, 'promoting');
});
