import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { emptyFile, ourServer } from './our-server.ts';

const MiB = 1024 * 1024;

requireTools('qemu-io', 'qemu-img');

async function good(command: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(command, args);
  assert.equal(code, 0, `${command}: ${stdout}${stderr}`);
  return stdout;
}

const qemuIo = (uri: string, ...commands: string[]) =>
  good('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri);

test('qemu-io writes, zeroes, discards, flushes and reads patterns back', async (t) => {
  const { uri } = await ourServer(t, { memory: 64 * MiB });
  const said = await qemuIo(
    uri,
    'write -P 0xa5 0 1M',
    'write -f -P 0x5a 512 512',
    'write -P 0x11 3M 40M',
    'write -z 64k 64k',
    'write -z -u 256k 64k',
    'discard 512k 64k',
    'flush',
    'read -P 0x5a 512 512',
    'read -P 0 64k 64k',
    'read -P 0 256k 64k',
    'read -P 0xa5 128k 128k',
    'read -P 0x11 3M 40M',
    'read -P 0xa5 0 512',
  );
  assert.doesNotMatch(said, /fail/i);
});

test('qemu-io keeps 64 requests in flight', async (t) => {
  const { uri } = await ourServer(t, { memory: 8 * MiB });
  const writes = Array.from({ length: 64 }, (_, index) => `aio_write -P ${index + 1} ${index * 64}k 64k`);
  const reads = Array.from({ length: 64 }, (_, index) => `aio_read -P ${index + 1} ${index * 64}k 64k`);
  const said = await qemuIo(uri, ...writes, 'aio_flush', ...reads, 'aio_flush');
  assert.equal(said.match(/wrote 65536\/65536/g)?.length, 64);
  assert.equal(said.match(/read 65536\/65536/g)?.length, 64);
  assert.doesNotMatch(said, /fail/i);
});

test('qemu-img sees what an overlay shows of its backing, and finds it equal', async (t) => {
  const folder = await temporaryFolder(t);
  await writeFile(`${folder}/backing`, randomBytes(4 * MiB));
  await emptyFile(`${folder}/overlay`, 0);
  const { uri } = await ourServer(t, {
    blockdevs: [
      `driver=file,node-name=backing,filename=${folder}/backing`,
      `driver=shadow,node-name=disk0,backing=backing,file.driver=file,file.filename=${folder}/overlay`,
    ],
  });
  await good('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri, `${folder}/backing`);
  await qemuIo(uri, 'write -P 7 1M 64k', 'write -z 2M 1M');
  await good('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, `${folder}/copy`);
  await good('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri, `${folder}/copy`);
  const [copy, backing] = [await readFile(`${folder}/copy`), await readFile(`${folder}/backing`)];
  backing.fill(7, MiB, MiB + 65_536);
  backing.fill(0, 2 * MiB, 3 * MiB);
  assert.ok(copy.equals(backing));
});

test('qemu-img converts to and from us, compares equal, and sees a difference', async (t) => {
  const folder = await temporaryFolder(t);
  const source = await open(`${folder}/source`, 'w');
  await source.truncate(32 * MiB);
  for (const at of [0, 5, 9, 20, 31]) await source.write(randomBytes(MiB), 0, MiB, at * MiB);
  await source.close();
  await emptyFile(`${folder}/disk`, 32 * MiB);
  const { uri } = await ourServer(t, { file: `${folder}/disk` });
  await good('qemu-img', 'convert', '-n', '-W', '-m', '8', '-f', 'raw', '-O', 'raw', `${folder}/source`, uri);
  assert.match(await good('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', `${folder}/source`, uri), /identical/);
  await good('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, `${folder}/back.qcow2`);
  assert.match(await good('qemu-img', 'compare', `${folder}/back.qcow2`, uri), /identical/);
  const map = JSON.parse(await good('qemu-img', 'map', '-f', 'raw', '--output=json', uri));
  assert.ok(
    map.some((extent: { data: boolean }) => !extent.data),
    'holes are seen',
  );
  await qemuIo(uri, 'write -P 1 10M 512');
  const { code, stdout } = await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', `${folder}/source`, uri]);
  assert.equal(code, 1);
  assert.match(stdout, /mismatch at offset 10485760/);
});

test('qemu-img info shows a refused export with the sentence why', async (t) => {
  const { uriOf } = await ourServer(t, { memory: MiB });
  const { code, stderr } = await run('qemu-img', ['info', uriOf('refused')]);
  assert.equal(code, 1);
  assert.match(stderr, /this disk is secondary; the primary is elsewhere/);
});

test('a read-only export refuses qemu-io writes and is read', async (t) => {
  const path = `${await temporaryFolder(t)}/disk`;
  await writeFile(path, Buffer.alloc(MiB, 7));
  const { uri } = await ourServer(t, { file: path }, { readOnly: true });
  const { stdout, stderr } = await run('qemu-io', ['-f', 'raw', '-c', 'write -P 1 0 512', uri]);
  assert.match(stdout + stderr, /read-only|Permission denied|not permitted/i);
  await good('qemu-io', '-r', '-f', 'raw', '-c', 'read -P 7 0 1M', uri);
  assert.ok((await readFile(path)).every((byte) => byte === 7));
});
