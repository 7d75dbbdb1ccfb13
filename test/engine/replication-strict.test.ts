/**
 * The replication filter called directly, without the group that passes over members (spec: replication-filter, "The
 * filter itself, called directly, is strict"): every operation in every stage.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { ReplicationMember, ReplicationStage } from '../../src/block/replication-group.ts';
import { attempt } from '../../src/util/later.ts';
import { checkedEngine, memoryNode } from './checked.ts';
import { fill, Secondary } from './replication-secondary-world.ts';

const length = 2 ** 20;
const blkdebug = { driver: 'blkdebug', image: { driver: 'memory', size: length } };

interface Filter {
  readonly member: ReplicationMember;
  stageEvents(): number;
}

/** What leads a secondary to a stage. */
async function secondaryIn(t: TestContext, stage: ReplicationStage): Promise<Filter> {
  const side = await Secondary.open(t, { length, local: blkdebug });
  const { engine, events } = side.checked;
  const member = engine.replicationGroup.find('d-top');
  const s = await side.client('d-local');
  await fill(s, 0, 65_536, 1);
  if (stage !== 'none') await side.start();
  if (stage === 'done') await side.stop();
  if (stage === 'failover' || stage === 'failover-failed') {
    await fill(s, 0, 65_536, 2);
    await side.run('block-export-del', { id: 's', mode: 'hard' });
    const fault = stage === 'failover' ? { 'delay-ms': 200 } : { errno: 'EIO' };
    await engine.graph.find('d-local').node.control?.({ action: 'add-fault', fault: { operation: 'write', ...fault } });
    await side.failover();
    await side.untilStage(stage);
  }
  return { member, stageEvents: () => events.filter(({ event }) => event === 'REPLICATION_STAGE').length };
}

async function primaryIn(t: TestContext, stage: ReplicationStage): Promise<Filter> {
  const { execute, engine, events } = checkedEngine(t);
  await execute('blockdev-add', memoryNode('n'));
  await execute('blockdev-add', { driver: 'replication', mode: 'primary', 'node-name': 'd-top', file: 'n' });
  if (stage !== 'none') await execute('xen-set-replication', { enable: true, primary: true });
  if (stage === 'done') await execute('xen-set-replication', { enable: false, primary: true });
  const member = engine.replicationGroup.find('d-top');
  return { member, stageEvents: () => events.filter(({ event }) => event === 'REPLICATION_STAGE').length };
}

const operations = {
  start: (one: ReplicationMember) => one.start(one.mode),
  checkpoint: async (one: ReplicationMember) => {
    await one.prepare();
    await attempt(() => one.checkpoint());
  },
  'get-error': async (one: ReplicationMember) => one.getError(),
  stop: (one: ReplicationMember) => one.stop(false),
  failover: (one: ReplicationMember) => one.stop(true),
};

type Operation = keyof typeof operations;

/** What succeeds; everything else is an error that changes nothing. */
const table: readonly (readonly ['primary' | 'secondary', ReplicationStage, readonly Operation[]])[] = [
  ['primary', 'none', ['start', 'checkpoint']],
  ['primary', 'running', ['checkpoint', 'get-error', 'stop', 'failover']],
  ['primary', 'done', ['checkpoint']],
  ['secondary', 'none', ['start']],
  ['secondary', 'running', ['checkpoint', 'get-error', 'stop', 'failover']],
  ['secondary', 'failover', []],
  ['secondary', 'failover-failed', []],
  ['secondary', 'done', []],
];

for (const [mode, stage, allowed] of table) {
  const open = mode === 'primary' ? primaryIn : secondaryIn;
  test(`replication-filter, operations: a ${mode} in ${stage} takes: ${allowed.join(', ') || 'nothing'}`, async (t) => {
    const refusing = await open(t, stage);
    for (const name of Object.keys(operations) as Operation[]) {
      if (allowed.includes(name)) continue;
      const [before, told] = [refusing.member.info(), refusing.stageEvents()];
      await assert.rejects(attempt(() => operations[name](refusing.member)) ?? assert.fail(), /stage|cannot|under way/);
      const { commit: _, ...after } = refusing.member.info();
      const { commit: __, ...was } = before;
      assert.deepEqual([after, refusing.stageEvents()], [was, told], `${name} changed something`);
    }
    for (const name of allowed) await operations[name]((await open(t, stage)).member);
  });
}

test('replication-filter, start: a mode other than the filter’s own, of either kind', async (t) => {
  for (const [open, other] of [
    [primaryIn, 'secondary'],
    [secondaryIn, 'primary'],
  ] as const) {
    const { member } = await open(t, 'none');
    await assert.rejects(member.start(other), /it cannot start as/);
    assert.equal(member.stage, 'none');
    await member.start(member.mode);
  }
});

test('pair 22: who is prepared is not prepared again; a stop lets the users go', async (t) => {
  const side = await Secondary.open(t, { length });
  await side.start();
  const member = side.checked.engine.replicationGroup.find('d-top');
  await member.prepare();
  await assert.rejects(member.prepare(), /is prepared already/);
  const written = fill(await side.client('d-local'), 0, 4096, 1);
  await member.stop(false);
  await written;
  assert.deepEqual([member.stage, member.info().prepared], ['done', false]);
});
