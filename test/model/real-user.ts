/**
 * A user of one disk of one side of a real pair: connects whenever that side serves, checks what it finds, then writes,
 * flushes and reads with several requests in flight.
 *
 * It knows what it may be spared (pair.md 5 to 7): while nobody touches its own side and no roles change, no request
 * fails and none waits longer than a few times stall-ms-max, whatever the other side does.
 */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { NbdClient } from '../../src/nbd/client.ts';
import { blockBytes, type DiskModel, fill, offsetOf, versionsIn } from '../sim/checker.ts';
import type { SeededRandom } from '../sim/random.ts';
import type { History, SideName } from './history.ts';
import type { RealPair } from './real-pair.ts';

const fua = 1;
const inFlightMax = 6;
/** No user waits longer than this many times stall-ms-max: a ratio, for machines of any speed. */
const stallRatioMax = 5;

/** What all users of a life share. */
export interface Life {
  readonly pair: RealPair;
  readonly history: History;
  readonly random: SeededRandom;
  readonly blocks: number;
  /** roles were or may have been changed since both were in step: connections may end without a promise broken */
  rolesChange: boolean;
  /** users do nothing */
  quiet: boolean;
  over: boolean;
  /** ms that this process itself was late, since the start */
  lateMs: number;
  writes: number;
  flushes: number;
  /** the longest that a user waited though it was to be spared */
  longestMs: number;
}

interface Asked {
  readonly at: number;
  readonly hungMs: number;
  readonly lateMs: number;
  readonly what: string;
}

export class RealUser {
  readonly side: SideName;
  readonly disk: string;
  readonly #life: Life;
  readonly #flushShare: number;
  readonly #restShare: number;
  readonly #busy = new Set<number>();
  readonly #asked = new Set<Asked>();

  constructor(life: Life, side: SideName, disk: string) {
    this.#life = life;
    this.side = side;
    this.disk = disk;
    this.#flushShare = life.random.pick([0.02, 0.1, 0.3]);
    this.#restShare = life.random.pick([0, 0.01, 0.05]);
  }

  get idle(): boolean {
    return this.#asked.size === 0;
  }

