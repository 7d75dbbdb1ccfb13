/**
 * Whole lives of a pair's disks over sides that answer at random: writes, zeroes, discards, flushes while links break,
 * come back, and syncs run. What is checked: nothing that is not in mayDiffer differs, and every sync converges.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { writeFlags } from '../../src/block/node.ts';
import { startReplicationSync } from '../../src/jobs/replication-sync.ts';
import { BlockError } from '../../src/util/errors.ts';
import type { Done } from '../../src/util/later.ts';
import {
  bytes,
  fc,
  type PairDisk,
  Random,
  ReplicationWorld,
  seeded,
  settleTurns,
  type Watched,
  watch,
} from './replication-world.ts';

const block = 4096;
const blocks = 24;
const length = blocks * block;
const badSector = new BlockError('io-error', 'bad sector');

/** A user's view of a disk, byte by byte: the number of the last write that was asked for, and is that answered? */
interface Promises {
  readonly last: Uint32Array;
  readonly answered: Uint8Array;
}

class Life {
  readonly world = new ReplicationWorld();
  readonly random: Random;
  readonly disks: PairDisk[] = [];
  private readonly requests: Watched[] = [];
  private readonly promises: Promises[] = [];
  /** what each write makes of its bytes */
  private readonly values = [0];
  private breaks = 0;
  private value = 0;
  private jobCount = 0;

  /** how often the local disk fails a write */
  private readonly failing: number;

  constructor(seed: number, failing: number) {
    this.random = new Random(seed);
    this.failing = failing;
  }

  async build(count: number): Promise<void> {
    for (let i = 0; i < count; i += 1) {
      const disk = await this.world.pairDisk(`d${i}`, length, {
        granularity: block,
        'window-bytes': 3 * block,
        acknowledge: this.random.chance(0.8) ? 'flush' : 'remote',
      });
      for (const side of [disk.local, disk.remote]) {
        side.mode = this.random.chance(0.8) ? 'by-hand' : 'at-once';
        side.content.fill(this.random.chance(0.5) ? 0 : 200 + i);
      }
      disk.remote.flushesInOrder = this.random.chance(0.5);
      this.disks.push(disk);
      this.promises.push({ last: new Uint32Array(length), answered: new Uint8Array(length) });
    }
  }

  get links(): ReplicationWorld['group']['links'] {
    return this.world.group.links;
  }

  /** A request of a user, anywhere. */
  request(): void {
    const { random } = this;
    const index = random.below(this.disks.length);
    const { node } = this.disks[index]?.use ?? assert.fail();
    const offset = random.below(length / 512) * 512;
    const size = Math.min(length - offset, (1 + random.below(12)) * 1024);
    this.value = (this.value % 199) + 1;
    const flags = random.chance(0.1) ? writeFlags.fua : 0;
    const kind = random.below(5);
    if (kind < 2) this.write(index, () => node.write(offset, bytes(size, this.value), flags), offset, size, flags);
    else if (kind === 2) {
      const noHole = random.chance(0.5) ? writeFlags.noHole : 0;
      this.write(index, () => node.writeZeroes(offset, size, noHole), offset, size, 0, 0);
    } else if (kind === 3) this.write(index, () => node.discard(offset, size), offset, size, 0, 0);
    else this.flush(index);
  }

  /** In sync an answer means what `acknowledge` and FUA say (pair.md 1). */
  private write(
    index: number,
    call: () => Done,
    offset: number,
    size: number,
    flags: number,
    value = this.value,
  ): void {
    const { last, answered } = this.promises[index] ?? assert.fail();
    const number = this.values.push(value) - 1;
    last.fill(number, offset, offset + size);
    answered.fill(0, offset, offset + size);
    const began = this.inSyncSince;
    this.follow(call, () => {
      for (let i = offset; i < offset + size; i += 512) {
        if (last[i] !== number) continue;
        answered[i] = 1;
        if (began === null || began !== this.inSyncSince) continue;
        const { remote, acknowledge } = this.side(index);
        if (acknowledge === 'remote') assert.equal(remote.content[i], value, 'the other side has it');
        if ((flags & writeFlags.fua) !== 0) assert.equal(remote.durable[i], value, 'it is durable there');
      }
    });
  }

