/** The commands about replication, through the door that a supervisor uses, over real NBD between two engines. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import { createHost } from '../../src/host/index.ts';
import type { QmpEvent } from '../../src/qmp/target.ts';
import type { Done } from '../../src/util/later.ts';
import { temporaryFolder } from '../support/temp.ts';

const mib = 2 ** 20;
const length = 16 * mib;
const parent = { description: 'a test', drainBegin: (): undefined => undefined, drainEnd: (): void => undefined };

type Answer = Record<string, unknown>;

/** One side: an engine, with every answer as an object. */
class Side {
  readonly engine = new Engine(createHost(), drivers);
  readonly events: QmpEvent[] = [];

  constructor(t: TestContext) {
    this.engine.subscribe((event) => this.events.push(event));
    t.after(async () => {
      await this.engine.close().catch(() => undefined);
    });
  }

  async run(command: string, args: Answer = {}): Promise<Answer> {
    return (await this.engine.execute(command, args)) as Answer;
  }

  async list(command: string, args: Answer = {}): Promise<Answer[]> {
    return (await this.engine.execute(command, args)) as Answer[];
  }

  async until(what: string, holds: () => Promise<boolean> | boolean): Promise<void> {
    for (let i = 0; !(await holds()); i += 1) {
      assert.ok(i < 2000, `${what} never came`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  async checksums(node: string): Promise<unknown> {
    return (await this.run('replication-checksum', { node, offset: 0, length, block: 65_536 })).checksums;
  }
}

async function secondary(t: TestContext, folder: string, name: string): Promise<Side> {
  const side = new Side(t);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'd-local', size: length, discard: 'unmap' });
  await side.run('nbd-server-start', { addr: { type: 'unix', data: { path: join(folder, `${name}.sock`) } } });
  await side.run('block-export-add', {
    type: 'nbd',
    id: 'd',
    'node-name': 'd-local',
    name: 'd.1',
    writable: true,
    ordered: true,
  });
  return side;
}

async function primary(t: TestContext): Promise<Side> {
  const side = new Side(t);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'd-local', size: length, discard: 'unmap' });
  await side.run('blockdev-add', {
    driver: 'replication',
    'node-name': 'd-replication',
    mode: 'primary',
    file: null,
    size: length,
    acknowledge: 'flush',
    'on-link-down': 'hold',
    discard: 'unmap',
  });
  await side.run('blockdev-add', {
    driver: 'quorum',
    'node-name': 'd',
    children: ['d-local', 'd-replication'],
    'vote-threshold': 1,
    'read-pattern': 'fifo',
    discard: 'unmap',
  });
  await side.run('xen-set-replication', { enable: true, primary: true });
  return side;
}

async function connect(side: Side, folder: string, name: string): Promise<void> {
  await side.run('blockdev-add', {
    driver: 'nbd',
    'node-name': 'd-remote',
    server: { type: 'unix', path: join(folder, `${name}.sock`) },
    export: 'd.1',
    discard: 'unmap',
  });
  await side.run('replication-connect', { node: 'd-replication', child: 'd-remote' });
}

async function sync(side: Side, id: string): Promise<void> {
  await side.run('replication-sync', { node: 'd-replication', source: 'd-local', 'job-id': id });
  await side.until('the end of the sync', async () => (await side.list('query-jobs')).length === 0);
  const [info] = await side.list('query-replication');
  assert.equal(info?.['missing-bytes'], 0);
}

async function write(
  use: { node: { write(o: number, b: Uint8Array, f: number): Done } },
  offset: number,
  value: number,
  size: number,
): Promise<void> {
  const done = use.node.write(offset, new Uint8Array(size).fill(value), 0);
  if (done !== undefined) await done;
}

