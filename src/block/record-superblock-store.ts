/**
 * The superblock of an open record log, and how it is replaced: one write after the other, each over the older copy.
 */
import type { Hash64 } from '../util/xxhash.ts';
import type { LogFile, LogSpace } from './record-space.ts';
import { encodeSuperblock, type Superblock, superblockAreaBytes, superblockPosition } from './record-superblock.ts';

export class SuperblockStore {
  /** the one that was written last, or found */
  current: Superblock;
  private readonly file: LogFile;
  private readonly space: LogSpace;
  private readonly hash: Hash64;
  private writing: Promise<void> = Promise.resolve();

  constructor(file: LogFile, space: LogSpace, hash: Hash64, found: Superblock) {
    this.file = file;
    this.space = space;
    this.hash = hash;
    this.current = found;
  }

  /** Does the work, which writes one, in its turn. */
  inTurn(work: () => Promise<void>): Promise<void> {
    this.writing = this.writing.then(work, work);
    return this.writing;
  }

  /** Ends when nothing is under way, well or badly. */
  async settled(): Promise<void> {
    await Promise.allSettled([this.writing]);
  }

  /** @param mustSync durable when it is done, else sometime */
  async write(content: Superblock, mustSync: boolean): Promise<void> {
    await this.writeCopy(content, mustSync);
    // A new log gets both copies before its first record.
    if (this.current.sequence === 1) await this.writeCopy(content, mustSync);
  }

  private async writeCopy(content: Superblock, mustSync: boolean): Promise<void> {
    const next = { ...content, sequence: this.current.sequence + 1 };
    const room = this.space.need(superblockAreaBytes);
    if (room !== undefined) await room;
    const written = this.file.write(superblockPosition(next.sequence), encodeSuperblock(this.hash, next));
    if (written !== undefined) await written;
    if (mustSync) await this.file.flush();
    this.current = next;
  }
}
