/** The group file: two checksummed copies, of which one write can tear only one (pair.md 13, record-log.md 1). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  ancestorsMax,
  copyBytes,
  decodeCopy,
  emptyRecord,
  encodeCopy,
  GroupFile,
  type GroupRecord,
  openGeneration,
} from '../../src/pair/generation.ts';
import { loadHash64 } from '../../src/util/xxhash.ts';
import { World } from '../sim/world.ts';

const hash = await loadHash64();
const idOf = (number: number): string => number.toString(16).padStart(16, '0');
const base = emptyRecord({ volume: 'v', name: 'a', role: 'primary', store: 'clean', disks: { d: 512 } });
const numbered = (number: number): GroupRecord => ({ ...base, generation: { id: idOf(number), number } });

test('pair 13: a copy comes back as it was written', () => {
  const copy = decodeCopy(encodeCopy(numbered(7), 42, hash), hash);
  assert.deepEqual(copy, { kind: 'valid', record: numbered(7), sequence: 42 });
});

test('pair 13: a copy torn at any sectors is the old one, the new one, or damaged: never a third', () => {
  const [old, next] = [encodeCopy(numbered(1), 1, hash), encodeCopy({ ...numbered(2), aloneSince: 5 }, 3, hash)];
  fc.assert(
    fc.property(fc.array(fc.boolean(), { minLength: 8, maxLength: 8 }), (taken) => {
      const torn = old.slice();
      for (const [sector, isNew] of taken.entries()) {
        if (isNew) torn.set(next.subarray(sector * 512, sector * 512 + 512), sector * 512);
      }
      const copy = decodeCopy(torn, hash);
      if (copy.kind === 'valid') assert.ok([1, 3].includes(copy.sequence));
      else assert.equal(copy.kind, 'damaged');
    }),
  );
});

test('pair 13: any flipped bit of a copy is seen', () => {
  const copy = encodeCopy(numbered(1), 1, hash);
  fc.assert(
    fc.property(fc.nat(copyBytes - 1), fc.nat(7), (at, bit) => {
      const flipped = copy.slice();
      flipped[at] = (flipped[at] ?? 0) ^ (1 << bit);
      assert.equal(decodeCopy(flipped, hash).kind, 'damaged');
    }),
  );
});

test('pair 13: a power cut at any I/O of commits leaves the last commit that was done, or the one under way', async () => {
  for (let seed = 1; seed <= 120; seed++) {
    const world = new World(seed);
    const host = world.host('a');
    let done = 0;
    let begun = 0;
    let left = 1 + (seed % 30);
    world.onIo(() => {
      if (--left === 0) world.powerCut('a');
    });
    const committing = (async () => {
      const file = await GroupFile.open(host, '/data');
      for (begun = 1; begun <= 8; begun++) {
        await file.commit(numbered(begun));
        done = begun;
      }
    })();
    void committing;
    await world.runFor(5000);
    world.onIo(null);
    if (!world.isAlive('a')) world.restart('a');
    const file = await world.complete(GroupFile.open(world.host('a'), '/data'));
    const found = file.found.kind === 'read' ? (file.found.record.generation?.number ?? 0) : 0;
    assert.ok(found >= done && found <= begun, `seed ${seed}: found ${found}, done ${done}, begun ${begun}`);
    // What was found can be gone on from.
    await world.complete(file.commit(numbered(100)));
    const again = await world.complete(GroupFile.open(world.host('a'), '/data'));
    assert.equal(again.found.kind === 'read' && again.found.record.generation?.number, 100);
  }
});

test('pair 13: one damaged copy is said, two are unreadable, and the file is kept beside the new one', async () => {
  const world = new World(1);
  const host = world.host('a');
  const file = await world.complete(GroupFile.open(host, '/data'));
  for (let number = 1; number <= 3; number++) await world.complete(file.commit(numbered(number)));
  const damage = async (block: number): Promise<void> => {
    const raw = await host.files.open('/data/group', { access: 'write' });
    await raw.write(block * copyBytes + 100, new Uint8Array(8).fill(0xee));
    await raw.sync();
    await raw.close();
  };
  await world.complete(damage(0));
  const one = await world.complete(GroupFile.open(host, '/data'));
  assert.equal(one.found.kind === 'read' && one.found.record.generation?.number, 2);
  assert.match(one.note ?? '', /one copy is damaged/);
  await world.complete(damage(1));
  const two = await world.complete(GroupFile.open(host, '/data'));
  assert.equal(two.found.kind, 'unreadable');
  await world.complete(two.commit(numbered(9)));
  assert.deepEqual((await world.complete(host.files.list('/data'))).toSorted(), ['group', 'group.damaged']);
});

test('pair 13: a group file of a later version is refused by name, not taken for damage', async () => {
  const world = new World(1);
  const host = world.host('a');
  const file = await world.complete(GroupFile.open(host, '/data'));
  await world.complete(file.commit(numbered(1)));
  const copy = encodeCopy(numbered(1), 9, hash);
  new DataView(copy.buffer).setUint32(4, 2);
  new DataView(copy.buffer).setBigUint64(24, 0n);
  new DataView(copy.buffer).setBigUint64(24, hash(copy));
  const raw = await world.complete(host.files.open('/data/group', { access: 'write' }));
  await world.complete(Promise.resolve(raw.write(copyBytes, copy)));
  await assert.rejects(world.complete(GroupFile.open(host, '/data')), /format 2, this blockstep knows 1/);
});

test('a commit that failed counts as not made, and the next one is', async () => {
  const world = new World(3);
  const host = world.host('a');
  const file = await world.complete(GroupFile.open(host, '/data'));
  await world.complete(file.commit(numbered(1)));
  const fault = world.fault('a', { operation: 'sync', path: '/data/group', errno: 'EIO', count: 1 });
  await assert.rejects(world.complete(file.commit(numbered(2))), /EIO/);
  fault.remove();
  await world.complete(file.commit(numbered(3)));
  world.powerCut('a', { loseUnsynced: true });
  const again = await world.complete(GroupFile.open(world.restart('a'), '/data'));
  assert.equal(again.found.kind === 'read' && again.found.record.generation?.number, 3);
});

test('pair 13: however often a side goes alone, the id that the other side holds stays among its ancestors', () => {
  let record: GroupRecord = { ...numbered(1), peer: { name: 'b', generation: { id: idOf(1), number: 1 } } };
  for (let number = 2; number < 200; number++) record = { ...record, ...openGeneration(record, idOf(number)) };
  assert.ok(record.ancestors.includes(idOf(1)));
  assert.equal(record.ancestors.length, ancestorsMax);
  assert.equal(record.generation?.number, 199);
  assert.equal(encodeCopy(record, 1, hash).length, copyBytes);
});

test('the largest group fits in its block', () => {
  const disks = Object.fromEntries(
    Array.from({ length: 64 }, (_, index) => [`disk-${index}`.padEnd(19, 'x'), 2 ** 50]),
  );
  const ids = Array.from({ length: ancestorsMax }, (_, index) => idOf(index));
  const full: GroupRecord = {
    ...numbered(1),
    volume: 'v'.repeat(63),
    name: 'n'.repeat(63),
    disks,
    ancestors: ids,
    refused: ids.slice(0, 4),
    peer: { name: 'p'.repeat(63), generation: { id: idOf(5), number: 1e9 } },
    cleanStop: {
      proof: { peers: ids.slice(0, 4), instance: idOf(1), checkpoint: 1e9 },
      bitmaps: idOf(2),
      equal: false,
      atMs: 1e13,
    },
    handingOver: { id: idOf(9), number: 1e9 },
    splitBrain: { sinceMs: 1e13, other: idOf(1) },
    latest: { asOfMs: 1e13, goodbye: false },
    overwrite: 'o'.repeat(63),
    checkpoint: { number: 1e9, atMs: 1e13 },
    checkpoints: 1e9,
    epoch: 1e9,
  };
  assert.equal(encodeCopy(full, 1, hash).length, copyBytes);
});

for (const how of ['kill', 'a failed sync, then kill'] as const) {
  test(`pair 13: what a start found is found again after a power cut: ${how}`, async () => {
    for (let io = 1; io <= 16; io++) {
      const world = new World(io);
      const host = world.host('a');
      let left = io;
      world.onIo(() => {
        if (--left === 0) world.kill('a');
      });
      if (how !== 'kill') world.fault('a', { operation: 'sync', path: '/data/group', errno: 'EIO' });
      const committing = (async () => {
        const file = await GroupFile.open(host, '/data');
        for (let number = 1; number <= 4; number++) await file.commit(numbered(number));
      })();
      committing.catch(() => undefined);
      await world.runFor(5000);
      world.onIo(null);
      world.mend();
      if (world.isAlive('a')) world.kill('a');
      const next = world.restart('a');
      const fault = world.fault('a', { operation: 'sync', path: '/data/group', errno: 'EIO' });
      const made = (await world.complete(next.files.stat('/data/group'))) !== null;
      if (made) await assert.rejects(world.complete(GroupFile.open(next, '/data')), /sync .*group: EIO/);
      fault.remove();
      const found = await world.complete(GroupFile.open(next, '/data'));
      world.powerCut('a', { loseUnsynced: true });
      const again = await world.complete(GroupFile.open(world.restart('a'), '/data'));
      assert.deepEqual(again.found, found.found, `killed at ${io}`);
    }
  });
}

test('pair 13: a group file that cannot be read is none that is missing, and is kept beside the new one', async () => {
  const world = new World(5);
  const host = world.host('a');
  await world.complete((await world.complete(GroupFile.open(host, '/data'))).commit(numbered(1)));
  const fault = world.fault('a', { operation: 'read', path: '/data/group', errno: 'EIO' });
  const file = await world.complete(GroupFile.open(host, '/data'));
  assert.match(file.found.kind === 'unreadable' ? file.found.reason : file.found.kind, /EIO/);
  fault.remove();
  await world.complete(file.commit(numbered(2)));
  assert.deepEqual((await world.complete(host.files.list('/data'))).toSorted(), ['group', 'group.damaged']);
});
