/** Random requests on images of this machine, against an array: each cache and aio mode, and without system calls. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import type { Host } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { NodeFiles } from '../../src/host/node-files.ts';
import { testGraph } from '../block/fixture.ts';
import { cleanup } from '../support/cleanup.ts';
import { temporaryFolder } from '../support/temp.ts';
import { runSteps, step } from './array-model.ts';

/** neither whole blocks nor whole pages */
const size = 150_001;
const host = createHost();
const withoutCalls: Host = { ...host, files: new NodeFiles(null) };

type Options = Record<string, unknown>;

async function doesWhatAnArrayDoes(machine: Host, folder: string, options: Options, numRuns: number): Promise<void> {
  const filename = join(folder, 'image');
  const work = fc.asyncProperty(
    fc.array(step, { minLength: 5, maxLength: 60 }),
    fc.constantFrom('unmap', 'ignore'),
    async (steps, discard) => {
      writeFileSync(filename, '');
      truncateSync(filename, size);
      const { graph } = testGraph(machine);
      await graph.add({ driver: 'file', 'node-name': 'top', filename, discard, ...options });
      await runSteps(graph.find('top').node, steps);
      await graph.close();
    },
  );
  await fc.assert(work, { numRuns });
}

const modes: readonly Options[] = [
  { aio: 'threads' },
  { aio: 'io_uring' },
  { io: 'async' },
  { cache: { 'no-flush': true } },
  { cache: { direct: true } },
  { cache: { direct: true }, aio: 'native' },
  { cache: { direct: true }, aio: 'io_uring', 'detect-zeroes': 'on' },
];

for (const options of modes)
  test(`an image opened with ${JSON.stringify(options)} does what an array does`, async (t) => {
    await doesWhatAnArrayDoes(host, await temporaryFolder(t), options, 25);
  });

for (const options of [{}, { io: 'async' }])
  test(`so it does without system calls: ${JSON.stringify(options)}`, async (t) => {
    await doesWhatAnArrayDoes(withoutCalls, await temporaryFolder(t), options, 25);
  });

/** On tmpfs nothing can be zeroed in place. */
function tmpfs(t: TestContext): string {
  const folder = mkdtempSync('/dev/shm/bs-');
  cleanup(t, () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

for (const options of [{}, { io: 'async' }, { cache: { direct: true } }])
  test(`so it does on tmpfs: ${JSON.stringify(options)}`, async (t) => {
    await doesWhatAnArrayDoes(host, tmpfs(t), options, 25);
  });
