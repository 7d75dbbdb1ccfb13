/**
 * A checkpoint over crashes, on the simulated machine: disk <- hidden (shadow of a group) with `copy-before-write`
 * above the disk, ended at every I/O of a run (record-log.md 8 and 9).
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { copiesBeforeWrite } from '../../src/block/copies-before-write.ts';
import type { DriverNode } from '../../src/block/driver.ts';
import { epochal } from '../../src/block/epochal.ts';
import { type BlockNode, writeFlags } from '../../src/block/node.ts';
import { parent, randomOf, reader, testGraph, writer } from '../block/fixture.ts';
import { World } from '../sim/world.ts';

const sector = 512;
const size = 64 * 1024 + sector;

/** What outlives the process: what the test knows of the disk, and what the group's owner wrote durably. */
interface Known {
  epoch: number;
  checkpoint: Uint8Array;
  /** for each sector what it may hold, the last proven durable first */
  sectors: number[][];
}

interface Opened {
  readonly primary: BlockNode;
  readonly hidden: BlockNode;
  readonly lost: unknown;
  close(): Promise<void>;
}

async function makeFiles(world: World): Promise<void> {
  const { files } = world.host('a');
  await (await files.open('/hidden', { access: 'write', create: 'exclusive' })).close();
  const disk = await files.open('/disk', { access: 'write', create: 'exclusive' });
  await disk.truncate(size);
  await disk.sync();
  await disk.close();
  await files.syncFolder('/');
}

async function openPair(world: World, epoch: number, sync: boolean): Promise<Opened> {
  const { graph } = testGraph(world.host('a'));
  await graph.add({ driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: '/disk' } });
  await graph.add({
    driver: 'shadow',
    'node-name': 'hidden',
    file: { driver: 'file', filename: '/hidden' },
    backing: 'disk',
    epoch,
    sync,
    'grow-bytes': 65536,
    'reuse-bytes': 65536,
  });
  const hidden: DriverNode = graph.find('hidden').node;
  const lost = hidden.info?.()['checkpoint-lost'];
  await graph.add({ driver: 'copy-before-write', 'node-name': 'copying', file: 'disk', target: 'hidden', sync });
  const uses = [
    await graph.use('copying', parent('the export'), writer),
    await graph.use('hidden', parent('the reader'), reader),
  ];
  const primary = graph.find('copying').node;
  if (lost === null) {
    for (let at = 0; at < size; ) {
      const [extent] = await hidden.blockStatus(at, size - at);
      assert.ok(extent !== undefined);
      if (extent.allocated) copiesBeforeWrite(primary)?.markCopied(at, extent.length);
      at += extent.length;
    }
  }
  const close = async (): Promise<void> => {
    for (const use of uses) await use.release();
    await graph.remove('copying');
    await graph.close();
  };
  return { primary, hidden, lost, close };
}

async function readAll(node: BlockNode): Promise<Uint8Array> {
  const bytes = new Uint8Array(size);
  await node.read(0, bytes);
  return bytes;
}

/** The checkpoint is what hidden shows; each sector of the disk is one of its writes, none older than a flushed one. */
async function check(opened: Opened, known: Known, claim: string): Promise<void> {
  const seen = await readAll(opened.hidden);
  const at = seen.findIndex((byte, index) => byte !== known.checkpoint[index]);
  assert.equal(at, -1, `${claim}: the checkpoint differs at byte ${at}`);
  await checkDisk(opened, known, claim);
}

async function checkDisk(opened: Opened, known: Known, claim: string): Promise<void> {
  const disk = await readAll(opened.primary);
  for (const [index, allowed] of known.sectors.entries()) {
    const stamp = disk[index * sector] ?? -1;
    assert.ok(allowed.includes(stamp), `${claim}: sector ${index} of the disk is ${stamp}, allowed ${allowed}`);
  }
}

/** The power was cut: what the disk holds now is durable. */
async function settleDisk(opened: Opened, known: Known): Promise<void> {
  const disk = await readAll(opened.primary);
  known.sectors = known.sectors.map((_, index) => [disk[index * sector] ?? 0]);
}

async function checkpoint(opened: Opened, known: Known): Promise<void> {
  const { primary, hidden } = opened;
  await primary.flush();
  const disk = await readAll(primary);
  // The group's owner writes the epoch in one durable write; in the same tick all is as at that moment.
  known.sectors = known.sectors.map((_, index) => [disk[index * sector] ?? 0]);
  known.epoch += 1;
  known.checkpoint = disk;
  epochal(hidden)?.emptyAt(known.epoch);
  copiesBeforeWrite(primary)?.forgetCopies();
}

