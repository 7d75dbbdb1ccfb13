/**
 * The compaction of an overlay whose blocks were rewritten many times within an epoch (record-log.md 7): what is still
 * needed of the old lives is appended again, in a life of its own; then the old ones are dropped.
 *
 * It goes on while the overlay is written to, a step a write, so that it keeps up with whoever makes it necessary, and
 * a drained overlay is quiet. Invariant: at every moment the lives that count hold every block, the last record of a
 * block being its newest content: a crash loses nothing.
 */
import type { Stretch } from '../block/record-lives.ts';
import type { RecordLog } from '../block/record-log.ts';
import type { BlockIndex } from '../util/block-index.ts';

export interface CompactionParts {
  readonly log: RecordLog;
  readonly index: BlockIndex;
  /** Ends when the writes that are under way now have entered their blocks. */
  settled(): Promise<void>;
  /** Appends the blocks from this one on again, as many as stand together; their newest content keeps its place. */
  move(block: number, stretch: Stretch): Promise<void>;
}

/** blocks that one step moves, runs of blocks counted once */
const stepBlocks = 16;

export class Compaction {
  /** the step that is under way */
  running: Promise<void> | null = null;
  private readonly parts: CompactionParts;
  private readonly stretch: Stretch;
  private begun = false;
  private slot = 0;
  private slotCount: number;
  private state: 'moving' | 'done' | 'given up' = 'moving';

  constructor(parts: CompactionParts) {
    this.parts = parts;
    this.stretch = parts.log.endLife();
    this.slotCount = parts.index.slotCount;
  }

  /** The old lives are dropped. */
  get isDone(): boolean {
    return this.state === 'done';
  }

  /** The overlay was emptied: what was moved stays where it is. */
  end(): void {
    if (this.state === 'moving') this.state = 'given up';
  }

  /** Goes on for a step, unless one is under way. */
  step(): void {
    if (this.running !== null || this.state !== 'moving') return;
    this.running = this.moveSome()
      .catch(() => this.end())
      .finally(() => {
        this.running = null;
      });
  }

  private async moveSome(): Promise<void> {
    const { index, log } = this.parts;
    if (!this.begun) {
      // Who appended to an old life must have entered its blocks before they are looked for.
      await this.parts.settled();
      this.begun = true;
    }
    for (let moved = 0; moved < stepBlocks && this.state === 'moving'; ) {
      if (index.slotCount !== this.slotCount) {
        // The index has grown and its order is another: those that were moved are passed over quickly.
        this.slotCount = index.slotCount;
        this.slot = 0;
      }
      if (this.slot >= this.slotCount) {
        await log.retire(this.stretch);
        this.state = 'done';
        return;
      }
      const block = index.blockAt(this.slot);
      this.slot += 1;
      if (block === undefined || !this.stretch.has(Math.abs(index.get(block) ?? 0))) continue;
      await this.parts.move(block, this.stretch);
      moved += 1;
    }
  }
}
