/** Filters between the disks of a secondary are looked through (spec: replication-filter, "Options"). */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { temporaryFolder } from '../support/temp.ts';
import { checkedEngine } from './checked.ts';
import { assertFilled, fill } from './replication-secondary-world.ts';

const length = 2 ** 20;

/** top -> filter -> over-active -> active -> over-hidden -> hidden -> over-local -> local; each `over-` is a filter. */
async function sideOf(t: TestContext) {
  const checked = checkedEngine(t);
  const { execute, engine } = checked;
  const path = `${await temporaryFolder(t)}/s`;
  const overlay = { driver: 'shadow', file: { driver: 'memory', size: 0 } };
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  for (const node of [
    { driver: 'memory', 'node-name': 'local', size: length },
    { driver: 'blkdebug', 'node-name': 'over-local', image: 'local' },
    { ...overlay, 'node-name': 'hidden', backing: 'over-local' },
    { driver: 'blkdebug', 'node-name': 'over-hidden', image: 'hidden' },
    { ...overlay, 'node-name': 'active', backing: 'over-hidden' },
    { driver: 'blkdebug', 'node-name': 'over-active', image: 'active' },
    { driver: 'replication', 'node-name': 'filter', mode: 'secondary', file: 'over-active', 'top-id': 'top' },
    { driver: 'quorum', 'node-name': 'top', children: ['filter'], 'vote-threshold': 1, 'read-pattern': 'fifo' },
  ]) {
    await execute('blockdev-add', node);
  }
  const more = { type: 'nbd', writable: true };
  await execute('block-export-add', { ...more, id: 's', 'node-name': 'over-local', name: 's' });
  await execute('block-export-add', { ...more, id: 't', 'node-name': 'top', name: 't' });
  const client = async (exportName: string) => {
    const made = await NbdClient.connect(createHost(), { address: { type: 'unix', path }, exportName });
    t.after(() => made.close().catch(() => undefined));
    return made;
  };
  const stage = async () => ((await execute('query-replication')) as { stage: string }[])[0]?.stage;
  const until = async (wanted: string) => {
    for (let i = 0; (await stage()) !== wanted; i += 1) {
      assert.ok(i < 4000, `${wanted} never came`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  };
  return { execute, engine, until, s: await client('s'), top: await client('t') };
}

test('replication-filter: filters between the disks are looked through, by start, checkpoint and failover', async (t) => {
  const { execute, engine, until, s, top } = await sideOf(t);
  await fill(s, 0, length, 1);
  await execute('xen-set-replication', { enable: true, primary: false });
  await fill(s, 0, 8192, 2);
  await fill(top, 4096, 8192, 3);
  await assertFilled(top, 0, 4096, 1);
  await execute('xen-colo-do-checkpoint');
  await assertFilled(top, 0, 8192, 2);
  await fill(s, 0, 8192, 4);
  await fill(top, 8192, 4096, 5);
  await execute('block-export-del', { id: 's', mode: 'hard' });
  await execute('xen-set-replication', { enable: false, primary: false, failover: true });
  await until('done');
  await assertFilled(top, 0, 8192, 2);
  await assertFilled(top, 8192, 4096, 5);
  const disk = new Uint8Array(12_288);
  await engine.graph.find('local').node.read(0, disk);
  assert.deepEqual([disk[0], disk[8192]], [2, 5]);
});

test('failover-failed: a write is split by what active and hidden hold, also below filters', async (t) => {
  const { execute, engine, until, s, top } = await sideOf(t);
  await fill(s, 0, length, 1);
  await execute('xen-set-replication', { enable: true, primary: false });
  await fill(s, 4096, 4096, 2);
  await fill(top, 8192, 4096, 3);
  await execute('block-export-del', { id: 's', mode: 'hard' });
  await execute('blockdev-add', { driver: 'memory', 'node-name': 'commit-top-filter', size: 512 });
  await execute('xen-set-replication', { enable: false, primary: false, failover: true });
  await until('failover-failed');
  await fill(top, 0, 16_384, 6);
  await assertFilled(top, 0, 16_384, 6);
  const disk = new Uint8Array(16_384);
  await engine.graph.find('local').node.read(0, disk);
  assert.deepEqual(
    [0, 4096, 8192, 12_288].map((at) => disk[at]),
    [6, 2, 1, 6],
  );
});
