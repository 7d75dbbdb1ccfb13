/**
 * A disk as an array, to check a node against: every request is applied to the array when it is issued, because
 * overlapping requests take effect in the order issued; what a read gave is compared when it is done.
 *
 * For each byte the model knows who wrote it last. What a failed write left there is unknown; what was discarded is
 * zero or what was there before.
 */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { BlockNode } from '../../src/block/node.ts';
import { blockStatusOf } from '../../src/block/status.ts';
import type { Done } from '../../src/util/later.ts';

export interface Step {
  readonly kind: 'read' | 'write' | 'write-zeroes' | 'discard' | 'flush' | 'block-status';
  /** where it begins, as a part of the disk; `length` is cut to what is left */
  readonly at: number;
  readonly length: number;
  readonly flags: number;
  /** wait for everything first */
  readonly settle: boolean;
}

const kinds = ['read', 'read', 'read', 'write', 'write', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'];

export const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.constantFrom(...(kinds as Step['kind'][])),
  at: fc.oneof(
    fc.nat(999).map((n) => n / 1000),
    fc.constantFrom(0, 0.5),
  ),
  length: fc.oneof(fc.constantFrom(512, 4096, 8192), fc.integer({ min: 1, max: 30_000 })),
  flags: fc.constantFrom(0, 0, 1, 2, 3),
  settle: fc.nat(7).map((n) => n === 0),
});

interface Change {
  failed: boolean;
  /** of a discard: who wrote its bytes before */
  readonly under: Int32Array | null;
  readonly offset: number;
}

export class ArrayModel {
  readonly node: BlockNode;
  /** errors that are expected to come up */
  failures = 0;
  private readonly content: Uint8Array;
  /** index in `changes` of the last change of each byte */
  private readonly writer: Int32Array;
  private readonly changes: Change[] = [{ failed: false, under: null, offset: 0 }];
  private readonly mayFail: boolean;
  private readonly pending = new Set<Promise<void>>();

  constructor(node: BlockNode, mayFail: boolean) {
    this.node = node;
    this.mayFail = mayFail;
    this.content = new Uint8Array(node.length);
    this.writer = new Int32Array(node.length);
  }

  /** Issues one request without waiting for it. */
  issue({ kind, at, length: most, flags }: Step, stamp: number): void {
    const offset = Math.floor(at * this.node.length);
    const length = Math.min(most, this.node.length - offset);
    if (kind === 'read') this.read(offset, length);
    else if (kind === 'write') this.write(offset, length, flags & 1, stamp);
    else if (kind === 'write-zeroes') this.zero(offset, length, flags);
    else if (kind === 'discard') this.discard(offset, length);
    else if (kind === 'flush')
      this.track(
        () => this.node.flush(),
        () => undefined,
      );
    else this.status(offset, length);
  }

  /** Ends when all that was issued is done. */
  async settled(): Promise<void> {
    while (this.pending.size > 0) await Promise.all(this.pending);
  }

  /** Once nothing is in flight: the content is the array's, and what is said to be zero is. */
  async check(): Promise<void> {
    await this.settled();
    const all = new Uint8Array(this.node.length);
    await this.attempt(async () => {
      await this.node.read(0, all);
      this.compare(0, all, this.content, this.writer, 'at the end');
      let at = 0;
      for (const extent of await blockStatusOf(this.node, 0, this.node.length)) {
        assert.ok(extent.length > 0);
        if (extent.zero) {
          const nonzero = all.subarray(at, at + extent.length).findIndex((byte) => byte !== 0);
          assert.equal(nonzero, -1, `said to be zero from ${at}, but byte ${at + nonzero} is not`);
        }
        at += extent.length;
      }
      assert.equal(at, this.node.length, 'status covers the disk');
    });
  }

