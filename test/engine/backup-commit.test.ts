/** blockdev-backup and block-commit through QMP, over nodes that clients use meanwhile. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { RootUse } from '../../src/block/graph-view.ts';
import { attempt, deferred } from '../../src/util/later.ts';
import { parent, writer } from '../block/fixture.ts';
import { settleTurns } from '../drivers/replication-world.ts';
import { type CheckedEngine, checkedEngine, memoryNode } from './checked.ts';

const size = 4 * 2 ** 20;

interface Run extends CheckedEngine {
  add(options: Record<string, unknown>): Promise<unknown>;
  use(nodeName: string): Promise<RootUse>;
  content(nodeName: string): Promise<Buffer>;
  event(name: string, id: string): Promise<Record<string, unknown>>;
}

function runOf(t: TestContext): Run {
  const checked = checkedEngine(t);
  const { engine, execute, events } = checked;
  return {
    ...checked,
    add: (options) => execute('blockdev-add', options),
    use: (nodeName) => engine.graph.use(nodeName, parent(`a user of ${nodeName}`), writer),
    content: async (nodeName) => {
      const bytes = Buffer.alloc(size);
      await engine.graph.find(nodeName).node.read(0, bytes);
      return bytes;
    },
    event: async (name, id) => {
      for (let i = 0; i < 4000; i += 1) {
        const found = events.find(({ event, data }) => event === name && (data.device === id || data.id === id));
        if (found !== undefined) return found.data;
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      return assert.fail(`${name} of ${id} never came`);
    },
  };
}

const write = (use: RootUse, offset: number, length: number, value: number) =>
  attempt(() => use.node.write(offset, new Uint8Array(length).fill(value), 0));

const blkdebug = (name: string, bytes: number) => ({
  driver: 'blkdebug',
  'node-name': name,
  image: { driver: 'memory', size: bytes },
});

test('blockdev-backup, sync full: the target is the node at the moment of the start, whatever is written meanwhile', async (t) => {
  const { add, use, content, execute, event } = runOf(t);
  await add(memoryNode('disk', size));
  await add(memoryNode('target', size));
  const user = await use('disk');
  await write(user, 0, size, 1);
  await execute('blockdev-backup', { 'job-id': 'b', device: 'disk', target: 'target', sync: 'full', speed: 2 ** 22 });
  for (let i = 0; i < 200; i += 1) await write(user, (i * 20_011) % (size - 9000), 9000, 2);
  await execute('block-job-set-speed', { device: 'b', speed: 0 });
  const data = await event('BLOCK_JOB_COMPLETED', 'b');
  assert.equal(data.error, undefined);
  assert.ok((await content('target')).equals(Buffer.alloc(size, 1)));
  assert.deepEqual(await execute('query-jobs'), []);
  assert.deepEqual(((await execute('query-named-block-nodes')) as unknown[]).length, 2, 'the filter is gone');
  await user.release();
});

test('blockdev-backup, sync full: the background rests while its source or its target is drained', async (t) => {
  const { add, execute, event, engine } = runOf(t);
  await add(blkdebug('disk', size));
  await add(memoryNode('target', size));
  // The first piece is under way when the drain begins.
  const slow = { operation: 'block-status', 'delay-ms': 20, count: 1 };
  await engine.graph.find('disk').node.control?.({ action: 'add-fault', fault: slow });
  await execute('blockdev-backup', { 'job-id': 'b', device: 'disk', target: 'target', sync: 'full', speed: 2 ** 20 });
  const progress = async () =>
    ((await execute('query-jobs')) as { 'current-progress': number }[])[0]?.['current-progress'];
  for (const node of ['disk', 'target']) {
    const drained = await engine.graph.drain(node);
    const before = await progress();
    await execute('block-job-set-speed', { device: 'b', speed: node === 'disk' ? 2 ** 21 : 0 });
    await settleTurns(200);
    assert.equal(await progress(), before, `${node} is drained`);
    drained.end();
    if (node === 'disk') while ((await progress()) === before) await settleTurns(1);
  }
  await event('BLOCK_JOB_COMPLETED', 'b');
});

test('blockdev-backup, sync full: one whose target cannot be made durable has failed', async (t) => {
  const { add, execute, event, engine } = runOf(t);
  await add(memoryNode('disk', size));
  await add(blkdebug('target', size));
  const fault = { operation: 'flush', errno: 'EIO', count: 1 };
  await engine.graph.find('target').node.control?.({ action: 'add-fault', fault });
  await execute('blockdev-backup', { 'job-id': 'b', device: 'disk', target: 'target', sync: 'full' });
  assert.match(String((await event('BLOCK_JOB_COMPLETED', 'b')).error), /EIO/);
});

test('blockdev-backup, sync none: old content only, until it is cancelled; it is listed and pauses', async (t) => {
  const { add, use, content, execute, event } = runOf(t);
  await add(memoryNode('disk', size));
  await add(memoryNode('target', size));
  const user = await use('disk');
  await write(user, 0, size, 1);
  await execute('blockdev-backup', { device: 'disk', target: 'target', sync: 'none' });
  await write(user, 5000, 100, 2);
  await write(user, 5000, 100, 3);
  const expected = Buffer.alloc(size);
  expected.fill(1, 4096, 8192);
  assert.ok((await content('target')).equals(expected));
  const [info] = (await execute('query-block-jobs')) as Record<string, unknown>[];
  assert.deepEqual([info?.device, info?.type, info?.status], ['disk', 'backup', 'running']);
  await assert.rejects(
    execute('blockdev-backup', { 'job-id': 'again', device: 'disk', target: 'disk', sync: 'none' }),
    /the device itself/,
  );
  await execute('block-job-cancel', { device: 'disk' });
  await event('BLOCK_JOB_CANCELLED', 'disk');
  await write(user, 100_000, 100, 4);
  assert.ok((await content('target')).equals(expected));
  await user.release();
});

const overlay = (name: string, backing: string) => ({
  driver: 'shadow',
  'node-name': name,
  file: { driver: 'memory', size: 0 },
  backing,
  'grow-bytes': 65536,
});

test('block-commit of the active layer: ready, in step under load, and the base takes its place when told', async (t) => {
  const { add, use, content, execute, event, engine } = runOf(t);
  await add(memoryNode('base', size));
  await add(overlay('middle', 'base'));
  await add(overlay('top', 'middle'));
  const below = await use('middle');
  await write(below, 0, 100_000, 1);
  await below.release();
  const user = await use('top');
  const model = Buffer.alloc(size);
  model.fill(1, 0, 100_000);
  const put = async (offset: number, length: number, value: number) => {
    await write(user, offset, length, value);
    model.fill(value, offset, offset + length);
  };
  for (let i = 0; i < 50; i += 1) await put((i * 77_773) % (size - 6000), 6000, 10 + i);
  await execute('block-commit', { 'job-id': 'c', device: 'top', speed: 2 ** 22 });
  for (let i = 0; i < 50; i += 1) await put((i * 55_001) % (size - 6000), 6000, 100 + i);
  await execute('block-job-set-speed', { device: 'c', speed: 0 });
  for (let i = 0; i < 400; i += 1) {
    await put((i * 33_331) % (size - 6000), 6000, i % 251);
    if (i % 20 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await event('BLOCK_JOB_READY', 'c');
  await put(1_000_000, 50_000, 9);
  assert.ok((await content('base')).equals(model), 'ready: the base is in step');
  assert.equal(user.nodeName, 'commit-top-c');
  await execute('job-complete', { id: 'c' });
  assert.equal((await event('BLOCK_JOB_COMPLETED', 'c')).error, undefined);
  assert.equal(user.nodeName, 'base');
  await put(0, 512, 77);
  assert.ok((await content('base')).equals(model));
  assert.ok(engine.graph.list().every(({ nodeName }) => nodeName !== 'commit-top-c'));
  await user.release();
});

test('block-commit below the active layer completes unasked: the overlay above stands on the base then', async (t) => {
  const { add, use, content, execute, event, engine } = runOf(t);
  await add(memoryNode('base', size));
  await add(overlay('middle', 'base'));
  const below = await use('middle');
  await write(below, 0, 100_000, 1);
  await below.release();
  await add(overlay('top', 'middle'));
  const user = await use('top');
  await write(user, 50_000, 100_000, 2);
  const before = await content('top');
  await execute('block-commit', { device: 'top', 'top-node': 'middle', 'base-node': 'base' });
  assert.equal((await event('BLOCK_JOB_COMPLETED', 'top')).error, undefined);
  assert.ok((await content('top')).equals(before));
  assert.equal(engine.graph.find('top').children.find(({ name }) => name === 'backing')?.nodeName, 'base');
  await assert.rejects(execute('block-commit', { device: 'top', 'top-node': 'base' }), /no backing to commit into/);
  await assert.rejects(execute('block-commit', { device: 'top', 'base-node': 'middle' }), /not in the backing chain/);
  await user.release();
});

test('block-commit: the first I/O error of the base ends the job, not the write; everything stays as it was', async (t) => {
  const { add, use, content, execute, event, engine } = runOf(t);
  await add({ driver: 'blkdebug', 'node-name': 'base', image: { driver: 'memory', size } });
  await add(overlay('top', 'base'));
  const user = await use('top');
  await write(user, 0, size, 1);
  await execute('block-commit', { device: 'top' });
  await event('BLOCK_JOB_READY', 'top');
  await engine.graph
    .find('base')
    .node.control?.({ action: 'add-fault', fault: { operation: 'write', errno: 'EIO', count: 1 } });
  await write(user, 8192, 4096, 2);
  const expected = Buffer.alloc(size, 1).fill(2, 8192, 12_288);
  assert.match(String((await event('BLOCK_JOB_COMPLETED', 'top')).error), /injected EIO/);
  assert.equal(user.nodeName, 'top');
  assert.ok((await content('top')).equals(expected));
  await user.release();
});

test('block-commit: a write of which the top took only a part is in the base as the top has it', async (t) => {
  const { add, content, execute, event, engine } = runOf(t);
  await add(memoryNode('base', size));
  await add(blkdebug('file', 0));
  // Without a sync nothing but records is written to its file.
  await add({ ...overlay('top', 'base'), file: 'file', sync: false });
  const user = await engine.graph.use('top', parent('a user'), writer);
  await write(user, 0, size, 1);
  await execute('block-commit', { 'job-id': 'c', device: 'top' });
  await event('BLOCK_JOB_READY', 'c');
  // It goes to the file in two records, and there is no room for the second.
  const full = { operation: 'write', errno: 'ENOSPC', skip: 1, count: 1 };
  await engine.graph.find('file').node.control?.({ action: 'add-fault', fault: full });
  await assert.rejects(async () => write(user, 0, 2 ** 21, 2), /ENOSPC/);
  const top = await content('top');
  assert.deepEqual([top[0], top[2 ** 20]], [2, 1]);
  await execute('job-complete', { id: 'c' });
  assert.equal((await event('BLOCK_JOB_COMPLETED', 'c')).error, undefined);
  assert.ok((await content('base')).equals(top));
  await user.release();
});

for (const request of ['write', 'read'] as const) {
  test(`block-commit: a ${request} that the last copy has to wait for does not stop it for good`, async (t) => {
    const { add, content, execute, event, engine } = runOf(t);
    const slow = (name: string, operation: string, delayMs: number) =>
      engine.graph.find(name).node.control?.({
        action: 'add-fault',
        fault: { operation, 'delay-ms': delayMs, count: 1 },
      });
    await add(blkdebug('base', size));
    await add(blkdebug('file', 0));
    await add({ ...overlay('top', 'base'), file: 'file' });
    let pending: Promise<void> | undefined;
    let issue = (): void => undefined;
    const user = await engine.graph.use('top', parent('a user', { drainEnd: () => issue() }), writer);
    await write(user, 0, 4096, 1);
    await write(user, 2 ** 20, 4096, 1);
    if (request === 'write') {
      // Under way from before the job has looked for what is to be copied.
      issue = () => {
        issue = () => undefined;
        pending = write(user, 0, 4096, 2);
      };
      await slow('file', 'write', 100);
      await execute('block-commit', { 'job-id': 'c', device: 'top' });
    } else {
      // One block is on its way into the base, the next one is to follow a moment later.
      await slow('base', 'write', 100);
      await execute('block-commit', { 'job-id': 'c', device: 'top', speed: 2 ** 17 });
      await settleTurns();
      await slow('file', 'read', 200);
      pending = attempt(() => user.node.read(2 ** 20, new Uint8Array(4096)));
    }
    await pending;
    await event('BLOCK_JOB_READY', 'c');
    assert.ok((await content('base')).equals(await content('top')));
    await user.release();
  });
}

for (const [command, args] of [
  ['blockdev-backup', { device: 'disk', target: 'target', sync: 'none' }],
  ['blockdev-mirror', { device: 'disk', target: 'target', sync: 'full' }],
  ['block-commit', { device: 'over' }],
] as const) {
  test(`${command} that is cancelled while the users of its node are still busy leaves nothing behind`, async (t) => {
    const { add, execute, event, engine } = runOf(t);
    await add(memoryNode('disk', size));
    await add(memoryNode('target', size));
    await add(overlay('over', 'disk'));
    const busy = deferred();
    const user = await engine.graph.use(args.device, parent('a user', { drainBegin: () => busy.promise }), writer);
    const made = execute(command, { 'job-id': 'j', ...args });
    await settleTurns();
    await execute('job-cancel', { id: 'j' });
    await settleTurns();
    busy.resolve();
    await made;
    await event('BLOCK_JOB_CANCELLED', 'j');
    assert.equal(user.nodeName, args.device);
    await user.release();
    for (const node of ['over', 'disk', 'target']) await execute('blockdev-del', { 'node-name': node });
    assert.deepEqual(await execute('query-named-block-nodes'), []);
  });
}

test('block-commit over nodes that answer at once: others have their turn after each MiB that is found or copied', async (t) => {
  const { add, use, execute, event, engine } = runOf(t);
  const length = 32 * 2 ** 20;
  await add(memoryNode('base', length));
  await add(overlay('top', 'base'));
  const user = await use('top');
  for (let at = 0; at < length; at += size) await write(user, at, size, 1);
  let turns = 0;
  let running = true;
  const count = (): void => {
    turns += 1;
    if (running) setImmediate(count);
  };
  const whenReady = new Promise<void>((resolve) => {
    engine.subscribe(({ event: name }) => {
      if (name !== 'BLOCK_JOB_READY') return;
      running = false;
      resolve();
    });
  });
  await execute('block-commit', { 'job-id': 'c', device: 'top' });
  count();
  await whenReady;
  assert.ok(turns >= 32, `${turns} turns while 32 MiB were copied`);
  await execute('job-complete', { id: 'c' });
  await event('BLOCK_JOB_COMPLETED', 'c');
  await user.release();
});

test('a node that a job works on is busy for every other job, as source and as target, until the job has ended', async (t) => {
  const { add, use, content, execute, event } = runOf(t);
  for (const name of ['disk', 'target', 'third', 'base']) await add(memoryNode(name, size));
  await add(overlay('top', 'base'));
  const user = await use('disk');
  await write(user, 0, 100_000, 1);
  const busy = (message: RegExp) => ({ code: 'op-blocked', message });
  await execute('blockdev-backup', { 'job-id': 'b', device: 'disk', target: 'target', sync: 'none' });
  // A pivot to a third node would be undone when the backup gives its source back to its users.
  const mirror = { 'job-id': 'm', sync: 'full' };
  await assert.rejects(execute('blockdev-mirror', { ...mirror, device: 'disk', target: 'third' }), busy(/job 'b'/));
  // Two points in time in one target are none.
  const backup = { 'job-id': 'b2', sync: 'full' };
  await assert.rejects(execute('blockdev-backup', { ...backup, device: 'third', target: 'target' }), busy(/job 'b'/));
  await assert.rejects(execute('blockdev-backup', { ...backup, device: 'target', target: 'third' }), busy(/job 'b'/));
  await assert.rejects(execute('block_resize', { 'node-name': 'target', size: 512 }), busy(/resize is blocked/));
  await execute('block-job-cancel', { device: 'b' });
  await event('BLOCK_JOB_CANCELLED', 'b');
  await execute('block-commit', { 'job-id': 'c', device: 'top' });
  await event('BLOCK_JOB_READY', 'c');
  await assert.rejects(execute('blockdev-backup', { ...backup, device: 'disk', target: 'base' }), busy(/job 'c'/));
  await execute('block-job-cancel', { device: 'c', force: true });
  await event('BLOCK_JOB_CANCELLED', 'c');
  await execute('blockdev-mirror', { ...mirror, device: 'disk', target: 'third' });
  await event('BLOCK_JOB_READY', 'm');
  await assert.rejects(execute('blockdev-backup', { ...backup, device: 'disk', target: 'target' }), busy(/job 'm'/));
  await execute('job-complete', { id: 'm' });
  await event('BLOCK_JOB_COMPLETED', 'm');
  assert.equal(user.nodeName, 'third');
  assert.ok((await content('third')).subarray(0, 100_000).equals(Buffer.alloc(100_000, 1)));
  await execute('blockdev-backup', { ...backup, device: 'disk', target: 'target' });
  await event('BLOCK_JOB_COMPLETED', 'b2');
  await user.release();
});

test('a mirror of a backup’s own filter is left on the node when the backup has ended', async (t) => {
  const { add, use, execute, event, engine } = runOf(t);
  for (const name of ['disk', 'kept', 'copy']) await add(memoryNode(name, size));
  const user = await use('disk');
  const backup = { 'job-id': 'b', device: 'disk', target: 'kept', sync: 'none', 'filter-node-name': 'filter' };
  await execute('blockdev-backup', backup);
  await execute('blockdev-mirror', { 'job-id': 'm', device: 'filter', target: 'copy', sync: 'full' });
  await event('BLOCK_JOB_READY', 'm');
  for (const id of ['b', 'm']) {
    await execute('block-job-cancel', { device: id, force: true });
    assert.equal((await event('BLOCK_JOB_CANCELLED', id)).error, undefined);
  }
  assert.equal(user.nodeName, 'disk');
  assert.equal(engine.graph.list().length, 3);
  await user.release();
});

test('two backups of one node keep each its own point in time, whichever ends first', async (t) => {
  for (const first of ['early', 'late']) {
    const { add, use, content, execute, event, engine } = runOf(t);
    for (const name of ['disk', 'early', 'late']) await add(memoryNode(name, size));
    const user = await use('disk');
    const backup = { device: 'disk', sync: 'none' };
    for (const target of ['early', 'late']) {
      await write(user, 0, 8192, target === 'early' ? 1 : 2);
      await execute('blockdev-backup', { ...backup, 'job-id': target, target });
    }
    await write(user, 0, 4096, 3);
    await execute('block-job-cancel', { device: first });
    await event('BLOCK_JOB_CANCELLED', first);
    await write(user, 4096, 4096, 4);
    const other = first === 'early' ? 'late' : 'early';
    await execute('block-job-cancel', { device: other });
    await event('BLOCK_JOB_CANCELLED', other);
    await write(user, 0, 8192, 5);
    const kept = first === 'early' ? 2 : 1;
    assert.ok((await content(other)).subarray(0, 8192).equals(Buffer.alloc(8192, kept)), `${first} ends first`);
    assert.equal(user.nodeName, 'disk');
    assert.equal(engine.graph.list().length, 3);
    await user.release();
  }
});
