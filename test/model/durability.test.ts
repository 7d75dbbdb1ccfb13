/**
 * What a flush or FUA promised is there after a power cut: every byte reads as some write of it that was not older than
 * the last one proven durable.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { BlockNode } from '../../src/block/node.ts';
import { writeFlags } from '../../src/block/node.ts';
import { jitterDriver, testGraph } from '../block/fixture.ts';
import { World } from '../sim/world.ts';

const blockSize = 512;
const blockCount = 64;
const size = blockSize * blockCount;

const request = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'write-zeroes', 'flush'),
  block: fc.nat(blockCount - 1),
  count: fc.integer({ min: 1, max: 4 }),
  fua: fc.nat(5).map((n) => n === 0),
  settle: fc.nat(3).map((n) => n === 0),
});
type Request = typeof request extends fc.Arbitrary<infer T> ? T : never;

interface Version {
  readonly stamp: number;
  done: boolean;
}

/** The versions of every block, oldest first: those before the last durable one are dropped. */
class Versions {
  readonly blocks: Version[][] = Array.from({ length: blockCount }, () => [{ stamp: 0, done: true }]);
  private readonly node: BlockNode;
  private stamp = 0;

  constructor(node: BlockNode) {
    this.node = node;
  }

  async issue({ kind, block, count: most, fua }: Request): Promise<void> {
    const count = Math.min(most, blockCount - block);
    const flags = fua ? writeFlags.fua : writeFlags.none;
    if (kind === 'flush') {
      // Covered is what was done before the flush was asked for.
      const covered = this.blocks.map((versions) => versions.findLast((version) => version.done));
      await this.node.flush();
      for (const [index, version] of covered.entries()) this.prove(index, version);
      return;
    }
    this.stamp += 1;
    const stamp = kind === 'write' ? this.stamp : 0;
    const versions = Array.from({ length: count }, (): Version => ({ stamp, done: false }));
    for (const [i, version] of versions.entries()) this.blocks[block + i]?.push(version);
    const bytes = new Uint8Array(count * blockSize).fill(stamp);
    if (kind === 'write') await this.node.write(block * blockSize, bytes, flags);
    else await this.node.writeZeroes(block * blockSize, count * blockSize, flags);
    for (const [i, version] of versions.entries()) {
      version.done = true;
      if (fua) this.prove(block + i, version);
    }
  }

  async check(node: BlockNode): Promise<void> {
    const bytes = new Uint8Array(blockSize);
    for (const [index, versions] of this.blocks.entries()) {
      await node.read(index * blockSize, bytes);
      const allowed = versions.map((version) => version.stamp & 255);
      // A write that the cut met in the midst may have left any part of its bytes.
      const wrong = bytes.findIndex((byte) => !allowed.includes(byte));
      assert.equal(wrong, -1, `block ${index}: byte ${wrong} is ${bytes[wrong]}, allowed: ${allowed}`);
    }
  }

  private prove(block: number, version: Version | undefined): void {
    const versions = this.blocks[block];
    const index = version === undefined ? -1 : (versions?.indexOf(version) ?? -1);
    if (index > 0) versions?.splice(0, index);
  }
}

type Options = Record<string, unknown>;

/** Issues requests, cuts the power in their midst, and checks what is left. */
async function survive(
  world: World,
  requests: readonly Request[],
  build: () => Promise<BlockNode>,
  cut: () => Promise<BlockNode>,
): Promise<void> {
  const versions = new Versions(await world.complete(build()));
  let pending: Promise<unknown>[] = [];
  for (const each of requests) {
    if (each.settle) {
      await world.complete(Promise.allSettled(pending));
      pending = [];
    }
    const issued = versions.issue(each);
    issued.catch(() => undefined);
    pending.push(issued);
  }
  const node = await world.complete(cut());
  await world.complete(versions.check(node));
}

function overFile(make: (file: Options) => Options) {
  return async (requests: readonly Request[], seed: number): Promise<void> => {
    const world = new World(seed);
    const open = async (): Promise<BlockNode> => {
      const { graph } = testGraph(world.host('a'), [jitterDriver]);
      const file = { driver: 'file', filename: '/disk.img', discard: 'unmap' };
      return (await graph.add({ ...make(file), 'node-name': 'top', discard: 'unmap' })).node;
    };
    const build = async (): Promise<BlockNode> => {
      const file = await world.host('a').files.open('/disk.img', { access: 'write', create: 'exclusive' });
      await file.truncate(size);
      await file.sync();
      await file.close();
      await world.host('a').files.syncFolder('/');
      return await open();
    };
    const cut = async (): Promise<BlockNode> => {
      world.powerCut('a');
      world.restart('a');
      return await open();
    };
    await survive(world, requests, build, cut);
  };
}

const requests = fc.array(request, { minLength: 3, maxLength: 40 });

test('a file keeps what was flushed through a power cut at any moment', async () => {
  const check = overFile((file) => ({ driver: 'raw', file }));
  await fc.assert(fc.asyncProperty(requests, fc.nat(), check), { numRuns: 200 });
});

test('a file below filters that answer late keeps what was flushed through a power cut', async () => {
  const check = overFile((file) => ({
    driver: 'quorum',
    'vote-threshold': 1,
    'read-pattern': 'fifo',
    children: [
      { driver: 'jitter', seed: 5, file },
      { driver: 'memory', size },
    ],
  }));
  await fc.assert(fc.asyncProperty(requests, fc.nat(), check), { numRuns: 100 });
});

test('a volatile cache loses or keeps only what no flush has covered', async () => {
  const check = async (steps: readonly Request[], seed: number, keep: string, late: boolean): Promise<void> => {
    const world = new World(seed);
    const { graph } = testGraph(world.host('a'), [jitterDriver]);
    const memory = { driver: 'memory', size };
    const build = async (): Promise<BlockNode> =>
      (
        await graph.add({
          driver: 'blkdebug',
          'node-name': 'top',
          'volatile-cache': true,
          image: late ? { driver: 'jitter', seed, file: memory } : memory,
        })
      ).node;
    const cut = async (): Promise<BlockNode> => {
      const { node } = graph.find('top');
      await node.control?.({ action: 'cut', keep });
      await assert.rejects(async () => await node.read(0, new Uint8Array(512)), { message: /power of 'top' is cut/ });
      await node.control?.({ action: 'power-on' });
      return node;
    };
    await survive(world, steps, build, cut);
  };
  await fc.assert(fc.asyncProperty(requests, fc.nat(), fc.constantFrom('nothing', 'some'), fc.boolean(), check), {
    numRuns: 200,
  });
});
