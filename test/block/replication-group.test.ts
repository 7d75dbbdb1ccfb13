/** Rounds over a replication group, and the tables of stages and link modes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type LinkEvent,
  LinkGroup,
  type LinkMember,
  type LinkMode,
  linkModes,
  linkMoves,
} from '../../src/block/link-group.ts';
import {
  nextStage,
  ReplicationGroup,
  type ReplicationMember,
  type ReplicationMode,
  type ReplicationStage,
  type StageEvent,
  stageMoves,
} from '../../src/block/replication-group.ts';
import { BlockError } from '../../src/util/errors.ts';

/** A member that tells what is asked of it, and fails where a test says so. */
class Member implements ReplicationMember {
  readonly nodeName: string;
  readonly mode: ReplicationMode = 'secondary';
  stage: ReplicationStage = 'none';
  failing: string | null = null;
  private readonly log: string[];

  constructor(nodeName: string, log: string[]) {
    this.nodeName = nodeName;
    this.log = log;
  }

  private did(what: string): void {
    this.log.push(`${this.nodeName} ${what}`);
    if (this.failing === what) throw new BlockError('io-error', `${this.nodeName} cannot ${what}`);
  }

  async start(): Promise<void> {
    this.did('start');
    this.stage = nextStage(this.nodeName, this.stage, 'start');
  }

  async prepare(): Promise<void> {
    this.did('prepare');
  }

  async checkpoint(): Promise<void> {
    this.did('checkpoint');
  }

  unprepare(): void {
    this.did('unprepare');
  }

  getError(): void {
    this.did('get_error');
  }

  async stop(failover: boolean): Promise<void> {
    this.did(failover ? 'failover' : 'stop');
    this.stage = nextStage(this.nodeName, this.stage, failover ? 'failover' : 'stop');
  }

  info(): { node: string; mode: ReplicationMode; stage: ReplicationStage } {
    return { node: this.nodeName, mode: this.mode, stage: this.stage };
  }
}

function groupOf(...names: string[]): { group: ReplicationGroup; log: string[]; members: Map<string, Member> } {
  const group = new ReplicationGroup();
  const log: string[] = [];
  const members = new Map<string, Member>();
  for (const name of names) {
    const member = new Member(name, log);
    members.set(name, member);
    group.join(member);
  }
  return { group, log, members };
}

function member(members: Map<string, Member>, name: string): Member {
  return members.get(name) ?? assert.fail();
}

test('replication-filter: rounds visit the newest member first', async () => {
  const { group, log } = groupOf('a', 'b', 'c');
  await group.start('secondary');
  assert.deepEqual(log, ['c start', 'b start', 'a start']);
});

test('replication-filter: a failed start round stops the members that it had started, and no others', async () => {
  const { group, log, members } = groupOf('a', 'b', 'c');
  member(members, 'a').failing = 'start';
  await assert.rejects(group.start('secondary'), /a cannot start/);
  assert.deepEqual(log, ['c start', 'b start', 'a start', 'c stop', 'b stop']);
});

test('replication-filter: the first error ends a round; a failover visits all and then throws the first one', async () => {
  const { group, log, members } = groupOf('a', 'b', 'c');
  await group.start('secondary');
  log.length = 0;
  member(members, 'c').failing = 'stop';
  await assert.rejects(group.stop(false), /c cannot stop/);
  assert.deepEqual(log, ['c stop']);
  log.length = 0;
  member(members, 'c').failing = 'failover';
  member(members, 'b').failing = 'failover';
  await assert.rejects(group.stop(true), /c cannot failover/);
  assert.deepEqual(log, ['c failover', 'b failover', 'a failover']);
});

test('replication-filter: members that are done or failing over are passed over', async () => {
  const { group, log, members } = groupOf('a', 'b', 'c');
  member(members, 'a').stage = 'done';
  member(members, 'b').stage = 'failover';
  await group.start('secondary');
  await group.checkpoint();
  group.getError();
  await group.stop(false);
  assert.deepEqual(log, ['c start', 'c prepare', 'c checkpoint', 'c get_error', 'c stop']);
});

test('pair 22: all members prepare, then one durable write, then all take the checkpoint', async () => {
  const { group, log, members } = groupOf('a', 'b');
  await group.checkpoint(async () => {
    log.push('durable');
  });
  assert.deepEqual(log, ['b prepare', 'a prepare', 'durable', 'b checkpoint', 'a checkpoint']);
  log.length = 0;
  member(members, 'a').failing = 'prepare';
  await assert.rejects(group.checkpoint(async () => assert.fail('nothing is made durable')));
  assert.deepEqual(log, ['b prepare', 'a prepare', 'b unprepare']);
});

test('pair 22: where the write fails, or one member takes no checkpoint, nobody stays held', async () => {
  const { group, log, members } = groupOf('a', 'b', 'c');
  await assert.rejects(
    group.checkpoint(async () => Promise.reject(new BlockError('io-error', 'no epoch'))),
    /no epoch/,
  );
  assert.deepEqual(log.slice(3), ['c unprepare', 'b unprepare', 'a unprepare']);
  log.length = 0;
  member(members, 'c').failing = 'checkpoint';
  await assert.rejects(group.checkpoint(), /c cannot checkpoint/);
  // The one that failed lets its users go by itself.
  assert.deepEqual(log.slice(3), ['c checkpoint', 'b unprepare', 'a unprepare']);
});

