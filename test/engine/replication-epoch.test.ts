/** Checkpoints of a group whose owner makes them durable: prepare, commit and abort over overlays of one epoch. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { temporaryFolder } from '../support/temp.ts';
import { type CheckedEngine, checkedEngine } from './checked.ts';
import { assertFilled, fill } from './replication-secondary-world.ts';

const length = 64 * 2 ** 20;

interface Side extends CheckedEngine {
  client(name: string): Promise<NbdClient>;
  rows(): Promise<Record<string, unknown>[]>;
  until(what: string, holds: () => Promise<boolean>): Promise<void>;
}

/** Disks a and b; their overlays are files, so that they can be opened again. */
async function sideOf(t: TestContext, folder: string, epoch: number, starts = true): Promise<Side> {
  const checked = checkedEngine(t);
  const { execute } = checked;
  const path = join(folder, `${epoch}.sock`);
  await execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  const { files } = createHost();
  for (const d of ['a', 'b']) {
    for (const file of [`${d}-disk`, `${d}-hidden`, `${d}-active`]) {
      const opened = await files.open(join(folder, file), { access: 'write', create: 'if-missing' });
      if (file.endsWith('disk') && opened.size() === 0) await opened.truncate(length);
      await opened.close();
    }
    const image = { driver: 'file', filename: join(folder, `${d}-disk`) };
    await execute('blockdev-add', { driver: 'blkdebug', 'node-name': `${d}-local`, image });
    for (const [name, backing] of [
      ['hidden', `${d}-local`],
      ['active', `${d}-hidden`],
    ]) {
      const file = { driver: 'file', filename: join(folder, `${d}-${name}`) };
      const options = { driver: 'shadow', 'node-name': `${d}-${name}`, file, backing, epoch, 'grow-bytes': 65536 };
      await execute('blockdev-add', options);
    }
    const filter = { driver: 'replication', mode: 'secondary', 'top-id': `${d}-top`, file: `${d}-active` };
    await execute('blockdev-add', { ...filter, 'node-name': `${d}-top` });
    await execute('block-export-add', { type: 'nbd', id: `${d}-s`, 'node-name': `${d}-local`, writable: true });
    await execute('block-export-add', { type: 'nbd', id: `${d}-t`, 'node-name': `${d}-top`, writable: true });
  }
  const rows = async () => (await execute('query-replication')) as Record<string, unknown>[];
  const client = async (exportName: string) => {
    const made = await NbdClient.connect(createHost(), { address: { type: 'unix', path }, exportName });
    t.after(() => made.close().catch(() => undefined));
    return made;
  };
  const until = async (what: string, holds: () => Promise<boolean>) => {
    for (let i = 0; !(await holds()); i += 1) {
      assert.ok(i < 4000, `${what} never came`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  };
  if (starts) await execute('xen-set-replication', { enable: true, primary: false });
  return { ...checked, client, rows, until };
}

test('pair 22: prepare holds the users of all disks; commit forgets the old of all at once, abort of none', async (t) => {
  const side = await sideOf(t, await temporaryFolder(t), 1);
  const [as, at, bs, bt] = await Promise.all(['a-local', 'a-top', 'b-local', 'b-top'].map(side.client));
  if (as === undefined || at === undefined || bs === undefined || bt === undefined) return assert.fail();
  for (const s of [as, bs]) await fill(s, 0, 65536, 1);
  for (const top of [at, bt]) {
    await assertFilled(top, 0, 65536, 0);
    await fill(top, 65536, 4096, 9);
  }
  await side.execute('replication-prepare');
  assert.deepEqual(
    (await side.rows()).map((row) => row.prepared),
    [true, true],
  );
  let answered = 0;
  const held = [as, bs].map((s) =>
    Promise.resolve(s.write(0, new Uint8Array(4096).fill(2), 0)).then(() => (answered += 1)),
  );
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(answered, 0);
  await assert.rejects(side.execute('replication-prepare'), /a checkpoint is prepared/);
  await assert.rejects(side.execute('xen-colo-do-checkpoint'), /a checkpoint is prepared/);
  await side.execute('replication-commit', { epoch: 2 });
  await Promise.all(held);
  for (const top of [at, bt]) {
    await assertFilled(top, 0, 65536, 1);
    await assertFilled(top, 65536, 4096, 0);
  }
  await assert.rejects(side.execute('replication-commit', { epoch: 3 }), /no checkpoint is prepared/);

  await side.execute('replication-prepare');
  await side.execute('replication-abort');
  await side.execute('replication-abort');
  await fill(as, 0, 4096, 3);
  await assertFilled(at, 0, 65536, 1);
  // By hand it cannot be made: nobody would make the epoch durable.
  await assert.rejects(side.execute('xen-colo-do-checkpoint'), /replication-prepare and replication-commit/);
  await assertFilled(at, 0, 65536, 1);
  await assert.rejects(side.execute('replication-commit', { epoch: 0 }), /epoch/);
});

test('pair 22: a failed prepare of one disk leaves everything as it was; a stop gives a prepared checkpoint up', async (t) => {
  const side = await sideOf(t, await temporaryFolder(t), 1);
  const as = await side.client('a-local');
  const at = await side.client('a-top');
  await fill(as, 0, 8192, 1);
  const { node } = side.engine.graph.find('a-local');
  await node.control?.({ action: 'add-fault', fault: { operation: 'flush', errno: 'EIO', count: 1 } });
  await assert.rejects(side.execute('replication-prepare'), /injected EIO/);
  assert.deepEqual(
    (await side.rows()).map(({ prepared, stage }) => [prepared, stage]),
    [
      [false, 'running'],
      [false, 'running'],
    ],
  );
  await fill(as, 0, 4096, 2);
  await assertFilled(at, 0, 8192, 0);
  await side.execute('replication-prepare');
  await side.execute('xen-set-replication', { enable: false, primary: false });
  await fill(as, 0, 4096, 3);
  await assert.rejects(side.execute('replication-commit', { epoch: 2 }), /no checkpoint is prepared/);
});

test('record-log 9: a start over a kept hidden takes what it holds as copied: the checkpoint is still the last one', async (t) => {
  const folder = await temporaryFolder(t);
  const first = await sideOf(t, folder, 5);
  const s = await first.client('a-local');
  await fill(s, 0, 65536, 1);
  await s.flush();
  await first.engine.close();

  const again = await sideOf(t, folder, 5);
  const [s2, t2] = [await again.client('a-local'), await again.client('a-top')];
  await assertFilled(t2, 0, 65536, 0);
  await fill(s2, 0, 131072, 2);
  await assertFilled(t2, 0, 131072, 0);
  await assertFilled(s2, 0, 131072, 2);
  await again.execute('replication-prepare');
  await again.execute('replication-commit', { epoch: 6 });
  await assertFilled(t2, 0, 131072, 2);
  await again.engine.close();

  // The epoch that its owner holds decides: what is of another is not there.
  const third = await sideOf(t, folder, 6);
  await assertFilled(await third.client('a-top'), 0, 131072, 2);
});

test('record-log 9: a write that comes while the job learns what was kept changes nothing of the last checkpoint', async (t) => {
  const folder = await temporaryFolder(t);
  const first = await sideOf(t, folder, 5);
  const s = await first.client('a-local');
  // At the end of the disk, so that it takes a while until it is found.
  const kept = length - 65536;
  await fill(s, kept, 65536, 1);
  await s.flush();
  await first.engine.close();

  const again = await sideOf(t, folder, 5, false);
  const { graph } = again.engine;
  const [reads, writes] = [await again.client('a-local'), await again.client('a-local')];
  // The start waits for this read; the write stands behind it and is let go as soon as anybody is.
  const fault = { operation: 'read', 'delay-ms': 100, count: 1 };
  await graph.find('a-local').node.control?.({ action: 'add-fault', fault });
  const slow = reads.read(0, new Uint8Array(512));
  const started = again.execute('xen-set-replication', { enable: true, primary: false });
  await again.until('the filter', async () => graph.list().some(({ nodeName }) => nodeName.endsWith('-a-top')));
  await Promise.all([slow, fill(writes, kept, 65536, 2), started]);
  await assertFilled(await again.client('a-top'), kept, 65536, 0);
});

test('record-log 10: the commit keeps both in step until its owner has made the end durable; then the disk takes over', async (t) => {
  const side = await sideOf(t, await temporaryFolder(t), 1);
  const [as, at] = [await side.client('a-local'), await side.client('a-top')];
  await fill(as, 0, 65536, 1);
  await side.execute('replication-prepare');
  await side.execute('replication-commit', { epoch: 2 });
  await fill(as, 0, 32768, 2);
  await fill(at, 131072, 65536, 3);
  for (const id of ['a-s', 'b-s']) await side.execute('block-export-del', { id, mode: 'hard' });
  await side.execute('x-colo-lost-heartbeat');
  await side.until('the end of the copying', async () =>
    (await side.rows()).every(({ commit }) => (commit as { status: string } | null)?.status === 'ready'),
  );
  const ready = side.events.filter(({ event }) => event === 'REPLICATION_COMMIT_READY').map(({ data }) => data.node);
  assert.deepEqual(new Set(ready), new Set(['a-top', 'b-top']));
  // Not over yet: writes reach the overlays and the disk.
  await fill(at, 300_000, 5000, 4);
  const disk = new Uint8Array(5000);
  await side.engine.graph.find('a-local').node.read(300_000, disk);
  assert.ok(disk.every((byte) => byte === 4));
  assert.deepEqual(
    (await side.rows()).map(({ stage }) => stage),
    ['failover', 'failover'],
  );
  await side.execute('replication-prepare');
  await side.execute('replication-abort');
  await fill(at, 300_000, 5000, 5);
  await side.execute('replication-prepare');
  await side.execute('replication-commit', { epoch: 3 });
  assert.deepEqual(
    (await side.rows()).map(({ stage, error }) => [stage, error]),
    [
      ['done', null],
      ['done', null],
    ],
  );
  const active = side.engine.graph.find('a-active').node.info?.();
  assert.deepEqual([active?.['held-bytes'], active?.epoch], [0, 3]);
  await assertFilled(at, 0, 65536, 1);
  await assertFilled(at, 131072, 65536, 3);
  await assertFilled(at, 300_000, 5000, 5);
  await fill(at, 0, 4096, 6);
  await assertFilled(at, 0, 4096, 6);
  await at.flush();
});
