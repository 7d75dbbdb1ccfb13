/**
 * A filter that makes things go wrong: errors and delays by operation, range, count and chance, and a volatile cache
 * that a power cut loses. For tests of whatever stands above it, and for trying out what a failing disk does.
 *
 * Without faults and cache every request goes straight to the child. Otherwise requests that overlap wait for each
 * other, because a delay would change their order.
 */
import { z } from 'zod';
import type { Child } from '../block/child.ts';
import { type DriverNode, defineDriver, type OpenContext } from '../block/driver.ts';
import type { WriteFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import { check } from '../qmp/check.ts';
import { BlockError } from '../util/errors.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import { RangeLock } from '../util/range-lock.ts';
import { VolatileCache } from './blkdebug-cache.ts';
import { type FaultOperation, Faults, faultOf, faultSchema, injectErrorSchema } from './blkdebug-faults.ts';

const controlSchema = z.discriminatedUnion('action', [
  z.strictObject({ action: z.literal('add-fault'), fault: faultSchema }),
  z.strictObject({ action: z.literal('remove-faults'), id: z.string().optional() }),
  z.strictObject({ action: z.literal('cut'), keep: z.enum(['nothing', 'some']).default('nothing') }),
  z.strictObject({ action: z.literal('power-on') }),
  z.strictObject({ action: z.literal('query') }),
]);

export const blkdebugDriver = defineDriver({
  name: 'blkdebug',
  summary: 'a filter that injects errors and delays, and a volatile cache that a power cut loses',
  options: z.strictObject({
    image: nodeReference,
    'inject-error': z.array(injectErrorSchema).default([]).describe('errors, as QEMU describes them'),
    faults: z.array(faultSchema).default([]).describe('errors and delays (ours)'),
    'volatile-cache': z.boolean().default(false).describe('keeps writes until a flush (ours)'),
  }),
  isFilter: true,
  async open(options, context): Promise<DriverNode> {
    const child = await context.attach('image', 'filtered', options.image);
    const node = new BlkdebugNode(child, context, options['volatile-cache']);
    for (const injected of options['inject-error']) node.faults.add(faultOf(injected));
    for (const fault of options.faults) node.faults.add(fault);
    return node;
  },
});

class BlkdebugNode implements DriverNode {
  readonly faults: Faults;
  private readonly child: Child;
  private readonly context: OpenContext;
  private readonly cache: VolatileCache | null;
  private readonly ranges = new RangeLock();
  private powered = true;
  /** rises with every cut: a request that was delayed over one has failed */
  private cuts = 0;

  constructor(child: Child, context: OpenContext, volatileCache: boolean) {
    this.child = child;
    this.context = context;
    this.faults = new Faults(() => context.host.random.fraction());
    this.cache = volatileCache ? new VolatileCache(child) : null;
  }

  get length(): number {
    return this.child.node.length;
  }

  get ordered(): boolean {
    return this.child.node.ordered !== false;
  }

  read(offset: number, into: Uint8Array): Done {
    if (this.passes) return this.child.node.read(offset, into);
    return this.inOrder('read', offset, into.length, () => (this.cache ?? this.child.node).read(offset, into));
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    if (this.passes) return this.child.node.write(offset, from, flags);
    return this.inOrder('write', offset, from.length, () => (this.cache ?? this.child.node).write(offset, from, flags));
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    if (this.passes) return this.child.node.writeZeroes(offset, length, flags);
    return this.inOrder('write-zeroes', offset, length, () =>
      (this.cache ?? this.child.node).writeZeroes(offset, length, flags),
    );
  }

  discard(offset: number, length: number): Done {
    if (this.passes) return this.child.node.discard(offset, length);
    // A discard below what the cache still has to write would be undone: it is a hint, so nothing happens then.
    return this.inOrder('discard', offset, length, () =>
      this.cache === null ? this.child.node.discard(offset, length) : undefined,
    );
  }

  flush(): Done {
    if (this.passes) return this.child.node.flush();
    return this.faulty('flush', 0, 0, () => (this.cache ?? this.child.node).flush());
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    if (this.passes) return this.child.node.blockStatus(offset, length);
    return this.status(offset, length);
  }

  async settle(): Promise<void> {
    await this.ranges.settled();
  }

  async resize(length: number): Promise<void> {
    const below = this.child.node;
    if (below.resize === undefined) {
      throw new BlockError('not-supported', `node '${this.child.nodeName}' cannot change its length`);
    }
    this.checkPower();
    await below.resize(length);
  }

  async control(args: Readonly<Record<string, unknown>>): Promise<Record<string, unknown>> {
    const command = check(controlSchema, args, '');
    switch (command.action) {
      case 'add-fault':
        this.faults.add(command.fault);
        return {};
      case 'remove-faults':
        return { removed: this.faults.remove(command.id) };
      case 'cut':
        this.powered = false;
        this.cuts += 1;
        await this.cache?.cut(command.keep, () => this.context.host.random.fraction());
        return {};
      case 'power-on':
        this.powered = true;
        return {};
      case 'query':
        return this.info();
    }
  }

  info(): Record<string, unknown> {
    return { powered: this.powered, 'volatile-cache': this.cache?.size ?? null };
  }

  private get passes(): boolean {
    return this.powered && this.cache === null && !this.faults.any && this.ranges.idle;
  }

  private inOrder(operation: FaultOperation, offset: number, length: number, issue: () => Done): Done {
    const shared = operation === 'read' || operation === 'block-status';
    return this.ranges.run(offset, length, shared, () => this.faulty(operation, offset, length, issue));
  }

  private faulty(operation: FaultOperation, offset: number, length: number, issue: () => Done): Done {
    this.checkPower();
    const { delayMs, error } = this.faults.meet(operation, offset, length);
    if (delayMs > 0) return this.later(delayMs, error, issue);
    if (error !== null) throw error;
    return issue();
  }

  private async later(delayMs: number, error: BlockError | null, issue: () => Done): Promise<void> {
    const { cuts } = this;
    await new Promise<void>((resolve) => this.context.host.clock.after(delayMs, resolve));
    this.checkPower(cuts);
    if (error !== null) throw error;
    await issue();
  }

  private async status(offset: number, length: number): Promise<Extent[]> {
    let extents: Extent[] = [];
    await this.inOrder('block-status', offset, length, async () => {
      if (this.cache?.touches(offset, length) === true) addExtent(extents, length, false, true);
      else extents = await this.child.node.blockStatus(offset, length);
    });
    return extents;
  }

  private checkPower(cuts = this.cuts): void {
    if (!this.powered || this.cuts !== cuts)
      throw new BlockError('io-error', `the power of '${this.context.nodeName}' is cut`);
  }
}
