/**
 * A map from block numbers to positions, both safe integers: open addressing on typed arrays, 16 bytes a slot, no
 * allocation for a lookup or an insert that needs no growth. Its size is bounded by what it holds, not by the disk.
 *
 *     keys   [ 7 | -1 | 12 | ... ]     -1: free
 *     values [ position of 7 | . | position of 12 | ... ]
 */
const free = -1;

export class BlockIndex {
  private keys: Float64Array;
  private values: Float64Array;
  private mask: number;
  private used = 0;

  /** @param capacity slots to begin with, a power of two */
  constructor(capacity = 1024) {
    this.keys = new Float64Array(capacity).fill(free);
    this.values = new Float64Array(capacity);
    this.mask = capacity - 1;
  }

  /** How many blocks it holds. */
  get size(): number {
    return this.used;
  }

  /** Memory that it takes, in bytes. */
  get bytes(): number {
    return this.keys.byteLength + this.values.byteLength;
  }

  /** The position of a block, or undefined. */
  get(block: number): number | undefined {
    const slot = this.slotOf(block);
    return this.keys[slot] === block ? this.values[slot] : undefined;
  }

  has(block: number): boolean {
    return this.keys[this.slotOf(block)] === block;
  }

  set(block: number, position: number): void {
    let slot = this.slotOf(block);
    if (this.keys[slot] !== block) {
      if ((this.used + 1) * 4 > this.keys.length * 3) {
        this.grow();
        slot = this.slotOf(block);
      }
      this.keys[slot] = block;
      this.used += 1;
    }
    this.values[slot] = position;
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
    this.keys = new Float64Array(keys.length * 2).fill(free);
    this.values = new Float64Array(keys.length * 2);
    this.mask = this.keys.length - 1;
    for (let old = 0; old < keys.length; old++) {
      const block = keys[old] ?? free;
      if (block === free) continue;
      const slot = this.slotOf(block);
      this.keys[slot] = block;
      this.values[slot] = values[old] ?? 0;
    }
  }
}
