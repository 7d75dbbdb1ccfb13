/**
 * The contract of a host (the files `*-cases.ts`), on the real one, on its fallbacks, and on the simulated one under
 * many seeds.
 */
import { describe, test } from 'node:test';
import type { Host, HostFile, OpenHow } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { NodeFiles } from '../../src/host/node-files.ts';
import { NodeNetwork } from '../../src/host/node-network.ts';
import { loadSystemCalls } from '../../src/host/system-calls.ts';
import { World } from '../sim/world.ts';
import { temporaryFolder } from '../support/temp.ts';
import { clockCases } from './clock-cases.ts';
import { fileCases, holeAndLockCases } from './file-cases.ts';
import { networkCases } from './network-cases.ts';
import type { Case } from './tools.ts';

const worldsPerCase = 12;
const firstSeed = Date.now() % 1_000_000;

function onRealHost(host: Host, cases: readonly Case[]): void {
  for (const [claim, show] of cases)
    test(claim, async (t) => {
      const folder = await temporaryFolder(t);
      // The host's timers keep no process alive; a case that waits for one must.
      const alive = setInterval(() => undefined, 1000);
      try {
        await show(host, folder);
      } finally {
        clearInterval(alive);
      }
    });
}

function onSimulatedHost(cases: readonly Case[]): void {
  for (const [claim, show] of cases)
    test(claim, async () => {
      for (let seed = firstSeed; seed < firstSeed + worldsPerCase; seed++) {
        const world = new World(seed);
        const host = world.host('machine');
        await world.complete(host.files.makeFolder('/tmp/folder'));
        await world.complete(show(host, '/tmp/folder')).catch((error: unknown) => {
          throw new Error(`seed ${seed}`, { cause: error });
        });
      }
    });
}

class DirectFiles extends NodeFiles {
  override open(path: string, how: OpenHow): Promise<HostFile> {
    return super.open(path, { ...how, direct: true });
  }
}

const all = [...fileCases, ...holeAndLockCases, ...networkCases, ...clockCases];
const real = createHost();

describe('the real host', () => onRealHost(real, all));
describe('the real host, files without system calls', () =>
  onRealHost({ ...real, files: new NodeFiles(null) }, fileCases));
describe('the real host, files past the page cache', () =>
  onRealHost({ ...real, files: new DirectFiles(loadSystemCalls()) }, [...fileCases, ...holeAndLockCases]));
describe('the real host, streams on events alone', () =>
  onRealHost({ ...real, network: new NodeNetwork('events') }, networkCases));
describe(`the simulated host, seeds from ${firstSeed}`, () => onSimulatedHost(all));
