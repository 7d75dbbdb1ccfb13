/**
 * The order of requests to an image whose host answers at once or later, overlapping calls in any order: they take
 * effect as issued, and a flush covers what was answered before it.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ImageLocks } from '../../src/drivers/file-locks.ts';
import { FileNode } from '../../src/drivers/file-node.ts';
import type { Host, HostFile } from '../../src/host/host.ts';
import { type Done, deferred } from '../../src/util/later.ts';
import { bytes, fc, Random, seeded, settleTurns } from './replication-world.ts';

const size = 4096;

/** A file in memory; a call that is answered later takes effect when it is answered. */
class LateFile implements HostFile {
  readonly path = 'late';
  readonly kind = 'file';
  readonly blockLength = 1;
  readonly io = { onThreads: true, oldestMs: 0 };
  readonly locks = null;
  readonly content = new Uint8Array(size);
  readonly durable = new Uint8Array(size);
  readonly #random: Random;
  #late: (() => void)[] = [];

  constructor(random: Random) {
    this.#random = random;
  }

  get waiting(): number {
    return this.#late.length;
  }

  answerOne(): void {
    const [answer] = this.#late.splice(this.#random.below(this.#late.length), 1);
    answer?.();
  }

  size(): number {
    return size;
  }
  read(offset: number, into: Uint8Array): Done {
    return this.#call(() => into.set(this.content.subarray(offset, offset + into.length)));
  }
  write(offset: number, from: Uint8Array): Done {
    return this.#call(() => this.content.set(from, offset));
  }
  async sync(): Promise<void> {
    await this.#later(() => this.durable.set(this.content));
  }
  punchHole(offset: number, length: number): boolean | Promise<boolean> {
    return this.#call(() => this.content.fill(0, offset, offset + length))?.then(() => true) ?? true;
  }
  zeroRange(offset: number, length: number): boolean | Promise<boolean> {
    return this.punchHole(offset, length);
  }
  discard(offset: number, length: number): boolean | Promise<boolean> {
    return this.punchHole(offset, length);
  }
  seekData(offset: number): number {
    return offset;
  }
  seekHole(): number {
    return size;
  }
  async dropCache(): Promise<void> {}
  async truncate(): Promise<void> {}
  async close(): Promise<void> {}

  #call(effect: () => void): Done {
    if (this.#random.chance(0.8)) return this.#later(effect);
    effect();
    return undefined;
  }

  #later(effect: () => void): Promise<void> {
    const done = deferred();
    this.#late.push(() => {
      effect();
      done.resolve();
    });
    return done.promise;
  }
}

async function live(seed: number): Promise<void> {
  const random = new Random(seed);
  const file = new LateFile(random);
  const host = { clock: { endOfTurn: (call: () => void): void => void setImmediate(call) } } as unknown as Host;
  const locks = new ImageLocks(host, file, 'off', false, false);
  const node = new FileNode({ host, file, locks, readOnly: false, openAgain: async () => file });
  const model = new Uint8Array(size);
  const checks: Promise<void>[] = [];
  let unanswered = 0;
  const follow = (done: Done, check: () => void): void => {
    unanswered += 1;
    checks.push(
      Promise.resolve(done).then(() => {
        unanswered -= 1;
        check();
      }),
    );
  };
  for (let step = 1; step < 60; step += 1) {
    const offset = random.below(size);
    const length = 1 + random.below(Math.min(600, size - offset));
    const kind = random.below(10);
    if (kind < 3) {
      const into = new Uint8Array(length);
      const expected = model.slice(offset, offset + length);
      follow(node.read(offset, into), () => assert.deepEqual(into, expected, `read ${step}`));
    } else if (kind < 6) {
      model.fill(step, offset, offset + length);
      follow(node.write(offset, bytes(length, step), 0), () => undefined);
    } else if (kind < 8) {
      model.fill(0, offset, offset + length);
      const flags = random.below(2) * 2;
      follow(kind === 6 ? node.writeZeroes(offset, length, flags) : node.discard(offset, length), () => undefined);
    } else if (kind === 8 && unanswered === 0) {
      const expected = model.slice();
      const durable = node.flush();
      // Nothing comes between, so that the content is known.
      while (file.waiting > 0) file.answerOne();
      await durable;
      assert.deepEqual(file.durable, expected, `flush ${step}`);
    } else {
      for (let i = random.below(4); i > 0 && file.waiting > 0; i -= 1) file.answerOne();
      await settleTurns(1);
    }
  }
  for (let rounds = 0; unanswered > 0; rounds += 1) {
    assert.ok(rounds < 10_000, 'it never comes to rest');
    while (file.waiting > 0) file.answerOne();
    await settleTurns(1);
  }
  await Promise.all(checks);
  assert.deepEqual(file.content, model);
}

test('requests take effect in the order issued, whatever order the host answers them in', async () => {
  await fc.assert(fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), live), seeded(150));
});
