/**
 * The file that a record log is kept in: made longer ahead of need, and shorter in the background.
 *
 * Invariant: where the log is synced, what is below `room` was written once (record-log.md 5: a write there changes no
 * metadata of the file), and no zeroes are written there any more: records stand only there.
 */
import { BlockError } from '../util/errors.ts';
import { type Deferred, type Done, deferred } from '../util/later.ts';
import { alignUp } from './record-format.ts';

/** What a log is kept in: a `file` node, in effect. */
export interface LogFile {
  readonly length: number;
  read(offset: number, into: Uint8Array): Done;
  write(offset: number, from: Uint8Array): Done;
  flush(): Done;
  /** What is new reads as zeroes. @throws BlockError also where the length is fixed */
  resize(length: number): Promise<void>;
  /** Lets others have their turn: a promise for when that is over. */
  turn(): Promise<void>;
}

/** bytes of zeroes written in one go */
const zeroesBytes = 256 * 1024;
/** bytes that one step gives back: truncating 512 MiB at once takes the file system 0.4 s */
const shrinkStepBytes = 16 * 1024 * 1024;

export class LogSpace {
  /** Bytes from the start of the file that records may stand in. */
  room: number;
  private readonly file: LogFile;
  private readonly growBytes: number;
  private readonly fills: boolean;
  private resizing: Promise<void> | null = null;
  /** it could not be made longer ahead of need: it is tried again when there is need */
  private tight = false;
  private wanted = 0;
  /** those who wait for more room: resolved at each step, and at the end */
  private progress: Deferred | null = null;
  private stopped = false;

  /**
   * @param growBytes how far ahead of need
   * @param fills what is new is written with zeroes: not where nothing is synced
   */
  constructor(file: LogFile, growBytes: number, fills: boolean) {
    this.file = file;
    this.growBytes = growBytes;
    this.fills = fills;
    this.room = file.length;
  }

  /** Room up to `end`: at once where it is there; the file is made longer before it is needed. */
  need(end: number): Done {
    if (end <= this.room) {
      const isNear = end + this.growBytes / 2 > this.room;
      if (isNear && this.resizing === null && !this.tight) this.begin(() => this.grow(alignUp(end) + this.growBytes));
      return undefined;
    }
    return this.waitFor(end);
  }

  /** Returns what is behind `keep` to the file system, in the background, step by step. */
  shrink(keep: number, usedEnd: () => number): void {
    if (this.resizing !== null || this.file.length < keep + shrinkStepBytes) return;
    this.begin(async () => {
      while (this.file.length > keep && this.wanted <= this.room && !this.stopped) {
        const length = Math.max(keep, this.file.length - shrinkStepBytes);
        if (usedEnd() > length) return;
        this.room = Math.min(this.room, length);
        await this.file.resize(length);
        await this.file.turn();
      }
    });
  }

  /** Ends when nothing is under way; what was begun in the background stops early. */
  async stop(): Promise<void> {
    this.stopped = true;
    await this.resizing;
  }

  /** Begins what goes on in the background: a failure there is met again by whoever needs the room. */
  private begin(work: () => Promise<void>): void {
    this.resizing = work()
      .catch(() => {
        this.tight = true;
      })
      .finally(() => {
        this.resizing = null;
        this.tellProgress();
      });
  }

  private tellProgress(): void {
    this.progress?.resolve();
    this.progress = null;
  }

  /** The next step of what is under way: nobody waits for more than is needed, however far ahead the file is made. */
  private nextStep(): Promise<void> {
    this.progress ??= deferred();
    return this.progress.promise;
  }

  private async waitFor(end: number): Promise<void> {
    this.wanted = Math.max(this.wanted, end);
    while (this.resizing !== null && end > this.room) await this.nextStep();
    if (end > this.room) await this.growTo(end);
    if (this.wanted <= this.room) this.wanted = 0;
  }

  private async growTo(end: number): Promise<void> {
    // What is left may be less than one takes ahead: then this much must do.
    let failure: unknown = null;
    this.begin(async () => {
      try {
        await this.grow(alignUp(end) + (this.tight ? 0 : this.growBytes));
      } catch {
        try {
          if (this.room < end) await this.grow(alignUp(end));
        } catch (error) {
          failure = error;
        }
      }
    });
    while (this.resizing !== null && end > this.room) await this.nextStep();
    if (end > this.room) throw failure ?? new BlockError('no-space', `no room for ${end} bytes`);
  }

  private async grow(target: number): Promise<void> {
    const length = Math.max(target, this.wanted);
    if (this.file.length < length) await this.file.resize(length);
    if (!this.fills) {
      this.room = Math.max(this.room, length);
      return;
    }
    const zeroes = new Uint8Array(zeroesBytes);
    while (this.room < length && !(this.stopped && this.room >= this.wanted)) {
      const step = zeroes.subarray(0, Math.min(zeroes.length, length - this.room));
      await this.file.write(this.room, step);
      this.room += step.length;
      this.tellProgress();
      await this.file.turn();
    }
  }
}
