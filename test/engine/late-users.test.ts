/** Who comes to a node while a job watches it: what they write must not pass the job by. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { writeFlags } from '../../src/block/node.ts';
import { attempt } from '../../src/util/later.ts';
import { parent, reader, writer } from '../block/fixture.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

const size = 2 ** 20;

/** `disk` is an overlay over `base`; `other` is as long. */
async function engineOf(t: TestContext): Promise<CheckedEngine> {
  const checked = checkedEngine(t);
  const file = { driver: 'memory', size: 0 };
  for (const name of ['base', 'other']) await checked.execute('blockdev-add', memoryNode(name, size));
  await checked.execute('blockdev-add', { driver: 'shadow', 'node-name': 'disk', file, backing: 'base' });
  return checked;
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let i = 0; !holds(); i += 1) {
    assert.ok(i < 4000, `${what} never came`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const jobs = [
  ['blockdev-mirror', { target: 'other', sync: 'full' }, 'other', 7],
  ['blockdev-backup', { target: 'other', sync: 'none' }, 'other', 1],
  ['block-commit', { 'base-node': 'base' }, 'base', 7],
] as const;

for (const used of [true, false]) {
  for (const [command, more, copy, expected] of jobs) {
    const whose = used ? 'that has a user already' : 'that nobody uses yet';
    test(`${command} of a node ${whose}: who comes late writes through its filter, or is refused`, async (t) => {
      const { execute, engine } = await engineOf(t);
      const { graph } = engine;
      const first = await graph.use('disk', parent('the first'), writer);
      await attempt(() => first.node.write(0, new Uint8Array(size).fill(1), writeFlags.none));
      if (!used) await first.release();
      await execute(command, { 'job-id': 'j', device: 'disk', 'filter-node-name': 'filter', ...more });
      const job = engine.jobs.find('j');
      if (command !== 'blockdev-backup') await until('ready', () => job.status === 'ready');
      const late = graph.use('disk', parent('the late one'), writer);
      await assert.rejects(late, {
        code: 'permission-conflict',
        message: /the late one needs 'write' on node 'disk', which its use by node 'filter' as 'file' does not allow/,
      });
      await (await graph.use('disk', parent('a reader'), reader)).release();
      const through = await graph.use('filter', parent('the late one'), writer);
      await attempt(() => through.node.write(4096, new Uint8Array(4096).fill(7), writeFlags.none));
      if (command === 'blockdev-backup') job.cancel(false);
      else job.complete();
      await until('the end', () => engine.jobs.list().length === 0);
      const bytes = new Uint8Array(4096);
      await graph.find(copy).node.read(4096, bytes);
      assert.ok(bytes.every((byte) => byte === expected));
      // When the filter is gone the node is anybody's again.
      await through.release();
      if (used) await first.release();
      await (await graph.use('disk', parent('the late one'), writer)).release();
    });
  }
}