  /** What was answered before a flush is durable over there when that is answered. */
  private flush(index: number): void {
    const { last, answered } = this.promises[index] ?? assert.fail();
    const before = { last: last.slice(), answered: answered.slice() };
    const began = this.inSyncSince;
    const { node } = this.disks[index]?.use ?? assert.fail();
    this.follow(
      () => node.flush(),
      () => {
        if (began === null || began !== this.inSyncSince) return;
        const { remote } = this.side(index);
        for (let i = 0; i < length; i += 512) {
          if (before.answered[i] === 0 || last[i] !== before.last[i]) continue;
          assert.equal(remote.durable[i], this.values[last[i] ?? 0], `byte ${i} is durable there`);
        }
      },
    );
  }

  private follow(call: () => Done, answered: () => void): void {
    const { requests } = this;
    requests.push(
      watch(() => {
        const done = call();
        if (done === undefined) answered();
        return done?.then(answered);
      }),
    );
  }

  /** Which time in sync this is; null: it is not. */
  private get inSyncSince(): number | null {
    return this.links.mode === 'in-sync' ? this.breaks : null;
  }

  private side(index: number): { remote: PairDisk['remote']; acknowledge: unknown } {
    const { name, remote } = this.disks[index] ?? assert.fail();
    return { remote, acknowledge: this.world.group.find(`${name}-replication`).info().acknowledge };
  }

  /** Some answers, in an order that chance decides. */
  async answerSome(count: number): Promise<void> {
    for (let i = 0; i < count; i += 1) {
      const disk = this.disks[this.random.below(this.disks.length)];
      if (this.random.chance(0.5)) disk?.remote.answerRandom(this.random);
      else if (disk !== undefined) this.answerLocal(disk.local);
      if (this.random.chance(0.3)) await settleTurns(1);
    }
    await settleTurns(2);
  }

  private answerLocal(local: PairDisk['local']): void {
    const [first] = local.pending;
    const fails = (first?.kind === 'write' || first?.kind === 'zeroes') && this.random.chance(this.failing);
    if (fails) local.answer(first, badSector);
    else local.answerRandom(this.random);
  }

  async answerAll(): Promise<void> {
    for (let rounds = 0; ; rounds += 1) {
      assert.ok(rounds < 10_000, 'it never comes to rest');
      await settleTurns(3);
      let some = false;
      for (const { local, remote } of this.disks) {
        for (const side of [local, remote]) while (side.answerRandom(this.random)) some = true;
      }
      if (!some) return;
    }
  }

  /** After a break, or at the start: the marks of a new connection, then a sync. */
  async reconnect(): Promise<void> {
    this.breaks += 1;
    this.links.setMode('alone');
    await settleTurns(2);
    for (const { name, remote } of this.disks) {
      const member = this.links.find(`${name}-replication`);
      await member.disconnect();
      remote.pending = [];
      remote.mend();
      // Another instance lost what it had not made durable.
      if (this.random.chance(0.5)) {
        remote.content.set(remote.durable);
        member.mark({ unproven: true });
      }
      await member.connect(`${name}-remote`);
    }
    this.links.setMode('syncing');
  }

  async startSync(): Promise<void> {
    for (const { name } of this.disks) {
      this.jobCount += 1;
      await startReplicationSync(this.world.graph, this.world.jobs, this.links.find(`${name}-replication`), {
        source: `${name}-local`,
        jobId: `sync-${this.jobCount}`,
      });
    }
  }

  get missing(): number {
    return this.links.members.reduce((sum, { missingBytes }) => sum + missingBytes, 0);
  }

  checkAnswered(): void {
    for (const { done, error } of this.requests) {
      if (error !== badSector) assert.equal(error, null);
      assert.ok(done, 'a request was never answered');
    }
  }

  /** At rest: what is not in mayDiffer is durable over there, byte for byte. */
  checkProven(): void {
    for (const { name, local, remote } of this.disks) {
      const { mayDiffer } = this.links.find(`${name}-replication`).bitmap();
      const differs = new Uint8Array(blocks);
      for (const [offset, size] of mayDiffer) differs.fill(1, offset / block, Math.ceil((offset + size) / block));
      for (let i = 0; i < blocks; i += 1) {
        if (differs[i] === 1) continue;
        const [from, to] = [i * block, (i + 1) * block];
        assert.deepEqual(remote.durable.subarray(from, to), local.content.subarray(from, to), `${name} block ${i}`);
      }
    }
  }
}

