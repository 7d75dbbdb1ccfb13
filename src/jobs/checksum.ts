/**
 * Checksums of blocks of a node (XXH64), read piece by piece. The caller's loop is never held for long: after a few
 * milliseconds of work the turn is given up, and a range that is known to be zero is not read at all.
 */
import { allPermissions, permissionBits } from '../block/child.ts';
import type { Graph } from '../block/graph-view.ts';
import type { BlockNode } from '../block/node.ts';
import { blockStatusOf } from '../block/status.ts';
import type { HostClock } from '../host/host.ts';
import { isRange } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import { loadXxhash, type XXHashAPI } from '../util/xxhash.ts';

/** bytes read at once */
const pieceBytes = 2 ** 20;
/** bytes whose status is asked at once */
const statusBytes = 2 ** 28;
/** ms of work after which the turn is given up */
const turnMsMax = 8;

export interface ChecksumRequest {
  readonly node: string;
  readonly offset: number;
  readonly length: number;
  /** bytes a checksum; the last one may be short */
  readonly block: number;
}

const zeroes = new Uint8Array(pieceBytes);

/** 16 hex digits a block. @throws BlockError invalid-request: a range outside of the node, or too many blocks */
export async function blockChecksums(graph: Graph, request: ChecksumRequest, blocksMax: number): Promise<string[]> {
  const { node: nodeName, offset, length, block } = request;
  const description = 'replication-checksum';
  const parent = { description, drainBegin: (): undefined => undefined, drainEnd: (): void => undefined };
  const use = await graph.use(nodeName, parent, {
    needs: permissionBits['consistent-read'],
    shares: allPermissions,
  });
  try {
    if (!isRange(offset, length, use.node.length)) {
      throw new BlockError(
        'invalid-request',
        `[${offset}, ${length}] is outside of the ${use.node.length} bytes of it`,
      );
    }
    if (length / block > blocksMax) {
      throw new BlockError('invalid-request', `more than ${blocksMax} blocks: ask for less at a time`);
    }
    const summer = new Summer(await loadXxhash(), graph.host.clock, () => use.node, block);
    return await summer.sum(offset, offset + length);
  } finally {
    await use.release();
  }
}

class Summer {
  private readonly xxhash: XXHashAPI;
  private readonly clock: HostClock;
  private readonly node: () => BlockNode;
  private readonly block: number;
  private readonly buffer: Uint8Array;
  private readonly zeroSums = new Map<number, string>();
  private turnStartMs: number;

  constructor(xxhash: XXHashAPI, clock: HostClock, node: () => BlockNode, block: number) {
    this.xxhash = xxhash;
    this.clock = clock;
    this.node = node;
    this.block = block;
    this.buffer = new Uint8Array(Math.min(block, pieceBytes));
    this.turnStartMs = clock.now();
  }

  async sum(from: number, end: number): Promise<string[]> {
    const sums: string[] = [];
    for (let at = from; at < end; ) {
      const statusEnd = Math.min(end, at + Math.max(this.block, Math.floor(statusBytes / this.block) * this.block));
      const zero = await this.zeroRanges(at, statusEnd);
      for (; at < statusEnd; at += this.block) {
        const length = Math.min(this.block, end - at);
        sums.push(zero(at, length) ? this.zeroSum(length) : await this.sumOf(at, length));
        await this.yieldTurn();
      }
    }
    return sums;
  }

  /** Whether all of a range is known to read as zeroes; ranges are asked in rising order. */
  private async zeroRanges(from: number, end: number): Promise<(offset: number, length: number) => boolean> {
    const extents = await blockStatusOf(this.node(), from, end - from);
    let index = 0;
    let start = from;
    return (offset, length) => {
      let extent = extents[index];
      while (extent !== undefined && start + extent.length <= offset) {
        start += extent.length;
        index += 1;
        extent = extents[index];
      }
      return extent?.zero === true && offset + length <= start + extent.length;
    };
  }

  private async sumOf(offset: number, length: number): Promise<string> {
    const hash = this.xxhash.create64();
    for (let at = 0; at < length; at += this.buffer.length) {
      const piece = this.buffer.subarray(0, Math.min(this.buffer.length, length - at));
      const done = this.node().read(offset + at, piece);
      if (done !== undefined) await done;
      hash.update(piece);
      await this.yieldTurn();
    }
    return hex(hash.digest());
  }

  private zeroSum(length: number): string {
    let sum = this.zeroSums.get(length);
    if (sum === undefined) {
      const hash = this.xxhash.create64();
      for (let at = 0; at < length; at += zeroes.length)
        hash.update(zeroes.subarray(0, Math.min(zeroes.length, length - at)));
      sum = hex(hash.digest());
      this.zeroSums.set(length, sum);
    }
    return sum;
  }

  /** After a few ms of work others get their turn. */
  private async yieldTurn(): Promise<void> {
    if (this.clock.now() - this.turnStartMs < turnMsMax) return;
    await new Promise<void>((resolve) => {
      this.clock.after(0, resolve);
    });
    this.turnStartMs = this.clock.now();
  }
}

function hex(sum: bigint): string {
  return sum.toString(16).padStart(16, '0');
}
