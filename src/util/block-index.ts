/**
 * A map from block numbers to positions, both safe integers: open addressing on typed arrays, 16 bytes a slot, no
 * allocation for a lookup or an insert that needs no growth. Its size is bounded by what it holds, not by the disk.
 *
 *     keys    [ 7 | -1 | 12 | ... ]     -1: free
 *     values  [ position of 7 | . | position of 12 | ... ]
 *     regions { 0 }                     of 4096 blocks each, those that hold any: to pass over the others at once
 */
import { BlockError } from './errors.ts';

const free = -1;
const regionBlocks = 4096;
/** slots of an index that holds anything, a power of two */
const slotsMin = 1024;
/** the most slots that an index may have: 1 GiB of memory, for 50 million blocks */
const slotsMax = 2 ** 26;

const noKeys = new Float64Array(1).fill(free);
const noValues = new Float64Array(1);

export class BlockIndex {
  // One free slot, of all that hold nothing: an index costs nothing until it is used.
  private keys = noKeys;
  private values = noValues;
  private mask = 0;
  private used = 0;
  private readonly regions = new Set<number>();
  private lastRegion = -1;

  /** How many blocks it holds. */
  get size(): number {
    return this.used;
  }

  /** Memory that it takes, in bytes. */
  get bytes(): number {
    return this.keys.byteLength + this.values.byteLength;
  }

  /** Slots, free ones included: the blocks stand in them in no order, which changes only when their number does. */
  get slotCount(): number {
    return this.keys.length;
  }

  /** The block in a slot, or undefined. */
  blockAt(slot: number): number | undefined {
    const block = this.keys[slot] ?? free;
    return block === free ? undefined : block;
  }

  /** The position of a block, or undefined. */
  get(block: number): number | undefined {
    const slot = this.slotOf(block);
    return this.keys[slot] === block ? this.values[slot] : undefined;
  }

  has(block: number): boolean {
    return this.keys[this.slotOf(block)] === block;
  }

  /** @throws BlockError no-memory */
  set(block: number, position: number): void {
    let slot = this.slotOf(block);
    if (this.keys[slot] !== block) {
      if ((this.used + 1) * 4 > this.keys.length * 3) {
        this.grow();
        slot = this.slotOf(block);
      }
      this.keys[slot] = block;
      this.used += 1;
      const region = Math.floor(block / regionBlocks);
      if (region !== this.lastRegion) {
        this.lastRegion = region;
        this.regions.add(region);
      }
    }
    this.values[slot] = position;
  }

  /**
   * A block in `[from, end)` such that those before it, from `from` on, are not held: the first held one, or earlier.
   */
  passFree(from: number, end: number): number {
    let block = from;
    while (block < end && !this.regions.has(Math.floor(block / regionBlocks))) {
      block = (Math.floor(block / regionBlocks) + 1) * regionBlocks;
    }
    return Math.min(block, end);
  }

  /** All blocks with their positions, in no order. */
  *entries(): Generator<[block: number, position: number]> {
    for (let slot = 0; slot < this.keys.length; slot++) {
      const block = this.keys[slot] ?? free;
      if (block !== free) yield [block, this.values[slot] ?? 0];
    }
  }

  /** The slot that holds the block, or the free one where it would go. */
  private slotOf(block: number): number {
    const { keys, mask } = this;
    // Both halves of the number are mixed; neighbours land far apart, which keeps the probes short.
    const mixed = Math.imul((block >>> 0) ^ Math.imul(Math.floor(block / 0x1_0000_0000), 0x85eb_ca6b), 0x9e37_79b1);
    let slot = (mixed ^ (mixed >>> 15)) & mask;
    for (;;) {
      const key = keys[slot];
      if (key === block || key === free) return slot;
      slot = (slot + 1) & mask;
    }
  }

  private grow(): void {
    const { keys, values } = this;
    if (keys.length >= slotsMax) throw new BlockError('no-memory', `an index holds ${this.used} blocks and is full`);
    const slots = Math.max(slotsMin, keys.length * 2);
    this.keys = new Float64Array(slots).fill(free);
    this.values = new Float64Array(slots);
    this.mask = slots - 1;
    for (let old = 0; old < keys.length; old++) {
      const block = keys[old] ?? free;
      if (block === free) continue;
      const slot = this.slotOf(block);
      this.keys[slot] = block;
      this.values[slot] = values[old] ?? 0;
    }
  }
}