async function live(seed: number, failing: number): Promise<void> {
  const life = new Life(seed, failing);
  const { random, links } = life;
  await life.build(1 + random.below(3));
  for (const { name } of life.disks) links.find(`${name}-replication`).mark({ all: true });
  await life.reconnect();
  await life.startSync();
  for (let turn = 0; turn < 60; turn += 1) {
    if (random.chance(0.7)) life.request();
    await life.answerSome(random.below(6));
    if (links.mode === 'syncing' && life.missing === 0 && life.world.jobs.list().length === 0) links.setMode('in-sync');
    if (random.chance(0.05)) {
      const disk = life.disks[random.below(life.disks.length)];
      disk?.remote.breakAtRandom(random);
      assert.equal(links.mode, 'held', 'pair 5: one link down, all down');
      await life.answerSome(random.below(10));
    }
    if (links.mode === 'held' && random.chance(0.5)) {
      await life.reconnect();
      // The jobs of the broken link end by themselves.
      await life.answerSome(5);
      await life.startSync();
    }
  }
  if (links.mode === 'held') {
    await life.reconnect();
    await life.startSync();
  }
  await life.answerAll();
  // What the local disk failed while in sync is missing again.
  if (failing > 0 && life.missing > 0) {
    await life.startSync();
    await life.answerAll();
  }
  assert.equal(life.missing, 0, 'pair 11: a resync converges');
  life.checkAnswered();
  links.setMode('in-sync');
  const flushes = links.members.map((member) => watch(() => member.proveDurable()));
  await life.answerAll();
  assert.ok(flushes.every(({ done, error }) => done && error === null));
  life.checkProven();
  assert.ok(links.members.every((member) => member.bitmap().mayDifferBytes === 0));
}

for (const failing of [0, 0.1])
  test(`pair 4, 5, 8, 11: random lives, ${failing * 100} % of local writes fail: answers mean what they say, resyncs converge`, async () => {
    const lives = fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), (seed) => live(seed, failing));
    await fc.assert(lives, seeded(40));
  });

test('pair 11: a resync converges though one block is written all the time', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', length, { granularity: block });
  const { local, remote, use } = disk;
  local.content.fill(1);
  await world.connect(disk);
  const member = world.group.links.find('d-replication');
  member.mark({ all: true });
  world.group.links.setMode('syncing');
  local.mode = 'by-hand';
  remote.mode = 'by-hand';
  await startReplicationSync(world.graph, world.jobs, member, { source: 'd-local', jobId: 'sync' });
  const random = new Random(1);
  let rounds = 0;
  for (; member.missingBytes > 0 && rounds < 500; rounds += 1) {
    watch(() => use.node.write(0, bytes(512, rounds % 256), 0));
    await settleTurns(1);
    local.answerRandom(random);
    remote.answerRandom(random);
  }
  assert.ok(member.missingBytes === 0, 'it ended under load');
  for (let i = 0; i < 600; i += 1) {
    await settleTurns(1);
    local.answerAll();
    remote.answerAll();
  }
  assert.deepEqual(remote.content, local.content);
});

for (const mode of ['syncing', 'in-sync'] as const)
  test(`pair 11: in mode ${mode} a write that comes while a copy reads the source is sent behind the copy`, async () => {
    const world = new ReplicationWorld();
    const disk = await world.pairDisk('d', length, { granularity: block });
    disk.local.content.fill(1);
    await world.connect(disk);
    const member = world.group.links.find('d-replication');
    world.group.links.setMode(mode);
    // Also in sync: what the local disk failed is copied again (pair.md 8).
    member.mark({ ranges: [[0, block]] });
    disk.local.mode = 'by-hand';
    await startReplicationSync(world.graph, world.jobs, member, { source: 'd-local', jobId: 'sync' });
    await settleTurns();
    const write = watch(() => disk.use.node.write(100, bytes(10, 7), 0));
    await settleTurns();
    assert.equal(disk.remote.log.length, 0);
    for (let i = 0; i < 3; i += 1) {
      disk.local.answerAll();
      await settleTurns();
    }
    assert.deepEqual(
      disk.remote.log.map(({ offset, length: size }) => [offset, size]),
      [
        [0, block],
        [100, 10],
      ],
    );
    assert.ok(write.done);
    assert.deepEqual(disk.remote.content.subarray(0, block), disk.local.content.subarray(0, block));
  });

