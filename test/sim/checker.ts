/**
 * The checker: knows every write that a user issued, and what each answer promised (pair.md 1, 7, 13).
 *
 * A *model* holds for each block of 4 KiB the versions that may be found there. A flush that was answered leaves only
 * what was answered before it was issued, and later. Each side that serves has a model of its own. A promotion
 * continues the model of the generation that it descends from: *as it was when the primary left that generation*,
 * because from then on the primary answered alone. So a flush that counts for a generation is never missing on a side
 * that holds it.
 *
 * A version is a number that was never used before: above 0 it stands in every word of the blocks that were written;
 * below 0 it is zeroes that a user asked for (0: those of the beginning), which cannot be told from others by looking.
 */
import assert from 'node:assert/strict';

export const blockBytes = 4096;
/** bytes a bit of the replication's bitmaps stands for */
const granuleBytes = 65_536;

/** Blocks lie in pairs around the borders of granules: few blocks touch many bits, and a write of two touches two. */
export function offsetOf(block: number): number {
  return (block >> 1) * granuleBytes + granuleBytes - blockBytes + (block & 1) * blockBytes;
}

/** bytes of a disk with so many blocks */
export function diskBytesFor(blocks: number): number {
  return (Math.ceil(blocks / 2) + 1) * granuleBytes;
}

/** How the blocks of one disk lie, apart from what `offsetOf` says. */
export interface Placing {
  /** all blocks begin so many bytes later, above 0 at no border of a page or sector */
  readonly shift: number;
  /** so many bytes are added to the disk, and its last pair of blocks ends where it does; null: neither */
  readonly tail: number | null;
}

/** Where the blocks of one disk lie, and how long it is. */
export class Layout {
  /** bytes */
  readonly length: number;
  readonly #blocks: number;
  readonly #placing: Placing;

  constructor(blocks: number, placing: Placing = { shift: 0, tail: null }) {
    this.#blocks = blocks;
    this.#placing = placing;
    this.length = diskBytesFor(blocks) + (placing.tail ?? 0);
  }

  offsetOf(block: number): number {
    const { shift, tail } = this.#placing;
    const fromEnd = this.#blocks - block;
    if (tail !== null && fromEnd <= 2) return this.length - fromEnd * blockBytes;
    return offsetOf(block) + shift;
  }
}

/** What reads where a version is: `versionsIn` finds this. */
export const contentOf = (version: number): number => Math.max(version, 0);

/** What one user may find on one disk. */
export class DiskModel {
  /** by block: versions that may be there, oldest first */
  readonly allowed: number[][];
  /** by block: what a reader sees now, if nothing is in flight there */
  readonly current: number[];

  constructor(blocks: number) {
    this.allowed = Array.from({ length: blocks }, () => [0]);
    this.current = new Array<number>(blocks).fill(0);
  }

  copy(): DiskModel {
    const copy = new DiskModel(0);
    for (const versions of this.allowed) copy.allowed.push([...versions]);
    copy.current.push(...this.current);
    return copy;
  }

  issued(block: number, version: number): void {
    this.allowed[block]?.push(version);
  }

  answered(block: number, version: number): void {
    this.current[block] = version;
  }

  /** A flush that was issued when the disk was at `snapshot` has been answered. */
  flushed(snapshot: readonly number[]): void {
    for (const [block, version] of snapshot.entries()) {
      const versions = this.allowed[block] ?? [];
      const at = versions.indexOf(version);
      if (at > 0) versions.splice(0, at);
    }
  }

  /** This block's current version is durable, and nothing is said of others. */
  durable(block: number): void {
    const versions = this.allowed[block] ?? [];
    const at = versions.indexOf(this.current[block] ?? 0);
    if (at > 0) versions.splice(0, at);
  }

  /** What was asked for has not come to pass, and will not. */
  undone(block: number, version: number): void {
    const versions = this.allowed[block] ?? [];
    const at = versions.indexOf(version);
    if (at >= 0) versions.splice(at, 1);
  }

