/** The length of a disk of a real daemon: grown by a command, and cut by somebody else under its users. */
import assert from 'node:assert/strict';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run, spawnDaemon } from '../support/process.ts';
import { storageDaemon } from '../support/storage-daemon.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nbdinfo', 'nbdcopy', 'qemu-io');
const mib = 2 ** 20;

test('block_resize is refused while an export stands over the node, naming what it does not allow, and grows it after', async (t) => {
  const filename = join(await temporaryFolder(t), 'disk.img');
  writeFileSync(filename, new Uint8Array(mib).fill(1));
  const storage = await storageDaemon(t, {
    blockdevs: [`driver=file,node-name=f,filename=${filename}`, 'driver=raw,node-name=disk,file=f'],
    exports: ['type=nbd,id=e,node-name=disk,name=disk'],
  });
  const sizeOf = async () => (await run('nbdinfo', ['--size', storage.uri('disk')])).stdout.trim();
  for (const name of ['disk', 'f']) {
    await assert.rejects(storage.qmp.execute('block_resize', { 'node-name': name, size: 4 * mib }), {
      message: /needs 'resize' on node '\w+', which its use by (export "e"|.*'disk'.*) does not allow/,
    });
  }
  assert.equal(await sizeOf(), String(mib));
  await storage.qmp.execute('block-export-del', { id: 'e' });
  await storage.qmp.execute('block_resize', { 'node-name': 'disk', size: 4 * mib });
  await storage.qmp.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'disk', writable: true });
  assert.equal(await sizeOf(), String(4 * mib));
  const io = await run('qemu-io', [
    ...['-f', 'raw', '-c', 'read -P 1 0 1M', '-c', 'read -P 0 1M 3M', '-c', 'write -P 2 3M 1M', '-c', 'flush'],
    storage.uri('disk'),
  ]);
  assert.equal(io.code, 0, io.stdout + io.stderr);
});

test('a file that is cut while clients read and write: zeroes past its end, EIO from the next flush on, and a daemon that says so', async (t) => {
  const folder = await temporaryFolder(t);
  const filename = join(folder, 'disk.img');
  writeFileSync(filename, new Uint8Array(64 * mib).fill(1));
  const storage = await storageDaemon(t, {
    blockdevs: [`driver=file,node-name=disk,filename=${filename}`],
    exports: ['type=nbd,id=e,node-name=disk,name=disk,writable=on'],
  });
  const uri = storage.uri('disk');
  // Reads all of it again and again, and goes on doing so.
  const reading = await spawnDaemon(t, 'sh', ['-c', 'while nbdcopy "$0" null:; do echo copied; done', uri], {
    ready: /copied/,
  });
  truncateSync(filename, mib);
  const copies = () => reading.stdout().length;
  // One copy may be under way at the cut; the one after it began later.
  for (let more = 0, before = copies(); more < 2; before = copies(), more += 1) {
    while (copies() === before) await storage.qmp.execute('query-version');
  }
  const commands = ['read -P 1 0 1M', 'read -P 0 1M 8M', 'write -P 5 2M 64k', 'read -P 5 2M 64k', 'flush', 'read 0 4k'];
  const args = commands.flatMap((each) => ['-c', each]);
  const io = await run('qemu-io', ['-f', 'raw', '-t', 'writeback', ...args, uri]);
  const said = io.stdout + io.stderr;
  assert.match(said, /read failed: Input\/output error/, 'the flush has failed: nothing is believed any more');
  assert.equal(said.match(/failed/g)?.length, 1, said);
  await reading.exited;
  assert.match(reading.stderr(), /Input\/output error/, 'nor does anybody else read from it');
  const nodes = (await storage.qmp.execute('query-named-block-nodes')) as { info?: { failed?: string } }[];
  assert.match(nodes[0]?.info?.failed ?? '', /was cut to \d+ bytes by somebody else/);
  await storage.qmp.execute('quit');
  assert.notEqual(await storage.daemon.exited, 0);
  assert.match(storage.daemon.stderr(), /disk\.img was cut to \d+ bytes/);
});
