/**
 * A disk without content: writes are dropped, reads give zeroes. For measuring what stands above it.
 * QEMU leaves the buffer as it is unless `read-zeroes` is on; here it is cleared always, because the buffer may hold
 * what another client read before.
 */
import { z } from 'zod';
import { defineDriver } from '../block/driver.ts';
import type { HostClock } from '../host/host.ts';
import { addExtent, type Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';

const sizeDefault = 2 ** 30;

export const nullCoDriver = defineDriver({
  name: 'null-co',
  summary: 'a disk that drops writes and reads as zeroes',
  options: z.strictObject({
    size: z.int().nonnegative().default(sizeDefault).describe('bytes'),
    'latency-ns': z.int().nonnegative().default(0).describe('how long every request takes, nanoseconds'),
    'read-zeroes': z.boolean().default(false).describe('block status says that all of it is zero'),
  }),
  async open(options, context) {
    const wait = waiter(options['latency-ns'], context.host.clock);
    return {
      length: options.size,
      read(_offset, into): Done {
        into.fill(0);
        return wait?.();
      },
      write: (): Done => wait?.(),
      writeZeroes: (): Done => wait?.(),
      discard: (): Done => wait?.(),
      flush: (): Done => wait?.(),
      blockStatus(_offset, length): Extent[] {
        const extents: Extent[] = [];
        addExtent(extents, length, options['read-zeroes'], false);
        return extents;
      },
    };
  },
});

function waiter(latencyNs: number, clock: HostClock): (() => Promise<void>) | null {
  if (latencyNs === 0) return null;
  return () => new Promise((resolve) => clock.after(latencyNs / 1e6, resolve));
}
