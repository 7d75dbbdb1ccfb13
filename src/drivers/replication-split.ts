/**
 * Writes after a failed failover (spec: replication-filter, "failover-failed"): a piece that is allocated in the active
 * or hidden disk goes to the active disk, any other piece straight to the secondary disk.
 *
 * Invariant: the status of a byte never changes here, since a piece that is allocated stays so and any other is not
 * written to an overlay: so overlapping writes go to the same places, in the order of the range lock.
 */
import { allocationRun } from '../block/chain.ts';
import type { Child } from '../block/child.ts';
import type { BlockNode, WriteFlags } from '../block/node.ts';
import { writeFlags } from '../block/node.ts';
import type { Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';

export class SplitWrites {
  private readonly active: Child;
  private readonly overlays: readonly BlockNode[];
  private readonly secondary: () => BlockNode;
  private readonly lock = new RangeLock();

  /** @param overlays active and hidden, for their allocation */
  constructor(active: Child, overlays: readonly BlockNode[], secondary: () => BlockNode) {
    this.active = active;
    this.overlays = overlays;
    this.secondary = secondary;
  }

  read(offset: number, into: Uint8Array): Done {
    if (this.lock.idle) return this.active.node.read(offset, into);
    return this.lock.run(offset, into.length, true, () => this.active.node.read(offset, into));
  }

  /** @param from null: zeroes. The first query or write that fails ends it; earlier pieces stay written. */
  write(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Done {
    return this.lock.run(offset, length, false, () => this.writePieces(offset, length, from, flags & ~writeFlags.fua));
  }

  async flush(): Promise<void> {
    await this.active.node.flush();
    await this.secondary().flush();
  }

  settle(): Done {
    return this.lock.idle ? undefined : this.lock.settled();
  }

  private async writePieces(offset: number, length: number, from: Uint8Array | null, flags: WriteFlags): Promise<void> {
    for (let done = 0; done < length; ) {
      const piece = await allocationRun(this.overlays, offset + done, length - done);
      const node = piece.allocated ? this.active.node : this.secondary();
      if (from === null) await node.writeZeroes(offset + done, piece.length, flags);
      else await node.write(offset + done, from.subarray(done, done + piece.length), flags);
      done += piece.length;
    }
  }
}
