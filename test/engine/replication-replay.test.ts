/** The table of replication-filter.md, "A run, as a table to replay", over QMP and NBD. */

import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { NbdClient } from '../../src/nbd/client.ts';
import { assertFilled, eio, fill, Secondary } from './replication-secondary-world.ts';

const length = 64 * 2 ** 20;
const half = length / 2;

interface Run {
  readonly side: Secondary;
  /** the secondary disk's export */
  readonly s: NbdClient;
  /** the top of the secondary's graph */
  readonly t: NbdClient;
}

async function filled(t: TestContext): Promise<Run> {
  const side = await Secondary.open(t, { length });
  const run = { side, s: await side.client('d-local'), t: await side.client('d-top') };
  await fill(run.s, 0, length, 0x11);
  return run;
}

async function started(t: TestContext): Promise<Run> {
  const run = await filled(t);
  await run.side.start();
  return run;
}

test('replay: before start, read or write T is EIO', async (t) => {
  const { t: top } = await filled(t);
  await eio(Promise.resolve(top.read(0, new Uint8Array(512))));
  await eio(Promise.resolve(top.write(0, new Uint8Array(512), 0)));
});

test('replay: start; read T is what S was filled with, everywhere', async (t) => {
  const { t: top, side } = await started(t);
  await assertFilled(top, 0, length, 0x11);
  assert.deepEqual(await side.list('query-jobs'), [], 'the internal job is not listed');
  assert.deepEqual(await side.list('query-block-jobs'), []);
});

test('replay: write S, second half; read T second half is old content, from hidden', async (t) => {
  const { s, t: top } = await started(t);
  await fill(s, half, half, 0x22);
  await assertFilled(top, half, half, 0x11);
  await assertFilled(s, half, half, 0x22);
});

test('replay: write T, first half; read T first half is what was written', async (t) => {
  const { s, t: top } = await started(t);
  await fill(top, 0, half, 0x33);
  await assertFilled(top, 0, half, 0x33);
  await assertFilled(s, 0, half, 0x11);
});

test('replay: checkpoint; read T second half is the primary’s write, and T’s own are gone', async (t) => {
  const { s, t: top, side } = await started(t);
  await fill(s, half, half, 0x22);
  await fill(top, 0, half, 0x33);
  await side.checkpoint();
  await assertFilled(top, half, half, 0x22);
  await assertFilled(top, 0, half, 0x11);
});

test('replay: failover: T keeps its own writes over the last checkpoint, not the primary’s later ones', async (t) => {
  const { s, t: top, side } = await started(t);
  await fill(s, half, half, 0x22);
  await fill(top, 0, half, 0x33);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.failover();
  await side.untilStage('done');
  await assertFilled(top, 0, half, 0x33);
  await assertFilled(top, half, half, 0x11);

  // After done: start as primary, checkpoint, stop are ignored, and it reads as before.
  await side.run('xen-set-replication', { enable: true, primary: true });
  await side.checkpoint();
  await side.stop();
  await assertFilled(top, 0, half, 0x33);
  await fill(top, half, 4096, 0x44);
  await assertFilled(top, half, 4096, 0x44);
  const stages = side.checked.events.filter(({ event }) => event === 'REPLICATION_STAGE').map(({ data }) => data.stage);
  assert.deepEqual(stages, ['running', 'failover', 'done']);
});

test('replay: stop without failover; read T is as before the stop: nothing was emptied', async (t) => {
  const { s, t: top, side } = await started(t);
  await fill(s, half, half, 0x22);
  await fill(top, 0, half, 0x33);
  await side.stop();
  assert.equal(await side.stage(), 'done');
  await assertFilled(top, 0, half, 0x33);
  await assertFilled(top, half, half, 0x11);
});
