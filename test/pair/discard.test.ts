/** Space on both sides of a pair on the real host, seen by `du`: what a trim or zeroes free here is freed there. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { type PairConfig, pairDefaults } from '../../src/pair/config.ts';
import { PairDaemon } from '../../src/pair/daemon.ts';
import { cleanup } from '../support/cleanup.ts';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const mib = 1 << 20;
const noHole = 2;
const host = createHost();

function configOf(folder: string, name: 'alpha' | 'beta'): PairConfig {
  const other = name === 'alpha' ? 'beta' : 'alpha';
  return {
    ...pairDefaults,
    store: 'mirror',
    overlays: { folder: '/data', sync: true },
    name,
    volume: 'v',
    role: name === 'alpha' ? 'primary' : 'secondary',
    dataFolder: `${folder}/${name}`,
    disks: [{ name: 'disk0', file: `${folder}/${name}/disk0.img`, size: 16 * mib }],
    listen: {
      supervisor: { type: 'unix', path: `${folder}/${name}.sock` },
      replication: { type: 'inet', host: '127.0.0.1', port: 0 },
      nbd: [{ type: 'inet', host: '127.0.0.1', port: 0 }],
    },
    peer: { name: other, supervisor: { type: 'unix', path: `${folder}/${other}.sock` } },
    heartbeatMs: 50,
  };
}

interface Side {
  readonly daemon: PairDaemon;
  stop(): Promise<void>;
}

async function start(t: TestContext, folder: string, name: 'alpha' | 'beta'): Promise<Side> {
  const engine = new Engine(host, drivers, { name });
  const daemon = await PairDaemon.start(host, engine, configOf(folder, name), () => undefined);
  const stop = async (): Promise<void> => {
    await daemon.stop();
    await engine.close();
  };
  cleanup(t, stop);
  return { daemon, stop };
}

/** Both sides are in step. */
async function inStep(primary: Side): Promise<void> {
  while (primary.daemon.state.phase !== 'in-step') await new Promise((resolve) => setTimeout(resolve, 20));
}

/** MiB that the image takes, rounded: a file system adds a few blocks of its own. */
async function allocated(folder: string, name: string): Promise<number> {
  const { stdout } = await run('du', ['--block-size=1', `${folder}/${name}/disk0.img`]);
  return Math.round(Number.parseInt(stdout, 10) / mib);
}

test('pair 9: trims and zeroes free space on both sides, zeroes with NO_HOLE on neither, and a resync frees it too', async (t) => {
  const folder = await temporaryFolder(t);
  const alpha = await start(t, folder, 'alpha');
  const beta = await start(t, folder, 'beta');
  await inStep(alpha);
  const [address] = alpha.daemon.users;
  assert.ok(address !== undefined);
  const user = await NbdClient.connect(host, { address, exportName: 'disk0' });
  const both = async (): Promise<number[]> => [await allocated(folder, 'alpha'), await allocated(folder, 'beta')];
  for (let at = 0; at < 16; at++) await user.write(at * mib, new Uint8Array(mib).fill(at + 1), 0);
  await user.flush();
  assert.deepEqual(await both(), [16, 16]);

  await user.discard(0, 4 * mib);
  await user.flush();
  assert.deepEqual(await both(), [12, 12], 'trimmed');
  await user.writeZeroes(4 * mib, 4 * mib, 0);
  await user.flush();
  assert.deepEqual(await both(), [8, 8], 'zeroes may be holes');
  await user.writeZeroes(8 * mib, 4 * mib, noHole);
  await user.flush();
  assert.deepEqual(await both(), [8, 8], 'zeroes that stay allocated');

  await beta.stop();
  await user.discard(12 * mib, 4 * mib);
  await user.flush();
  assert.deepEqual(await both(), [4, 8], 'trimmed while alone');
  await start(t, folder, 'beta');
  await inStep(alpha);
  assert.deepEqual(await both(), [4, 4], 'and made good by the resync');
  await user.close();
  const same = await run('cmp', [`${folder}/alpha/disk0.img`, `${folder}/beta/disk0.img`]);
  assert.equal(same.code, 0, same.stdout);
});
