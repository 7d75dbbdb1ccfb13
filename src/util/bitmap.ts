/**
 * A bitmap over bit indexes, with summaries: bit i of level k+1 is set exactly when word i of level k is not zero.
 *
 *     level 1   [ 1 0 1 ... ]            one bit for a word below
 *                 |     \
 *     level 0   [w0][ 0 ][w2] ...        32 bits a word
 *
 * So finding, clearing and joining cost what is set, not what could be: a 64 TiB disk with ten dirty blocks is ten
 * words.
 */

import { BlockError } from './errors.ts';

/** Most bits that one bitmap may have: 256 TiB in pieces of 4 KiB. Memory is taken by what was ever set. */
export const bitmapBitsMax = 2 ** 36;

const wordBits = 32;
/** words that are filled with zeroes in the time that it takes to find and clear one */
const fillShare = 64;

/** The word of a bit. A shift would cut an index above 2 ** 32. */
function wordOf(index: number): number {
  return (index / wordBits) | 0;
}

/** `count` ones from bit `from` of a word; `from + count` is at most 32. */
function wordMask(from: number, count: number): number {
  return count === wordBits ? 0xffff_ffff : (((1 << count) - 1) << from) >>> 0;
}

function popCount(word: number): number {
  let v = word - ((word >>> 1) & 0x5555_5555);
  v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333);
  return (((v + (v >>> 4)) & 0x0f0f_0f0f) * 0x0101_0101) >>> 24;
}

/** Index of the lowest set bit; 32 for zero. */
function lowestBit(word: number): number {
  return word === 0 ? wordBits : 31 - Math.clz32(word & -word);
}

/** @throws BlockError no-memory */
function zeroes(words: number): Uint32Array {
  try {
    return new Uint32Array(words);
  } catch (error) {
    throw new BlockError('no-memory', `no memory for a bitmap of ${4 * words} bytes; say a larger granularity`, {
      cause: error,
    });
  }
}

export class Bitmap {
  /** how many bits there are */
  readonly bits: number;
  private readonly levels: Uint32Array[] = [];
  private setCount = 0;

  /**
   * @param bits 0 to `bitmapBitsMax`
   * @throws BlockError invalid-option, no-memory
   */
  constructor(bits: number) {
    if (!Number.isSafeInteger(bits) || bits < 0) throw new RangeError(`a bitmap of ${bits} bits`);
    if (bits > bitmapBitsMax) {
      throw new BlockError(
        'invalid-option',
        `a node of ${bits} blocks: at most ${bitmapBitsMax} can be told apart; say a larger granularity`,
      );
    }
    this.bits = bits;
    let words = bits;
    do {
      words = Math.ceil(words / wordBits);
      this.levels.push(zeroes(Math.max(1, words)));
    } while (words > 1);
  }

  /** how many bits are set */
  get count(): number {
    return this.setCount;
  }

  get(index: number): boolean {
    this.check(index, 1);
    return (((this.levels[0]?.[wordOf(index)] ?? 0) >>> (index & 31)) & 1) === 1;
  }

  /** Sets `count` bits from `from` on. */
  set(from: number, count: number): void {
    this.check(from, count);
    if (count > 0) this.setAt(0, from, from + count - 1);
  }

  /** Clears `count` bits from `from` on. */
  clear(from: number, count: number): void {
    this.check(from, count);
    const words = this.level(0);
    const end = from + count;
    for (let at = this.nextSet(from, end); at !== -1; at = this.nextSet(at, end)) {
      const word = wordOf(at);
      const wordEnd = (word + 1) * wordBits;
      const mask = wordMask(at & 31, Math.min(end, wordEnd) - at);
      const old = words[word] ?? 0;
      this.setCount -= popCount(old & mask);
      words[word] = old & ~mask;
      if ((old & ~mask) === 0) this.clearSummary(word);
      at = Math.min(end, wordEnd);
      if (at === end) return;
    }
  }

  /** Clears all; costs what was set. */
  clearAll(): void {
    if (this.setCount === 0) return;
    for (let k = 0; k < this.levels.length; k += 1) {
      const words = this.level(k);
      const wordCount = words.length;
      // Where many words hold something all of them are filled: that is quicker than to find them.
      if (this.setCount >= wordCount / fillShare) words.fill(0);
      else {
        for (let w = this.nextSetAt(k + 1, 0, wordCount); w !== -1; w = this.nextSetAt(k + 1, w + 1, wordCount)) {
          words[w] = 0;
        }
      }
    }
    this.setCount = 0;
  }

