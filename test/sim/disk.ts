/**
 * What a simulated machine's disk holds, apart from what its operating system only has in memory.
 *
 * Every file has two states: what a reader sees, and what is durable; `changes` leads from the second to the first. A
 * `sync` makes the changes durable that were done before it began. A power cut leaves of each dirty sector of 512 bytes
 * *some* version between the two, and of the names that no folder sync covered some subset: nothing else may be relied
 * on.
 */
import { dirname } from 'node:path/posix';
import type { SeededRandom } from './random.ts';

/** What a disk writes whole or not at all. */
const sectorLength = 512;
/** The grain of holes. */
const pageLength = 4096;
/** A zeroed range above this is torn as a whole, not by sectors. */
const tornRangeMax = 1 << 22;

/** bytes of a write from which on it is worth a look whether it is all zeroes: space written ahead of need */
const zeroesLookedFor = 1 << 16;
/** A page of zeroes is this one, in every file, until something is written there. */
const zeroPage = new Uint8Array(pageLength);

type Pages = Map<number, Uint8Array>;

/** A change that is not durable yet. */
interface Change {
  /** counts over the whole disk */
  readonly order: number;
  readonly offset: number;
  readonly length: number;
  /** null: zeroes */
  readonly data: Uint8Array | null;
  /** zeroes that leave a hole */
  readonly hole: boolean;
  /** the file's size after it */
  readonly size: number;
  /** a sync failed on it: the system has forgotten that it is dirty, and no later sync writes it */
  lost: boolean;
}

/** How much of what was not synced a power cut leaves. */
export type CutStyle = 'nothing' | 'everything' | 'prefix' | 'some changes' | 'some sectors';

export interface FileLock {
  readonly holder: object;
  readonly byte: number;
  exclusive: boolean;
}

export class SimInode {
  size = 0;
  modifiedMs = 0;
  readonly locks: FileLock[] = [];
  /** syncs that failed: each file that was open then is told of it once, at its next sync */
  syncFailures = 0;
  #durableSize = 0;
  #pages: Pages = new Map();
  readonly #durablePages: Pages = new Map();
  #changes: Change[] = [];
  readonly #disk: SimDisk;

  constructor(disk: SimDisk) {
    this.#disk = disk;
  }

  get allocated(): number {
    return this.#pages.size * pageLength;
  }

