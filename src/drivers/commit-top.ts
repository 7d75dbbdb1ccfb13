/**
 * The filter above a chain that is being committed into its base: it lets the job decide over writes, so that the base
 * keeps what was copied in step.
 */
import { z } from 'zod';
import { type Child, permissionBits } from '../block/child.ts';
import type { CommitTap, CommitWrites } from '../block/commit-writes.ts';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import type { WriteFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

export const commitTopDriver = defineDriver({
  name: 'commit-top',
  summary: 'keeps the base of a commit in step with what is written; made by the job itself',
  options: z.strictObject({ file: nodeReference.describe('the top of the chain that is committed') }),
  isFilter: true,
  async open(options, context): Promise<DriverNode> {
    const child = await context.attach('file', 'filtered', options.file, ({ needs, shares }) => ({
      // What an overlay below shows is changed by the commit: others are kept from reading it. The top shows the same.
      needs: needs & ~permissionBits['consistent-read'],
      shares,
      // The commit itself changes the base.
      sharesBelow: shares,
    }));
    return new CommitTop(child);
  },
});

class CommitTop implements DriverNode, CommitTap {
  private readonly child: Child;
  private commit: CommitWrites | null = null;

  constructor(child: Child) {
    this.child = child;
  }

  follow(commit: CommitWrites | null): void {
    this.commit = commit;
  }

  get length(): number {
    return this.child.node.length;
  }

  get ordered(): boolean {
    return this.child.node.ordered !== false;
  }

  read(offset: number, into: Uint8Array): Done {
    const top = this.child.node;
    return this.commit === null ? top.read(offset, into) : this.commit.read(top, offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const top = this.child.node;
    if (this.commit === null) return top.write(offset, from, flags);
    return this.commit.write(top, offset, from.length, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const top = this.child.node;
    if (this.commit === null) return top.writeZeroes(offset, length, flags);
    return this.commit.write(top, offset, length, null, flags);
  }

  /** A hint that would make top and base differ: not followed while there is a commit. */
  discard(offset: number, length: number): Done {
    return this.commit === null ? this.child.node.discard(offset, length) : undefined;
  }

  /** The overlays hold every write until the end, so their durability is what counts. */
  flush(): Done {
    return this.child.node.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.child.node.blockStatus(offset, length);
  }

  settle(): Done {
    return this.commit?.settle();
  }
}
