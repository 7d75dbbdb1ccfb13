/**
 * A user of all disks of one side of a pair with overlays: writes, reads back and flushes at random with several
 * requests in flight, and writes down what was promised (overlay-truth.ts).
 */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { NbdClient } from '../../src/nbd/client.ts';
import { blockBytes } from '../sim/checker.ts';
import type { SeededRandom } from '../sim/random.ts';
import type { SideName } from './history.ts';
import { type GroupState, type GroupTruth, stateOf, versionsOf } from './overlay-truth.ts';
import type { RealPair } from './real-pair.ts';

const inFlightMax = 4;
const blocksMax = 16;
const bulkBytes = 2 ** 20;

export interface Using {
  readonly pair: RealPair;
  readonly random: SeededRandom;
  readonly truth: GroupTruth;
  /** true: a flush that has just been answered holds on both sides */
  isOnBoth(): boolean;
}

/** The state of all disks that a side shows. @param writable what is expected of its exports */
export async function readState(
  pair: RealPair,
  side: SideName,
  disks: readonly string[],
  writable: boolean,
): Promise<GroupState> {
  const state = new Map<string, Uint32Array>();
  for (const disk of disks) {
    const client = await connect(pair, side, disk);
    try {
      assert.equal(client.info.readOnly, !writable, `${side} ${disk} is read-only`);
      state.set(disk, await readDisk(client, `${side} ${disk}`));
    } finally {
      await client.close();
    }
  }
  return state;
}

async function readDisk(client: NbdClient, where: string): Promise<Uint32Array> {
  const bytes = Buffer.alloc(client.length);
  for (let at = 0; at < bytes.length; at += bulkBytes) await client.read(at, bytes.subarray(at, at + bulkBytes));
  return versionsOf(bytes, where);
}

function connect(pair: RealPair, side: SideName, disk: string): Promise<NbdClient> {
  const address = { type: 'unix', path: pair.userSocket(side) } as const;
  return NbdClient.connect(pair.host, { address, exportName: disk, timeoutMs: 30_000 });
}

export class OverlayUser {
  readonly side: SideName;
  writes = 0;
  flushes = 0;
  /** the first request that failed; what was in flight then has no answer */
  error: unknown = null;
  readonly #using: Using;
  readonly #clients: ReadonlyMap<string, NbdClient>;
  readonly #busy = new Map<string, Set<number>>();
  #loops: Promise<void>[] = [];
  #resting = true;

  static async connect(using: Using, side: SideName): Promise<OverlayUser> {
    const clients = new Map<string, NbdClient>();
    for (const disk of using.truth.disks) clients.set(disk, await connect(using.pair, side, disk));
    return new OverlayUser(using, side, clients);
  }

  private constructor(using: Using, side: SideName, clients: ReadonlyMap<string, NbdClient>) {
    this.#using = using;
    this.side = side;
    this.#clients = clients;
    for (const disk of clients.keys()) this.#busy.set(disk, new Set());
  }

  begin(): void {
    assert.ok(this.#resting);
    this.#resting = false;
    this.#loops = [...this.#clients].map(([disk, client]) => this.#use(disk, client));
  }

  /** Nothing is in flight any more. @throws what a request failed with */
  async rest(): Promise<void> {
    await this.end();
    if (this.error !== null) throw this.error;
  }

  /** As `rest`, whatever became of the requests. */
  async end(): Promise<void> {
    this.#resting = true;
    await Promise.all(this.#loops);
    this.#loops = [];
  }

  async leave(): Promise<void> {
    await this.end();
    await Promise.all([...this.#clients.values()].map((client) => client.close()));
  }

  /** Flushes all disks: what was answered is promised. */
  async flush(): Promise<void> {
    for (const [disk, client] of this.#clients) await this.#flush(disk, client);
  }

  /** Writes the first `bytes` of each disk, in large pieces, and flushes. */
  async fill(bytes: number): Promise<void> {
    for (const [disk, client] of this.#clients) {
      const blocks = bulkBytes / blockBytes;
      for (let at = 0; at < bytes; at += bulkBytes) await this.#write(disk, client, at / blockBytes, blocks);
    }
    await this.flush();
  }

  /** What this user's connections read. */
  async state(): Promise<GroupState> {
    const state = new Map<string, Uint32Array>();
    for (const [disk, client] of this.#clients) state.set(disk, await readDisk(client, `${this.side} ${disk}`));
    return state;
  }

  async #use(disk: string, client: NbdClient): Promise<void> {
    const { random } = this.#using;
    const flying = new Set<Promise<void>>();
    while (!this.#resting && this.error === null) {
      if (flying.size >= inFlightMax) await Promise.race(flying);
      const promise = this.#one(disk, client);
      const one: Promise<void> = promise.then(
        () => void flying.delete(one),
        (error: unknown) => {
          flying.delete(one);
          this.error ??= error;
          if (error instanceof assert.AssertionError) this.#using.pair.fail(error);
        },
      );
      flying.add(one);
      if (random.chance(0.5)) await sleep(random.fraction() * 6);
    }
    await Promise.all(flying);
  }

  async #one(disk: string, client: NbdClient): Promise<void> {
    const { random, truth } = this.#using;
    const busy = this.#busy.get(disk) ?? assert.fail(disk);
    const count = 1 + random.below(blocksMax);
    const first = Math.min(Math.floor(truth.blocks * random.fraction() ** 2), truth.blocks - count);
    const what = random.fraction();
    if (what < 0.1) return this.#flush(disk, client);
    const blocks = Array.from({ length: count }, (_, index) => first + index);
    if (blocks.some((block) => busy.has(block))) return;
    for (const block of blocks) busy.add(block);
    try {
      if (what < 0.8) await this.#write(disk, client, first, count);
      else await this.#readBack(disk, client, first, count);
    } finally {
      for (const block of blocks) busy.delete(block);
    }
  }

  async #write(disk: string, client: NbdClient, first: number, count: number): Promise<void> {
    const { version, bytes } = this.#using.truth.issue(disk, first, count);
    this.writes++;
    await client.write(first * blockBytes, bytes, 0);
    this.#using.truth.answered(disk, first, count, version);
  }

  async #readBack(disk: string, client: NbdClient, first: number, count: number): Promise<void> {
    const bytes = Buffer.alloc(count * blockBytes);
    await client.read(first * blockBytes, bytes);
    const where = `${this.side} ${disk} from block ${first}`;
    const wanted = stateOf(this.#using.truth.current, disk).slice(first, first + count);
    assert.deepEqual([...versionsOf(bytes, where)], [...wanted], where);
  }

  async #flush(disk: string, client: NbdClient): Promise<void> {
    const { truth } = this.#using;
    const covered = stateOf(truth.current, disk).slice();
    this.flushes++;
    await client.flush();
    truth.flushed(disk, covered, this.#using.isOnBoth());
  }
}
