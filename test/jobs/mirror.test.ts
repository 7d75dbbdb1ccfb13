/** blockdev-mirror between disks that answer at random, under random writes; pivot, cancel, errors, speed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Job } from '../../src/jobs/job.ts';
import { type MirrorArguments, startBlockdevMirror } from '../../src/jobs/mirror.ts';
import { BlockError } from '../../src/util/errors.ts';
import {
  bytes,
  fc,
  Random,
  ReplicationWorld,
  seeded,
  settleTurns,
  type TestDisk,
  watch,
} from '../drivers/replication-world.ts';

const block = 4096;
const length = 40 * block;

interface Mirror {
  readonly world: ReplicationWorld;
  readonly source: TestDisk;
  readonly target: TestDisk;
  readonly start: (more?: Partial<MirrorArguments>) => Promise<Job>;
  readonly random: Random;
  /** Answers at random until nothing is left to answer. */
  readonly answerAll: () => Promise<void>;
}

async function build(seed: number, mode: TestDisk['mode'] = 'by-hand'): Promise<Mirror> {
  const world = new ReplicationWorld();
  const source = await world.disk('source', length);
  const target = await world.disk('target', length);
  const random = new Random(seed);
  for (let i = 0; i < 40; i += 1) if (random.chance(0.6)) source.content.fill(i + 1, i * block, (i + 1) * block);
  target.content.fill(99);
  for (const disk of [source, target]) disk.mode = mode;
  return {
    world,
    source,
    target,
    random,
    start: async (more = {}) => {
      await startBlockdevMirror(world.graph, world.jobs, {
        'job-id': 'm',
        device: 'source',
        target: 'target',
        sync: 'full',
        granularity: block,
        'auto-dismiss': false,
        ...more,
      });
      return world.jobs.find('m');
    },
    answerAll: async () => {
      for (let quiet = 0; quiet < 3; ) {
        await settleTurns(2);
        const some = source.answerRandom(random) || target.answerRandom(random);
        quiet = some ? 0 : quiet + 1;
      }
    },
  };
}

const parentsOf = (world: ReplicationWorld, name: string): readonly string[] => world.graph.find(name).parents;

for (const ending of ['complete', 'leave', 'force'] as const) {
  test(`blockdev-mirror under random writes, ended by ${ending}: byte-equal where it says so`, async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), async (seed) => {
        const { world, source, target, random, start, answerAll } = await build(seed);
        const use = await world.use('source');
        const targetIsZero = random.chance(0.5);
        if (targetIsZero) target.content.fill(0);
        const job = await start({
          'buf-size': (1 + random.below(16)) * block,
          'target-is-zero': targetIsZero,
        });
        const writes: ReturnType<typeof watch>[] = [];
        const write = (): void => {
          const offset = random.below(length / 512) * 512;
          const size = Math.min(length - offset, (1 + random.below(20)) * 512);
          if (random.chance(0.2)) writes.push(watch(() => use.node.writeZeroes(offset, size, 0)));
          else if (random.chance(0.1)) writes.push(watch(() => use.node.discard(offset, size)));
          else writes.push(watch(() => use.node.write(offset, bytes(size, random.below(256)), 0)));
        };
        for (let turn = 0; turn < 80; turn += 1) {
          if (random.chance(0.3)) write();
          source.answerRandom(random);
          target.answerRandom(random);
          if (random.chance(0.5)) await settleTurns(1);
        }
        await answerAll();
        assert.equal(job.status, 'ready');
        write();
        if (ending === 'complete') job.complete();
        else job.cancel(ending === 'force');
        await answerAll();
        assert.equal(job.status, 'concluded');
        assert.ok(writes.every(({ done, error }) => done && error === null));
        assert.equal(job.error, null);
        const info = job.info();
        if (ending !== 'force') {
          assert.deepEqual(target.content, source.content);
          assert.equal(info['current-progress'], info['total-progress']);
          assert.deepEqual(target.durable, target.content, 'the target was flushed');
        }
        const pivoted = ending === 'complete';
        assert.deepEqual(parentsOf(world, 'target'), pivoted ? ['a test'] : []);
        assert.deepEqual(parentsOf(world, 'source'), pivoted ? [] : ['a test']);
        assert.throws(() => world.graph.find('mirror-top-m'), { code: 'node-not-found' }, 'the filter is gone');
        watch(() => use.node.write(0, bytes(512, 77), 0));
        await answerAll();
        assert.equal((pivoted ? target : source).content[0], 77);
      }),
      seeded(25),
    );
  });
}

test('blockdev-mirror: arguments that do not fit are refused, and nothing has changed', async () => {
  const { world, start } = await build(1, 'at-once');
  await world.disk('short', block);
  await assert.rejects(start({ device: 'nowhere' }), { code: 'node-not-found' });
  await assert.rejects(start({ target: 'nowhere' }), { code: 'node-not-found' });
  await assert.rejects(start({ target: 'source' }), /is the device itself/);
  await assert.rejects(start({ target: 'short' }), /'short' \(4096 bytes\) is shorter than 'source'/);
  await assert.rejects(start({ granularity: 1000 }), /granularity/);
  await assert.rejects(start({ 'copy-mode': 'write-blocking' }), { code: 'not-supported' });
  const user = await world.use('target');
  await user.setPermissions({ needs: 1, shares: 1 });
  await assert.rejects(start(), { code: 'permission-conflict' });
  assert.deepEqual(world.jobs.list(), []);
  assert.deepEqual(
    world.graph
      .list()
      .map(({ nodeName }) => nodeName)
      .sort(),
    ['short', 'source', 'target'],
  );
  assert.deepEqual(parentsOf(world, 'source'), []);
});

