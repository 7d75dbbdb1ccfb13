/** What a start makes of its overlays, as a table (record-log.md 8, 9): what is kept, rolled back or given up. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { emptyRecord, type GroupRecord } from '../../src/pair/generation.ts';
import { givenUp, type Restart, restartOf } from '../../src/pair/restart.ts';

const base: GroupRecord = {
  ...emptyRecord({ volume: 'v', name: 'a', role: 'secondary', store: 'clean', disks: { d: 512 } }),
  generation: { id: '1'.repeat(16), number: 1 },
  ancestors: ['2'.repeat(16)],
  epoch: 5,
  lockStep: null,
};
const checkpoint = { number: 3, atMs: 1 };
const standby = { store: 'overlays', mode: 'standby' } as const;
const lockStep = { store: 'overlays', mode: 'lock-step' } as const;
const mirror = { store: 'mirror', mode: 'standby' } as const;

test('record-log 9: only a mixture, and in lock-step every disk, is rolled back by itself', () => {
  const table: [change: Partial<GroupRecord>, config: Parameters<typeof restartOf>[1], then: Restart][] = [
    [{}, standby, 'none'],
    [{}, lockStep, 'none'],
    [{ store: 'incomplete' }, standby, 'none'],
    // A mixture of which nothing leads back.
    [{ store: 'resync' }, standby, 'give-up'],
    [{ checkpoint }, standby, 'keep'],
    [{ checkpoint, store: 'resync' }, standby, 'roll-back'],
    [{ checkpoint }, lockStep, 'roll-back'],
    [{ checkpoint, rolledBack: true }, lockStep, 'roll-back'],
    [{ checkpoint, store: 'resync' }, lockStep, 'roll-back'],
    [{ checkpoint, store: 'incomplete' }, lockStep, 'keep'],
    // How the disk got what it holds counts, not the mode of this start.
    [{ checkpoint, lockStep: true }, standby, 'roll-back'],
    [{ checkpoint, lockStep: false }, lockStep, 'keep'],
    [{ checkpoint }, mirror, 'give-up'],
    [{ checkpoint, store: 'resync' }, mirror, 'give-up'],
    [{ role: 'primary', checkpoint }, standby, 'none'],
    [{ role: 'primary', checkpoint, promoting: 'latest' }, standby, 'none'],
    [{ role: 'primary', checkpoint, promoting: 'checkpoint' }, standby, 'keep'],
  ];
  for (const [change, config, then] of table) {
    assert.equal(restartOf({ ...base, ...change }, config), then, `${JSON.stringify(change)} ${config.mode}`);
  }
});

test('record-log 8: without its checkpoint a disk is the latest write, unless it is a mixture or on the way back', () => {
  const without = { checkpoint: null, epoch: 6, rolledBack: false };
  const record: GroupRecord = { ...base, checkpoint, rolledBack: true };
  assert.deepEqual(givenUp(record, standby), without);
  assert.deepEqual(givenUp({ ...record, store: 'incomplete' }, lockStep), without);
  assert.deepEqual(givenUp({ ...record, store: 'resync' }, standby), { ...without, store: 'incomplete' });
  assert.deepEqual(givenUp(record, lockStep), { ...without, store: 'incomplete' });
  assert.deepEqual(givenUp({ ...record, lockStep: true }, standby), { ...without, store: 'incomplete' });
  assert.deepEqual(givenUp({ ...record, lockStep: false }, lockStep), without);
  assert.deepEqual(givenUp({ ...record, role: 'primary', promoting: 'checkpoint' }, standby), {
    ...without,
    role: 'secondary',
    promoting: null,
    store: 'incomplete',
    generation: null,
    ancestors: [],
  });
});
