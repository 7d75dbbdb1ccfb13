/** Less usual programs, and exports whose length is no multiple of anything: read and written to the last byte. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { emptyFile, ourServer } from './our-server.ts';

requireTools('qemu-io', 'qemu-img', 'qemu-nbd', 'nbdcopy', 'nbdinfo', 'nbdkit');

const MiB = 2 ** 20;
const oddSize = 3 * MiB + 123;

async function good(command: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(command, args);
  assert.equal(code, 0, `${command} ${args.join(' ')}: ${stdout}${stderr}`);
  return stdout;
}

/** A disk with a hole of 1 MiB in its middle, its content, and an export of it. */
async function oddDisk(t: TestContext): Promise<{ uri: string; socket: string; file: string; content: Buffer }> {
  const folder = await temporaryFolder(t);
  const file = join(folder, 'disk');
  const content = randomBytes(oddSize);
  content.fill(0, MiB, 2 * MiB);
  await writeFile(join(folder, 'plain'), content);
  await good('cp', '--sparse=always', join(folder, 'plain'), file);
  const { uri, socket } = await ourServer(t, { file });
  return { uri, socket, file, content };
}

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly zero: boolean;
  readonly data: boolean;
}

test('qemu-img map, nbdinfo --map and qemu-nbd --list see the hole and the end of a disk of odd length', async (t) => {
  const { uri, socket } = await oddDisk(t);
  const map: MapEntry[] = JSON.parse(await good('qemu-img', 'map', '-f', 'raw', '--output=json', uri));
  // QEMU counts in sectors: what it adds behind the end is its own.
  assert.deepEqual(
    map.map(({ start, length, zero, data }) => [start, length, zero, data]),
    [
      [0, MiB, false, true],
      [MiB, MiB, true, false],
      [2 * MiB, MiB + 123, false, true],
      [oddSize, 512 - 123, true, false],
    ],
  );
  const totals = await good('nbdinfo', '--map', '--totals', uri);
  assert.match(totals, new RegExp(`^ *${oddSize - MiB} .* data$`, 'm'));
  assert.match(totals, new RegExp(`^ *${MiB} .* hole,zero$`, 'm'));
  const list = await good('qemu-nbd', '--list', '-k', socket);
  assert.match(list, /exports available: 1\n export: 'disk'\n/);
  assert.match(list, new RegExp(`size: +${oddSize}\n`));
});

test('disks of 1, 511 and 513 bytes, and of none, are read and written whole', async (t) => {
  for (const size of [0, 1, 511, 513]) {
    const folder = await temporaryFolder(t);
    const [file, given, copy] = ['disk', 'given', 'copy'].map((name) => join(folder, name)) as [string, string, string];
    await emptyFile(file, size);
    const content = randomBytes(size);
    await writeFile(given, content);
    const { uri } = await ourServer(t, { file });
    await good('nbdcopy', given, uri);
    await good('nbdcopy', uri, copy);
    assert.ok((await readFile(copy)).equals(content), `${size} bytes`);
    assert.ok((await readFile(file)).equals(content), `${size} bytes`);
    if (size === 0) continue;
    await good('qemu-io', '-f', 'raw', '-c', `write -P 9 ${size - 1} 1`, '-c', `read -P 9 ${size - 1} 1`, uri);
    assert.equal((await readFile(file)).at(-1), 9, `${size} bytes`);
  }
});

test('nbdcopy gives a disk of odd length to us, in each of its ways', async (t) => {
  const { file: source, content } = await oddDisk(t);
  for (const how of ['--destination-is-zero', '--allocated', '--synchronous', '--no-extents', '--request-size=4096']) {
    const folder = await temporaryFolder(t);
    const file = join(folder, 'disk');
    await emptyFile(file, oddSize);
    const { uri } = await ourServer(t, { file });
    await good('nbdcopy', how, '--flush', source, uri);
    assert.ok((await readFile(file)).equals(content), how);
  }
});

test('qemu-img dd and bench: what is read is the disk, and thousands of writes in flight leave it in order', async (t) => {
  const { uri, file, content } = await oddDisk(t);
  const copy = `${file}.copy`;
  await good('qemu-img', 'dd', '-f', 'raw', '-O', 'raw', 'bs=64k', 'count=20', `if=${uri}`, `of=${copy}`);
  assert.ok((await readFile(copy)).equals(content.subarray(0, 20 * 65_536)));
  const writes = ['-w', '--pattern=7', '-f', 'raw', '-c', '3000', '-d', '64', '-s', '512', '--flush-interval=500'];
  await good('qemu-img', 'bench', ...writes, uri);
  content.fill(7, 0, 3000 * 512);
  assert.ok((await readFile(file)).equals(content));
});

for (const [filter, ...options] of [
  ['retry'],
  ['retry-request'],
  ['blocksize', 'minblock=4096', 'maxdata=64k'],
  ['cache'],
  ['cow'],
] as const) {
  test(`nbdkit’s nbd plugin below its filter ${filter} reads and writes our export`, async (t) => {
    const { uri, file, content } = await oddDisk(t);
    const before = `${file}.before`;
    await copyFile(file, before);
    const ios = ['write -P 3 5k 10k', 'write -z 20k 7k', 'write -P 4 1500k 300k', 'write -f -P 5 100 7', 'flush'];
    const commands = ios.map((io) => `-c '${io}'`).join(' ');
    const copy = `${file}.copy`;
    const script = `qemu-io -f raw ${commands} "$uri" && nbdcopy "$uri" '${copy}'`;
    await good('nbdkit', '-U', '-', `--filter=${filter}`, 'nbd', `uri=${uri}`, ...options, '--run', script);
    content.fill(3, 5 * 1024, 15 * 1024).fill(0, 20 * 1024, 27 * 1024);
    content.fill(4, 1500 * 1024, 1800 * 1024).fill(5, 100, 107);
    const seen = await readFile(copy);
    // Where a filter serves whole blocks the rest behind them is not seen.
    const end = filter === 'blocksize' ? oddSize - 123 : oddSize;
    assert.ok(seen.equals(content.subarray(0, end)));
    const expected = filter === 'cow' ? await readFile(before) : content;
    assert.ok((await readFile(file)).equals(expected));
  });
}
