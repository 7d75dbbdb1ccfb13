/** The byte locks of an image, both ways with QEMU's programs, and as the kernel shows them. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { parent, reader, testGraph, writer } from '../block/fixture.ts';
import { cleanup } from '../support/cleanup.ts';
import { lockedBytes } from '../support/outside.ts';
import { run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

const size = 2 ** 20;
requireTools('qemu-img', 'qemu-io', 'qemu-nbd');

async function image(t: TestContext): Promise<string> {
  const path = join(await temporaryFolder(t), 'disk.img');
  writeFileSync(path, new Uint8Array(size));
  return path;
}

test('the locks on an image follow what its users need and share', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'raw', 'node-name': 'r', file: { driver: 'file', filename: path } });
  assert.deepEqual(lockedBytes(path), []);
  const use = await graph.use('r', parent('export "x"'), writer);
  assert.deepEqual(lockedBytes(path), [100, 101, 203], 'a writable export, like a read-write qemu-nbd');
  await use.setPermissions({ needs: 3, shares: 1 });
  assert.deepEqual(lockedBytes(path), [100, 101, 201, 202, 203]);
  await use.setPermissions(reader);
  assert.deepEqual(lockedBytes(path), [100]);
  await use.release();
  assert.deepEqual(lockedBytes(path), []);
  await graph.close();
});

test('qemu-img resize of an image that an export writes to is refused, and works when the export is gone', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path });
  const use = await graph.use('f', parent('export "x"'), writer);
  const resize = () => run('qemu-img', ['resize', '-f', 'raw', path, '2M']);
  const refused = await resize();
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /lock/);
  const shared = await run('qemu-io', ['-f', 'raw', '-r', '-c', 'read 0 4k', path]);
  assert.equal(shared.code, 0, shared.stderr);
  await use.release();
  assert.equal((await resize()).code, 0);
  await graph.close();
});

test('qemu-io cannot write to a pair’s disk (exclusive), from its opening on', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path, exclusive: true });
  assert.deepEqual(lockedBytes(path), [101, 201]);
  await graph.use('f', parent('export "x"'), writer);
  assert.deepEqual(lockedBytes(path), [100, 101, 201, 203]);
  const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', path]);
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /lock/);
});

test('an image that qemu-nbd writes to may be read and written here, but not resized, nor had alone', async (t) => {
  const path = await image(t);
  const socket = join(await temporaryFolder(t), 'nbd');
  const args = ['-f', 'raw', '-t', '-k', socket, '--fork', `--pid-file=${socket}.pid`, path];
  assert.equal((await run('qemu-nbd', args)).code, 0);
  const pid = Number(readFileSync(`${socket}.pid`, 'utf8'));
  cleanup(t, () => process.kill(pid));
  assert.deepEqual(lockedBytes(path), [100, 101, 203]);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path });
  const use = await graph.use('f', parent('export "x"'), writer);
  await assert.rejects(use.setPermissions({ needs: 11, shares: 15 }), (error: Error) => {
    assert.match(error.message, /does not allow 'resize'/);
    assert.ok(error.message.includes(path));
    return true;
  });
  await assert.rejects(use.setPermissions({ needs: 1, shares: 5 }), { code: 'locked', message: /for 'write'/ });
  await assert.rejects(graph.add({ driver: 'file', 'node-name': 'g', filename: path, exclusive: true }), {
    code: 'locked',
  });
  assert.deepEqual(lockedBytes(path), [100, 101, 203], 'a refusal leaves the locks as they were');
  await graph.add({ driver: 'file', 'node-name': 'o', filename: path, locking: 'off' });
  await graph.use('o', parent('somebody'), { needs: 15, shares: 0 });
  await use.release();
});

test('a VM’s disk is refused to a writer', async (t) => {
  requireTools('qemu-system-x86_64');
  const path = await image(t);
  await spawnDaemon(
    t,
    'qemu-system-x86_64',
    // One virtio disk on a machine that never runs: it holds the locks of a VM.
    ['-M', 'q35', '-S', '-display', 'none', '-qmp', 'stdio', '-drive', `file=${path},format=raw,if=virtio`],
    { ready: /QMP/ },
  );
  // It greets before its devices are there.
  for (let tries = 0; !lockedBytes(path).includes(201) && tries < 500; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path });
  await assert.rejects(graph.use('f', parent('export "x"'), writer), {
    code: 'locked',
    message: /another program .* does not allow 'write'/,
  });
  await graph.use('f', parent('reader'), reader);
  await graph.add({ driver: 'file', 'node-name': 'f2', filename: path });
});

test('a pair’s disk is refused to a VM and to a second daemon', async (t) => {
  requireTools('qemu-system-x86_64');
  const path = await image(t);
  const { graph } = testGraph();
  const options = { driver: 'file', 'node-name': 'f', filename: path };
  await graph.add({ ...options, exclusive: true });
  await graph.use('f', parent('export "x"'), writer);
  const machine = await run('qemu-system-x86_64', [
    ...['-M', 'q35', '-S', '-display', 'none', '-monitor', 'none', '-nodefaults'],
    ...['-drive', `file=${path},format=raw,if=virtio`],
  ]);
  assert.notEqual(machine.code, 0);
  assert.match(machine.stderr, /lock/);
  const daemon = (more: string) =>
    run(process.execPath, [
      join(import.meta.dirname, '../../src/cli/storage-daemon.ts'),
      ...['--blockdev', `driver=file,node-name=f,filename=${path}${more}`],
      ...['--nbd-server', `addr.type=unix,addr.path=${path}.socket`],
      ...['--export', 'type=nbd,id=e,node-name=f,writable=on'],
    ]);
  for (const more of ['', ',exclusive=on']) {
    const second = await daemon(more);
    assert.notEqual(second.code, 0);
    assert.ok(second.stderr.includes(path), second.stderr);
    assert.match(second.stderr, /another program .* 'write'/);
  }
});

test('a reopen does not meet its own locks, and meets those of others', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'f', filename: path, exclusive: true, 'read-only': true });
  const use = await graph.use('f', parent('job'), { needs: 1, shares: 1 });
  const readOnlyLocks = lockedBytes(path);
  assert.deepEqual(readOnlyLocks, [100, 201, 202, 203]);
  await graph.reopen([{ nodeName: 'f', readOnly: false }]);
  assert.deepEqual(lockedBytes(path), readOnlyLocks);
  await use.setPermissions({ needs: 3, shares: 1 });
  assert.deepEqual(lockedBytes(path), [100, 101, 201, 202, 203]);
  const { node } = graph.find('f');
  await node.write(0, new Uint8Array(4096).fill(1), 0);
  await assert.rejects(graph.reopen([{ nodeName: 'f', readOnly: true }]), { code: 'read-only' });
  await use.setPermissions({ needs: 1, shares: 15 });
  await graph.reopen([{ nodeName: 'f', readOnly: true }]);
  await assert.rejects(async () => await node.write(0, new Uint8Array(4096), 0), { errno: 'EBADF' });
  const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', path]);
  assert.match(refused.stderr, /lock/);
  await use.release();
  await graph.close();
  assert.deepEqual(lockedBytes(path), []);
});

test('two nodes of one process on one image keep out of each other’s way as two programs would', async (t) => {
  const path = await image(t);
  const { graph } = testGraph();
  for (const name of ['a', 'b']) await graph.add({ driver: 'file', 'node-name': name, filename: path });
  const use = await graph.use('a', parent('vm'), { needs: 3, shares: 1 });
  await assert.rejects(graph.use('b', parent('other'), writer), { code: 'locked' });
  await use.release();
  await graph.use('b', parent('other'), writer);
});