async function live(opened: Opened, known: Known, seed: number, steps: number): Promise<void> {
  const random = randomOf(seed);
  const below = (limit: number): number => Math.floor(random() * limit);
  let pending: Promise<void>[] = [];
  const settle = async (): Promise<void> => {
    await Promise.all(pending);
    pending = [];
  };
  const write = async (): Promise<void> => {
    const stamp = 1 + below(254);
    const first = below(known.sectors.length);
    const count = Math.min(1 + below(random() < 0.7 ? 4 : 30), known.sectors.length - first);
    for (let i = 0; i < count; i++) known.sectors[first + i]?.push(stamp);
    await opened.primary.write(first * sector, new Uint8Array(count * sector).fill(stamp), writeFlags.none);
  };
  for (let step = 0; step < steps; step++) {
    if (random() < 0.1) {
      await settle();
      await checkpoint(opened, known);
    } else pending.push(write());
    if (random() < 0.3) await settle();
  }
  await settle();
}

function fresh(): Known {
  return {
    epoch: 1,
    checkpoint: new Uint8Array(size),
    sectors: Array.from({ length: size / sector }, () => [0]),
  };
}

type Ending = readonly [at: number, how: 'power cut' | 'kill'];

/** Lives that are ended at an I/O; after each the checkpoint is asked for. Returns the I/Os of the first. */
async function runLives(seed: number, sync: boolean, endings: readonly (Ending | null)[]): Promise<number> {
  const world = new World(seed);
  await world.complete(makeFiles(world));
  const known = fresh();
  let took = 0;
  for (const [index, ending] of endings.entries()) {
    const claim = `seed ${seed}, sync ${sync}, life ${index}, ${ending?.[1]} at I/O ${ending?.[0]}`;
    const before = world.ioCount;
    let over = false;
    let problem: unknown = null;
    world.onIo((n) => {
      if (ending === null || n - before !== ending[0]) return;
      if (ending[1] === 'kill') world.kill('a');
      else world.powerCut('a');
    });
    const wholeLife = async (): Promise<void> => {
      const opened = await openPair(world, known.epoch, sync);
      if (opened.lost === null) await check(opened, known, `${claim}, at its begin`);
      else await recover(opened, known, claim);
      await live(opened, known, seed * 10 + index, 50);
      await opened.close();
    };
    wholeLife().then(
      () => {
        over = true;
      },
      (error: unknown) => {
        over = true;
        problem = error;
      },
    );
    await world.run(() => over || !world.isAlive('a'));
    if (problem !== null) throw problem;
    world.onIo(null);
    if (index === 0) took = world.ioCount - before;
    if (over) {
      // A clean end: even a log that syncs nothing is whole after another boot.
      world.powerCut('a', { loseUnsynced: true });
      world.restart('a');
      const opened = await world.complete(openPair(world, known.epoch, sync));
      assert.equal(opened.lost, null, claim);
      await world.complete(check(opened, known, `${claim}, closed`));
      await world.complete(settleDisk(opened, known));
      await world.complete(opened.close());
      continue;
    }
    world.restart('a');
    const opened = await world.complete(openPair(world, known.epoch, sync));
    if (sync || ending?.[1] === 'kill') assert.equal(opened.lost, null, claim);
    if (opened.lost === null) await world.complete(check(opened, known, claim));
    else await world.complete(checkDisk(opened, known, claim));
    if (ending?.[1] === 'power cut') await world.complete(settleDisk(opened, known));
    // It is found so again, until somebody empties it.
    world.kill('a');
    world.restart('a');
  }
  return took;
}

/** A checkpoint that is lost is said to be, refuses I/O, and a new one is whole again. */
async function recover(opened: Opened, known: Known, claim: string): Promise<void> {
  assert.match(String(opened.lost), /went down before it was closed/, claim);
  const node = opened.hidden;
  await assert.rejects(async () => node.read(0, new Uint8Array(sector)), { code: 'bad-image' }, claim);
  await assert.rejects(async () => node.blockStatus(0, sector), { code: 'bad-image' }, claim);
  await assert.rejects(async () => opened.primary.write(0, new Uint8Array(sector), 0), /content is lost/, claim);
  const disk = await readAll(opened.primary);
  known.sectors = known.sectors.map((_, index) => [disk[index * sector] ?? 0]);
  await checkpoint(opened, known);
  await check(opened, known, `${claim}, emptied`);
}

const { SEEDS } = process.env;

async function throughAll(sync: boolean, how: Ending[1], step: number): Promise<void> {
  for (const seed of (SEEDS ?? '1,2').split(',').map(Number)) {
    const count = await runLives(seed, sync, [null]);
    for (let at = seed; at <= count; at += SEEDS === undefined ? step : 1) {
      await runLives(seed, sync, [[at, how], [1 + ((at * 5) % count), how], null]);
    }
  }
}

test('record-log 8: with sync=true the last checkpoint and every flushed write survive a power cut at each I/O', () =>
  throughAll(true, 'power cut', 19));

test('record-log 9: the last checkpoint survives kill -9 at each I/O, with sync=true', () =>
  throughAll(true, 'kill', 29));

test('record-log 9: the last checkpoint survives kill -9 at each I/O, with sync=false', () =>
  throughAll(false, 'kill', 17));

test('record-log 8: with sync=false a checkpoint that may be lost is never passed off as one after a power cut', () =>
  throughAll(false, 'power cut', 17));
