/**
 * A slow link (pair.md 6): "slowness is back-pressure, not death". Users ask for all they can; the link carries what it
 * carries, one byte after the other.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type Pending,
  ReplicationWorld,
  settleTurns,
  type TestDisk,
  type Watched,
  watch,
} from './replication-world.ts';

const mib = 2 ** 20;
const kib = 1024;
const stepMs = 5;
const stallMsMax = 2000;

/** Answers the requests of a disk one after the other, as a link of `rate` bytes a ms lets them through. */
class SlowLink {
  silent = false;
  mostUnderWay = 0;
  readonly #disk: TestDisk;
  readonly #rate: number;
  readonly #dueMs = new Map<Pending, number>();
  #freeMs = 0;

  constructor(disk: TestDisk, rate: number) {
    disk.mode = 'by-hand';
    this.#disk = disk;
    this.#rate = rate;
  }

  at(nowMs: number): void {
    for (const request of this.#disk.pending) {
      if (this.#dueMs.has(request)) continue;
      const carried = request.kind === 'write' ? request.length : 0;
      this.#freeMs = Math.max(this.#freeMs, nowMs) + carried / this.#rate;
      this.#dueMs.set(request, this.#freeMs + 1);
    }
    const bytes = this.#disk.waiting('write').reduce((sum, { length }) => sum + length, 0);
    this.mostUnderWay = Math.max(this.mostUnderWay, bytes);
    for (const request of this.silent ? [] : [...this.#disk.pending]) {
      if ((this.#dueMs.get(request) ?? 0) <= nowMs) this.#disk.answer(request);
    }
  }
}

interface Asked {
  readonly watched: Watched;
  readonly startMs: number;
  readonly flush: boolean;
}

/** A user with `depth` requests of `length` bytes under way, every tenth a flush, until `total` bytes are written. */
class BusyUser {
  readonly world = new ReplicationWorld();
  link: SlowLink | null = null;
  longestFlushMs = 0;
  #asked: Asked[] = [];
  #issued = 0;
  #remote: TestDisk | null = null;
  #local: TestDisk | null = null;

  get mode(): string {
    return this.world.group.links.mode;
  }

  async run(rate: number, acknowledge: string, length: number, depth: number, total: number): Promise<void> {
    const { world } = this;
    const disk = await world.pairDisk('d', 16 * mib, { acknowledge, 'window-bytes': 16 * mib });
    await world.connect(disk);
    world.group.links.setMode('in-sync');
    this.#remote = disk.remote;
    this.#local = disk.local;
    this.link = new SlowLink(disk.remote, rate);
    const { node } = disk.use;
    const requests = Math.ceil(total / length);
    let offset = 0;
    while (this.mode === 'in-sync' && (this.#issued < requests || this.#asked.length > 0)) {
      while (this.#asked.length < depth && this.#issued < requests) {
        const flush = this.#issued++ % 10 === 9;
        const from = new Uint8Array(length).fill(this.#issued);
        const at = offset % (16 * mib - length + 1);
        offset += length;
        const watched = watch(() => (flush ? node.flush() : node.write(at, from, 0)));
        this.#asked.push({ watched, startMs: world.clock.now(), flush });
      }
      await this.step();
    }
    if (this.mode !== 'in-sync') return;
    for (const last = watch(() => node.flush()); !last.done && this.mode === 'in-sync'; ) await this.step();
    if (this.mode === 'in-sync') assert.equal(Buffer.compare(this.#remote.content, this.#local.content), 0);
  }

  async step(): Promise<void> {
    await this.world.clock.move(stepMs);
    this.link?.at(this.world.clock.now());
    await settleTurns(3);
    for (const { watched, startMs, flush } of this.#asked) {
      assert.equal(watched.error, null);
      if (watched.done && flush) this.longestFlushMs = Math.max(this.longestFlushMs, this.world.clock.now() - startMs);
    }
    this.#asked = this.#asked.filter(({ watched }) => !watched.done);
  }
}

for (const acknowledge of ['flush', 'remote']) {
  for (const rate of [200, 1000, 4000, 20_000]) {
    const what = `acknowledge ${acknowledge}, ${rate} bytes a ms`;
    test(`pair 6: ${what}: users who write all they can and flush stay connected, no flush is late`, async () => {
      const user = new BusyUser();
      // 20 seconds' worth of the link, at most.
      await user.run(rate, acknowledge, 256 * kib, 32, Math.min(rate * 20_000, 48 * mib));
      assert.equal(user.mode, 'in-sync', JSON.stringify(user.world.told('REPLICATION_LINK')));
      assert.ok(user.longestFlushMs < stallMsMax, `${user.longestFlushMs} ms`);
    });
  }

  test(`pair 6: acknowledge ${acknowledge}: a write that the link carries in 8 seconds goes through`, async () => {
    const user = new BusyUser();
    await user.run(1000, acknowledge, 8 * mib, 1, 8 * mib);
    assert.equal(user.mode, 'in-sync');
  });

  test(`pair 6: acknowledge ${acknowledge}: another side that falls silent while users stand in line is a stall`, async () => {
    const user = new BusyUser();
    const running = user.run(2000, acknowledge, 256 * kib, 32, 1024 * mib);
    await user.world.clock.move(0);
    for (let i = 0; i < 200; i++) await settleTurns(1);
    const { link } = user;
    assert.ok(link !== null);
    link.silent = true;
    const sinceMs = user.world.clock.now();
    await running;
    assert.equal(user.mode, 'held');
    const waitedMs = user.world.clock.now() - sinceMs;
    assert.ok(waitedMs <= stallMsMax + 2 * stepMs, `${waitedMs} ms`);
  });
}

test('pair 2: a quick link has the whole window under way', async () => {
  const user = new BusyUser();
  await user.run(1_000_000, 'flush', 512 * kib, 64, 128 * mib);
  assert.ok((user.link?.mostUnderWay ?? 0) > 8 * mib, `${user.link?.mostUnderWay} bytes`);
});