test('pair 8: what the local disk failed to write while a copy of it was being read is copied again', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', length, { granularity: block });
  const { local, remote } = disk;
  local.content.fill(1);
  await world.connect(disk);
  const member = world.group.links.find('d-replication');
  member.mark({ ranges: [[0, block]] });
  world.group.links.setMode('syncing');
  local.mode = 'by-hand';
  await startReplicationSync(world.graph, world.jobs, member, { source: 'd-local', jobId: 'sync' });
  await settleTurns();
  local.answer(local.waiting('status')[0]);
  await settleTurns();
  const [read] = local.waiting('read');
  assert.ok(read !== undefined, 'the copy reads');
  const write = watch(() => disk.use.node.write(0, bytes(512, 7), 0));
  local.answer(read);
  local.content.fill(7, 0, 100);
  local.answer(local.waiting('write')[0], new BlockError('io-error', 'torn'));
  for (let i = 0; i < 10; i += 1) {
    await settleTurns();
    local.answerAll();
  }
  assert.ok(write.error !== undefined && write.error !== null);
  assert.equal(member.missingBytes, 0);
  assert.deepEqual(remote.content.subarray(0, block), local.content.subarray(0, block));
});

test('pair 1, 8: acknowledge=remote: a write in line when a local flush fails is answered only with the other side', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', length, {
    granularity: block,
    acknowledge: 'remote',
    'window-bytes': 4096,
    'stall-ms-max': 9,
  });
  const { local, remote, use } = disk;
  await world.connect(disk);
  world.group.links.setMode('in-sync');
  remote.mode = 'by-hand';
  // As much as may be under way at first; the next one waits for room.
  const first = watch(() => use.node.write(0, bytes(16 * block, 1), 0));
  const second = watch(() => use.node.write(20 * block, bytes(block, 2), 0));
  local.failing.set('flush', new BlockError('io-error', 'bad disk'));
  const flush = watch(() => use.node.flush());
  await settleTurns();
  assert.deepEqual([first.done, second.done], [false, false]);
  for (let i = 0; i < 6; i += 1) {
    remote.answerAll();
    await settleTurns();
  }
  assert.ok(first.done && second.done);
  assert.equal(flush.error?.message, 'bad disk');
  assert.equal(remote.content[20 * block], 2);
  assert.equal(world.group.links.find('d-replication').missingBytes, length, 'all of it is sent again from the disk');
});

test('pair 10: target-is-zero is believed only where nothing was sent since', async () => {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', length, { granularity: block });
  await world.connect(disk);
  const member = world.group.links.find('d-replication');
  world.group.links.setMode('syncing');
  watch(() => disk.use.node.write(0, bytes(block, 4), 0));
  assert.equal(disk.remote.content[0], 4);
  world.group.links.setMode('alone');
  watch(() => disk.use.node.writeZeroes(0, block, 0));
  world.group.links.setMode('syncing');
  await startReplicationSync(world.graph, world.jobs, member, { source: 'd-local', jobId: 's', targetIsZero: true });
  await settleTurns(40);
  assert.equal(member.missingBytes, 0);
  assert.deepEqual(disk.remote.content, disk.local.content);
});

test('pair 10: zeroes of the source are sent as zeroes, or not at all where the target is known to be zero', async () => {
  for (const targetIsZero of [false, true]) {
    const world = new ReplicationWorld();
    const disk = await world.pairDisk('d', length, { granularity: block });
    disk.local.content.fill(5, 4 * block, 6 * block);
    if (!targetIsZero) disk.remote.content.fill(9);
    await world.connect(disk);
    const member = world.group.links.find('d-replication');
    member.mark({ all: true });
    world.group.links.setMode('syncing');
    await startReplicationSync(world.graph, world.jobs, member, { source: 'd-local', jobId: 's', targetIsZero });
    await settleTurns(40);
    assert.equal(member.missingBytes, 0);
    assert.deepEqual(disk.remote.content, disk.local.content);
    // A copy begins with one block at a time (link-pace.ts): what counts is the order of the kinds.
    const kinds = disk.remote.log.map(({ kind }) => kind).filter((kind, index, all) => kind !== all[index - 1]);
    assert.equal(kinds.join(), targetIsZero ? 'write' : 'zeroes,write,zeroes');
  }
});
