/**
 * What may stand on the disks of a real pair: the checker of test/sim/checker.ts, for processes that are seen only from
 * outside.
 *
 * Which generation a side serves stands in its group file. A side that goes alone makes its new generation durable
 * before it answers (pair.md 7). So a flush counts for a generation if the group file shows that generation when it is
 * read *after the answer has come*; and a secondary that is promoted from a generation must hold every such flush. What
 * is seen late is only ever promised to fewer sides, never to more.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { copyBytes, decodeCopy, type GroupRecord } from '../../src/pair/generation.ts';
import { type Hash64, loadHash64 } from '../../src/util/xxhash.ts';
import { blockBytes, copyGroup, DiskModel, type GroupModel, offsetOf, versionsIn } from '../sim/checker.ts';

export type SideName = 'a' | 'b';
export const sideNames: readonly SideName[] = ['a', 'b'];
export const otherSide = (side: SideName): SideName => (side === 'a' ? 'b' : 'a');

interface SideView {
  /** the generation that the side's model is at */
  at: string | null;
  model: GroupModel;
  /** the group file as it was read last */
  bytes: Buffer;
  record: GroupRecord | null;
}

export class History {
  promotions = 0;
  /** calls with a line for each new generation of a primary */
  readonly #say: (side: SideName, text: string) => void;
  readonly #data: string;
  readonly #hash: Hash64;
  readonly #views: ReadonlyMap<SideName, SideView>;
  /** by generation: the model when its primary left it */
  readonly #left = new Map<string, GroupModel>();
  /** by generation: the versions that stood on the other side's disks when it was promoted from there */
  readonly #promotedFrom = new Map<string, ReadonlyMap<string, readonly number[]>>();
  /** generations that a primary has offered in a switchover */
  readonly #offered = new Set<string>();
  #versions = 0;

  /** @param data holds the data folders `a` and `b` */
  static async open(
    data: string,
    disks: readonly string[],
    blocks: number,
    say: (side: SideName, text: string) => void,
  ): Promise<History> {
    return new History(data, disks, blocks, say, await loadHash64());
  }

  private constructor(
    data: string,
    disks: readonly string[],
    blocks: number,
    say: (side: SideName, text: string) => void,
    hash: Hash64,
  ) {
    this.#data = data;
    this.#say = say;
    this.#hash = hash;
    const blank = (): GroupModel => new Map(disks.map((disk) => [disk, new DiskModel(blocks)]));
    const view = (): SideView => ({ at: null, model: blank(), bytes: Buffer.alloc(0), record: null });
    this.#views = new Map(sideNames.map((side) => [side, view()]));
  }

  /** A version that was never written; later ones are larger. */
  nextVersion(): number {
    return ++this.#versions;
  }

  /** What the users of a side may find on a disk, as of the last `observe`. */
  model(side: SideName, disk: string): DiskModel {
    return this.#view(side).model.get(disk) ?? assert.fail(`no disk ${disk}`);
  }

  record(side: SideName): GroupRecord | null {
    return this.#view(side).record;
  }

  /** Reads both group files and follows what has changed. Synchronous: what was answered before counts as before. */
  observe(): void {
    const changed: { side: SideName; record: GroupRecord }[] = [];
    for (const side of sideNames) {
      const record = this.#read(side);
      if (record === null) continue;
      if (record.handingOver !== null) this.#offered.add(record.handingOver.id);
      if (record.role === 'primary' && record.generation !== null && record.generation.id !== this.#view(side).at) {
        changed.push({ side, record });
      }
    }
    // Who only went on by himself comes first: the other may have been promoted from what that one left.
    const rank = (one: { side: SideName; record: GroupRecord }): number =>
      one.record.ancestors[0] === this.#view(one.side).at ? 0 : (one.record.generation?.number ?? 0);
    changed.sort((one, another) => rank(one) - rank(another));
    for (const { side, record } of changed) this.#entered(side, record);
  }

  /** A flush of a disk has been answered that was issued when the disk was at `snapshot`. */
  flushed(side: SideName, disk: string, model: DiskModel, snapshot: readonly number[]): void {
    this.observe();
    this.#holdsAfterPromotion(side, disk, snapshot);
    model.flushed(snapshot);
  }

  /** A write with FUA has been answered. */
  durable(side: SideName, disk: string, model: DiskModel, block: number, version: number): void {
    this.observe();
    const sparse: number[] = [];
    sparse[block] = version;
    this.#holdsAfterPromotion(side, disk, sparse);
    const versions = model.allowed[block] ?? [];
    const at = versions.indexOf(version);
    if (at > 0) versions.splice(0, at);
  }

