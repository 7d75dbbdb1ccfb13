/** Closing a secondary while it runs and while it fails over, under load: no hang, nothing left, no half state. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { NbdClient } from '../../src/nbd/client.ts';
import { assertFilled, fill, Secondary } from './replication-secondary-world.ts';

const length = 8 * 2 ** 20;

/** Writes and reads at random until it is told to stop, or its connection ends. */
function load(client: NbdClient, value: number): { stop(): Promise<number> } {
  let stopped = false;
  let done = 0;
  const one = async (): Promise<void> => {
    const bytes = new Uint8Array(8192).fill(value);
    while (!stopped) {
      const offset = Math.floor(Math.random() * (length / 8192)) * 8192;
      try {
        await (Math.random() < 0.6 ? client.write(offset, bytes, 0) : client.read(offset, new Uint8Array(8192)));
        done += 1;
      } catch {
        return;
      }
    }
  };
  const workers = Array.from({ length: 8 }, one);
  return {
    stop: async () => {
      stopped = true;
      await Promise.all(workers);
      return done;
    },
  };
}

async function underLoad(
  t: TestContext,
  slow = false,
): Promise<{ side: Secondary; ends: { stop(): Promise<number> }[] }> {
  const image = { driver: 'memory', size: length };
  const side = await Secondary.open(t, { length, local: { driver: 'blkdebug', image } });
  const [s, top] = [await side.client('d-local'), await side.client('d-top')];
  await fill(s, 0, length, 1);
  await side.start();
  const ends = [load(s, 2), load(top, 3)];
  await new Promise((resolve) => setTimeout(resolve, 30));
  if (slow) {
    const fault = { operation: 'write', 'delay-ms': 100 };
    await side.checked.engine.graph.find('d-local').node.control?.({ action: 'add-fault', fault });
  }
  return { side, ends };
}

test('close: an engine is closed while replication runs under load', async (t) => {
  const { side, ends } = await underLoad(t);
  await side.checked.engine.close();
  for (const end of ends) assert.ok((await end.stop()) > 0);
  assert.deepEqual(side.checked.engine.graph.list(), []);
  assert.deepEqual(side.checked.engine.replicationGroup.members, []);
});

test('close: an engine is closed while it fails over under load', async (t) => {
  const { side, ends } = await underLoad(t, true);
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  await side.failover();
  await side.checked.engine.close();
  for (const end of ends) await end.stop();
  assert.deepEqual(side.checked.engine.graph.list(), []);
  const stages = side.checked.events.filter(({ event }) => event === 'REPLICATION_STAGE').map(({ data }) => data.stage);
  assert.deepEqual(stages, ['running', 'failover', 'failover-failed']);
});

test('close: the filter is closed while it fails over: the commit is cancelled, which counts as failed; all is as before', async (t) => {
  const { side, ends } = await underLoad(t, true);
  for (const end of ends) await end.stop();
  const top = await side.client('d-top');
  await side.run('block-export-del', { id: 's', mode: 'hard' });
  const graph = side.checked.engine.graph;
  const before = new Uint8Array(length);
  await graph.find('d-active').node.read(0, before);
  await side.failover();
  await side.run('block-export-del', { id: 't', mode: 'hard' });
  await side.run('blockdev-del', { 'node-name': 'd-top' });
  await top.close().catch(() => undefined);
  assert.equal(
    side.checked.events.findLast(({ event }) => event === 'REPLICATION_STAGE')?.data.stage,
    'failover-failed',
  );
  const after = new Uint8Array(length);
  await graph.find('d-active').node.read(0, after);
  assert.ok(Buffer.from(before).equals(after), 'the chain shows what it did');
  const names = (await side.list('query-named-block-nodes')).map((node) => String(node['node-name']));
  assert.ok(!names.some((name) => name.startsWith('commit-') || name.startsWith('copy-')), String(names));
  for (const node of ['d-active', 'd-hidden', 'd-local']) await side.run('blockdev-del', { 'node-name': node });
  assert.deepEqual(await side.list('query-replication'), []);
});

test('close: checkpoints, status queries and writers at the same time do no harm to each other', async (t) => {
  const { side, ends } = await underLoad(t);
  const rounds = Array.from({ length: 20 }, () => side.checkpoint());
  const queries = Array.from({ length: 20 }, () => side.run('query-xen-replication-status'));
  await Promise.all(rounds);
  for (const answer of await Promise.all(queries)) assert.deepEqual(answer, { error: false });
  for (const end of ends) assert.ok((await end.stop()) > 0);
  const top = await side.client('d-top');
  const s = await side.client('d-local');
  await fill(s, 0, length, 7);
  await side.checkpoint();
  await assertFilled(top, 0, length, 7);
});
