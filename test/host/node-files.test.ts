/** The real host's files as others see them: other processes, the file system, the kernel's own tables. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import fc from 'fast-check';
import type { HostFile } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { cleanup } from '../support/cleanup.ts';
import { run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { create, fails, pattern, readAll } from './tools.ts';

const host = createHost();

before(() => requireTools('qemu-io', 'qemu-nbd', 'qemu-img'));

for (const direct of [false, true])
  test(`random operations ${direct ? 'past' : 'through'} the page cache do what they do to an array`, async (t) => {
    const folder = await temporaryFolder(t);
    let count = 0;
    const agrees = async (steps: readonly FileStep[]) => {
      const path = join(folder, String(count++));
      const file = await host.files.open(path, { access: 'write', create: 'exclusive', direct });
      try {
        await agreesWithArray(file, steps);
      } finally {
        await file.close();
        await host.files.remove(path);
      }
    };
    await fc.assert(fc.asyncProperty(fc.array(fileStep, { maxLength: 12 }), agrees), { numRuns: 150 });
  });

for (const what of ['punchHole', 'zeroRange'] as const)
  test(`past the page cache: ${what} beside a write to the same block keeps its zeroes`, async (t) => {
    const path = join(await temporaryFolder(t), 'f');
    const file = await host.files.open(path, { access: 'write', create: 'exclusive', direct: true });
    cleanup(t, () => file.close());
    for (let round = 0; round < 40; round += 1) {
      await file.write(0, pattern(4096, 1));
      // The write reads its whole block, and puts it back: what was zeroed in between must not come back with it.
      await Promise.all([file.write(0, pattern(512, 2)), file[what](512, 512)]);
      assert.deepEqual(await readAll(file, 512, 512), new Uint8Array(512), `round ${round}`);
    }
  });

test('a close waits for calls on threads, those in line too, and for syncs', async (t) => {
  const folder = await temporaryFolder(t);
  const ends: string[] = [];
  const open = async (name: string) => {
    const file = await host.files.open(join(folder, name), { access: 'write', create: 'exclusive', threads: true });
    await file.write(0, pattern(8 << 20, 1));
    return file;
  };
  const read = await open('read');
  const reads = Array.from({ length: 20 }, async (_, i) => {
    await read.read(i * 4096, new Uint8Array(4096));
    ends.push('read');
  });
  await read.close();
  assert.equal(ends.length, 20);
  const synced = await open('synced');
  const syncing = synced.sync().then(() => void ends.push('sync'));
  await synced.close();
  assert.equal(ends.length, 21);
  await Promise.all([...reads, syncing]);
});

test('a punched range gives its space back, as du sees it', async (t) => {
  const path = join(await temporaryFolder(t), 'f');
  const file = await create(host, path);
  cleanup(t, () => file.close());
  await file.write(0, pattern(1 << 20, 1));
  await file.sync();
  const before = usedKiB(path);
  assert.equal(await file.punchHole(0, 1 << 19), true);
  await file.sync();
  assert.ok(usedKiB(path) <= before - 500, `${before} KiB before, ${usedKiB(path)} after`);
});

test('a lock stands in /proc/locks until it is released', async (t) => {
  const path = join(await temporaryFolder(t), 'f');
  const file = await create(host, path);
  cleanup(t, () => file.close());
  const { ino } = statSync(path);
  const lines = () =>
    readFileSync('/proc/locks', 'utf8')
      .split('\n')
      .filter((line) => line.includes(`:${ino} `));
  file.locks?.exclude(101);
  file.locks?.share(203);
  assert.deepEqual(
    lines()
      .map((line) => line.replace(/^\d+: (\w+) +\w+ +(\w+) .*:\d+ (\d+ \d+)$/, '$1 $2 $3'))
      .toSorted(),
    ['OFDLCK READ 203 203', 'OFDLCK WRITE 101 101'],
  );
  file.locks?.release(101);
  file.locks?.release(203);
  assert.deepEqual(lines(), []);
});

test("our lock keeps qemu-io from writing, and qemu-nbd's lock is seen by us", async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'f');
  const file = await create(host, path);
  cleanup(t, () => file.close());
  await file.truncate(1 << 20);
  // QEMU's image locking: byte 201 says that its holder does not share the permission to write.
  assert.equal(file.locks?.share(201), true);
  const write = () => run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', path]);
  const refused = await write();
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /lock/);
  file.locks?.release(201);
  assert.equal((await write()).code, 0);
  const socket = join(folder, 's');
  const nbd = await spawnDaemon(t, 'qemu-nbd', ['-t', '-f', 'raw', '-k', socket, path]);
  for (let i = 0; i < 500 && !file.locks?.heldByOther(101); i++) await new Promise((r) => setTimeout(r, 10));
  assert.equal(file.locks?.heldByOther(101), true);
  assert.equal(file.locks?.exclude(101), false);
  nbd.kill('SIGTERM');
  await nbd.exited;
  assert.equal(file.locks?.heldByOther(101), false);
});

test('a pipe and a character device are refused without opening them', async (t) => {
  const folder = await temporaryFolder(t);
  const pipe = join(folder, 'pipe');
  execFileSync('mkfifo', [pipe]);
  await fails('invalid-option', pipe, () => host.files.open(pipe, { access: 'read' }));
  await fails('invalid-option', '/dev/null', () => host.files.open('/dev/null', { access: 'write' }));
  assert.equal((await host.files.stat(pipe))?.kind, 'other');
});

test('a symbolic link that leads nowhere is no file', async (t) => {
  const folder = await temporaryFolder(t);
  symlinkSync(join(folder, 'nowhere'), join(folder, 'link'));
  assert.equal(await host.files.stat(join(folder, 'link')), null);
  await fails('file-not-found', 'link', () => host.files.open(join(folder, 'link'), { access: 'write' }));
});

test('a write beyond the limit of the file system is an error that names the file, and what was there stays', async (t) => {
  const path = join(await temporaryFolder(t), 'f');
  const file = await create(host, path);
  cleanup(t, () => file.close());
  await file.write(0, pattern(100, 1));
  await fails('io-error', path, async () => file.write(2 ** 52, pattern(100, 1)));
  for (const offset of [-1, 1.5, Number.NaN, 2 ** 53]) {
    await fails('invalid-request', path, async () => file.write(offset, pattern(100, 1)));
    await fails('invalid-request', path, async () => file.read(offset, new Uint8Array(10)));
  }
  assert.deepEqual(await readAll(file, 0, 100), pattern(100, 1));
});

const mayMount = process.getuid?.() === 0 ? {} : { skip: 'only root may mount a small file system' };

test('a full device is no-space, and a short write never passes as whole', mayMount, async (t) => {
  const folder = await temporaryFolder(t);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]);
  cleanup(t, () => execFileSync('umount', [folder]));
  const path = join(folder, 'f');
  const file = await create(host, path);
  await fails('no-space', path, async () => file.write(0, pattern(1 << 20, 1)));
  await file.close();
});

test('a file that others cut short reads as zeroes where it was', async (t) => {
  const path = join(await temporaryFolder(t), 'f');
  writeFileSync(path, 'x'.repeat(5000));
  const file = await host.files.open(path, { access: 'read' });
  cleanup(t, () => file.close());
  writeFileSync(path, 'y'.repeat(10));
  assert.equal(file.size(), 10);
  const expected = new Uint8Array(100);
  expected.fill(0x79, 0, 10);
  assert.deepEqual(await readAll(file, 0, 100), expected);
});

const lengthMax = 3 << 20;

type FileStep =
  | { readonly do: 'write' | 'read' | 'punch' | 'zero'; readonly offset: number; readonly length: number }
  | { readonly do: 'truncate'; readonly size: number };

/** Offsets and lengths near the edges of blocks, and some that cross the buffer of direct I/O. */
const nearEdge = fc
  .tuple(fc.constantFrom(0, 512, 4096, 12_288, 65_536, 1 << 20), fc.integer({ min: -3, max: 3 }))
  .map(([edge, by]) => Math.max(0, edge + by));
