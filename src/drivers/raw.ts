/** The bytes of its child as they are, or a part of them: `offset` and `size`. */
import { z } from 'zod';
import type { Child, PermissionNeed } from '../block/child.ts';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import type { WriteFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import { BlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

export const rawDriver = defineDriver({
  name: 'raw',
  summary: 'the bytes of its child, or a part of them',
  options: z.strictObject({
    file: nodeReference,
    offset: z.int().nonnegative().default(0).describe('where the disk begins in the child, bytes'),
    size: z.int().nonnegative().optional().describe('length of the disk, bytes; without it, to the end of the child'),
  }),
  async open(options, context): Promise<DriverNode> {
    // Nothing of its own is in the file: raw does to it what its users do, and lets others do what they do.
    const child = await context.attach('file', 'file', options.file, (parents): PermissionNeed => parents);
    const end = options.offset + (options.size ?? 0);
    if (end > child.node.length) {
      throw new BlockError(
        'invalid-option',
        `offset ${options.offset} and size ${options.size ?? 0} reach beyond ` +
          `'${child.nodeName}' (${child.node.length} bytes)`,
      );
    }
    return new RawNode(child, options.offset, options.size ?? null);
  },
});

class RawNode implements DriverNode {
  private readonly child: Child;
  private readonly start: number;
  private readonly size: number | null;

  constructor(child: Child, start: number, size: number | null) {
    this.child = child;
    this.start = start;
    this.size = size;
  }

  get length(): number {
    return this.size ?? Math.max(0, this.child.node.length - this.start);
  }

  get ordered(): boolean {
    return this.child.node.ordered !== false;
  }

  read(offset: number, into: Uint8Array): Done {
    return this.child.node.read(this.start + offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    return this.child.node.write(this.start + offset, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    return this.child.node.writeZeroes(this.start + offset, length, flags);
  }

  discard(offset: number, length: number): Done {
    return this.child.node.discard(this.start + offset, length);
  }

  flush(): Done {
    return this.child.node.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.child.node.blockStatus(this.start + offset, length);
  }

  async resize(length: number): Promise<void> {
    if (this.size !== null)
      throw new BlockError('not-supported', 'a raw node of a stated size cannot change its length');
    const below = this.child.node;
    if (below.resize === undefined) {
      throw new BlockError('not-supported', `node '${this.child.nodeName}' cannot change its length`);
    }
    await below.resize(this.start + length);
  }
}
