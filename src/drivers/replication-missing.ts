/**
 * What a sync copies: the missing blocks, over the one stream it was made for, because a broken link ends it.
 *
 * Invariant: a taken range is held against writes until its copy was sent; from then on it is like any written range,
 * and whatever comes later is sent behind it (pair.md 11).
 */
import type { CopyTarget, CopyTicket } from '../block/copy-target.ts';
import type { DirtyRange } from '../block/dirty-bitmap.ts';
import { writeFlags } from '../block/node.ts';
import type { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { ReplicationMarks } from './replication-marks.ts';
import type { ReplicationStream } from './replication-stream.ts';

export class MissingBlocks implements CopyTarget {
  private readonly stream: ReplicationStream;
  private readonly marks: ReplicationMarks;

  constructor(stream: ReplicationStream, marks: ReplicationMarks) {
    this.stream = stream;
    this.marks = marks;
  }

  get granularity(): number {
    return this.marks.granularity;
  }

  get remainingBytes(): number {
    return this.marks.missingBytes - this.stream.heldBytes;
  }

  next(from: number, lengthMax: number): DirtyRange | null {
    const range = this.stream.nextMissing(from);
    return range === null ? null : { offset: range.offset, length: Math.min(range.length, lengthMax) };
  }

  take(range: DirtyRange): CopyTicket {
    const { stream } = this;
    const hold = stream.hold(range);
    return {
      trim: (length: number): void => stream.trim(hold, length),
      send: (bytes: Uint8Array | null): Done => stream.copy(hold, bytes, writeFlags.none),
      skipZeroes: (): Done =>
        this.marks.wasSent(range.offset, hold.length) ? stream.copy(hold, null, writeFlags.none) : stream.skip(hold),
      giveBack: (): void => stream.release(hold),
    };
  }

  cancel(reason: BlockError): void {
    this.stream.dropCopies(reason);
  }

  flush(): Done {
    return this.stream.flush();
  }
}