  read(offset: number, into: Uint8Array): void {
    into.fill(0);
    const end = Math.min(offset + into.length, this.size);
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / pageLength);
      const within = at - index * pageLength;
      const count = Math.min(pageLength - within, end - at);
      const page = this.#pages.get(index);
      if (page !== undefined && page !== zeroPage) into.set(page.subarray(within, within + count), at - offset);
      at += count;
    }
  }

  write(offset: number, from: Uint8Array): void {
    if (from.length === 0) return;
    const data = from.length >= zeroesLookedFor && isZero(from) ? null : from.slice();
    this.#change(offset, from.length, data, false, Math.max(this.size, offset + from.length));
  }

  /** Zeroes; never beyond the end. */
  zero(offset: number, length: number, hole: boolean): void {
    const count = Math.min(length, this.size - offset);
    if (count > 0) this.#change(offset, count, null, hole, this.size);
  }

  truncate(size: number): void {
    this.#change(size, Math.max(0, this.size - size), null, true, size);
  }

  /** The first page at or after `offset` that is there (or that is not); null: none before the end. */
  seek(offset: number, wanted: 'data' | 'hole'): number | null {
    if (offset >= this.size) return null;
    const first = Math.floor(offset / pageLength);
    let found = first;
    if (wanted === 'hole') while (this.#pages.has(found)) found++;
    else if (!this.#pages.has(first)) {
      found = Number.POSITIVE_INFINITY;
      for (const index of this.#pages.keys()) if (index > first) found = Math.min(found, index);
    }
    const at = Math.max(offset, found * pageLength);
    return at < this.size ? at : null;
  }

  /** Makes durable what was done up to the change with this order. */
  sync(order: number): void {
    const covered = this.#changes.filter((change) => change.order <= order && !change.lost);
    this.#changes = this.#changes.filter((change) => change.order > order || change.lost);
    for (const change of covered) {
      apply(this.#durablePages, change, change.offset, change.length);
      this.#durableSize = change.size;
    }
  }

  /** A sync failed: those changes count as clean now, and the page cache may drop them at once. */
  loseUnsynced(order: number, dropNow: boolean): void {
    this.syncFailures++;
    for (const change of this.#changes) if (change.order <= order) change.lost = true;
    if (dropNow) this.dropLost();
  }

  /** The page cache forgets what a failed sync has not written. */
  dropLost(): void {
    this.#changes = this.#changes.filter((change) => !change.lost);
    this.#pages = copyOf(this.#durablePages);
    for (const change of this.#changes) apply(this.#pages, change, change.offset, change.length);
  }

  /** A page that is written again is dirty as a whole: with it a sync writes what an earlier one has failed on. */
  #redirty(start: number, end: number): void {
    const [from, to] = [Math.floor(start / pageLength) * pageLength, Math.ceil(end / pageLength) * pageLength];
    this.#changes = this.#changes.flatMap((change) => {
      const last = change.offset + change.length;
      if (!change.lost || change.offset >= to || last <= from) return [change];
      const [first, behind] = [Math.max(from, change.offset), Math.min(to, last)];
      const dirty = partOf(change, first, behind).map((part) => ({ ...part, lost: false }));
      return [...partOf(change, change.offset, first), ...dirty, ...partOf(change, behind, last)];
    });
  }

  powerCut(style: CutStyle, random: SeededRandom): void {
    const changes = this.#changes;
    this.#changes = [];
    if (changes.length > 0) this.#tear(changes, style, random);
    this.size = this.#durableSize;
    this.#pages = copyOf(this.#durablePages);
  }

  #tear(changes: readonly Change[], style: CutStyle, random: SeededRandom): void {
    const cut = random.below(changes.length + 1);
    const kept = changes.map((_, index) => {
      if (style === 'prefix') return index < cut;
      return style === 'everything' || (style !== 'nothing' && random.chance(0.5));
    });
    // A sector holds what the page cache held at one moment: all the changes to it up to the last that was kept.
    const versions = new Map<number, number>();
    changes.forEach((change, index) => {
      if (change.length > tornRangeMax) return;
      for (const sector of sectorsOf(change))
        if (style === 'some sectors' ? random.chance(0.5) : kept[index]) versions.set(sector, index);
    });
    changes.forEach((change, index) => {
      if (change.length > tornRangeMax) {
        if (kept[index]) apply(this.#durablePages, change, change.offset, change.length);
        return;
      }
      for (const sector of sectorsOf(change)) {
        if (index > (versions.get(sector) ?? -1)) continue;
        const from = Math.max(change.offset, sector * sectorLength);
        const to = Math.min(change.offset + change.length, (sector + 1) * sectorLength);
        apply(this.#durablePages, change, from, to - from);
      }
    });
    const sizeAt = style.startsWith('some') ? random.below(changes.length + 1) - 1 : kept.lastIndexOf(true);
    this.#durableSize = changes[sizeAt]?.size ?? this.#durableSize;
    dropBeyond(this.#durablePages, this.#durableSize);
  }

  #change(offset: number, length: number, data: Uint8Array | null, hole: boolean, size: number): void {
    if (this.#changes.some(({ lost }) => lost)) this.#redirty(offset, offset + length);
    const change: Change = { order: this.#disk.nextOrder(this), offset, length, data, hole, size, lost: false };
    this.#changes.push(change);
    apply(this.#pages, change, offset, length);
    this.size = size;
  }
}

/** The part of a change from `from` to `to`, as a change of its own; none where that is empty. */
function partOf(change: Change, from: number, to: number): Change[] {
  if (from >= to) return [];
  const { offset, data } = change;
  return [{ ...change, offset: from, length: to - from, data: data?.subarray(from - offset, to - offset) ?? null }];
}

/** Changes pages by the part of a change that lies in `[offset, offset + length)`. */
function apply(pages: Pages, change: Change, offset: number, length: number): void {
  const end = offset + length;
  if (change.hole && length > tornRangeMax) {
    for (const [index, page] of pages) {
      const from = Math.max(0, offset - index * pageLength);
      const to = Math.min(pageLength, end - index * pageLength);
      if (from === 0 && to === pageLength) pages.delete(index);
      else if (from < to) page.fill(0, from, to);
    }
    return;
  }
  for (let at = offset; at < end; ) {
    const index = Math.floor(at / pageLength);
    const within = at - index * pageLength;
    const count = Math.min(pageLength - within, end - at);
    let page = pages.get(index);
    if (change.data === null && change.hole && (page === undefined || count === pageLength)) pages.delete(index);
    else {
      if (change.data === null && (page === undefined || page === zeroPage || count === pageLength)) {
        pages.set(index, zeroPage);
        at += count;
        continue;
      }
      if (page === undefined || page === zeroPage) {
        page = new Uint8Array(pageLength);
        pages.set(index, page);
      }
      if (change.data === null) page.fill(0, within, within + count);
      else page.set(change.data.subarray(at - change.offset, at - change.offset + count), within);
    }
    at += count;
  }
}

function isZero(bytes: Uint8Array): boolean {
  return bytes[0] === 0 && Buffer.compare(bytes.subarray(1), bytes.subarray(0, -1)) === 0;
}

function dropBeyond(pages: Pages, size: number): void {
  for (const [index, page] of pages) {
    if (index * pageLength >= size) pages.delete(index);
    else page.fill(0, Math.min(pageLength, size - index * pageLength));
  }
}

function copyOf(pages: Pages): Pages {
  const copy: Pages = new Map();
  for (const [index, page] of pages) copy.set(index, page === zeroPage ? page : page.slice());
  return copy;
}

function* sectorsOf(change: Change): Generator<number> {
  const last = Math.floor((change.offset + change.length - 1) / sectorLength);
  for (let sector = Math.floor(change.offset / sectorLength); sector <= last; sector++) yield sector;
}

/** A creation, removal or rename: names that lead somewhere else now, together or not at all. */
interface NameChange {
  readonly folders: readonly string[];
  readonly names: readonly (readonly [path: string, inode: SimInode | null])[];
}

export class SimDisk {
  readonly folders = new Set<string>(['/']);
  readonly names = new Map<string, SimInode>();
  /** what the machine says is free, bytes */
  freeBytes = 2 ** 40;
  /** what its file system knows besides writing */
  knows = { holes: true, zeroes: true };
  #durableNames = new Map<string, SimInode>();
  #nameChanges: NameChange[] = [];
  /** the files that have had changes since the last power cut */
  readonly #touched = new Set<SimInode>();
  #order = 0;

  /** The number of the last change of any file: a sync covers up to it. */
  get order(): number {
    return this.#order;
  }

  nextOrder(inode: SimInode): number {
    this.#touched.add(inode);
    return ++this.#order;
  }

  create(path: string): SimInode {
    const inode = new SimInode(this);
    this.#rename([[path, inode]]);
    return inode;
  }

  remove(path: string): void {
    this.#rename([[path, null]]);
  }

  /** The new name takes the place of what was there; the old one goes. */
  move(from: string, inode: SimInode, to: string): void {
    if (from === to) return;
    this.#rename([
      [to, inode],
      [from, null],
    ]);
  }

  syncFolder(path: string): void {
    const covered = this.#nameChanges.filter((change) => change.folders.includes(path));
    this.#nameChanges = this.#nameChanges.filter((change) => !change.folders.includes(path));
    for (const change of covered) applyNames(this.#durableNames, change);
  }

  powerCut(style: CutStyle, random: SeededRandom): void {
    const cut = random.below(this.#nameChanges.length + 1);
    this.#nameChanges.forEach((change, index) => {
      const prefix = style === 'prefix' && index < cut;
      if (style === 'everything' || prefix || (style.startsWith('some') && random.chance(0.5)))
        applyNames(this.#durableNames, change);
    });
    this.#nameChanges = [];
    for (const inode of this.#touched) inode.powerCut(style, random);
    this.#touched.clear();
    this.names.clear();
    for (const [path, inode] of this.#durableNames) this.names.set(path, inode);
  }

  #rename(names: NameChange['names']): void {
    const change = { folders: [...new Set(names.map(([path]) => dirname(path)))], names };
    this.#nameChanges.push(change);
    applyNames(this.names, change);
  }
}

function applyNames(names: Map<string, SimInode>, change: NameChange): void {
  for (const [path, inode] of change.names)
    if (inode === null) names.delete(path);
    else names.set(path, inode);
}
