/**
 * The lives of a record log as stretches of its file: which are taken, which are still read, where the next one goes.
 */
import type { Done } from '../util/later.ts';
import { alignUp } from './record-format.ts';
import { type Life, superblockAreaBytes } from './record-superblock.ts';

/** Bytes of the file. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** @param tail where the life ends that is being appended to */
export function rangeOf(life: Life, tail: number): Range {
  return { start: life.start, end: life.end?.position ?? tail };
}

/** The first free stretch of at least `size` bytes. */
export function firstGap(taken: readonly Range[], size: number): Range {
  let start = superblockAreaBytes;
  for (const range of [...taken].sort((a, b) => a.start - b.start)) {
    if (range.start - start >= size) return { start, end: range.start };
    start = Math.max(start, alignUp(range.end));
  }
  return { start, end: Number.MAX_SAFE_INTEGER };
}

/** The lives with the last one ended; one without any record is dropped. */
export function endLast(lives: readonly Life[], sequence: number, chain: bigint, position: number): Life[] {
  const last = lives.at(-1);
  if (last === undefined || last.end !== null) return [...lives];
  const before = lives.slice(0, -1);
  return sequence < last.firstSequence
    ? before
    : [...before, { ...last, end: { sequence, chain: hex(chain), position } }];
}

/** A salt or a chain value as the superblock has it. */
export const hex = (value: bigint): string => value.toString(16).padStart(16, '0');

/** Lives that had ended at one moment. */
export class Stretch {
  readonly lives: readonly Life[];

  constructor(lives: readonly Life[]) {
    this.lives = lives;
  }

  /** A record's payload at this position is in one of them. */
  has(position: number): boolean {
    for (const { start, end } of this.lives)
      if (position >= start && end !== null && position < end.position) return true;
    return false;
  }
}

/** Reads that are under way, and the stretches that wait for them (record-log.md 6). */
export class Readers {
  private readonly reads = new Set<Promise<void>>();
  private readonly ranges = new Set<Range>();

  /** Stretches of dropped lives that may still be read. */
  get kept(): Iterable<Range> {
    return this.ranges;
  }

  track(done: Done): Done {
    if (done === undefined) return undefined;
    this.reads.add(done);
    const ended = (): void => {
      this.reads.delete(done);
    };
    done.then(ended, ended);
    return done;
  }

  /** Nothing else is put there until they are given back. */
  keep(ranges: readonly Range[]): readonly Range[] {
    for (const range of ranges) this.ranges.add(range);
    return ranges;
  }

  /** They are free: at once where nobody reads, else when the reads that are under way now have ended. */
  async giveBack(ranges: readonly Range[]): Promise<void> {
    if (this.reads.size > 0) await Promise.allSettled([...this.reads]);
    for (const range of ranges) this.ranges.delete(range);
  }
}
