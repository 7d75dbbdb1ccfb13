/** The filters of a pair (`on-link-down: hold`): the mode table, and pair.md 4 to 9 as far as one engine sees them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LinkMode } from '../../src/block/link-group.ts';
import { writeFlags } from '../../src/block/node.ts';
import { startReplicationSync } from '../../src/jobs/replication-sync.ts';
import { BlockError } from '../../src/util/errors.ts';
import { bytes, type PairDisk, ReplicationWorld, settleTurns, watch } from './replication-world.ts';

const mib = 2 ** 20;
const block = 65_536;
const lost = new BlockError('connection-lost', 'the other side is gone');

async function inMode(mode: LinkMode, options: Record<string, unknown> = {}): Promise<[ReplicationWorld, PairDisk]> {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', mib, options);
  await world.connect(disk);
  world.group.links.setMode(mode);
  return [world, disk];
}

const info = (world: ReplicationWorld, disk = 'd') => world.group.find(`${disk}-replication`).info();

const modeTable = [
  { mode: 'held', write: 'waits', flush: 'waits', forwards: '', missing: 0 },
  { mode: 'alone', write: 'done', flush: 'done', forwards: '', missing: block },
  { mode: 'syncing', write: 'done', flush: 'done', forwards: 'write', missing: 0 },
  { mode: 'in-sync', write: 'done', flush: 'done', forwards: 'write,flush', missing: 0 },
  { mode: 'barrier', write: 'waits', flush: 'done', forwards: 'flush', missing: 0 },
  { mode: 'refusing', write: 'EBUSY', flush: 'EBUSY', forwards: '', missing: block },
] as const;

for (const { mode, write, flush, forwards, missing } of modeTable) {
  test(`pair 7: in mode ${mode} a write is ${write}, a flush ${flush}, forwarded is "${forwards}"`, async () => {
    const [world, { remote }] = await inMode(mode);
    const { node } = world.graph.find('d-replication');
    const outcome = async (watched: ReturnType<typeof watch>): Promise<string> => {
      await settleTurns();
      return watched.done ? (watched.error?.errno ?? 'done') : 'waits';
    };
    assert.equal(await outcome(watch(() => node.write(0, bytes(512, 1), 0))), write);
    assert.equal(await outcome(watch(() => node.flush())), flush);
    assert.equal(remote.log.map(({ kind }) => kind).join(), forwards);
    assert.equal(info(world)['missing-bytes'], missing);
  });
}

test('pair 7: in mode syncing a write is split: missing blocks stay marked, the others are forwarded', async () => {
  const [world, { remote, use, local }] = await inMode('alone');
  world.group.links.find('d-replication').mark({
    ranges: [
      [block, block],
      [3 * block, 1],
    ],
  });
  world.group.links.setMode('syncing');
  watch(() => use.node.write(block / 2, bytes(4 * block, 5), 0));
  assert.deepEqual(
    remote.log.map(({ offset, length }) => [offset, length]),
    [
      [block / 2, block / 2],
      [2 * block, block],
      [4 * block, block / 2],
    ],
  );
  assert.equal(info(world)['missing-bytes'], 2 * block);
  assert.equal(info(world)['may-differ-bytes'], 5 * block);
  assert.deepEqual(local.content.subarray(block / 2, block / 2 + 4 * block), bytes(4 * block, 5));
});

test('pair 7: syncing and in-sync are refused, naming the node, while one is not connected or misses something', async () => {
  const world = new ReplicationWorld();
  const a = await world.pairDisk('a', mib);
  const b = await world.pairDisk('b', mib);
  await world.connect(a);
  const { links } = world.group;
  assert.throws(() => links.setMode('syncing'), { code: 'wrong-state', message: /'b-replication' is not connected/ });
  await world.connect(b);
  links.setMode('alone');
  watch(() => b.use.node.write(0, bytes(512, 1), 0));
  assert.throws(() => links.setMode('in-sync'), { code: 'wrong-state', message: /'b-replication' still misses 65536/ });
  links.setMode('syncing');
  assert.equal(links.mode, 'syncing');
  await assert.rejects(links.find('a-replication').disconnect(), { code: 'wrong-state' });
});

test('pair 5: one link down, all down in the same tick; the users stay waiting until the next mode', async () => {
  const world = new ReplicationWorld();
  const disks = [await world.pairDisk('a', mib), await world.pairDisk('b', mib), await world.pairDisk('c', mib)];
  await world.connect(...disks);
  world.group.links.setMode('in-sync');
  for (const { remote } of disks) remote.mode = 'by-hand';
  const writes = disks.map(({ use }) => watch(() => use.node.write(0, bytes(4096, 1), 0)));
  const flushes = disks.map(({ use }) => watch(() => use.node.flush()));
  await settleTurns();
  assert.ok(writes.every(({ done }) => done));
  assert.ok(flushes.every(({ done }) => !done));
  // The connection of b breaks: in this very call all three leave forwarding.
  disks[1]?.remote.breakConnection('cable pulled');
  assert.equal(world.group.links.mode, 'held');
  for (const name of ['a', 'b', 'c']) {
    assert.equal(info(world, name).link, 'held');
    assert.equal(info(world, name)['missing-bytes'], block, 'what was not answered is missing');
  }
  assert.deepEqual(world.told('REPLICATION_LINK'), [{ state: 'down', node: 'b-replication', reason: 'cable pulled' }]);
  const later = disks.map(({ use }) => watch(() => use.node.write(8192, bytes(4096, 2), 0)));
  // Replies that still come on the other links change nothing.
  disks[0]?.remote.answerAll();
  await settleTurns();
  assert.ok(
    [...flushes, ...later].every(({ done }) => !done),
    'nobody is answered before the supervisor decided',
  );
  world.group.links.setMode('alone');
  await settleTurns();
  assert.ok([...flushes, ...later].every(({ done, error }) => done && error === null));
});

for (const failing of ['write', 'flush'] as const) {
  test(`pair 5: a failed ${failing} is seen before the user's own flush is answered`, async () => {
    const [world, { use, remote }] = await inMode('in-sync');
    remote.failing.set(failing, new BlockError('no-space', 'no space left there'));
    const write = watch(() => use.node.write(0, bytes(512, 1), 0));
    const flush = watch(() => use.node.flush());
    await settleTurns();
    assert.equal(world.group.links.mode, 'held');
    assert.equal(flush.done, false);
    assert.equal(write.done, failing === 'flush', 'a write that failed before it was answered waits too');
    assert.equal(info(world).connected, false);
    assert.match(String(info(world).error), /no space left there/);
    world.group.links.setMode('alone');
    await settleTurns();
    assert.deepEqual(
      [write, flush],
      [
        { done: true, error: null },
        { done: true, error: null },
      ],
    );
    assert.equal(info(world)['missing-bytes'], block, 'nothing that could have been dropped there counts as present');
  });
}

test('pair 6: no user waits longer than stall-ms-max for the other side', async () => {
  for (const what of ['flush', 'full window', 'large write', 'fua'] as const) {
    const [world, { use, remote }] = await inMode('in-sync', { 'window-bytes': 8192, 'stall-ms-max': 2000 });
    remote.mode = 'by-hand';
    watch(() => use.node.write(0, bytes(8192, 1), 0));
    await world.clock.move(1000);
    const { node } = use;
    const waiting = watch(() => {
      if (what === 'flush') return node.flush();
      if (what === 'full window') return node.write(block, bytes(4096, 2), 0);
      if (what === 'large write') return node.write(block, bytes(16_384, 2), 0);
      return node.write(block, bytes(512, 2), writeFlags.fua);
    });
    await world.clock.move(1999);
    assert.equal(world.group.links.mode, 'in-sync', `${what}: slowness below the bound is back-pressure`);
    await world.clock.move(1);
    assert.equal(world.group.links.mode, 'held', what);
    assert.match(String(world.told('REPLICATION_LINK')[0]?.reason), /no answer within 2000 ms/);
    assert.equal(remote.pending.length, 0, 'the connection was cut, so borrowed bytes come back');
    await settleTurns();
    assert.equal(waiting.done, false);
    world.group.links.setMode('alone');
    await settleTurns();
    assert.deepEqual(waiting, { done: true, error: null }, what);
  }
});

test('pair 6: back-pressure that moves on is no stall', async () => {
  const [world, { use, remote }] = await inMode('in-sync', { 'window-bytes': 4096, 'stall-ms-max': 2000 });
  remote.mode = 'by-hand';
  for (let i = 0; i < 10; i += 1) {
    const write = watch(() => use.node.write(i * 4096, bytes(4096, i), 0));
    await world.clock.move(1500);
    remote.answer(remote.pending[0]);
    await settleTurns();
    assert.ok(write.done);
  }
  assert.equal(world.group.links.mode, 'in-sync');
});

test('pair 6: a drain that waits for a side that hangs ends within the bound; the window has become bits', async () => {
  const [world, { use, remote }] = await inMode('in-sync', { 'stall-ms-max': 2000 });
  remote.mode = 'by-hand';
  watch(() => use.node.write(0, bytes(4096, 1), 0));
  let drained = false;
  void world.graph.drain('d').then((end) => {
    drained = true;
    end.end();
  });
  await settleTurns();
  assert.equal(drained, false);
  await world.clock.move(2000);
  await settleTurns();
  assert.ok(drained);
  assert.equal(info(world)['missing-bytes'], block);
});

for (const [what, acknowledge, flags] of [
  ['FUA', 'flush', writeFlags.fua],
  ['acknowledge=remote', 'remote', 0],
] as const)
  test(`pair 7: ${what}: a write that waited for room in syncing, answered in sync, is on the other side by then`, async () => {
    const [world, { use, remote }] = await inMode('syncing', { acknowledge, 'window-bytes': 4096 });
    remote.mode = 'by-hand';
    watch(() => use.node.write(0, bytes(4096, 1), 0));
    const write = watch(() => use.node.write(block, bytes(4096, 2), flags));
    world.group.links.setMode('in-sync');
    remote.answer(remote.waiting('write')[0]);
    await settleTurns();
    assert.equal(write.done, false, 'it has left the line and is on its way');
    for (let i = 0; i < 3; i += 1) {
      remote.answerAll();
      await settleTurns();
    }
    assert.ok(write.done);
    assert.equal(remote.durable[block], 2);
  });

test('pair 6: a write with FUA that is never answered is a stall, though others stand in a line that moves', async () => {
  const [world, { use, remote }] = await inMode('in-sync', { 'window-bytes': 4096 });
  remote.mode = 'by-hand';
  const fua = watch(() => use.node.write(0, bytes(512, 1), writeFlags.fua));
  for (let ms = 0; ms < 2500; ms += 500) {
    for (let i = 0; i < 3; i += 1) watch(() => use.node.write(block, bytes(4096, 1), 0));
    for (const plain of remote.waiting('write')) if (plain.offset > 0) remote.answer(plain);
    await settleTurns();
    await world.clock.move(500);
  }
  assert.equal(world.group.links.mode, 'held');
  world.group.links.setMode('alone');
  await settleTurns();
  assert.ok(fua.done);
});

test('pair 2: a drain beside a sync that copies all the time ends, and is no stall', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', 32 * mib);
  await world.connect(disk);
  const { remote, local } = disk;
  local.content.fill(7);
  const member = world.group.links.find('d-replication');
  member.mark({ all: true });
  world.group.links.setMode('syncing');
  remote.mode = 'by-hand';
  await startReplicationSync(world.graph, world.jobs, member, { source: 'd-local', jobId: 'sync' });
  await settleTurns();
  for (let i = 0; i < 100 && remote.pending.length < 4; i += 1) {
    remote.answer(remote.pending[0]);
    await settleTurns(3);
  }
  const drained = world.graph.drain('d');
  let ended = false;
  void drained.then(() => {
    ended = true;
  });
  // One copy is answered, the next is on its way: it is never quiet.
  for (let ms = 0; ms < 3000 && !ended; ms += 250) {
    remote.answer(remote.pending[0]);
    await settleTurns(3);
    await world.clock.move(250);
  }
  assert.equal(world.group.links.mode, 'syncing');
  assert.ok(remote.pending.length > 0, 'copies are still under way');
  (await drained).end();
});

test('pair 7: a write that waited in held is marked when alone, forwarded when in sync', async () => {
  for (const mode of ['alone', 'in-sync'] as const) {
    const world = new ReplicationWorld();
    const disk = await world.pairDisk('d', mib);
    const write = watch(() => disk.use.node.write(0, bytes(512, 1), 0));
    const flush = watch(() => disk.use.node.flush());
    await settleTurns();
    assert.equal(write.done || flush.done, false);
    assert.deepEqual(world.group.links.find('d-replication').bitmap().mayDiffer, [[0, block]], 'the local disk has it');
    await world.connect(disk);
    world.group.links.setMode(mode);
    await settleTurns();
    assert.ok(write.done && flush.done);
    assert.equal(disk.remote.durable[0], mode === 'alone' ? 0 : 1);
    assert.equal(info(world)['may-differ-bytes'], mode === 'alone' ? block : 0);
  }
});

test('pair 8: what the local disk failed is missing again, told, and later sent from what it reads', async () => {
  const [world, { use, local, remote }] = await inMode('in-sync');
  local.mode = 'by-hand';
  const write = watch(() => use.node.write(block, bytes(4096, 9), 0));
  assert.equal(remote.content[block], 9);
  local.answer(local.pending[0], new BlockError('io-error', 'bad sector'));
  await settleTurns();
  assert.equal(write.error?.message, 'bad sector', "the first child's error is the request's");
  assert.deepEqual(world.told('REPLICATION_DIVERGED'), [{ node: 'd-replication', offset: block, length: 4096 }]);
  assert.deepEqual(info(world).diverged, [[block, block]]);
  assert.equal(world.group.links.mode, 'in-sync', 'failover stays possible');
  local.mode = 'at-once';
  await startReplicationSync(world.graph, world.jobs, world.group.links.find('d-replication'), {
    source: 'd-local',
    jobId: 'again',
  });
  await settleTurns();
  assert.equal(remote.content[block], 0);
  assert.deepEqual(info(world).diverged, []);
  assert.equal(info(world)['missing-bytes'], 0);
});

test('pair 8: a write that waits in line when its sibling fails is not sent after its range was marked', async () => {
  const [world, { use, local, remote }] = await inMode('in-sync', { 'window-bytes': 4096 });
  remote.mode = 'by-hand';
  watch(() => use.node.write(0, bytes(4096, 1), 0));
  local.mode = 'by-hand';
  const write = watch(() => use.node.write(block, bytes(4096, 2), 0));
  local.answer(local.pending[0], new BlockError('io-error', 'bad sector'));
  await settleTurns();
  remote.answerAll();
  await settleTurns();
  assert.equal(write.error?.message, 'bad sector');
  assert.equal(remote.log.length, 1);
  assert.deepEqual(info(world).diverged, [[block, block]]);
});

test('pair 9: zeroes keep NO_HOLE; a discard sends zeroes where the local disk now reads zeroes', async () => {
  const [, { use, local, remote }] = await inMode('in-sync');
  local.content.fill(1);
  remote.content.fill(1);
  watch(() => use.node.writeZeroes(0, 4096, writeFlags.noHole));
  watch(() => use.node.discard(block, 4096));
  await settleTurns();
  assert.deepEqual(
    remote.log.map(({ kind, flags }) => [kind, flags]),
    [
      ['zeroes', writeFlags.noHole],
      ['zeroes', 0],
    ],
  );
  assert.deepEqual(remote.content, local.content);
});

test('pair 9: a discard that reaches the filter itself marks the range: what the local disk made of it is not known', async () => {
  const [world] = await inMode('in-sync');
  const { node } = world.graph.find('d-replication');
  watch(() => node.discard(0, 4096));
  assert.equal(info(world)['missing-bytes'], block);
  assert.equal(world.told('REPLICATION_DIVERGED').length, 1);
});

test('pair 1: FUA is answered when the range is durable on the other side; it clears no mayDiffer', async () => {
  const [world, { use, remote }] = await inMode('in-sync');
  remote.mode = 'by-hand';
  const fua = watch(() => use.node.write(0, bytes(512, 1), writeFlags.fua));
  await settleTurns();
  assert.equal(fua.done, false);
  remote.answerAll();
  await settleTurns();
  assert.ok(fua.done);
  assert.equal(remote.durable[0], 1);
  assert.equal(info(world)['may-differ-bytes'], block);
});

test('pair 1: acknowledge=remote in a pair: a write is answered when both sides have it', async () => {
  const [world, { use, remote }] = await inMode('in-sync', { acknowledge: 'remote' });
  remote.mode = 'by-hand';
  const write = watch(() => use.node.write(0, bytes(512, 1), 0));
  await settleTurns();
  assert.equal(write.done, false);
  remote.answer(remote.pending[0], lost);
  await settleTurns();
  assert.equal(write.done, false, 'it waits for the next mode');
  world.group.links.setMode('alone');
  await settleTurns();
  assert.deepEqual(write, { done: true, error: null });
});

test('connect refuses another length, naming both; a second connection; disconnect cuts', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', mib);
  await world.disk('short', mib / 2);
  const member = world.group.links.find('d-replication');
  await assert.rejects(member.connect('short'), /'short' has 524288 bytes, 'd-replication' has 1048576/);
  await assert.rejects(member.connect('nowhere'), { code: 'node-not-found' });
  assert.equal(member.connected, false);
  await world.connect(disk);
  await assert.rejects(member.connect('short'), { code: 'wrong-state' });
  await member.disconnect();
  assert.throws(() => disk.remote.flush(), { code: 'connection-lost' });
  await world.graph.remove('d-remote');
});

test('marks: ranges outside of the disk are refused; unproven makes all of mayDiffer missing; forget empties', async () => {
  const [world, { use }] = await inMode('in-sync');
  const member = world.group.links.find('d-replication');
  assert.throws(
    () =>
      member.mark({
        ranges: [
          [0, 1],
          [mib, 1],
        ],
      }),
    { code: 'invalid-request' },
  );
  assert.equal(member.missingBytes, 0, 'nothing of a refused request was done');
  watch(() => use.node.write(0, bytes(512, 1), 0));
  assert.deepEqual([member.missingBytes, member.bitmap().mayDifferBytes], [0, block]);
  assert.throws(() => member.forget(), { code: 'wrong-state' });
  world.group.links.setMode('alone');
  member.mark({ unproven: true });
  assert.deepEqual([member.missingBytes, member.bitmap().mayDifferBytes], [block, block]);
  member.forget();
  assert.deepEqual([member.missingBytes, member.bitmap().mayDifferBytes], [0, 0]);
  member.mark({ all: true });
  assert.equal(member.missingBytes, mib);
});

test('closing the graph ends while the group is held: nobody above writes any more', async () => {
  const world = new ReplicationWorld();
  const { use } = await world.pairDisk('d', mib);
  await use.release();
  await world.graph.close();
  assert.deepEqual([world.group.members, world.group.links.members], [[], []]);
});

test('pair 9: fast zeroes that the local disk refuses are forwarded to nobody; what it has done is, without the condition', async () => {
  const [world, { use, local, remote }] = await inMode('in-sync');
  watch(() => use.node.write(0, bytes(4096, 7), 0));
  await settleTurns();
  const before = info(world)['may-differ-bytes'];
  local.failing.set('zeroes', new BlockError('not-supported', 'zeroes are not fast here'));
  const refused = watch(() => use.node.writeZeroes(0, 4096, writeFlags.fastZero));
  await settleTurns();
  assert.equal(refused.error?.code, 'not-supported');
  assert.equal(remote.content[0], 7, 'what was promised is still there, on both sides');
  assert.deepEqual([info(world)['missing-bytes'], info(world)['may-differ-bytes']], [0, before]);
  local.failing.clear();
  const done = watch(() => use.node.writeZeroes(0, 4096, writeFlags.fastZero | writeFlags.noHole));
  await settleTurns();
  assert.deepEqual([done.done, done.error], [true, null]);
  assert.deepEqual([local.content[0], remote.content[0]], [0, 0]);
  assert.equal(remote.log.at(-1)?.flags, writeFlags.noHole);
});