test('pair 22: between the halves of a checkpoint no other round begins, and who leaves is left out', async () => {
  const { group, log, members } = groupOf('a', 'b', 'c');
  await group.prepare();
  log.length = 0;
  for (const round of [() => group.start('secondary'), () => group.checkpoint(), () => group.prepare()]) {
    await assert.rejects(round(), /a checkpoint is prepared: commit or abort it first/);
  }
  assert.deepEqual(log, []);
  group.leave(member(members, 'b'));
  await group.commit(2);
  assert.deepEqual(log, ['c checkpoint', 'a checkpoint']);
  await group.prepare();
  group.leave(member(members, 'c'));
  log.length = 0;
  await group.abort();
  assert.deepEqual(log, ['a unprepare']);
});

test('the table of stages allows these moves and no others', () => {
  const stages = Object.keys(stageMoves) as ReplicationStage[];
  const events: StageEvent[] = ['start', 'stop', 'failover', 'commit-done', 'commit-failed', 'close'];
  const moves = stages.flatMap((stage) =>
    events.flatMap((event) => {
      const next = stageMoves[stage][event];
      if (next !== undefined) return [`${stage} -${event}-> ${next}`];
      assert.throws(() => nextStage('n', stage, event), { code: 'wrong-stage', errno: 'EIO' });
      return [];
    }),
  );
  console.log(moves.join('\n'));
  assert.deepEqual(moves, [
    'none -start-> running',
    'none -close-> done',
    'running -stop-> done',
    'running -failover-> failover',
    'running -close-> done',
    'failover -commit-done-> done',
    'failover -commit-failed-> failover-failed',
    'failover -close-> failover-failed',
    'failover-failed -close-> failover-failed',
    'done -close-> done',
  ]);
});

function linkMember(name: string, log: string[], more: Partial<LinkMember> = {}): LinkMember {
  const none = (): never => assert.fail('not part of this test');
  return {
    nodeName: name,
    length: 0,
    connected: true,
    missingBytes: 0,
    stallMsMax: 2000,
    enter: (mode) => void log.push(`${name} enters ${mode}`),
    resume: () => void log.push(`${name} resumes`),
    connect: none,
    disconnect: none,
    mark: none,
    forget: none,
    proveDurable: none,
    bitmap: none,
    copyTarget: none,
    ...more,
  };
}

test('pair 5: the table of link modes: a broken link takes every mode that forwards to held, and no other', () => {
  const events: LinkEvent[] = [...linkModes, 'link-down'];
  for (const mode of linkModes) {
    console.log(mode.padEnd(9), events.map((event) => `${event}: ${linkMoves[mode][event]}`).join('  '));
    for (const event of linkModes) assert.equal(linkMoves[mode][event], event, 'a supervisor may set any mode');
    const forwarding = mode === 'syncing' || mode === 'in-sync' || mode === 'barrier';
    assert.equal(linkMoves[mode]['link-down'], forwarding ? 'held' : mode);
    const log: string[] = [];
    const links = new LinkGroup();
    links.join(linkMember('a', log));
    links.setMode(mode);
    assert.equal(links.mode, mode);
    links.linkDown();
    assert.equal(links.mode, linkMoves[mode]['link-down']);
  }
});

test('pair 5: every member enters the new mode before any goes on', () => {
  const log: string[] = [];
  const links = new LinkGroup();
  for (const name of ['a', 'b', 'c']) links.join(linkMember(name, log));
  links.setMode('in-sync');
  assert.deepEqual(log, [
    'a enters in-sync',
    'b enters in-sync',
    'c enters in-sync',
    'a resumes',
    'b resumes',
    'c resumes',
  ]);
});

test('pair 5: a link that breaks while the members go on has the last word', () => {
  const log: string[] = [];
  const links = new LinkGroup();
  const modes: LinkMode[] = [];
  links.join(
    linkMember('a', log, {
      resume: (): void => {
        if (links.mode === 'in-sync') links.linkDown();
      },
    }),
  );
  links.join(linkMember('b', log, { enter: (mode) => void modes.push(mode) }));
  links.setMode('in-sync');
  assert.equal(links.mode, 'held');
  assert.deepEqual(modes, ['in-sync', 'held']);
});

test('a new member cannot join a group that forwards; the mode of an empty group is held', () => {
  const log: string[] = [];
  const links = new LinkGroup();
  assert.throws(() => links.setMode('alone'), { code: 'wrong-state' });
  const first = linkMember('a', log);
  links.join(first);
  links.setMode('syncing');
  assert.throws(() => links.join(linkMember('b', log)), { code: 'wrong-state' });
  assert.throws(() => links.find('b'), { code: 'node-not-found' });
  links.leave(first);
  assert.equal(links.mode, 'held');
});