  /** What a reader of a serving side found in a block, when nothing is under way there. */
  found(model: DiskModel, block: number, versions: readonly number[], where: string): void {
    const allowed = model.allowed[block] ?? [];
    // A killed process leaves the page cache: what this side itself has answered stays, flushed or not.
    const least = model.current[block] ?? 0;
    const possible = allowed.filter((version) => version >= least);
    const said = `${where}: block ${block} has version ${versions.join(' and ')}, allowed are ${possible.join(', ')}`;
    assert.ok(versions.length === 1 && possible.includes(versions[0] ?? -1), said);
    model.found(block, versions[0] ?? 0, where);
  }

  /** The versions on a side's image, by block. */
  image(side: SideName, disk: string): number[][] {
    const file = openSync(join(this.#data, side, `${disk}.img`), 'r');
    try {
      return this.model(side, disk).allowed.map((_versions, block) => {
        const bytes = Buffer.alloc(blockBytes);
        readSync(file, bytes, 0, blockBytes, offsetOf(block));
        return versionsIn(bytes);
      });
    } finally {
      closeSync(file);
    }
  }

  #view(side: SideName): SideView {
    return this.#views.get(side) ?? assert.fail(`no side ${side}`);
  }

  /** The newer valid copy; what was read before if there is none (yet). */
  #read(side: SideName): GroupRecord | null {
    const view = this.#view(side);
    let bytes: Buffer;
    try {
      bytes = readFileSync(join(this.#data, side, 'group'));
    } catch {
      return view.record;
    }
    if (bytes.equals(view.bytes)) return view.record;
    let newest = -1;
    for (const at of [0, copyBytes]) {
      const copy = decodeCopy(bytes.subarray(at, at + copyBytes), this.#hash);
      if (copy.kind !== 'valid' || copy.sequence < newest) continue;
      newest = copy.sequence;
      view.record = copy.record;
    }
    view.bytes = bytes;
    return view.record;
  }

  /** A primary's durable record names another generation than before. */
  #entered(side: SideName, record: GroupRecord): void {
    const view = this.#view(side);
    const was = view.at;
    const id = record.generation?.id ?? assert.fail('no generation');
    const base = record.ancestors[0] ?? null;
    view.at = id;
    if (base === null) {
      assert.equal(was, null, `${side} opened a generation without ancestors`);
      return;
    }
    if (base === was) {
      this.#say(side, `goes from generation ${was} to ${id}`);
      this.#left.set(was, copyGroup(view.model));
      return;
    }
    const other = this.#view(otherSide(side));
    const source = this.#left.get(base) ?? (other.at === base ? other.model : undefined);
    if (source !== undefined) {
      this.#promoted(side, id, base, source);
      return;
    }
    // Several of its own between two looks.
    const known = was === null ? -1 : record.ancestors.indexOf(was);
    assert.ok(known >= 0, `${side} opened ${id} from ${base}, which nobody was seen to serve`);
    for (const one of record.ancestors.slice(0, known + 1)) this.#left.set(one, copyGroup(view.model));
  }

  /** The side's disks must hold what it is answerable for; after a switchover, everything that was answered. */
  #promoted(side: SideName, id: string, base: string, source: GroupModel): void {
    const exact = this.#offered.has(id);
    this.#say(side, `is promoted from generation ${base} to ${id}${exact ? ' by a switchover' : ''}`);
    this.promotions++;
    const view = this.#view(side);
    view.model = copyGroup(source);
    const images = new Map<string, number[]>();
    for (const [disk, model] of view.model) {
      if (!exact) for (const [block, allowed] of model.allowed.entries()) model.current[block] = allowed[0] ?? 0;
      const where = `${side} ${disk} at its promotion${exact ? ' by a switchover' : ''}`;
      for (const [block, versions] of this.image(side, disk).entries()) this.found(model, block, versions, where);
      images.set(disk, [...model.current]);
    }
    this.#promotedFrom.set(base, images);
  }

  /**
   * A flush may be answered late, when the other side has been promoted from the very generation that it counts for:
   * then that one must have had it. (Versions of a block grow in the order of its writes.)
   */
  #holdsAfterPromotion(side: SideName, disk: string, snapshot: readonly number[]): void {
    const at = this.#view(side).at;
    const image = at === null ? undefined : this.#promotedFrom.get(at)?.get(disk);
    for (const [block, version] of snapshot.entries()) {
      const there = image?.[block];
      if (there === undefined || version === undefined) continue;
      const said = `${side} ${disk} answered a flush of block ${block} at version ${version} in generation ${at}`;
      assert.ok(there >= version, `${said}, from which the other side was promoted with version ${there}`);
    }
  }
}
