/** The length of a disk: grown by a command, and cut by somebody else, as NBD clients see it. */
import assert from 'node:assert/strict';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { serveDisk } from '../support/served-disk.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nbdinfo', 'nbdcopy', 'qemu-io');
const mib = 2 ** 20;

async function sizeOf(uri: string): Promise<string> {
  const { stdout, stderr } = await run('nbdinfo', ['--size', uri]);
  return stdout.trim() || stderr;
}

test('a disk grows when no export forbids it, and a new export has the new size', async (t) => {
  const filename = join(await temporaryFolder(t), 'disk.img');
  writeFileSync(filename, new Uint8Array(mib).fill(1));
  const { engine, uri } = await serveDisk(t, { driver: 'raw', file: { driver: 'file', filename } });
  const resize = (size: number) => engine.execute('block_resize', { 'node-name': 'disk', size });
  assert.equal(await sizeOf(uri), String(mib));
  await assert.rejects(resize(2 * mib), { message: /'?resize'?.*export "export0"/, code: 'permission-conflict' });
  assert.equal(await sizeOf(uri), String(mib));
  await engine.execute('block-export-del', { id: 'export0', mode: 'hard' });
  await resize(2 * mib);
  await engine.execute('block-export-add', {
    type: 'nbd',
    id: 'export1',
    'node-name': 'disk',
    name: 'disk',
    writable: true,
  });
  assert.equal(await sizeOf(uri), String(2 * mib));
  const map = await run('nbdinfo', ['--map', '--json', uri]);
  assert.deepEqual(
    (JSON.parse(map.stdout) as { length: number; type: number }[]).map(({ length, type }) => [length, type]),
    [
      [mib, 0],
      [mib, 3],
    ],
  );
});

test('a disk whose file was cut reads as zeroes there until a flush tells, then it gives EIO, until it is whole again', async (t) => {
  const folder = await temporaryFolder(t);
  const filename = join(folder, 'disk.img');
  writeFileSync(filename, new Uint8Array(4 * mib).fill(1));
  const { uri, engine } = await serveDisk(t, { driver: 'file', filename });
  truncateSync(filename, mib);
  const copy = join(folder, 'copy.img');
  const copied = await run('nbdcopy', [uri, copy]);
  assert.equal(copied.code, 0, copied.stderr);
  const expected = new Uint8Array(4 * mib);
  expected.fill(1, 0, mib);
  const compared = await run('cmp', [copy, '-'], { input: expected });
  assert.equal(compared.code, 0, compared.stdout + compared.stderr);
  const io = (...commands: string[]) =>
    run('qemu-io', ['-f', 'raw', '-t', 'writeback', ...commands.flatMap((each) => ['-c', each]), uri]);
  const flushed = await io('write -P 5 2M 64k', 'flush', 'read 0 64k');
  assert.match(flushed.stdout, /wrote 65536\/65536 bytes/);
  assert.match(flushed.stdout + flushed.stderr, /read failed: Input\/output error/);
  assert.equal(await sizeOf(uri), String(4 * mib));
  const reopen = () =>
    engine.execute('blockdev-reopen', { options: [{ driver: 'file', 'node-name': 'disk', filename }] });
  await assert.rejects(reopen(), { message: /disk.img was cut to \d+ bytes by somebody else/ });
  truncateSync(filename, 4 * mib);
  await reopen();
  const mended = await io('write -P 6 3M 64k', 'flush', 'read -P 1 0 1M', 'read -P 6 3M 64k');
  assert.doesNotMatch(mended.stdout + mended.stderr, /fail|error/i);
  truncateSync(filename, mib);
  await assert.rejects(engine.close(), { message: /disk.img was cut to \d+ bytes by somebody else/ });
});
