/**
 * What the user of a secondary's view writes beside the checkpoint (lock-step, pair.md 17): each write is there until
 * the next checkpoint, and gone after it.
 */
import type { Done } from '../../src/util/later.ts';

/** What is to be found in one block. */
export interface OwnBlock {
  /** oldest first */
  versions: number[];
  /** what was written over since the last checkpoint, and may be back after a power cut: nobody flushed */
  earlier: number[];
  /** the checkpoint's own content may be there */
  base: boolean;
  /** a write that is not answered; its end is not known if the connection broke */
  underWay: boolean;
}

const notOwn = (): OwnBlock => ({ versions: [], earlier: [], base: true, underWay: false });

export class OwnWrites {
  readonly #disks: readonly string[];
  readonly #blocks: number;
  #own: Map<string, OwnBlock[]>;

  constructor(disks: readonly string[], blocks: number) {
    this.#disks = disks;
    this.#blocks = blocks;
    this.#own = this.#nothing();
  }

  /** It died with its user, or has become the disk. */
  forget(): void {
    this.#own = this.#nothing();
  }

  #nothing(): Map<string, OwnBlock[]> {
    return new Map(this.#disks.map((disk) => [disk, Array.from({ length: this.#blocks }, notOwn)]));
  }

  all(): ReadonlyMap<string, readonly OwnBlock[]> {
    return this.#own;
  }

  at(disk: string, block: number): OwnBlock {
    return this.#own.get(disk)?.[block] ?? notOwn();
  }

  /** @param isSame no checkpoint was made meanwhile */
  async write(
    disk: string,
    block: number,
    version: number,
    write: (version: number) => Done,
    isSame: () => boolean,
  ): Promise<void> {
    const blocks = this.#own.get(disk);
    const own = blocks?.[block];
    if (own === undefined || blocks === undefined) return;
    own.versions.push(version);
    own.underWay = true;
    try {
      await write(version);
    } catch (error) {
      // Nobody knows whether it came to pass; the next checkpoint drops it.
      own.base = true;
      throw error;
    } finally {
      own.underWay = false;
    }
    if (!isSame()) return;
    const earlier = [...own.earlier, ...own.versions.filter((one) => one !== version)];
    blocks[block] = { versions: [version], earlier, base: false, underWay: false };
  }

  /** The writes that a checkpoint which is made now surely drops: those that were answered before. */
  now(): ReadonlyMap<OwnBlock, boolean> {
    return new Map([...this.#own.values()].flat().map((own) => [own, own.underWay]));
  }

  /** The checkpoint is made. @param before what `now` said when it began */
  emptied(before: ReadonlyMap<OwnBlock, boolean>): void {
    for (const blocks of this.#own.values()) {
      for (const [block, own] of blocks.entries()) {
        if (before.get(own) === false) blocks[block] = notOwn();
        else own.base = true;
      }
    }
  }
}