test('first sync, writes in step, a lost server, alone, and a resync to another instance, over real NBD', async (t) => {
  const folder = await temporaryFolder(t);
  const p = await primary(t);
  const s = await secondary(t, folder, 's1');
  const use = await p.engine.graph.use('d', parent, { needs: 3, shares: 7 });
  await p.run('replication-set-mode', { mode: 'alone' });
  await write(use, 12_345, 1, 100_000);
  await p.run('replication-mark', { node: 'd-replication', all: true });
  await connect(p, folder, 's1');
  await p.run('replication-set-mode', { mode: 'syncing' });
  const during = write(use, 5 * mib, 2, 3 * mib);
  await sync(p, 'first');
  await during;
  await p.run('replication-flush');
  await p.run('replication-set-mode', { mode: 'in-sync' });
  for (let i = 0; i < 50; i += 1) await write(use, i * 300_000, i, 5000);
  await use.node.flush();
  assert.deepEqual(await p.checksums('d-local'), await s.checksums('d-local'));
  const [inSync] = await p.list('query-replication');
  assert.deepEqual([inSync?.['may-differ-bytes'], inSync?.link, inSync?.stage], [0, 'in-sync', 'running']);

  // The server goes: everybody waits until the supervisor has decided.
  await s.engine.close();
  await p.until('the event', () => p.events.some(({ event }) => event === 'REPLICATION_LINK'));
  let answered = false;
  const waiting = write(use, 0, 9, 4096).then(() => {
    answered = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(answered, false);
  assert.equal((await p.run('query-xen-replication-status')).error, true);
  await p.run('replication-set-mode', { mode: 'alone' });
  await waiting;
  await p.run('replication-disconnect', { node: 'd-replication' });
  await p.run('blockdev-del', { 'node-name': 'd-remote' });

  // Another instance of the other side, which knows nothing.
  const s2 = await secondary(t, folder, 's2');
  await p.run('replication-mark', { node: 'd-replication', all: true, unproven: true });
  await connect(p, folder, 's2');
  await p.run('replication-set-mode', { mode: 'syncing' });
  await sync(p, 'second');
  await p.run('replication-set-mode', { mode: 'in-sync' });
  await p.run('replication-flush', { node: 'd-replication' });
  assert.deepEqual(await p.checksums('d-local'), await s2.checksums('d-local'));
  const bitmap = await p.run('replication-bitmap', { node: 'd-replication' });
  assert.deepEqual(bitmap, { 'may-differ': [], 'missing-bytes': 0, 'may-differ-bytes': 0 });
  await use.release();
  await p.engine.close();
});

test('xen-set-replication, the status query and the checkpoint, over the whole group', async (t) => {
  const p = await primary(t);
  assert.deepEqual(await p.run('query-xen-replication-status'), { error: false });
  await assert.rejects(p.run('xen-set-replication', { enable: true, primary: true }), /cannot start in stage running/);
  await assert.rejects(p.run('xen-set-replication', { enable: true, primary: true, failover: true }), /failover/);
  await p.run('xen-colo-do-checkpoint');
  await p.run('xen-set-replication', { enable: false, primary: true });
  assert.equal((await p.list('query-replication'))[0]?.stage, 'done');
  // A member that is done is passed over.
  await p.run('xen-set-replication', { enable: false, primary: true });
  await p.run('xen-set-replication', { enable: true, primary: false });
});

test('pair 7: an engine that stops while users are held lets them go without an answer', async (t) => {
  const folder = await temporaryFolder(t);
  const p = await primary(t);
  await p.run('nbd-server-start', { addr: { type: 'unix', data: { path: join(folder, 'p.sock') } } });
  await p.run('block-export-add', { type: 'nbd', id: 'd', 'node-name': 'd', name: 'd', writable: true });
  const user = new Side(t);
  await user.run('blockdev-add', {
    driver: 'nbd',
    'node-name': 'd',
    server: { type: 'unix', path: join(folder, 'p.sock') },
    export: 'd',
  });
  const use = await user.engine.graph.use('d', parent, { needs: 3, shares: 7 });
  const held = write(use, 0, 1, 4096).then(
    () => 'answered',
    () => 'failed',
  );
  await new Promise((resolve) => setTimeout(resolve, 50));
  await p.engine.close();
  assert.equal(await held, 'failed');
  await use.release();
});

test('a bad argument is refused, naming it', async (t) => {
  const p = await primary(t);
  const refused = (command: string, args: Answer, message: RegExp) => assert.rejects(p.run(command, args), message);
  await refused('replication-set-mode', { mode: 'sideways' }, /arguments.mode/);
  await refused('replication-set-mode', { mode: 'syncing' }, /'d-replication' is not connected/);
  await refused('replication-mark', { node: 'd-replication', ranges: [[0]] }, /arguments.ranges.0/);
  await refused('replication-mark', { node: 'd-replication', ranges: [[length, 1]] }, /outside/);
  await refused('replication-mark', { node: 'd-local', all: true }, /'d-local' is no replication node/);
  await refused('replication-flush', {}, /nothing is forwarded/);
  await refused('replication-sync', { node: 'd-replication', source: 'd-local', 'job-id': 's' }, /cannot be synced/);
  assert.deepEqual(await p.list('query-jobs'), []);
  await refused('replication-checksum', { node: 'd-local', offset: 0, length: length + 1, block: 512 }, /outside/);
  await refused('replication-checksum', { node: 'd-local', offset: 0, length: 1, block: 1 }, /arguments.block/);
  await refused('replication-connect', { node: 'd-replication', child: 'nobody' }, /no node 'nobody'/);
});

test('checksums: XXH64 of each block, the last one short; a range that is not there reads as zeroes', async (t) => {
  const side = new Side(t);
  await side.run('blockdev-add', { driver: 'memory', 'node-name': 'n', size: 200_000 });
  const use = await side.engine.graph.use('n', parent, { needs: 3, shares: 15 });
  await write(use, 0, 0x61, 65_536);
  const sums = async (offset: number, size: number, block: number) =>
    (await side.run('replication-checksum', { node: 'n', offset, length: size, block })).checksums;
  const whole = (await sums(0, 200_000, 65_536)) as string[];
  assert.equal(whole.length, 4);
  assert.ok(whole.every((sum) => /^[0-9a-f]{16}$/.test(sum)));
  // Known values of XXH64, seed 0: "a", and nothing at all.
  assert.deepEqual(await sums(0, 1, 512), ['d24ec4f1a98c6e5b']);
  assert.deepEqual(await sums(0, 0, 512), []);
  assert.equal(whole[1], whole[2], 'zeroes');
  assert.notEqual(whole[1], whole[3], 'the last one is short');
  await write(use, 65_536, 0, 65_536);
  assert.equal(((await sums(0, 200_000, 65_536)) as string[])[1], whole[1], 'written zeroes are the same zeroes');
  const large = (await sums(0, 200_000, 2 ** 26)) as string[];
  assert.equal(large.length, 1);
  await use.release();
});