const fileStep: fc.Arbitrary<FileStep> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc
      .tuple(
        fc.constantFrom('write' as const, 'write' as const, 'read' as const, 'punch' as const, 'zero' as const),
        nearEdge,
        nearEdge,
      )
      .map(([what, offset, length]) => ({ do: what, offset, length })),
  },
  { weight: 1, arbitrary: nearEdge.map((size) => ({ do: 'truncate' as const, size })) },
);

async function agreesWithArray(file: HostFile, steps: readonly FileStep[]): Promise<void> {
  const model = new Uint8Array(lengthMax);
  let size = 0;
  let salt = 1;
  for (const step of steps) {
    if (step.do === 'truncate') {
      await file.truncate(step.size);
      model.fill(0, step.size);
      size = step.size;
    } else if (step.do === 'write') {
      const data = pattern(step.length, salt++);
      await file.write(step.offset, data);
      model.set(data, step.offset);
      if (step.length > 0) size = Math.max(size, step.offset + step.length);
    } else if (step.do === 'read') {
      const found = await readAll(file, step.offset, step.length);
      assert.equal(Buffer.compare(found, model.subarray(step.offset, step.offset + step.length)), 0);
    } else {
      const done =
        step.do === 'punch'
          ? await file.punchHole(step.offset, step.length)
          : await file.zeroRange(step.offset, step.length);
      if (done) model.fill(0, step.offset, Math.min(size, step.offset + step.length));
    }
    assert.equal(file.size(), size);
  }
  assert.equal(Buffer.compare(await readAll(file, 0, lengthMax), model), 0);
}

function usedKiB(path: string): number {
  return Number.parseInt(execFileSync('du', ['-k', path], { encoding: 'utf8' }), 10);
}