  private read(offset: number, length: number): void {
    const into = new Uint8Array(length).fill(0xee);
    const content = this.content.slice(offset, offset + length);
    const writer = this.writer.slice(offset, offset + length);
    this.track(
      () => this.node.read(offset, into),
      (failed) => {
        if (!failed) this.compare(offset, into, content, writer, 'a read');
      },
    );
  }

  private write(offset: number, length: number, flags: number, stamp: number): void {
    const from = new Uint8Array(length);
    for (let i = 0; i < length; i += 1) from[i] = stamp + ((offset + i) >> 3);
    const change = this.change(offset, length, from, false);
    this.track(
      () => this.node.write(offset, from, flags),
      (failed) => {
        change.failed = failed;
        // The buffer is the caller's again: a node that still used it would write this.
        from.fill(0xdd);
      },
    );
  }

  private zero(offset: number, length: number, flags: number): void {
    const change = this.change(offset, length, new Uint8Array(length), false);
    this.track(
      () => this.node.writeZeroes(offset, length, flags),
      (failed) => {
        change.failed = failed;
      },
    );
  }

  private discard(offset: number, length: number): void {
    const change = this.change(offset, length, null, true);
    this.track(
      () => this.node.discard(offset, length),
      (failed) => {
        change.failed = failed;
      },
    );
  }

  private status(offset: number, length: number): void {
    this.track(
      async () => {
        const extents = await this.node.blockStatus(offset, length);
        const sum = extents.reduce((total, extent) => total + extent.length, 0);
        assert.ok(extents.length > 0 && sum > 0 && sum <= length, `status of ${length} bytes tells of ${sum}`);
      },
      () => undefined,
    );
  }

  private change(offset: number, length: number, bytes: Uint8Array | null, discard: boolean): Change {
    const under = discard ? this.writer.slice(offset, offset + length) : null;
    const change: Change = { failed: false, under, offset };
    this.changes.push(change);
    this.writer.fill(this.changes.length - 1, offset, offset + length);
    if (bytes !== null) this.content.set(bytes, offset);
    return change;
  }

  private track(call: () => Done, done: (failed: boolean) => void): void {
    const running = (async () => {
      const failed = await this.attempt(call);
      done(failed);
    })();
    const kept = running.finally(() => this.pending.delete(kept));
    kept.catch(() => undefined);
    this.pending.add(kept);
  }

  /** True if it failed in a way that is expected here. */
  private async attempt(call: () => Done): Promise<boolean> {
    try {
      await call();
      return false;
    } catch (error) {
      if (!this.mayFail || error instanceof assert.AssertionError) throw error;
      this.failures += 1;
      return true;
    }
  }

  private compare(offset: number, got: Uint8Array, content: Uint8Array, writer: Int32Array, what: string): void {
    for (const [i, byte] of got.entries()) {
      if (byte === content[i] && this.changes[writer[i] ?? 0]?.under === null) continue;
      if (this.allows(writer[i] ?? 0, offset + i, byte, content[i] ?? 0)) continue;
      assert.fail(`${what}: byte ${offset + i} is ${byte}, must be ${content[i]}`);
    }
  }

  private allows(writer: number, at: number, byte: number, content: number): boolean {
    const change = this.changes[writer];
    if (change === undefined || change.failed) return true;
    if (change.under === null) return byte === content;
    return byte === 0 || this.allows(change.under[at - change.offset] ?? 0, at, byte, content);
  }
}

/** Runs steps against a node and checks it. `run` lets a promise come true (a simulated world must be moved for it). */
export async function runSteps(
  node: BlockNode,
  steps: readonly Step[],
  options: { mayFail?: boolean; run?: (promise: Promise<void>) => Promise<void> } = {},
): Promise<ArrayModel> {
  const run = options.run ?? ((promise: Promise<void>) => promise);
  const model = new ArrayModel(node, options.mayFail === true);
  let stamp = 0;
  for (const each of steps) {
    if (each.settle) await run(model.settled());
    stamp += 1;
    model.issue(each, stamp * 7);
  }
  await run(model.check());
  return model;
}
