/** `degraded: stop` (pair.md 7): what is refused, what has then become of it, and that the two never differ unseen. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LinkMode } from '../../src/block/link-group.ts';
import { bytes, type PairDisk, ReplicationWorld, settleTurns, type Watched, watch } from './replication-world.ts';

const mib = 2 ** 20;
const block = 65_536;

async function stopDisk(mode: LinkMode): Promise<[ReplicationWorld, PairDisk]> {
  const world = new ReplicationWorld();
  const disk = await world.pairDisk('d', mib, { degraded: 'stop' });
  await world.connect(disk);
  world.group.links.setMode(mode);
  return [world, disk];
}

const info = (world: ReplicationWorld) => world.group.find('d-replication').info();

async function outcomes(...requests: Watched[]): Promise<string[]> {
  await settleTurns();
  return requests.map(({ done, error }) => (done ? (error?.code ?? 'done') : 'waits'));
}

for (const mode of ['alone', 'syncing', 'refusing'] as const) {
  test(`pair 7: degraded stop: in mode ${mode} everything is refused, and neither disk is given it`, async () => {
    const [world, { use, local, remote }] = await stopDisk(mode);
    const { node } = use;
    const found = await outcomes(
      watch(() => node.write(0, bytes(512, 1), 0)),
      watch(() => node.writeZeroes(0, 512, 0)),
      watch(() => node.discard(0, 512)),
      watch(() => node.flush()),
    );
    assert.deepEqual(found, ['wrong-state', 'wrong-state', 'wrong-state', 'wrong-state']);
    assert.deepEqual([local.log, remote.log], [[], []]);
    assert.equal(info(world)['may-differ-bytes'], 0);
    const read = watch(() => node.read(0, bytes(512, 0)));
    assert.deepEqual(await outcomes(read), ['done'], 'reads go on');
    world.group.links.setMode('in-sync');
    const later = [watch(() => node.write(0, bytes(512, 1), 0)), watch(() => node.flush())];
    assert.deepEqual(await outcomes(...later), ['done', 'done']);
    assert.deepEqual([local.content[0], remote.durable[0]], [1, 1]);
  });
}

test('pair 7: degraded stop: what was held when a sync begins is refused, and the sync sends what the local disk has', async () => {
  const [world, disk] = await stopDisk('in-sync');
  disk.remote.mode = 'by-hand';
  const flushed = watch(() => disk.use.node.flush());
  disk.remote.breakConnection('cable pulled');
  const held = watch(() => disk.use.node.write(3 * block, bytes(512, 7), 0));
  assert.deepEqual(await outcomes(flushed, held), ['waits', 'waits']);
  const { links } = world.group;
  await links.find('d-replication').disconnect();
  disk.remote.mend();
  disk.remote.mode = 'at-once';
  await world.connect(disk);
  links.setMode('syncing');
  assert.deepEqual(await outcomes(flushed, held), ['wrong-state', 'wrong-state']);
  assert.equal(disk.local.content[3 * block], 7);
  assert.deepEqual(links.find('d-replication').bitmap().mayDiffer, [[3 * block, block]]);
  assert.throws(() => links.setMode('in-sync'), /still misses 65536 bytes/);
});

for (const degraded of ['stop', 'continue'] as const) {
  test(`pair 7, 11: degraded ${degraded}: a copy that has read a range before it changed unsent leaves the mark`, async () => {
    const world = new ReplicationWorld();
    const disk = await world.pairDisk('d', mib, { degraded });
    await world.connect(disk);
    const member = world.group.links.find('d-replication');
    member.mark({ ranges: [[0, block]] });
    world.group.links.setMode('syncing');
    const target = member.copyTarget();
    const ticket = target.take({ offset: 0, length: block });
    // Straight to the filter, as by a parent that does not ask beforehand.
    const { node } = world.graph.find('d-replication');
    const request = degraded === 'stop' ? () => node.write(512, bytes(512, 9), 0) : () => node.discard(512, 512);
    assert.deepEqual(await outcomes(watch(request)), [degraded === 'stop' ? 'wrong-state' : 'done']);
    await ticket.send(bytes(block, 0));
    assert.equal(member.missingBytes, block, 'the copy may be older than the change');
    const again = target.take({ offset: 0, length: block });
    await again.send(bytes(block, 9));
    assert.equal(member.missingBytes, 0);
  });
}
