/** The graph of a primary and what a status tells of its disks, with an engine whose answers a test changes. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import { createHost } from '../../src/host/index.ts';
import { type PairConfig, pairDefaults } from '../../src/pair/config.ts';
import { PairDaemon } from '../../src/pair/daemon.ts';
import { PairDisks } from '../../src/pair/disks.ts';
import type { PairStatus } from '../../src/qmp/schema/pair.ts';
import type { QmpTarget } from '../../src/qmp/target.ts';
import { BlockError } from '../../src/util/errors.ts';
import { cleanup } from '../support/cleanup.ts';
import { loopDevice } from '../support/loop-device.ts';
import { temporaryFolder } from '../support/temp.ts';

const mib = 1 << 20;
const host = createHost();

type Answer = (command: string, args: Readonly<Record<string, unknown>>, real: () => Promise<unknown>) => unknown;

/** An engine on the real host; `answer` may speak in its place. */
function engineOf(t: TestContext, answer: Answer): QmpTarget {
  const engine = new Engine(host, drivers);
  cleanup(t, () => engine.close());
  return {
    execute: async (command, args = {}) => await answer(command, args, () => engine.execute(command, args)),
    subscribe: (listener) => engine.subscribe(listener),
  };
}

async function configIn(folder: string): Promise<PairConfig> {
  await mkdir(`${folder}/alpha`);
  const unix = (name: string) => ({ type: 'unix', path: `${folder}/${name}` }) as const;
  return {
    ...pairDefaults,
    store: 'mirror',
    overlays: { folder: '/data', sync: true },
    name: 'alpha',
    volume: 'v',
    role: 'primary',
    dataFolder: `${folder}/alpha`,
    disks: ['d1', 'd2'].map((name) => ({ name, file: `${folder}/alpha/${name}.img`, size: 4 * mib })),
    listen: { supervisor: unix('s'), replication: unix('r'), nbd: [unix('n')] },
    peer: { name: 'beta', supervisor: unix('p') },
  };
}

async function makeImages(config: PairConfig): Promise<void> {
  for (const { file, size } of config.disks) {
    const image = await host.files.open(file, { access: 'write', create: 'if-missing' });
    await image.truncate(size);
    await image.close();
  }
}

test('a primary whose graph was built by half builds it again, and tears down what is there', async (t) => {
  const config = await configIn(await temporaryFolder(t));
  await makeImages(config);
  let failing = true;
  const engine = engineOf(t, (command, args, real) => {
    if (failing && command === 'blockdev-add' && args['node-name'] === 'd2')
      throw new BlockError('no-memory', 'not now');
    return real();
  });
  const disks = new PairDisks(host, engine, config);
  const names = async (): Promise<unknown[]> =>
    ((await engine.execute('query-named-block-nodes')) as { 'node-name': string }[]).map((node) => node['node-name']);
  await disks.openDisks();
  await assert.rejects(disks.buildPrimary(), /not now/);
  await assert.rejects(disks.buildPrimary(), /not now/);
  await disks.tearPrimary();
  assert.equal((await names()).includes('d1'), false);
  failing = false;
  await disks.buildPrimary();
  const built = new Set(await names());
  for (const name of ['d1', 'd1-replication', 'd2', 'd2-replication']) assert.ok(built.has(name), name);
  await disks.tearPrimary();
  await disks.close(true);
});

test('a device that has grown under a primary is as long as before: what lies beyond is not replicated', async (t) => {
  const { device, resize } = await loopDevice(t, 4 * mib);
  const config = await configIn(await temporaryFolder(t));
  const engine = engineOf(t, (_command, _args, real) => real());
  const disks = new PairDisks(host, engine, { ...config, disks: [{ name: 'd1', file: device, size: 4 * mib }] });
  await disks.openDisks();
  await disks.buildPrimary();
  await resize(8 * mib);
  // Whoever comes now is told of the new length.
  await engine.execute('nbd-server-start', {
    server: 'more',
    addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } },
  });
  await engine.execute('block-export-add', { id: 'e', type: 'nbd', server: 'more', 'node-name': 'd1', writable: true });
  const nodes = (await engine.execute('query-named-block-nodes')) as {
    'node-name': string;
    image: { 'virtual-size': number };
  }[];
  const lengthOf = (name: string) => nodes.find((node) => node['node-name'] === name)?.image['virtual-size'];
  assert.equal(lengthOf('d1-file'), 8 * mib);
  assert.deepEqual([lengthOf('d1-local'), lengthOf('d1')], [4 * mib, 4 * mib]);
  await engine.execute('block-export-del', { id: 'e', mode: 'hard' });
  await disks.tearPrimary();
  await disks.close(true);
});

test('pair 18: a status names the device that does not answer', async (t) => {
  const config = await configIn(await temporaryFolder(t));
  const engine = engineOf(t, async (command, _args, real) => {
    const answer = await real();
    if (command !== 'query-named-block-nodes') return answer;
    return (answer as Record<string, unknown>[]).map((node) =>
      node['node-name'] === 'd2-file' ? { ...node, info: { io: 'async', 'stalled-ms': 5000 } } : node,
    );
  });
  const daemon = await PairDaemon.start(host, engine, config, () => undefined);
  cleanup(t, () => daemon.stop());
  const { disks } = (await daemon.execute('pair-status')) as PairStatus;
  assert.deepEqual(
    disks.map(({ io, stalledMs }) => [io, stalledMs]),
    [
      ['sync', 0],
      ['async', 5000],
    ],
  );
  assert.equal(disks[0]?.error, null);
  assert.match(disks[1]?.error ?? '', /the device of .*d2\.img has not answered for 5 s/);
});
