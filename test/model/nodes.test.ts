/** Random requests on every driver, and on random graphs of them, against an array. */
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { createHost } from '../../src/host/index.ts';
import { jitterDriver, testGraph } from '../block/fixture.ts';
import { World } from '../sim/world.ts';
import { temporaryFolder } from '../support/temp.ts';
import { runSteps, step } from './array-model.ts';

const steps = fc.array(step, { minLength: 5, maxLength: 60 });
/** neither whole chunks of a memory disk nor whole pages */
const size = 150_001;

type Options = Record<string, unknown>;

/** A node of some kind, as its options for a given length; `file` makes an image and gives its path. */
type Shape = (length: number, file: (length: number) => string) => Options;

const leaf: fc.Arbitrary<Shape> = fc.oneof(
  fc.constant<Shape>((length) => ({ driver: 'memory', size: length, discard: 'unmap' })),
  fc.boolean().map(
    (unmap): Shape =>
      (length, file) => ({ driver: 'file', filename: file(length), discard: unmap ? 'unmap' : 'ignore' }),
  ),
);

const { shape } = fc.letrec<{ shape: Shape }>((tie) => {
  const inner = tie('shape');
  const raw = fc.tuple(inner, fc.nat(5000), fc.nat(5000), fc.boolean()).map(
    ([below, offset, rest, detect]): Shape =>
      (length, file) => ({
        driver: 'raw',
        offset,
        size: length,
        file: below(offset + length + rest, file),
        discard: 'unmap',
        ...(detect ? { 'detect-zeroes': 'unmap' } : {}),
      }),
  );
  const quorum = fc.tuple(fc.array(inner, { minLength: 1, maxLength: 3 }), fc.boolean(), fc.boolean()).map(
    ([below, fifo, all]): Shape =>
      (length, file) => ({
        driver: 'quorum',
        'read-pattern': fifo ? 'fifo' : 'quorum',
        'vote-threshold': all ? below.length : 1,
        children: below.map((each) => each(length, file)),
        discard: 'unmap',
      }),
  );
  const jitter = fc.tuple(inner, fc.integer()).map(
    ([below, seed]): Shape =>
      (length, file) => ({ driver: 'jitter', seed, file: below(length, file), discard: 'unmap' }),
  );
  const blkdebug = fc.tuple(inner, fc.boolean(), fc.boolean()).map(
    ([below, cache, delays]): Shape =>
      (length, file) => ({
        driver: 'blkdebug',
        image: below(length, file),
        'volatile-cache': cache,
        faults: delays ? [{ 'delay-ms': 1, probability: 0.2 }] : [],
        discard: 'unmap',
      }),
  );
  return { shape: fc.oneof({ maxDepth: 4, depthIdentifier: 'graph' }, leaf, raw, quorum, jitter, blkdebug) };
});

/** Builds a shape over a simulated machine, whose files answer at once or later, and runs the steps. */
async function check(
  make: Shape,
  requests: Parameters<typeof runSteps>[1],
  seed: number,
  faults: Options[] = [],
): Promise<void> {
  const world = new World(seed);
  const host = world.host('a');
  const { graph } = testGraph(host, [jitterDriver]);
  const images: { path: string; length: number }[] = [];
  const options = make(size, (length) => {
    images.push({ path: `/image-${images.length}`, length });
    return images.at(-1)?.path ?? '';
  });
  const build = async (): Promise<void> => {
    for (const { path, length } of images) {
      const file = await host.files.open(path, { access: 'write', create: 'exclusive' });
      await file.truncate(length);
      await file.close();
    }
    if (faults.length === 0) await graph.add({ ...options, 'node-name': 'top' });
    else await graph.add({ driver: 'blkdebug', 'node-name': 'top', image: options, faults, discard: 'unmap' });
  };
  await world.complete(build());
  const run = (promise: Promise<void>) => world.complete(promise);
  await runSteps(graph.find('top').node, requests, { run, mayFail: faults.length > 0 });
  await world.complete(graph.close());
}

const single: [string, Shape][] = [
  ['memory', (length) => ({ driver: 'memory', size: length, discard: 'unmap' })],
  ['file', (length, file) => ({ driver: 'file', filename: file(length), discard: 'unmap' })],
  [
    'quorum',
    (length, file) => ({
      driver: 'quorum',
      'read-pattern': 'fifo',
      'vote-threshold': 1,
      discard: 'unmap',
      children: ['a', 'b'].map(() => ({ driver: 'file', filename: file(length), discard: 'unmap' })),
    }),
  ],
  [
    'blkdebug with a volatile cache',
    (length) => ({
      driver: 'blkdebug',
      'volatile-cache': true,
      image: { driver: 'jitter', seed: 3, file: { driver: 'memory', size: length } },
    }),
  ],
];

for (const [name, make] of single) {
  test(`${name} does what an array does`, async () => {
    await fc.assert(
      fc.asyncProperty(steps, fc.nat(), (requests, seed) => check(make, requests, seed)),
      { numRuns: 60 },
    );
  });
}

test('random graphs of drivers that answer at once or later do what an array does', async () => {
  await fc.assert(
    fc.asyncProperty(shape, steps, fc.nat(), (make, requests, seed) => check(make, requests, seed)),
    { numRuns: 250 },
  );
});

test('requests that fail leave the rest of a random graph as an array would be', async () => {
  const fault = fc.record({
    operation: fc.constantFrom('read', 'write', 'write-zeroes', 'discard', 'flush', 'any'),
    errno: fc.constantFrom('EIO', 'ENOSPC'),
    probability: fc.constantFrom(0.1, 0.5),
    offset: fc.nat(size),
    length: fc.integer({ min: 1, max: 50_000 }),
  });
  const faults = fc.array(fault, { minLength: 1, maxLength: 3 });
  await fc.assert(fc.asyncProperty(shape, steps, fc.nat(), faults, check), { numRuns: 100 });
});

test('file and raw over a file of this machine do what an array does, holes included', async (t) => {
  const folder = await temporaryFolder(t);
  const host = createHost();
  let images = 0;
  await fc.assert(
    fc.asyncProperty(steps, fc.boolean(), async (requests, unmap) => {
      const path = join(folder, `image-${images}`);
      images += 1;
      const file = await host.files.open(path, { access: 'write', create: 'exclusive' });
      await file.truncate(size + 5000);
      await file.close();
      const { graph } = testGraph(host);
      const discard = unmap ? 'unmap' : 'ignore';
      await graph.add({
        driver: 'raw',
        'node-name': 'top',
        offset: 777,
        size,
        discard,
        file: { driver: 'file', filename: path },
      });
      await runSteps(graph.find('top').node, requests);
      await graph.close();
      await host.files.remove(path);
    }),
    { numRuns: 60 },
  );
});
