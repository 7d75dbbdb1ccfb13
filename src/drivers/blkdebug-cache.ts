/**
 * A disk's volatile cache: a list of what was written since the last flush, in order. A flush writes it down and then
 * flushes the disk; a power cut loses it, or parts of it.
 *
 *     reads:  the disk below, then every entry over it, oldest first
 *     cut:    durable entries (FUA) are kept, each other one is lost, kept, or torn at a sector
 *
 * Invariant: entries are only appended in place; a flush or a cut makes a new list. So a read under way keeps what it
 * began with, as a list and a count.
 */
import type { Child } from '../block/child.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';

const sectorSize = 512;
/** Most bytes that wait for a flush. */
export const volatileCacheBytesMax = 256 * 2 ** 20;

interface Entry {
  readonly offset: number;
  readonly length: number;
  /** null: zeroes */
  readonly bytes: Uint8Array | null;
  readonly durable: boolean;
}

export class VolatileCache {
  private readonly child: Child;
  private entries: Entry[] = [];
  private bytes = 0;
  private lastFlush: Promise<void> = Promise.resolve();
  /** rises with every cut: a flush under way sees that it is over */
  private cuts = 0;

  constructor(child: Child) {
    this.child = child;
  }

  get size(): { entries: number; bytes: number } {
    return { entries: this.entries.length, bytes: this.bytes };
  }

  touches(offset: number, length: number): boolean {
    return this.entries.some((entry) => entry.offset < offset + length && offset < entry.offset + entry.length);
  }

  read(offset: number, into: Uint8Array): Done {
    const { entries } = this;
    const count = entries.length;
    const done = this.child.node.read(offset, into);
    if (done !== undefined) return done.then(() => overlay(entries, count, offset, into));
    overlay(entries, count, offset, into);
    return undefined;
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    const durable = (flags & writeFlags.fua) !== 0;
    // Copied: the cache answers before the disk has it.
    const entry: Entry = { offset, length: from.length, bytes: Uint8Array.from(from), durable };
    if (!durable) return this.push(entry);
    const done = this.child.node.write(offset, from, flags);
    return done === undefined ? this.push(entry) : done.then(() => this.push(entry));
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const durable = (flags & writeFlags.fua) !== 0;
    const entry: Entry = { offset, length, bytes: null, durable };
    if (!durable) return this.push(entry);
    const done = this.child.node.writeZeroes(offset, length, flags);
    return done === undefined ? this.push(entry) : done.then(() => this.push(entry));
  }

  /** One after another: a flush covers what was written before it. */
  flush(): Promise<void> {
    const flushed = this.flushAfter(this.lastFlush);
    this.lastFlush = flushed.catch(() => undefined);
    return flushed;
  }

  /** Loses what no flush has covered. With `some`, chance keeps parts of it, in whatever order the disk liked. */
  async cut(keep: 'nothing' | 'some', fraction: () => number): Promise<void> {
    this.cuts += 1;
    await this.lastFlush;
    const { entries } = this;
    this.entries = [];
    this.bytes = 0;
    for (const entry of entries) {
      const chance = keep === 'some' ? fraction() : 0;
      const sectors = Math.ceil(entry.length / sectorSize);
      let kept = 0;
      if (entry.durable || chance > 2 / 3) kept = entry.length;
      else if (chance > 1 / 3) kept = Math.min(entry.length, Math.floor(fraction() * sectors) * sectorSize);
      if (kept > 0) await this.put({ ...entry, length: kept });
    }
    await this.child.node.flush();
  }

  private push(entry: Entry): undefined {
    const bytes = this.bytes + (entry.bytes?.length ?? 0);
    if (bytes > volatileCacheBytesMax) throw new BlockError('no-memory', 'the volatile cache is full: flush first');
    this.entries.push(entry);
    this.bytes = bytes;
  }

  private async flushAfter(earlier: Promise<void>): Promise<void> {
    const batch = [...this.entries];
    const { cuts } = this;
    await earlier;
    // What an earlier flush has written down meanwhile is gone from the front.
    const [oldest] = this.entries;
    const gone = oldest === undefined ? -1 : batch.indexOf(oldest);
    const rest = gone < 0 ? [] : batch.slice(gone);
    for (const entry of rest) {
      if (this.cuts !== cuts) throw new BlockError('io-error', 'the power was cut');
      await this.put(entry);
    }
    await this.child.node.flush();
    if (this.cuts !== cuts) throw new BlockError('io-error', 'the power was cut');
    this.entries = this.entries.slice(rest.length);
    this.bytes = this.entries.reduce((sum, entry) => sum + (entry.bytes?.length ?? 0), 0);
  }

  private async put(entry: Entry): Promise<void> {
    const { node } = this.child;
    if (entry.bytes === null) await node.writeZeroes(entry.offset, entry.length, writeFlags.none);
    else await node.write(entry.offset, entry.bytes.subarray(0, entry.length), writeFlags.none);
  }
}

function overlay(entries: readonly Entry[], count: number, offset: number, into: Uint8Array): void {
  for (let i = 0; i < count; i += 1) {
    const entry = entries[i];
    if (entry === undefined) continue;
    const start = Math.max(offset, entry.offset);
    const end = Math.min(offset + into.length, entry.offset + entry.length);
    if (start >= end) continue;
    if (entry.bytes === null) into.fill(0, start - offset, end - offset);
    else into.set(entry.bytes.subarray(start - entry.offset, end - entry.offset), start - offset);
  }
}
