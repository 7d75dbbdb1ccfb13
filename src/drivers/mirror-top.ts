/**
 * The filter above the source of a mirror: it tells the job of every write before passing it on, so that the job's read
 * of that range, issued later, sees the write, or the range is dirty again.
 */
import { z } from 'zod';
import type { Child } from '../block/child.ts';
import type { WriteTap } from '../block/copy-target.ts';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import type { WriteFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import type { BlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

export const mirrorTopDriver = defineDriver({
  name: 'mirror-top',
  summary: 'tells a mirror job of writes; made by the job itself',
  options: z.strictObject({ file: nodeReference.describe('the source of the mirror') }),
  isFilter: true,
  async open(options, context): Promise<DriverNode> {
    return new MirrorTop(await context.attach('file', 'filtered', options.file));
  },
});

type Listener = (offset: number, length: number) => void;

class MirrorTop implements DriverNode, WriteTap {
  private readonly child: Child;
  private listener: Listener | null = null;

  constructor(child: Child) {
    this.child = child;
  }

  tapWrites(listener: Listener | null): void {
    this.listener = listener;
  }

  get length(): number {
    return this.child.node.length;
  }

  get ordered(): boolean {
    return this.child.node.ordered !== false;
  }

  read(offset: number, into: Uint8Array): Done {
    return this.child.node.read(offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    this.listener?.(offset, from.length);
    return this.child.node.write(offset, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    this.listener?.(offset, length);
    return this.child.node.writeZeroes(offset, length, flags);
  }

  discard(offset: number, length: number): Done {
    this.listener?.(offset, length);
    return this.child.node.discard(offset, length);
  }

  flush(): Done {
    return this.child.node.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.child.node.blockStatus(offset, length);
  }

  get refusal(): BlockError | null {
    return this.child.node.refusal ?? null;
  }

  siblingFailed(offset: number, length: number): void {
    this.child.node.siblingFailed?.(offset, length);
  }
}
