/** Checksums of blocks, by which two disks are compared: each is that of the bytes, whatever is known of zeroes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { blockChecksums } from '../../src/jobs/checksum.ts';
import { loadXxhash } from '../../src/util/xxhash.ts';
import { parent, testGraph, writer } from '../block/fixture.ts';

const size = 3 * 2 ** 20 + 1536;

test('a block that is zero in part, or longer than a piece, has the sum of all its bytes', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'blkdebug', 'node-name': 'log', image: { driver: 'memory', size: 0 } });
  await graph.add({ driver: 'shadow', 'node-name': 'n', file: 'log', size, 'grow-bytes': 65536 });
  await graph.use('n', parent('the test'), writer);
  const { node } = graph.find('n');
  const content = new Uint8Array(size);
  // Data at the start, in the middle and at the end of blocks, and zeroes that were written.
  for (const [at, blocks] of [
    [1, 1],
    [17, 2],
    [47, 1],
    [64, 16],
    [300, 3],
    [520, 1],
    [767, 1],
  ] as const) {
    const bytes = new Uint8Array(Math.min(blocks * 4096, size - at * 4096)).fill(1 + (at % 250));
    await node.write(at * 4096, bytes, 0);
    content.set(bytes, at * 4096);
  }
  await node.writeZeroes(70 * 4096, 8192, 0);
  content.fill(0, 70 * 4096, 72 * 4096);
  await graph.find('log').node.control?.({ action: 'add-fault', fault: { operation: 'read', 'delay-ms': 1 } });
  const { h64Raw } = await loadXxhash();
  for (const block of [512, 4096, 12288, 65536, 2 ** 20, 2 ** 21, 2 ** 22]) {
    for (const offset of [0, 4096 * 3]) {
      const expected: string[] = [];
      for (let at = offset; at < size; at += block) {
        expected.push(
          h64Raw(content.subarray(at, at + block))
            .toString(16)
            .padStart(16, '0'),
        );
      }
      const request = { node: 'n', offset, length: size - offset, block };
      assert.deepEqual(await blockChecksums(graph, request, 10_000), expected, `blocks of ${block} from ${offset}`);
    }
  }
});
