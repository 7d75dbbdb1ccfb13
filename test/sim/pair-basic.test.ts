/** The pair on simulated machines, one sequence of events a test. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PairWorld } from './pair-world.ts';

test('pair 10, 13: two fresh sides come in step, and a flushed write is on both', async () => {
  const pair = new PairWorld(1);
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  await pair.world.complete(user.flush());
  pair.assertEqual();
  const status = await pair.status('alpha');
  assert.equal(status.role, 'primary');
  assert.equal(status.inSync, true);
  assert.equal(status.aloneSince, null);
  assert.equal((await pair.status('beta')).generation?.id, status.generation?.id);
});
