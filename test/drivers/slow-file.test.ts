/** Files whose calls take long or fail, and what becomes of the other disks of the process. */
import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { BlockGraph } from '../../src/block/graph.ts';
import { writeFlags } from '../../src/block/node.ts';
import type { Done } from '../../src/util/later.ts';
import { testGraph } from '../block/fixture.ts';
import { fuseFile } from '../support/fuse-file.ts';
import { temporaryFolder } from '../support/temp.ts';

const mib = 2 ** 20;
const block = () => new Uint8Array(4096);

/** A graph with a disk `fast`, and one `slow` on a device that takes 200 ms for each request. */
async function slowAndFast(t: TestContext, io: 'auto' | 'async'): Promise<BlockGraph> {
  const slow = await fuseFile(t, ['--filter=delay', 'memory', '64M', 'rdelay=200ms', 'wdelay=200ms']);
  const fast = join(await temporaryFolder(t), 'fast.img');
  writeFileSync(fast, new Uint8Array(mib));
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'slow', filename: slow, io, discard: 'unmap' });
  await graph.add({ driver: 'file', 'node-name': 'fast', filename: fast });
  return graph;
}

test('a file that turns out slow goes to threads, and another disk goes on beside it', async (t) => {
  const graph = await slowAndFast(t, 'auto');
  const slow = graph.find('slow').node;
  const fast = graph.find('fast').node;
  assert.equal(slow.info?.().io, 'sync');
  // The first call holds everybody up: that cannot be helped. On a busy machine it may be put down to that.
  for (let i = 0; i < 3 && slow.info?.().io === 'sync'; i += 1) await slow.read(i * mib, block());
  assert.equal(slow.info?.().io, 'async');
  const order: string[] = [];
  // More requests than there are threads.
  const reads: Done[] = Array.from({ length: 12 }, (_, i) => slow.read(i * 4096 + 8 * mib, block()));
  reads.push(slow.write(32 * mib, block().fill(5), 0));
  assert.ok(reads.every((done) => done instanceof Promise));
  const slowDone = Promise.all(reads).then(() => order.push('slow'));
  for (let i = 0; i < 20; i += 1) {
    assert.equal(fast.write(i * 4096, block().fill(i + 1), 0), undefined);
    await fast.flush();
  }
  order.push('fast');
  assert.ok(Number(slow.info?.()['stalled-ms']) > 0);
  await slowDone;
  assert.deepEqual(order, ['fast', 'slow']);
  assert.equal(slow.info?.()['stalled-ms'], 0);
  const back = block();
  await slow.read(32 * mib, back);
  assert.ok(back.every((byte) => byte === 5));
  await graph.close();
});

test('with io=async not even the first request of a slow file is waited for, of whatever kind', async (t) => {
  const graph = await slowAndFast(t, 'async');
  const slow = graph.find('slow').node;
  const fast = graph.find('fast').node;
  const requests = [
    slow.read(0, block()),
    slow.write(4096, block().fill(1), 0),
    slow.writeZeroes(4096, 2048, 0),
    slow.discard(65_536, 4096),
    slow.blockStatus(0, mib),
    slow.flush(),
  ];
  assert.ok(requests.every((done) => done instanceof Promise));
  assert.equal(fast.read(0, block()), undefined);
  await Promise.all(requests);
  const back = block();
  await slow.read(4096, back);
  assert.deepEqual(
    [...back].findIndex((byte) => byte !== 0),
    2048,
    'the zeroes came after the write that they overlap',
  );
  assert.equal(slow.info?.().io, 'async');
  await graph.close();
});

test('a node that is closed while its requests are slow waits for them', async (t) => {
  const graph = await slowAndFast(t, 'async');
  let done = false;
  const read = graph.find('slow').node.read(0, block());
  assert.ok(read instanceof Promise);
  const ended = read.then(() => {
    done = true;
  });
  await graph.remove('slow');
  assert.equal(done, true);
  await ended;
  await graph.close();
});

test('a disk whose fsync failed once fails every request until it is opened anew, and says why', async (t) => {
  const flag = join(await temporaryFolder(t), 'fail');
  const filename = await fuseFile(t, [
    'eval',
    'get_size=echo 1M',
    'pread=head -c $3 /dev/zero',
    'pwrite=cat >/dev/null',
    'can_write=exit 0',
    'can_flush=exit 0',
    `flush=if [ -e ${flag} ]; then echo 'EIO the medium is gone' >&2; exit 1; fi`,
  ]);
  const { graph } = testGraph();
  const options = { driver: 'file', 'node-name': 'd', filename };
  await graph.add(options);
  const { node } = graph.find('d');
  await node.write(0, block(), writeFlags.fua);
  writeFileSync(flag, '');
  await assert.rejects(async () => await node.flush(), { code: 'io-error', errno: 'EIO' });
  rmSync(flag);
  await assert.rejects(async () => await node.flush(), { code: 'io-error', errno: 'EIO' });
  await assert.rejects(async () => await node.write(0, block(), writeFlags.none), { code: 'io-error' });
  await assert.rejects(async () => await node.read(0, block()), { code: 'io-error', errno: 'EIO' });
  assert.match(String(node.info?.().failed), /sync .*disk: EIO/);
  await graph.remove('d');
  await graph.add(options);
  await graph.find('d').node.flush();
  await graph.find('d').node.read(0, block());
  await graph.close();
});

test('reads and writes that fail on the device are EIO for that request alone', async (t) => {
  const flag = join(await temporaryFolder(t), 'fail');
  const filename = await fuseFile(t, ['--filter=error', 'memory', '1M', `error-file=${flag}`, 'error-rate=1']);
  const { graph } = testGraph();
  await graph.add({ driver: 'file', 'node-name': 'd', filename });
  const { node } = graph.find('d');
  await node.write(0, block().fill(1), 0);
  writeFileSync(flag, '');
  await assert.rejects(async () => await node.write(0, block().fill(2), 0), { errno: 'EIO', message: /disk/ });
  await assert.rejects(async () => await node.read(524_288, block()), { errno: 'EIO', message: /disk/ });
  rmSync(flag);
  await node.write(4096, block().fill(3), 0);
  await node.read(524_288, block());
  await graph.close();
});