  get #where(): string {
    return `${this.side} ${this.disk}`;
  }

  /** Uses the disk until the life is over. */
  async use(): Promise<void> {
    const { pair } = this.#life;
    while (!this.#life.over) {
      await sleep(20 + 80 * this.#life.random.fraction());
      if (this.#life.quiet || !pair.answers(this.side)) continue;
      const session = await this.connect();
      if (session === null) continue;
      try {
        await session.verify();
        await this.#work(session);
      } catch (error) {
        // What the server may not do was judged when it came.
        if (error instanceof assert.AssertionError) pair.fail(error);
      } finally {
        await session.client.close();
      }
    }
  }

  /** Null if the side does not serve what is written. */
  async connect(): Promise<Session | null> {
    const { pair, history } = this.#life;
    const endings = pair.endings[this.side];
    let client: NbdClient;
    try {
      const path = pair.userSocket(this.side);
      const where = { address: { type: 'unix', path }, exportName: this.disk, timeoutMs: 30_000 } as const;
      client = await NbdClient.connect(pair.host, where);
    } catch {
      return null;
    }
    if (client.info.readOnly) {
      // The last checkpoint of a secondary, which is nobody's promise here.
      await client.close();
      return null;
    }
    history.observe();
    const session = new Session(this, this.#life, client, history.model(this.side, this.disk), endings);
    client.onClosed((error) => {
      if (error !== null) this.#failed(session, error);
    });
    return session;
  }

  /** A request or the connection has failed: a broken promise, if nobody touched this side and no roles change. */
  #failed(session: Session, error: unknown): void {
    const { rolesChange, pair } = this.#life;
    if (rolesChange || pair.endings[this.side] !== session.endings) return;
    pair.fail(new Error(`${this.#where}: a user got an error for nothing: ${String(error)}`, { cause: error }));
  }

  /** A user that is kept waiting, or null: called now and then. */
  overdue(): string | null {
    for (const asked of this.#asked) {
      const waited = this.#waited(asked);
      if (waited > this.#boundMs(asked)) return `${this.#where}: ${asked.what} waits for ${Math.round(waited)} ms`;
    }
    return null;
  }

  isBusy(block: number): boolean {
    return this.#busy.has(block);
  }

  /** Runs a request over these blocks with a look at the clock. */
  async ask<T>(session: Session, what: string, blocks: readonly number[], request: () => T | Promise<T>): Promise<T> {
    const life = this.#life;
    const { pair } = life;
    const asked = { at: performance.now(), hungMs: pair.hungMs[this.side], lateMs: life.lateMs, what };
    const calm = !life.rolesChange;
    for (const block of blocks) this.#busy.add(block);
    this.#asked.add(asked);
    try {
      const answer = await this.#answerOf(session, request);
      if (calm && !life.rolesChange) {
        const waited = this.#waited(asked);
        life.longestMs = Math.max(life.longestMs, waited);
        if (waited > this.#boundMs(asked)) assert.fail(`${this.#where}: ${what} took ${Math.round(waited)} ms`);
      }
      return answer;
    } finally {
      this.#asked.delete(asked);
      for (const block of blocks) this.#busy.delete(block);
    }
  }

  #waited(asked: Asked): number {
    if (this.#life.pair.isHung(this.side)) return 0;
    return performance.now() - asked.at - (this.#life.pair.hungMs[this.side] - asked.hungMs);
  }

  #boundMs(asked: Asked): number {
    return stallRatioMax * (this.#life.pair.options.stallMsMax + this.#life.lateMs - asked.lateMs);
  }

  async #answerOf<T>(session: Session, request: () => T | Promise<T>): Promise<T> {
    try {
      return await request();
    } catch (error) {
      this.#failed(session, error);
      throw error;
    }
  }

  async #work(session: Session): Promise<void> {
    const { random, blocks } = this.#life;
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
    while (failed === null && session.client.error === null) {
      if (this.#life.quiet || this.#life.over) break;
      if (flying.size >= inFlightMax) await Promise.race(flying);
      // Some blocks are written often, most of them seldom.
      const block = Math.floor(blocks * random.fraction() ** 2);
      const count = block % 2 === 0 && block + 1 < blocks ? random.pick([1, 2]) : 1;
      const free = !this.isBusy(block) && (count === 1 || !this.isBusy(block + 1));
      const what = random.fraction();
      if (what < this.#flushShare) begin(session.flush());
      else if (what < 0.8 && free) begin(session.write(block, count, random.chance(0.05)));
      else if (free) begin(session.verifyBlocks(block, count));
      if (random.chance(this.#restShare)) await sleep(random.fraction() * 1000);
      else if (random.chance(0.5)) await sleep(random.fraction() * 8);
    }
    await Promise.all(flying);
    if (failed !== null) throw failed;
  }
}

/** One connection. */
export class Session {
  readonly client: NbdClient;
  readonly model: DiskModel;
  /** how often its side had been ended when it began */
  readonly endings: number;
  readonly #user: RealUser;
  readonly #life: Life;

  constructor(user: RealUser, life: Life, client: NbdClient, model: DiskModel, endings: number) {
    this.#user = user;
    this.#life = life;
    this.client = client;
    this.model = model;
    this.endings = endings;
  }

  /** Looks at every block while nobody writes; afterwards it is known what is there. */
  async verify(): Promise<void> {
    const step = 16;
    for (let first = 0; first < this.#life.blocks; first += step) {
      const pairs: Promise<void>[] = [];
      for (let block = first; block < Math.min(first + step, this.#life.blocks); block += 2) {
        pairs.push(this.verifyBlocks(block, Math.min(2, this.#life.blocks - block)));
      }
      await Promise.all(pairs);
    }
  }

  /** Nothing is under way in these blocks. */
  async verifyBlocks(block: number, count: number): Promise<void> {
    const bytes = new Uint8Array(count * blockBytes);
    const blocks = count === 1 ? [block] : [block, block + 1];
    await this.#user.ask(this, `a read of block ${block}`, blocks, () => this.client.read(offsetOf(block), bytes));
    for (const [index, one] of blocks.entries()) {
      const versions = versionsIn(bytes.subarray(index * blockBytes, (index + 1) * blockBytes));
      this.#life.history.found(this.model, one, versions, `${this.#user.side} ${this.#user.disk} served`);
    }
  }

  async write(block: number, count: number, durable: boolean): Promise<void> {
    const { history } = this.#life;
    this.#life.writes++;
    const version = history.nextVersion();
    const blocks = count === 1 ? [block] : [block, block + 1];
    for (const one of blocks) this.model.issued(one, version);
    const bytes = fill(new Uint8Array(count * blockBytes), version);
    const flags = durable ? fua : 0;
    await this.#user.ask(this, `a write of block ${block}`, blocks, () =>
      this.client.write(offsetOf(block), bytes, flags),
    );
    for (const one of blocks) {
      this.model.answered(one, version);
      if (durable) history.durable(this.#user.side, this.#user.disk, this.model, one, version);
    }
  }

  async flush(): Promise<void> {
    this.#life.flushes++;
    const snapshot = [...this.model.current];
    await this.#user.ask(this, 'a flush', [], () => this.client.flush());
    this.#life.history.flushed(this.#user.side, this.#user.disk, this.model, snapshot);
  }
}
