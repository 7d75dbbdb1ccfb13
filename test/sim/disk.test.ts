/** The simulated disk against a model that knows every version of every sector. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { HostFile } from '../../src/host/host.ts';
import type { Done } from '../../src/util/later.ts';
import { create, readAll } from '../host/tools.ts';
import { World } from './world.ts';

test('what was synced survives every power cut, and a sector is never older than that nor of no time', async () => {
  await fc.assert(fc.asyncProperty(fc.integer(), fc.array(diskStep, { maxLength: 30 }), survives), { numRuns: 300 });
});

const sector = 512;
const diskSize = 16 * sector;

type DiskStep =
  | { readonly kind: 'write'; readonly offset: number; readonly length: number; readonly wait: boolean }
  | { readonly kind: 'zero'; readonly offset: number; readonly length: number; readonly hole: boolean }
  | { readonly kind: 'sync'; readonly wait: boolean };

const range = fc.tuple(fc.nat(diskSize - 1), fc.integer({ min: 1, max: 3000 })).map(([offset, length]) => ({
  offset,
  length: Math.min(length, diskSize - offset),
}));
const diskStep: fc.Arbitrary<DiskStep> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.tuple(range, fc.boolean()).map(([at, wait]) => ({ kind: 'write' as const, ...at, wait })),
  },
  { weight: 1, arbitrary: fc.tuple(range, fc.boolean()).map(([at, hole]) => ({ kind: 'zero' as const, ...at, hole })) },
  { weight: 1, arbitrary: fc.boolean().map((wait) => ({ kind: 'sync' as const, wait })) },
);

/**
 * Runs the steps, cuts the power, and compares: each sector must hold a version that it had at, or after, the last sync
 * that was done; a write that had not answered may be there up to some byte.
 */
async function survives(seed: number, steps: readonly DiskStep[]): Promise<void> {
  const world = new World(seed);
  const file = await world.complete(create(world.host('a'), '/f'));
  await world.complete(file.truncate(diskSize));
  await world.complete(file.sync());
  await world.complete(world.host('a').files.syncFolder('/'));
  const model = new DiskModel();
  let salt = 1;
  for (const step of steps) {
    // Only the last call may be under way at the cut: the model would not know in what order several took effect.
    await world.run(() => !model.busy);
    if (step.kind === 'write') {
      const data = new Uint8Array(step.length).fill(salt++);
      await model.during(
        world,
        step.wait,
        () => file.write(step.offset, data),
        () => model.put(step.offset, data),
        {
          offset: step.offset,
          data,
        },
      );
    } else if (step.kind === 'zero') {
      const data = new Uint8Array(step.length);
      await model.during(
        world,
        true,
        () => zero(file, step),
        () => model.put(step.offset, data),
      );
    } else {
      await model.during(
        world,
        step.wait,
        () => file.sync(),
        () => model.syncedAll(),
      );
    }
  }
  world.powerCut('a');
  const again = await world.complete(world.restart('a').files.open('/f', { access: 'read' }));
  assert.equal(again.size(), diskSize);
  model.check(await world.complete(readAll(again, 0, diskSize)));
}

function zero(file: HostFile, { offset, length, hole }: DiskStep & { kind: 'zero' }): Done {
  const done = hole ? file.punchHole(offset, length) : file.zeroRange(offset, length);
  return typeof done === 'boolean' ? undefined : done.then(() => undefined);
}

class DiskModel {
  busy = false;
  #flight: { readonly offset: number; readonly data: Uint8Array } | undefined;
  /** the versions of each sector since the last sync, oldest first */
  #versions: Uint8Array[][] = Array.from({ length: diskSize / sector }, () => [new Uint8Array(sector)]);

  async during(
    world: World,
    wait: boolean,
    call: () => Promise<void> | undefined,
    done: () => void,
    flight?: { readonly offset: number; readonly data: Uint8Array },
  ): Promise<void> {
    const answer = call();
    if (answer === undefined) {
      done();
      return;
    }
    this.busy = true;
    this.#flight = flight;
    const settled = answer.then(() => {
      done();
      this.busy = false;
      this.#flight = undefined;
    });
    if (wait) await world.complete(settled);
  }

  put(offset: number, data: Uint8Array): void {
    this.#versions.forEach((versions, index) => {
      const changed = patched(versions.at(-1) ?? new Uint8Array(sector), index * sector, offset, data);
      if (changed !== null) versions.push(changed);
    });
  }

  syncedAll(): void {
    this.#versions = this.#versions.map((versions) => versions.slice(-1));
  }

  check(disk: Uint8Array): void {
    this.#versions.forEach((versions, index) => {
      const found = disk.subarray(index * sector, (index + 1) * sector);
      const candidates = [...versions];
      const flight = this.#flight;
      if (flight !== undefined)
        for (let count = 1; count <= flight.data.length; count++) {
          const changed = patched(
            versions.at(-1) ?? found,
            index * sector,
            flight.offset,
            flight.data.subarray(0, count),
          );
          if (changed !== null) candidates.push(changed);
        }
      assert.ok(
        candidates.some((version) => Buffer.compare(version, found) === 0),
        `sector ${index} holds what it never held since the last sync`,
      );
    });
  }
}

/** A sector at `at` after `data` was written at `offset`; null if that does not touch it. */
function patched(old: Uint8Array, at: number, offset: number, data: Uint8Array): Uint8Array | null {
  const from = Math.max(at, offset);
  const to = Math.min(at + sector, offset + data.length);
  if (from >= to) return null;
  const changed = old.slice();
  changed.set(data.subarray(from - offset, to - offset), from - at);
  return changed;
}
