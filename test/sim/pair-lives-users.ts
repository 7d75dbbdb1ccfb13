/**
 * The users of a pair's disks: one of each disk, who writes, flushes and reads wherever it is served, and one who looks
 * at the view of the secondary, where checkpoints are kept. Whatever they see is compared with the models.
 */
import assert from 'node:assert/strict';
import { writeFlags } from '../../src/block/node.ts';
import { BlockError } from '../../src/util/errors.ts';
import { blockBytes } from './checker.ts';
import { Onlooker } from './checkpoint-onlooker.ts';
import { type PairWorld, type SideName, sideNames, type User } from './pair-world.ts';
import type { SeededRandom } from './random.ts';

export class PairUsers {
  writes = 0;
  flushes = 0;
  over = false;
  /** they have little to do: what matters is over */
  calm = false;
  /** they do not write: the last comparison */
  quiet = false;
  /** a promise that was broken */
  failure: unknown = null;
  readonly pair: PairWorld;
  readonly random: SeededRandom;
  readonly #users = new Set<User>();
  /** how often users flush, and how often they rest */
  readonly #flushShare: number;
  readonly #pauses: number;
  /** how many of their changes are zeroes and discards */
  readonly #zeroShare: number;
  /** how many of their writes go in two parts that end at no border of anything */
  readonly #cutShare: number;

  constructor(pair: PairWorld, random: SeededRandom) {
    this.pair = pair;
    this.random = random;
    this.#flushShare = random.pick([0.01, 0.05, 0.2]);
    this.#pauses = random.pick([0, 0.02, 0.2]);
    this.#zeroShare = random.pick([0, 0, 0.1, 0.5]);
    this.#cutShare = random.pick([0, 0, 0.3]);
  }

  start(): void {
    const failed = (error: unknown): void => this.fail(error);
    for (const disk of this.pair.disks) {
      void this.#useDisk(disk).catch(failed);
      if (this.pair.config('alpha').store === 'overlays') void this.#lookOn(disk).catch(failed);
    }
  }

  fail(error: unknown): void {
    this.failure ??= error;
  }

  /** None of them has anything under way. */
  get idle(): boolean {
    return [...this.#users].every((user) => user.idle);
  }

  abandon(side: SideName): void {
    for (const user of this.#users) if (user.side === side) user.abandon();
  }

  /** One user of one disk: goes to whoever serves it, checks what it finds, then writes, flushes and reads. */
  async #useDisk(disk: string): Promise<void> {
    const { pair } = this;
    while (!this.over) {
      await pair.sleep(20 + this.random.fraction() * (this.calm ? 400 : 50));
      if (this.quiet) continue;
      const serving = sideNames.filter(
        (side) => pair.world.isAlive(side) && pair.sides.get(side)?.daemon.state.serving,
      );
      if (serving.length === 0) continue;
      const side = serving[this.random.below(serving.length)] ?? 'alpha';
      let user: User;
      try {
        user = await pair.openUser(side, disk);
      } catch {
        continue;
      }
      this.#users.add(user);
      try {
        await user.unlessGone(user.verify());
        await this.#work(user);
      } catch (error) {
        if (!user.closed && !user.abandoned && !this.#isExcused(side, error)) throw error;
      } finally {
        user.abandon();
        this.#users.delete(user);
        void user.client.close().catch(() => undefined);
      }
    }
  }

  /** A side whose disks fail may say so. */
  #isExcused(side: SideName, error: unknown): boolean {
    const isOfDisks = error instanceof BlockError && (error.code === 'io-error' || error.code === 'no-space');
    return isOfDisks && this.pair.hasFailed(side);
  }

  /** Somebody looks at the view of a secondary, whichever side that is, and in lock-step writes beside it. */
  async #lookOn(disk: string): Promise<void> {
    const { pair, random } = this;
    while (!this.over) {
      await pair.sleep(10 + random.fraction() * (this.calm ? 500 : 100));
      const side = sideNames.find((one) => pair.checkpoints.isShown(one));
      if (side === undefined || this.quiet) continue;
      let onlooker: Onlooker;
      try {
        onlooker = await Onlooker.connect(pair, side, disk);
      } catch {
        continue;
      }
      try {
        while (!this.over && !this.quiet && pair.world.isAlive(side)) {
          await onlooker.look();
          if (random.chance(0.3)) {
            await onlooker.write(random.below(pair.blocks), random.chance(this.#zeroShare), this.#cutOf(blockBytes));
          }
          await pair.sleep(random.fraction() * (this.calm ? 500 : random.pick([1, 20, 300])));
        }
      } catch (error) {
        if (error instanceof assert.AssertionError) throw error;
      } finally {
        onlooker.close();
      }
    }
  }

  async #work(user: User): Promise<void> {
    const { random } = this;
    const flying = new Set<Promise<void>>();
    let failed: unknown = null;
    const begin = (promise: Promise<unknown>): void => {
      const one: Promise<void> = promise.then(
        () => void flying.delete(one),
        (error: unknown) => {
          flying.delete(one);
          failed ??= error;
        },
      );
      flying.add(one);
    };
    for (;;) {
      if (failed !== null) throw failed;
      if (user.abandoned || user.closed) return;
      if (this.quiet || this.over) {
        await user.unlessGone(Promise.all(flying));
        if (failed !== null) throw failed;
        return;
      }
      if (flying.size >= 4) await user.unlessGone(Promise.race(flying));
      // Some blocks are written often, most of them seldom.
      const block = Math.floor(user.blocks * random.fraction() ** 2);
      const count = block % 2 === 0 ? random.pick([1, 2]) : 1;
      const free = !user.isBusy(block) && (count === 1 || !user.isBusy(block + 1));
      const what = random.fraction();
      if (what < 0.6 && free) {
        this.writes++;
        begin(this.#change(user, block, count));
      } else if (what < 0.6 + this.#flushShare) {
        this.flushes++;
        begin(user.flush());
      } else if (free) begin(user.verifyOne(block));
      else await this.pair.sleep(random.fraction() * 10);
      if (random.chance(this.#pauses)) await this.pair.sleep(random.fraction() * 2000);
      if (this.calm || random.chance(0.3)) await this.pair.sleep(random.fraction() * (this.calm ? 200 : 20));
    }
  }

  async #change(user: User, block: number, count: number): Promise<unknown> {
    const { random } = this;
    const fua = random.chance(this.#flushShare / 4) ? writeFlags.fua : writeFlags.none;
    if (!random.chance(this.#zeroShare)) {
      return user.write(block, count, fua, this.#cutOf(count * blockBytes));
    }
    if (random.chance(0.4)) return user.discard(block, count);
    const { noHole, fastZero } = writeFlags;
    return user.zero(block, count, fua | random.pick([0, noHole, fastZero, noHole | fastZero]));
  }

  /** How much of it goes with a first request. */
  #cutOf(bytes: number): number {
    return this.random.chance(this.#cutShare) ? 1 + this.random.below(bytes - 1) : bytes;
  }
}
