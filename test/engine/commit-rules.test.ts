/** What `block-commit` takes, shares and gives back, and what it is refused beside. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { writeFlags } from '../../src/block/node.ts';
import { attempt } from '../../src/util/later.ts';
import { parent, writer } from '../block/fixture.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

const size = 2 ** 20;

/** `top` over `middle` over `base`. */
async function chainOf(t: TestContext, base: Record<string, unknown> = {}): Promise<CheckedEngine> {
  const checked = checkedEngine(t);
  const file = { driver: 'memory', size: 0 };
  await checked.execute('blockdev-add', { ...memoryNode('base', size), ...base });
  await checked.execute('blockdev-add', { driver: 'shadow', 'node-name': 'middle', file, backing: 'base' });
  await checked.execute('blockdev-add', { driver: 'shadow', 'node-name': 'top', file, backing: 'middle' });
  return checked;
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let i = 0; !holds(); i += 1) {
    assert.ok(i < 4000, `${what} never came`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

for (const ending of ['cancel', 'complete'] as const) {
  const becomes = ending === 'cancel' ? 'read-only again' : 'as writable as the top was';
  test(`block-commit: a read-only base is written; after ${ending} it is ${becomes}`, async (t) => {
    const { execute, engine } = await chainOf(t, { 'read-only': true });
    const { graph, jobs } = engine;
    const user = await graph.use('top', parent('a user'), writer);
    await attempt(() => user.node.write(0, new Uint8Array(8192).fill(7), writeFlags.none));
    await execute('block-commit', { 'job-id': 'j', device: 'top' });
    assert.equal(graph.find('base').readOnly, false);
    const job = jobs.find('j');
    await until('ready', () => job.status === 'ready');
    await assert.rejects(
      graph.use('base', parent('another'), { needs: 8, shares: 15 }),
      /needs 'resize' on node 'base'/,
    );
    if (ending === 'cancel') job.cancel(true);
    else job.complete();
    await until('the end', () => jobs.list().length === 0);
    assert.equal(graph.find('base').readOnly, ending === 'cancel');
    if (ending === 'complete') {
      await attempt(() => user.node.write(8192, new Uint8Array(512).fill(8), writeFlags.none));
    }
    await user.release();
  });
}

test('block-commit is refused while a job has its device, its top or its base', async (t) => {
  const { execute, engine } = await chainOf(t);
  await execute('blockdev-add', memoryNode('other', size));
  for (const busy of ['top', 'middle', 'base']) {
    await execute('blockdev-mirror', { 'job-id': 'm', device: busy, target: 'other', sync: 'full' });
    const commit = { 'job-id': 'c', device: 'top', 'top-node': 'middle', 'base-node': 'base' };
    await assert.rejects(execute('block-commit', commit), new RegExp(`node '${busy}' is busy.*job 'm' works on it`));
    await execute('block-job-cancel', { device: 'm', force: true });
    await until('the end', () => engine.jobs.list().length === 0);
  }
});

test('blockdev-backup, sync full: it has ended well only when its target is durable', async (t) => {
  const { execute, engine, events } = checkedEngine(t);
  await execute('blockdev-add', memoryNode('disk', size));
  const image = { driver: 'memory', size };
  await execute('blockdev-add', { driver: 'blkdebug', 'node-name': 'target', image });
  const fault = { operation: 'flush', errno: 'EIO' };
  await engine.graph.find('target').node.control?.({ action: 'add-fault', fault });
  await execute('blockdev-backup', { 'job-id': 'b', device: 'disk', target: 'target', sync: 'full' });
  await until('the end', () => engine.jobs.list().length === 0);
  const end = events.find(({ event }) => event === 'BLOCK_JOB_COMPLETED');
  assert.match(String(end?.data.error), /injected EIO/);
});
