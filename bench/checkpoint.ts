/**
 * Emptying an overlay of a group (`shadow`, `sync=false`, on a memory file system, as QEMU's documents advise), with
 * much and with little in it: the tick in which it is emptied, and the first write after it, which pays what was put
 * off.
 */
import { closeSync, openSync } from 'node:fs';
import { allPermissions, permissionBits } from '../src/block/child.ts';
import { epochal } from '../src/block/epochal.ts';
import { BlockGraph } from '../src/block/graph.ts';
import type { BlockParent } from '../src/block/graph-view.ts';
import type { BlockNode } from '../src/block/node.ts';
import { DriverRegistry } from '../src/block/registry.ts';
import { drivers } from '../src/drivers/index.ts';
import { createHost } from '../src/host/index.ts';

const mebi = 1024 * 1024;
const blockBytes = 4096;
const rounds = 5;
/** ms: with however much in it */
const emptyMsMax = 3;

interface Row {
  readonly bytes: number;
  readonly emptyMs: number[];
  readonly firstWriteMs: number[];
}

async function fill(node: BlockNode, bytes: number, diskBytes: number): Promise<void> {
  const block = new Uint8Array(blockBytes).fill(0x5a);
  const blocks = diskBytes / blockBytes;
  for (let i = 0; i < bytes / blockBytes; i++) {
    // A stride that meets every block once, so that neighbours do not stand together.
    await node.write(((i * 7919) % blocks) * blockBytes, block, 0);
  }
}

async function measure(node: BlockNode, row: Row, epoch: number): Promise<void> {
  const block = new Uint8Array(blockBytes).fill(0xa5);
  const start = performance.now();
  epochal(node)?.emptyAt(epoch);
  row.emptyMs.push(performance.now() - start);
  const written = performance.now();
  await node.write(0, block, 0);
  row.firstWriteMs.push(performance.now() - written);
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;

function table(rows: readonly Row[]): string {
  const cells = rows.map(({ bytes, emptyMs, firstWriteMs }) => {
    const worst = Math.max(...emptyMs);
    const verdict = `${emptyMsMax} ms ${median(emptyMs) < emptyMsMax ? 'met' : '**missed**'}`;
    const numbers = [median(emptyMs), worst, median(firstWriteMs)].map((ms) => ms.toFixed(3));
    return `| ${bytes / mebi} MiB | ${numbers.join(' | ')} | ${verdict} |`;
  });
  const head = '| held in the overlay | emptied in, ms (median) | worst | first write after it, ms | target |';
  return [head, '|---|---|---|---|---|', ...cells].join('\n');
}

/** Prints a table; true if emptying is quick, in the median. */
export async function checkpointBench(folder: string, tiny: boolean): Promise<boolean> {
  const largest = (tiny ? 8 : 512) * mebi;
  const diskBytes = 2 * largest;
  const filename = `${folder}/hidden`;
  closeSync(openSync(filename, 'w'));
  const graph = new BlockGraph(createHost(), new DriverRegistry(drivers), new Map(), () => undefined);
  await graph.add({ driver: 'null-co', 'node-name': 'disk', size: diskBytes });
  const file = { driver: 'file', filename };
  await graph.add({ driver: 'shadow', 'node-name': 'hidden', file, backing: 'disk', epoch: 1, sync: false });
  const parent: BlockParent = { description: 'the bench', drainBegin: () => undefined, drainEnd: () => undefined };
  const use = await graph.use('hidden', parent, { needs: permissionBits.write, shares: allPermissions });
  const { node } = graph.find('hidden');
  const rows = [mebi, largest].map((bytes): Row => ({ bytes, emptyMs: [], firstWriteMs: [] }));
  let epoch = 1;
  // The first round is not counted: code that is not compiled yet, a file that is made longer.
  for (let round = 0; round <= rounds; round++) {
    for (const row of rows) {
      await fill(node, row.bytes, diskBytes);
      epoch += 1;
      const counted = round === 0 ? { bytes: row.bytes, emptyMs: [], firstWriteMs: [] } : row;
      await measure(node, counted, epoch);
    }
  }
  await use.release();
  await graph.close();
  process.stdout.write(`${table(rows)}\n`);
  return rows.every(({ emptyMs }) => median(emptyMs) < emptyMsMax);
}