  /** A reader found this content after nobody could tell what would be there: of zeroes, the last ones. */
  found(block: number, content: number, where: string): void {
    const versions = this.allowed[block] ?? [];
    const at = versions.findLastIndex((version) => contentOf(version) === content);
    assert.ok(at >= 0, `${where}: block ${block} has version ${content}, allowed are ${versions.join(', ')}`);
    versions.splice(at + 1);
    this.current[block] = versions[at] ?? 0;
  }
}

export type GroupModel = Map<string, DiskModel>;

export function copyGroup(group: GroupModel): GroupModel {
  return new Map([...group].map(([disk, model]) => [disk, model.copy()]));
}

export class Checker {
  /** the model of each side, while it serves or since it served last */
  readonly sides = new Map<string, GroupModel>();
  /** by generation: the model when its primary left it */
  readonly #left = new Map<string, GroupModel>();
  /** the generation that each side's model is at */
  readonly #at = new Map<string, string>();
  readonly #blank: GroupModel;
  #versions = 0;

  constructor(disks: readonly string[], blocks: number) {
    this.#blank = new Map(disks.map((disk) => [disk, new DiskModel(blocks)]));
  }

  /** A version that was never written. */
  nextVersion(): number {
    return ++this.#versions;
  }

  model(side: string): GroupModel {
    const known = this.sides.get(side);
    if (known !== undefined) return known;
    const fresh = copyGroup(this.#blank);
    this.sides.set(side, fresh);
    return fresh;
  }

  /**
   * A side's durable record as a primary, each time it changes. `base` is the id that it held before.
   * A going alone or a start leaves a generation; a promotion takes over what a holder of its base has, or what it
   * `chose`.
   * @returns true if it is a promotion, after which the disks can be looked at
   */
  primaryAt(side: string, generation: string, base: string | null, chose: () => GroupModel | null): boolean {
    const at = this.#at.get(side);
    if (at === generation) return false;
    const chosen = chose();
    if (chosen !== null) {
      this.sides.set(side, chosen);
      this.#at.set(side, generation);
      return true;
    }
    const owner = [...this.#at].find(([other, id]) => other !== side && id === base)?.[0];
    let promoted = false;
    if (at !== undefined && at === base) {
      this.#left.set(at, copyGroup(this.model(side)));
    } else if (base !== null) {
      promoted = true;
      const left = this.#left.get(base) ?? (owner === undefined ? undefined : copyGroup(this.model(owner)));
      if (left !== undefined) this.sides.set(side, copyGroup(left));
    }
    this.#at.set(side, generation);
    return promoted;
  }

  /** What stands on a side's disk is something that may stand there. */
  look(side: string, disk: string, image: Uint8Array, layout: Layout, where: string): void {
    for (const [block, allowed] of (this.model(side).get(disk)?.allowed ?? []).entries()) {
      const at = layout.offsetOf(block);
      const bytes = image.subarray(at, at + blockBytes);
      const found = `${side} ${disk} block ${block} has version ${versionsIn(bytes).join('+')}`;
      assert.ok(isMixOf(bytes, allowed), `${where}: ${found}, allowed are ${allowed.join(', ')}`);
    }
  }
}

/** A block that says which version it is, in every sector. */
export function fill(block: Uint8Array, version: number): Uint8Array {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  for (let at = 0; at < block.length; at += 4) view.setUint32(at, version);
  return block;
}

/** The versions that stand in a block: several in one that was torn; a word at a tear may show one that never was. */
export function versionsIn(block: Uint8Array): number[] {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  // The same word all the way through, almost always.
  if (Buffer.compare(block.subarray(4), block.subarray(0, -4)) === 0) return [view.getUint32(0)];
  const versions = new Set<number>();
  for (let at = 0; at + 4 <= block.length; at += 4) versions.add(view.getUint32(at));
  return [...versions];
}

/** Each byte of a block comes from one of these versions: writes in flight tear anywhere. */
export function isMixOf(block: Uint8Array, versions: readonly number[]): boolean {
  const found = versionsIn(block);
  const contents = versions.map(contentOf);
  if (found.every((content) => contents.includes(content))) return true;
  const shift = (at: number): number => 24 - 8 * (at % 4);
  return block.every((byte, at) => contents.some((content) => ((content >>> shift(at)) & 0xff) === byte));
}