test('blockdev-mirror: an error of either side ends the job, with the error in its state; the source is as before', async () => {
  for (const [side, kind] of [
    ['source', 'read'],
    ['target', 'write'],
  ] as const) {
    const mirror = await build(2, 'at-once');
    mirror.source.content.fill(1);
    mirror[side].failing.set(kind, new BlockError('io-error', `${side} is broken`));
    const job = await mirror.start();
    await settleTurns(40);
    assert.equal(job.status, 'concluded');
    assert.match(job.info().error ?? '', new RegExp(`^${kind} of \\d+ bytes at 0: ${side} is broken$`));
    assert.deepEqual(parentsOf(mirror.world, 'source'), []);
    assert.deepEqual(mirror.world.told('BLOCK_JOB_ERROR')[0], { device: 'm', operation: kind, action: 'report' });
    mirror[side].failing.clear();
  }
});

test('blockdev-mirror: on-target-error=stop pauses it; after resume it goes on and is byte-equal', async () => {
  const { source, target, start } = await build(3, 'at-once');
  source.content.fill(1);
  target.failing.set('write', new BlockError('no-space', 'full'));
  const job = await start({ 'on-target-error': 'stop' });
  await settleTurns(40);
  assert.equal(job.status, 'paused');
  assert.equal(job.blockInfo()['io-status'], 'nospace');
  target.failing.clear();
  job.resume();
  await settleTurns(40);
  assert.equal(job.status, 'ready');
  assert.deepEqual(target.content, source.content);
});

test('blockdev-mirror: on-source-error=ignore meets the block again after a while', async () => {
  const { world, source, target, start } = await build(4, 'at-once');
  source.content.fill(1);
  source.failing.set('read', new BlockError('io-error', 'bad sector'));
  const job = await start({ 'on-source-error': 'ignore' });
  await settleTurns(40);
  assert.equal(job.status, 'running');
  source.failing.clear();
  await world.clock.move(2000);
  await settleTurns(40);
  assert.equal(job.status, 'ready');
  assert.deepEqual(target.content, source.content);
});

test('a speed limit is kept to, and a new one is obeyed', async () => {
  const world = new ReplicationWorld();
  const mib = 2 ** 20;
  const source = await world.disk('source', 8 * mib);
  await world.disk('target', 8 * mib);
  source.content.fill(1);
  await startBlockdevMirror(world.graph, world.jobs, {
    'job-id': 'm',
    device: 'source',
    target: 'target',
    sync: 'full',
    speed: mib,
  });
  const job = world.jobs.find('m');
  for (let second = 1; second <= 3; second += 1) {
    await settleTurns(10);
    assert.ok(job.info()['current-progress'] <= (second + 1) * mib, 'not faster than the limit');
    await world.clock.move(1000);
  }
  assert.ok(job.info()['current-progress'] >= 3 * mib, 'not much slower either');
  assert.equal(job.info()['total-progress'], 8 * mib);
  job.setSpeed(1);
  await world.clock.move(1100);
  job.setSpeed(0);
  await settleTurns(20);
  assert.equal(job.status, 'ready');
});

test('a mirror rests while its source is drained, and a paused one has nothing under way', async () => {
  const { world, source, target, start } = await build(5);
  const job = await start({ 'buf-size': block });
  await settleTurns(5);
  job.pause();
  await settleTurns(5);
  assert.equal(job.status, 'running', 'a chunk is under way');
  for (let i = 0; i < 6; i += 1) {
    source.answerAll();
    target.answerAll();
    await settleTurns(3);
  }
  assert.equal(job.status, 'paused');
  assert.equal(source.pending.length + target.pending.length, 0);
  const drained = await world.graph.drain('source');
  job.resume();
  await settleTurns(10);
  assert.equal(source.pending.length + target.pending.length, 0, 'drained: nothing is issued');
  drained.end();
  await settleTurns(10);
  assert.ok(source.pending.length > 0);
});

test('sync=none copies only what is written from then on; sync=top what is allocated', async () => {
  for (const sync of ['none', 'top'] as const) {
    const { world, source, target, start } = await build(6, 'at-once');
    source.content.fill(0);
    source.content.fill(5, 0, block);
    const use = await world.use('source');
    await start({ sync });
    await settleTurns(20);
    watch(() => use.node.write(3 * block, bytes(block, 8), 0));
    await settleTurns(20);
    assert.deepEqual(
      [target.content[0], target.content[block], target.content[3 * block]],
      [sync === 'top' ? 5 : 99, 99, 8],
    );
  }
});
