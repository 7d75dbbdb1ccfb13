/**
 * What tests of the block layer share: a graph with all drivers, parents, and a filter that answers when chance wants.
 */
import { z } from 'zod';
import type { PermissionNeed } from '../../src/block/child.ts';
import { type DriverDefinition, type DriverNode, defineDriver, filterOver } from '../../src/block/driver.ts';
import { BlockGraph } from '../../src/block/graph.ts';
import type { BlockParent } from '../../src/block/graph-view.ts';
import { nodeReference } from '../../src/block/options.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { drivers } from '../../src/drivers/index.ts';
import type { Host } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import type { Done } from '../../src/util/later.ts';
import { RangeLock } from '../../src/util/range-lock.ts';

/** consistent-read and write, shared with readers and writers: an export's */
export const writer: PermissionNeed = { needs: 3, shares: 7 };
export const reader: PermissionNeed = { needs: 1, shares: 15 };

export interface TestGraph {
  readonly graph: BlockGraph;
  readonly events: { event: string; data: Record<string, unknown> }[];
}

export function testGraph(host: Host = createHost(), more: readonly DriverDefinition[] = []): TestGraph {
  const events: TestGraph['events'] = [];
  const registry = new DriverRegistry([...drivers, ...more]);
  const graph = new BlockGraph(host, registry, new Map(), (event, data) => events.push({ event, data }));
  return { graph, events };
}

/** A parent that has nothing to hold. */
export function parent(description: string, more: Partial<BlockParent> = {}): BlockParent {
  return { description, drainBegin: () => undefined, drainEnd: () => undefined, ...more };
}

/** Small deterministic random numbers: the same seed, the same run. */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A filter whose requests are done at once, or a little later, before or after the wait: as chance will have it. */
export const jitterDriver = defineDriver({
  name: 'jitter',
  summary: 'answers at once or later, at random',
  options: z.strictObject({ file: nodeReference, seed: z.int() }),
  isFilter: true,
  async open(options, context): Promise<DriverNode> {
    const child = await context.attach('file', 'filtered', options.file);
    const random = randomOf(options.seed);
    const ranges = new RangeLock();
    const turns = (): Promise<void> => new Promise((resolve) => context.host.clock.after(random() * 2, resolve));
    const jitter = (offset: number, length: number, shared: boolean, issue: () => Done): Done =>
      ranges.run(offset, length, shared, () => {
        const chance = random();
        if (chance < 0.4) return issue();
        if (chance < 0.7) return turns().then(issue);
        const done = issue();
        return turns().then(() => done);
      });
    return filterOver(child, {
      read: (offset, into) => jitter(offset, into.length, true, () => child.node.read(offset, into)),
      write: (offset, from, flags) => jitter(offset, from.length, false, () => child.node.write(offset, from, flags)),
      writeZeroes: (offset, length, flags) =>
        jitter(offset, length, false, () => child.node.writeZeroes(offset, length, flags)),
      discard: (offset, length) => jitter(offset, length, false, () => child.node.discard(offset, length)),
      flush: () => (random() < 0.5 ? child.node.flush() : turns().then(() => child.node.flush())),
      settle: () => ranges.settled(),
    });
  },
});
