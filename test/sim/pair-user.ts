/**
 * A user of one disk of a pair: one NBD connection, whose requests and answers the checker hears of.
 */
import assert from 'node:assert/strict';
import { writeFlags } from '../../src/block/node.ts';
import type { NbdClient } from '../../src/nbd/client.ts';
import { BlockError } from '../../src/util/errors.ts';
import { deferred } from '../../src/util/later.ts';
import { blockBytes, contentOf, type DiskModel, fill, isMixOf, type Layout, versionsIn } from './checker.ts';
import type { PairWorld, SideName } from './pair-world.ts';

export class User {
  readonly side: SideName;
  readonly disk: string;
  readonly client: NbdClient;
  readonly #pair: PairWorld;
  readonly #model: DiskModel;
  readonly #layout: Layout;
  readonly #busy = new Set<number>();
  closed = false;
  readonly #gone = deferred();
  /** nobody waits for its answers any more: what still comes counts for nothing */
  abandoned = false;

  constructor(pair: PairWorld, side: SideName, disk: string, client: NbdClient) {
    this.#pair = pair;
    this.side = side;
    this.disk = disk;
    this.client = client;
    this.#layout = pair.layout(disk);
    const model = pair.checker.model(side).get(disk);
    assert.ok(model !== undefined);
    this.#model = model;
    client.onClosed(() => {
      this.closed = true;
    });
  }

  get blocks(): number {
    return this.#pair.blocks;
  }

  isBusy(block: number): boolean {
    return this.#busy.has(block);
  }