  /** Sets what is set in `other`, which has as many bits. */
  or(other: Bitmap): void {
    if (other.bits !== this.bits) throw new RangeError(`bitmaps of ${this.bits} and ${other.bits} bits`);
    const from = other.level(0);
    const into = this.level(0);
    for (let at = other.nextSet(0); at !== -1; ) {
      const word = wordOf(at);
      const old = into[word] ?? 0;
      const joined = (old | (from[word] ?? 0)) >>> 0;
      if (old === 0) this.setSummary(0, word, word);
      this.setCount += popCount(joined) - popCount(old);
      into[word] = joined;
      const next = (word + 1) * wordBits;
      at = next < this.bits ? other.nextSet(next) : -1;
    }
  }

  /** The first set bit in `[from, end)`; -1 if there is none. */
  nextSet(from: number, end = this.bits): number {
    return from < end ? this.nextSetAt(0, from, end) : -1;
  }

  /** The first clear bit in `[from, end)`; -1 if there is none. */
  nextClear(from: number, end = this.bits): number {
    if (from >= end) return -1;
    const words = this.level(0);
    let word = wordOf(from);
    const last = wordOf(end - 1);
    let inverse = ~(words[word] ?? 0) & wordMask(from & 31, wordBits - (from & 31));
    while (inverse === 0 && word < last) {
      word += 1;
      inverse = ~(words[word] ?? 0);
    }
    const found = word * wordBits + lowestBit(inverse >>> 0);
    return inverse !== 0 && found < end ? found : -1;
  }

  /** True if any of `count` bits from `from` on is set. */
  any(from: number, count: number): boolean {
    return this.nextSet(from, from + count) !== -1;
  }

  private check(from: number, count: number): void {
    if (!(from >= 0 && count >= 0 && from + count <= this.bits)) {
      throw new RangeError(`bits ${from}+${count} of a bitmap of ${this.bits}`);
    }
  }

  private level(k: number): Uint32Array {
    const words = this.levels[k];
    if (words === undefined) throw new RangeError(`no level ${k}`);
    return words;
  }

  /** Sets bits `first` to `last` of level `k`, and the summaries above. */
  private setAt(k: number, first: number, last: number): void {
    const words = this.level(k);
    const firstWord = wordOf(first);
    const lastWord = wordOf(last);
    let added = 0;
    let wasZero = false;
    for (let word = firstWord; word <= lastWord; word += 1) {
      const from = word === firstWord ? first & 31 : 0;
      const to = word === lastWord ? last & 31 : 31;
      const old = words[word] ?? 0;
      const joined = (old | wordMask(from, to - from + 1)) >>> 0;
      if (old === 0) wasZero = true;
      if (k === 0) added += popCount(joined) - popCount(old);
      words[word] = joined;
    }
    this.setCount += added;
    if (wasZero) this.setSummary(k, firstWord, lastWord);
  }

  private setSummary(k: number, firstWord: number, lastWord: number): void {
    if (k + 1 < this.levels.length) this.setAt(k + 1, firstWord, lastWord);
  }

  /** Word `word` of level 0 became zero: its bits in the summaries go. */
  private clearSummary(word: number): void {
    let index = word;
    for (let k = 1; k < this.levels.length; k += 1) {
      const words = this.level(k);
      const rest = (words[index >>> 5] ?? 0) & ~(1 << (index & 31));
      words[index >>> 5] = rest;
      if (rest !== 0) return;
      index >>>= 5;
    }
  }

  /** Goes up until a word has something at or after `from`, then down to its lowest bit. */
  private nextSetAt(k: number, from: number, end: number): number {
    let level = k;
    let index = from;
    for (;;) {
      const words = this.level(level);
      const word = wordOf(index);
      const rest = ((words[word] ?? 0) & wordMask(index & 31, wordBits - (index & 31))) >>> 0;
      if (rest !== 0) {
        index = word * wordBits + lowestBit(rest);
        break;
      }
      level += 1;
      index = word + 1;
      const above = this.levels[level];
      if (above === undefined || index >= above.length * wordBits) return -1;
    }
    while (level > k) {
      level -= 1;
      index = index * wordBits + lowestBit(this.level(level)[index] ?? 0);
    }
    return index < end ? index : -1;
  }
}
