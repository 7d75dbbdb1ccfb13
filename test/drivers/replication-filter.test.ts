/** The filter of a graph built by hand (`on-link-down: record`): stages, errors, acknowledge, window, order. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allPermissions, permissionBits } from '../../src/block/child.ts';
import { writeFlags } from '../../src/block/node.ts';
import type { ReplicationStage } from '../../src/block/replication-group.ts';
import { BlockError } from '../../src/util/errors.ts';
import { parent } from '../block/fixture.ts';
import { bytes, ReplicationWorld, settleTurns, type Watched, watch } from './replication-world.ts';

const mib = 2 ** 20;
const ioError = new BlockError('io-error', 'the other side failed');

async function toStage(world: ReplicationWorld, stage: ReplicationStage): Promise<void> {
  if (stage !== 'none') await world.group.start('primary');
  if (stage === 'done') await world.group.stop(false);
}

const stageTable = [
  { stage: 'none', read: 'EIO', write: 'EIO', flush: 'done' },
  { stage: 'running', read: 'EIO', write: 'done', flush: 'done' },
  { stage: 'done', read: 'EIO', write: 'EIO', flush: 'done' },
] as const;

for (const { stage, read, write, flush } of stageTable) {
  test(`replication-filter: in stage ${stage} a read is ${read}, a write ${write}, a flush ${flush}`, async () => {
    const world = new ReplicationWorld();
    const { use, remote } = await world.recordFilter(mib);
    await toStage(world, stage);
    const outcome = ({ error }: Watched): string => error?.errno ?? 'done';
    assert.equal(outcome(watch(() => use.node.read(0, bytes(512, 0)))), read);
    assert.equal(outcome(watch(() => use.node.write(0, bytes(512, 1), 0))), write);
    assert.equal(outcome(watch(() => use.node.writeZeroes(512, 512, 0))), write);
    assert.equal(outcome(watch(() => use.node.flush())), flush);
    const kinds = remote.log.map(({ kind }) => kind).join();
    assert.equal(kinds, write === 'done' ? 'write,zeroes,flush' : 'flush');
    assert.equal(world.told('REPLICATION_STAGE').at(-1)?.stage, stage === 'none' ? undefined : stage);
  });
}

test('replication-filter: a failed forward is recorded, its writer has success, and forwarding goes on', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib);
  await world.group.start('primary');
  world.group.getError();
  remote.failing.set('write', ioError);
  assert.equal(watch(() => use.node.write(0, bytes(512, 1), 0)).error, null);
  assert.throws(() => world.group.getError(), { message: 'the other side failed' });
  assert.equal(world.group.info()[0]?.['missing-bytes'], 65_536, 'pair 4: the other side does not have it');
  // Asking and checkpoints keep it.
  await world.group.checkpoint();
  assert.throws(() => world.group.getError(), { message: 'the other side failed' });
  remote.failing.clear();
  watch(() => use.node.write(0, bytes(512, 2), 0));
  assert.equal(remote.content[0], 2);
  assert.throws(() => world.group.getError());
  await world.group.stop(false);
  assert.equal(world.group.info()[0]?.error, null);
});

test('replication-filter: the EIO of a stage is not recorded; of several failures the last one is, until the next start', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush' });
  // A flush goes to the other side in every stage.
  remote.failing.set('flush', ioError);
  watch(() => use.node.flush());
  await settleTurns();
  assert.equal(world.group.info()[0]?.error, 'the other side failed');
  await world.group.start('primary');
  assert.equal(world.group.info()[0]?.error, null);
  assert.equal(watch(() => use.node.read(0, bytes(512, 0))).error?.errno, 'EIO');
  world.group.getError();
  for (const text of ['the first', 'the last']) {
    remote.failing.set('write', new BlockError('io-error', text));
    watch(() => use.node.write(0, bytes(512, 1), 0));
    await settleTurns();
  }
  assert.throws(() => world.group.getError(), { message: 'the last' });
});

test('replication-filter: query-replication tells the bytes that the other side has answered', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib);
  const forwarded = () => world.group.info()[0]?.['forwarded-bytes'];
  await world.group.start('primary');
  assert.equal(forwarded(), 0);
  remote.mode = 'by-hand';
  const written = watch(() => use.node.write(0, bytes(4096, 1), 0));
  await settleTurns();
  assert.equal(forwarded(), 0);
  remote.answerAll();
  await settleTurns();
  assert.ok(written.done);
  watch(() => use.node.writeZeroes(4096, 512, 0));
  remote.answerAll();
  await settleTurns();
  assert.equal(forwarded(), 4608);
});

test('replication-filter: its length is asked of the child each time', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib);
  remote.length = 2 * mib;
  assert.equal(use.node.length, 2 * mib);
});

test('replication-filter, options: it reads and writes its file, and shares it but for its length', async () => {
  for (const readOnly of [false, true]) {
    const world = new ReplicationWorld();
    await world.disk('remote', mib);
    const filter = { driver: 'replication', 'node-name': 'filter', mode: 'primary', file: 'remote' };
    await world.graph.add({ ...filter, 'read-only': readOnly });
    const may = async (needs: number, shares: number): Promise<boolean> => {
      try {
        await (await world.graph.use('remote', parent('another'), { needs, shares })).release();
        return true;
      } catch (error) {
        assert.equal((error as BlockError).code, 'permission-conflict');
        return false;
      }
    };
    const { 'consistent-read': read, write, resize, 'write-unchanged': unchanged } = permissionBits;
    assert.deepEqual(
      [await may(read | write | unchanged, allPermissions), await may(resize, allPermissions)],
      [true, false],
    );
    assert.deepEqual([await may(0, allPermissions & ~read), await may(0, allPermissions & ~write)], [false, readOnly]);
  }
});

test('replication-filter: a flush that fails is recorded; it is returned with acknowledge=remote, not with flush', async () => {
  for (const acknowledge of ['remote', 'flush'] as const) {
    const world = new ReplicationWorld();
    const { use, remote } = await world.recordFilter(mib, { acknowledge });
    await world.group.start('primary');
    remote.failing.set('flush', ioError);
    const flush = watch(() => use.node.flush());
    await settleTurns();
    assert.equal(flush.error?.errno, acknowledge === 'remote' ? 'EIO' : undefined);
    assert.throws(() => world.group.getError());
    // FUA is a write, then a flush.
    remote.log.length = 0;
    const fua = watch(() => use.node.write(0, bytes(512, 1), writeFlags.fua));
    await settleTurns();
    assert.deepEqual(
      remote.log.map(({ kind, flags }) => [kind, flags]),
      [
        ['write', 0],
        ['flush', 0],
      ],
    );
    assert.equal(fua.error?.errno, acknowledge === 'remote' ? 'EIO' : undefined);
  }
});

const acknowledgeTable = [
  { acknowledge: 'remote', write: 'waits', flush: 'waits' },
  { acknowledge: 'flush', write: 'at once', flush: 'waits' },
  { acknowledge: 'local', write: 'at once', flush: 'at once' },
] as const;

for (const { acknowledge, write, flush } of acknowledgeTable) {
  test(`pair 1: with acknowledge=${acknowledge} a write is answered ${write}, a flush ${flush}`, async () => {
    const world = new ReplicationWorld();
    const { use, remote } = await world.recordFilter(mib, { acknowledge });
    await world.group.start('primary');
    remote.mode = 'by-hand';
    const written = watch(() => use.node.write(0, bytes(512, 1), 0));
    await settleTurns();
    assert.equal(written.done, write === 'at once');
    const flushed = watch(() => use.node.flush());
    await settleTurns();
    assert.equal(flushed.done, flush === 'at once');
    remote.answerAll();
    await settleTurns();
    remote.answerAll();
    await settleTurns();
    assert.deepEqual(
      [written, flushed],
      [
        { done: true, error: null },
        { done: true, error: null },
      ],
    );
    assert.equal(remote.durable[0], 1);
  });
}

test('pair 2: a write answered early is copied once; the writer may use its buffer again', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush' });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  const buffer = bytes(4096, 7);
  assert.ok(watch(() => use.node.write(0, buffer, 0)).done);
  buffer.fill(9);
  remote.answerAll();
  assert.deepEqual(remote.content.subarray(0, 4096), bytes(4096, 7));
});

test('pair 2: the window is bounded, a full one holds the writer back, in order', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush', 'window-bytes': 8192 });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  const writes = [0, 1, 2, 3, 4].map((i) => watch(() => use.node.write(i * 4096, bytes(4096, i + 1), 0)));
  await settleTurns();
  assert.deepEqual(
    writes.map(({ done }) => done),
    [true, true, false, false, false],
  );
  assert.equal(world.group.info()[0]?.['window-bytes'], 8192);
  assert.equal(remote.pending.length, 2);
  remote.answer(remote.pending[0]);
  await settleTurns();
  assert.deepEqual(
    writes.map(({ done }) => done),
    [true, true, true, false, false],
  );
  while (remote.pending.length > 0) {
    assert.ok(remote.pending.length <= 2, 'never more than the window');
    remote.answer(remote.pending[0]);
    await settleTurns();
  }
  assert.ok(writes.every(({ done }) => done));
  for (let i = 0; i < 5; i += 1) assert.equal(remote.content[i * 4096], i + 1);
});

test('pair 2: who stands in line is not overtaken by a smaller write for which there is room', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush', 'window-bytes': 8192 });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  watch(() => use.node.write(65_536, bytes(4096, 1), 0));
  const large = watch(() => use.node.write(0, bytes(8192, 2), 0));
  const small = watch(() => use.node.write(0, bytes(4096, 3), 0));
  assert.deepEqual([large.done, small.done], [false, false]);
  for (let i = 0; i < 3; i += 1) {
    remote.answerAll();
    await settleTurns();
  }
  assert.deepEqual(
    remote.log.map(({ offset, length }) => [offset, length]),
    [
      [65_536, 4096],
      [0, 8192],
      [0, 4096],
    ],
  );
  assert.ok(small.done);
});

test('pair 2: a write too large for the window borrows its bytes and is answered only when the child has it', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush', 'window-bytes': 4096 });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  const buffer = bytes(65_536, 3);
  const large = watch(() => use.node.write(0, buffer, 0));
  await settleTurns();
  assert.equal(large.done, false);
  assert.equal(remote.pending[0]?.bytes?.buffer, buffer.buffer, 'no copy was made');
  remote.answerAll();
  await settleTurns();
  assert.ok(large.done);
});

test('pair 2: drain ends only when the window is empty', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush' });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  watch(() => use.node.write(0, bytes(4096, 1), 0));
  let drained = false;
  const draining = world.graph.drain('filter').then((end) => {
    drained = true;
    end.end();
  });
  await settleTurns();
  assert.equal(drained, false);
  remote.answerAll();
  await draining;
  assert.ok(drained);
});

test('pair 3: towards a server that is not ordered a flush goes out after the replies to all earlier writes', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush' });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  watch(() => use.node.write(0, bytes(512, 1), 0));
  watch(() => use.node.write(4096, bytes(512, 2), 0));
  const flush = watch(() => use.node.flush());
  watch(() => use.node.write(8192, bytes(512, 3), 0));
  await settleTurns();
  assert.equal(remote.waiting('flush').length, 0);
  remote.answer(remote.pending[1]);
  await settleTurns();
  assert.equal(remote.waiting('flush').length, 0, 'one earlier write has no reply');
  remote.answer(remote.pending[0]);
  await settleTurns();
  assert.equal(remote.waiting('flush').length, 1, 'the later write is not waited for');
  remote.answer(remote.waiting('flush')[0]);
  await settleTurns();
  assert.ok(flush.done);
  assert.equal(remote.waiting('write').length, 1);
});

test('pair 3: to an ordered server a flush follows directly', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush' });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  remote.flushesInOrder = true;
  watch(() => use.node.write(0, bytes(512, 1), 0));
  watch(() => use.node.flush());
  await settleTurns();
  assert.deepEqual(
    remote.pending.map(({ kind }) => kind),
    ['write', 'flush'],
  );
});

test('pair 3: to a node that could be exported as ordered, but issues a flush beside its writes, none follows directly', async () => {
  const world = new ReplicationWorld();
  const disk = await world.disk('disk', mib);
  await world.graph.add({ driver: 'mirror-top', 'node-name': 'remote', file: 'disk' });
  await world.graph.add({ driver: 'replication', 'node-name': 'filter', mode: 'primary', file: 'remote' });
  const use = await world.use('filter');
  assert.notEqual(world.graph.find('remote').node.ordered, false);
  await world.group.start('primary');
  disk.mode = 'by-hand';
  watch(() => use.node.write(0, bytes(512, 1), 0));
  watch(() => use.node.flush());
  await settleTurns();
  assert.equal(disk.waiting('flush').length, 0);
  disk.answerAll();
  await settleTurns();
  assert.equal(disk.waiting('flush').length, 1);
});

test('style 4: one flush is under way and one waits, which all later ones join', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib, { acknowledge: 'flush' });
  await world.group.start('primary');
  remote.mode = 'by-hand';
  const flushes = [0, 1, 2, 3].map(() => watch(() => use.node.flush()));
  await settleTurns();
  assert.equal(remote.log.length, 1);
  remote.answerAll();
  await settleTurns();
  assert.deepEqual(
    flushes.map(({ done }) => done),
    [true, false, false, false],
  );
  remote.answerAll();
  await settleTurns();
  assert.ok(flushes.every(({ done }) => done));
  assert.equal(remote.log.length, 2);
});

test('pair 9: zeroes are forwarded as zeroes and keep NO_HOLE; a discard is not forwarded', async () => {
  const world = new ReplicationWorld();
  const { use, remote } = await world.recordFilter(mib);
  await world.group.start('primary');
  watch(() => use.node.writeZeroes(0, 4096, writeFlags.noHole));
  watch(() => use.node.writeZeroes(4096, 4096, writeFlags.none));
  watch(() => use.node.discard(8192, 4096));
  assert.deepEqual(
    remote.log.map(({ kind, offset, flags }) => [kind, offset, flags]),
    [
      ['zeroes', 0, writeFlags.noHole],
      ['zeroes', 4096, 0],
    ],
  );
});

test('pair 5: a connection that was lost before the filter took it is no connection', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', mib);
  disk.remote.breakConnection('gone already');
  await world.connect(disk);
  assert.equal(world.told('REPLICATION_LINK').length, 1);
  assert.throws(() => world.group.links.setMode('in-sync'), /node 'd-replication' is not connected/);
});

test('options: what does not fit is refused in words', async () => {
  const world = new ReplicationWorld();
  await world.disk('remote', mib);
  const add = (options: Record<string, unknown>) =>
    world.graph.add({ driver: 'replication', 'node-name': 'filter', mode: 'primary', file: 'remote', ...options });
  await assert.rejects(add({ mode: 'secondary' }), /top-id: is required in mode secondary/);
  await assert.rejects(add({ mode: 'secondary', 'top-id': 'x', file: null }), /file: is required in mode secondary/);
  await assert.rejects(add({ mode: 'tertiary' }), /mode/);
  await assert.rejects(add({ 'top-id': 'x' }), /top-id: only for mode secondary/);
  await assert.rejects(add({ file: null }), /file: null needs on-link-down=hold/);
  await assert.rejects(add({ file: null, 'on-link-down': 'hold' }), /size: is needed/);
  await assert.rejects(add({ size: 512 }), /size: the child has 1048576 bytes/);
  await assert.rejects(add({ granularity: 1000 }), /power of two/);
  await assert.rejects(add({ 'window-bytes': 1 }), /window-bytes/);
  assert.deepEqual(world.graph.find('remote').parents, [], 'nothing is left of a failed open');
  assert.deepEqual(world.group.members, []);
});