  /**
   * Writes a new version of a block, or of a pair of blocks (`block` even). Resolves when it was answered; rejects as
   * the client does.
   * @param cut bytes of the first of two requests that it is written with
   */
  async write(block: number, count = 1, flags = writeFlags.none as number, cut = count * blockBytes): Promise<number> {
    const version = this.#pair.checker.nextVersion();
    const bytes = fill(new Uint8Array(count * blockBytes), version);
    await this.#alone(block, count, async () => {
      this.#issued(block, count, version);
      const offset = this.#layout.offsetOf(block);
      const parts = [this.client.write(offset, bytes.subarray(0, cut), flags)];
      if (cut < bytes.length) parts.push(this.client.write(offset + cut, bytes.subarray(cut), flags));
      await Promise.all(parts);
      this.#answered(block, count, version);
      if ((flags & writeFlags.fua) !== 0) this.#durable(block, count);
    });
    return version;
  }

  /** Zeroes the same, as `flags` say. What is refused because it would not be fast has changed nothing. */
  async zero(block: number, count: number, flags: number): Promise<void> {
    const version = -this.#pair.checker.nextVersion();
    await this.#alone(block, count, async () => {
      this.#issued(block, count, version);
      try {
        await this.client.writeZeroes(this.#layout.offsetOf(block), count * blockBytes, flags);
      } catch (error) {
        const refused = error instanceof BlockError && error.code === 'not-supported';
        if (!refused || (flags & writeFlags.fastZero) === 0) throw error;
        const done = await this.#isZeroNow(block, count, 'zeroes that were refused');
        assert.ok(!done || this.#isZero(block, count), `seed ${this.#pair.world.seed}: it was refused, and done`);
        this.#undone(block, count, version);
        return;
      }
      this.#answered(block, count, version);
      if ((flags & writeFlags.fua) !== 0) this.#durable(block, count);
    });
  }

  /** Discards the same: zeroes on both sides from then on, or nothing (pair.md 9). */
  async discard(block: number, count: number): Promise<void> {
    const version = -this.#pair.checker.nextVersion();
    await this.#alone(block, count, async () => {
      this.#issued(block, count, version);
      await this.client.discard(this.#layout.offsetOf(block), count * blockBytes);
      // What was zero before shows nothing: it may not have been discarded at all.
      const done = (await this.#isZeroNow(block, count, 'a discard')) && !this.#isZero(block, count);
      if (done) this.#answered(block, count, version);
      else this.#undone(block, count, version);
    });
  }

  /** These blocks read as zeroes; if not, all of them read as before. */
  async #isZeroNow(block: number, count: number, what: string): Promise<boolean> {
    const found: number[][] = [];
    for (let at = block; at < block + count; at++) found.push(await this.read(at));
    if (found.every((versions) => versions.length === 1 && versions[0] === 0)) return true;
    const before = found.map((_, index) => [contentOf(this.#model.current[block + index] ?? 0)]);
    const { seed } = this.#pair.world;
    if (!this.abandoned) assert.deepEqual(found, before, `seed ${seed}: ${this.side} ${this.disk}, after ${what}`);
    return false;
  }

  #isZero(block: number, count: number): boolean {
    return this.#model.current.slice(block, block + count).every((version) => contentOf(version) === 0);
  }

  async #alone(block: number, count: number, change: () => Promise<void>): Promise<void> {
    for (let at = block; at < block + count; at++) this.#busy.add(at);
    try {
      await change();
    } finally {
      for (let at = block; at < block + count; at++) this.#busy.delete(at);
    }
  }

  #issued(block: number, count: number, version: number): void {
    for (let at = block; at < block + count; at++) {
      this.#model.issued(at, version);
      this.#pair.checkpoints.issued(this.side, this.disk, at, version);
    }
  }

  #answered(block: number, count: number, version: number): void {
    for (let at = block; at < block + count && !this.abandoned; at++) {
      this.#model.answered(at, version);
      this.#pair.checkpoints.wasAnswered(this.side, this.disk, at, version);
    }
  }

  #undone(block: number, count: number, version: number): void {
    for (let at = block; at < block + count && !this.abandoned; at++) this.#model.undone(at, version);
  }

  #durable(block: number, count: number): void {
    for (let at = block; at < block + count && !this.abandoned; at++) this.#model.durable(at);
    this.#pair.checkpoints.wasFlushed(this.side);
  }

  async flush(): Promise<void> {
    const model = this.#model;
    const snapshot = [...model.current];
    await this.client.flush();
    if (this.abandoned) return;
    model.flushed(snapshot);
    this.#pair.checkpoints.wasFlushed(this.side);
  }

  async read(block: number): Promise<number[]> {
    return versionsIn(await this.#readBlock(block));
  }

  async #readBlock(block: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(blockBytes);
    await this.client.read(this.#layout.offsetOf(block), bytes);
    return bytes;
  }

  /** Reads everything and compares it with what may be there; afterwards the checker knows what is. */
  async verify(): Promise<void> {
    const { checkpoints, world } = this.#pair;
    const { seed } = world;
    for (let block = 0; block < this.blocks; block++) {
      const bytes = await this.#readBlock(block);
      const versions = versionsIn(bytes);
      const model = this.#model;
      const where = `seed ${seed}: ${this.side} ${this.disk}`;
      if (versions.length === 1) {
        model.found(block, versions[0] ?? 0, where);
        if (!this.abandoned) checkpoints.wasFound(this.side, this.disk, block, model.current[block] ?? 0);
        continue;
      }
      // Torn: only blocks whose writes were not flushed may be, and each part must be a version that was possible.
      const allowed = model.allowed[block] ?? [];
      const found = `block ${block} has parts ${versions.join(', ')}`;
      assert.ok(isMixOf(bytes, allowed), `${where}: ${found}, allowed are ${allowed.join(', ')}`);
      await this.write(block);
    }
  }

  /** Reads everything once more: nothing is under way, so each block shows what was answered last. */
  async verifyAll(): Promise<void> {
    await this.verify();
  }

  /** Nothing of it is under way. */
  get idle(): boolean {
    return this.#busy.size === 0;
  }

  /** Its side is gone: nothing that still arrives counts, and nobody waits for it. */
  abandon(): void {
    this.abandoned = true;
    this.#gone.resolve();
  }

  /** Waits for the promise, or until the side is gone. */
  async unlessGone<T>(promise: Promise<T>): Promise<T | undefined> {
    promise.catch(() => undefined);
    return Promise.race([promise, this.#gone.promise.then(() => undefined)]);
  }

  /** What this side's own reads must show while it serves. */
  async verifyOne(block: number): Promise<void> {
    if (this.#busy.has(block)) return;
    await this.#alone(block, 1, async () => {
      const versions = await this.read(block);
      const wanted = contentOf(this.#model.current[block] ?? 0);
      assert.deepEqual(versions, [wanted], `seed ${this.#pair.world.seed}: ${this.side} ${this.disk} block ${block}`);
    });
  }
}
