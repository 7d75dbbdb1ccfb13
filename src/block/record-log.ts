/**
 * The record log: append-only records in a file, and a superblock that says which of them count (record-log.md).
 *
 * One module for two users (`shadow`, `journal`): it knows records, lives, syncs and damage; what a record means, and
 * the index over the records, is the user's.
 *
 *     | superblock | superblock | life 3 (ended) | free | life 5: record record record -> | free ...
 *
 * A *life* is a stretch of the file with a salt of its own. An opening that appends begins one; so does whoever wants
 * the space of old records back: no life is ever written over, its space is free once the superblock does not list it
 * any more and nobody reads there. Invariants:
 * - a record counts only if it chains, from the salt of a life in the superblock, through every record before it; so an
 *   append is done only when those before it are;
 * - a life that has ended is durable before the superblock says so (or the log syncs nothing at all);
 * - the first record after a sync stands in a physical block that no synced byte is in;
 * - after a failed append or sync nothing is appended and no sync succeeds, until the log was opened anew.
 */
import type { HostRandom } from '../host/host.ts';
import { viewOf } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import { type Hash64, loadHash64 } from '../util/xxhash.ts';
import {
  alignUp,
  encodeRecord,
  RecordBuffer,
  type RecordHeader,
  type RecordKind,
  recordHeaderBytes,
  recordKinds,
  recordPayloadBytesMax,
  spareBytesMin,
} from './record-format.ts';
import { endLast, firstGap, hex, type Range, Readers, rangeOf, Stretch } from './record-lives.ts';
import type { RecordLogOptions, RecordReader } from './record-options.ts';
import { notScanned, type Scanned, scanLives } from './record-scan.ts';
import { type LogFile, LogSpace } from './record-space.ts';
import { type Life, livesMax, readSuperblock, type Superblock, superblockAreaBytes } from './record-superblock.ts';
import { SuperblockStore } from './record-superblock-store.ts';
import { LogSync } from './record-sync.ts';

const fresh = { clean: true, sequence: 0, lives: [], syncedTo: 0 };

export class RecordLog {
  /** The position of the payload of the last record appended, in bytes of the file. */
  appendedAt = 0;
  /** The first error of an append or a sync; it sticks. */
  failed: BlockError | null = null;
  /** Why records that should be there are not, or may not be; nothing is appended until all are dropped. */
  lost: string | null = null;
  /** This opening has changed the file. */
  changed = false;

  private readonly file: LogFile;
  private readonly hash: Hash64;
  private readonly options: RecordLogOptions;
  private readonly random: HostRandom;
  private readonly space: LogSpace;
  private readonly syncs: LogSync;
  private readonly store: SuperblockStore;
  /** of the superblock as it is written next */
  private clean: boolean;
  /** the lives that count; the last one is appended to while `appending` */
  private lives: Life[];
  private appending = false;
  private salt = 0n;
  private chain: bigint;
  private tail: number;
  /** the bytes of the file before which the present life must end */
  private limit = 0;
  /** the superblock that lists the present life is durable: its records may be written */
  private gate: Promise<void> | null = null;
  private readonly readers = new Readers();
  /** what the lives before the last restart took: the file keeps room for as much again */
  private droppedBytes = 0;
  /** the last append that is not done yet */
  private lastUnderWay: Promise<void> | null = null;
  private scratch: RecordBuffer | null = null;
  private readonly header: RecordHeader;

  private constructor(
    file: LogFile,
    hash: Hash64,
    random: HostRandom,
    options: RecordLogOptions,
    superblock: Superblock,
    found: Scanned,
  ) {
    this.file = file;
    this.hash = hash;
    this.random = random;
    this.options = options;
    this.clean = superblock.clean;
    this.space = new LogSpace(file, options.growBytes, options.durable);
    this.store = new SuperblockStore(file, this.space, hash, superblock);
    this.syncs = new LogSync(
      () => file.flush(),
      (error) => this.fail(error, 'sync'),
      superblock.syncedTo,
    );
    this.chain = found.chain;
    this.tail = found.position;
    const sequence = Math.max(found.sequence, found.durable);
    this.header = {
      kind: recordKinds.data,
      sequence,
      epoch: 0,
      offset: 0,
      length: 0,
      syncedTo: 0,
      payloadBytes: 0,
    };
    this.lives = endLast(superblock.lives, found.sequence, found.chain, found.position);
  }

  /**
   * Opens a log and reads what counts. Nothing is written before the first append: an opening that appends then ends
   * the last life and begins one of its own, durably. A file that is empty or reads as zeroes is a new log.
   *
   * Records that are missing though they were durable, and a log that synced nothing and is found after another boot,
   * open as `lost`.
   * @throws BlockError bad-image: not a log, or of another volume or version
   */
  static async open(
    file: LogFile,
    random: HostRandom,
    options: RecordLogOptions,
    reader: RecordReader,
  ): Promise<RecordLog> {
    const { where, volume, generation, bootId } = options;
    const hash = await loadHash64();
    const superblock = (await readSuperblock(file, hash, where)) ?? {
      ...fresh,
      volume,
      generation,
      bootId,
      user: options.user,
    };
    if (superblock.volume !== volume) {
      throw new BlockError('bad-image', `${where}: belongs to volume "${superblock.volume}", not to "${volume}"`);
    }
    const visit = reader(superblock.user);
    if (!superblock.clean && superblock.bootId !== bootId) {
      const log = new RecordLog(file, hash, random, options, superblock, notScanned(superblock));
      log.lost = 'the machine went down before it was closed, and it was opened with sync=false';
      return log;
    }
    const found = await scanLives(file, hash, superblock, visit);
    const log = new RecordLog(file, hash, random, options, superblock, found);
    if (found.damaged) {
      const { sequence, durable } = found;
      log.lost = `damaged: record ${sequence + 1} does not hold, though records up to ${durable} were durable`;
    }
    return log;
  }

  /** What the log's user keeps in the superblock. */
  get user(): Superblock['user'] {
    return this.store.current.user;
  }

  /** The sequence of the last record; 0: there is none. */
  get lastSequence(): number {
    return this.header.sequence;
  }

  /** Bytes of the file that hold records of the lives that count, whether they are still needed or not. */
  get usedBytes(): number {
    let bytes = this.appending ? this.tail - (this.lives.at(-1)?.start ?? 0) : 0;
    for (const { start, end } of this.lives) if (end !== null) bytes += end.position - start;
    return bytes;
  }

  get lifeCount(): number {
    return this.lives.length;
  }

  // ---------------------------------------------------------------- appending

  /**
   * Appends one record; `payload` is copied before this returns. `appendedAt` is then its payload's position.
   * @param payload at most `recordPayloadBytesMax` bytes; empty for a zero record
   */
  append(kind: RecordKind, epoch: number, offset: number, length: number, payload: Uint8Array): Done {
    if (this.failed !== null) throw this.failed;
    if (this.lost !== null) throw this.lostError();
    if (payload.length > recordPayloadBytesMax) throw new BlockError('invalid-request', 'record payload too long');
    const size = recordHeaderBytes + payload.length;
    if (!this.appending || this.tail + size > this.limit) this.beginLife(size);
    const position = this.tail;
    const buffer = this.takeScratch(payload.length);
    // The one copy: header and payload leave in one write, and the caller has its bytes back.
    buffer.begin(payload);
    const { header } = this;
    header.kind = kind;
    header.sequence += 1;
    header.epoch = epoch;
    header.offset = offset;
    header.length = length;
    header.syncedTo = this.syncs.syncedTo;
    header.payloadBytes = payload.length;
    this.chain = encodeRecord(this.hash, buffer, header, this.salt, this.chain);
    this.tail = position + size;
    this.appendedAt = position + recordHeaderBytes;
    return this.writeOut(position, buffer.record);
  }

  private takeScratch(payloadBytes: number): RecordBuffer {
    if (this.scratch === null || this.scratch.payloadBytesMax < payloadBytes) {
      this.scratch = new RecordBuffer(Math.max(payloadBytes, spareBytesMin));
    }
    return this.scratch;
  }

  private writeOut(position: number, record: Uint8Array): Done {
    const room = this.space.need(position + record.length);
    if (this.gate === null && room === undefined) {
      let done: Done;
      try {
        done = this.file.write(position, record);
      } catch (error) {
        throw this.fail(error, 'append to');
      }
      if (done === undefined && this.lastUnderWay === null) return undefined;
      return this.whenWritten(done);
    }
    return this.whenWritten(
      Promise.all([this.gate, room]).then(() => {
        if (this.failed !== null) throw this.failed;
        return this.file.write(position, record);
      }),
    );
  }

  /** An append is done when all before it are: a torn one takes those behind it along when the process ends. */
  private whenWritten(done: Done): Promise<void> {
    this.scratch = null; // it is being written; the next append takes another
    const written = Promise.all([this.lastUnderWay, done]).then(
      () => {
        if (this.lastUnderWay === written) this.lastUnderWay = null;
        // An append that failed before this one was written leaves a gap that this one stands behind.
        if (this.failed !== null) throw this.failed;
      },
      (error: unknown) => {
        throw this.fail(error, 'append to');
      },
    );
    this.lastUnderWay = written;
    this.syncs.track(written);
    return written;
  }

  private fail(error: unknown, doing: string): BlockError {
    if (this.failed !== null) return this.failed;
    const cause = toBlockError(error, `${doing} ${this.options.where}`);
    this.failed = new BlockError(cause.code, `${cause.message}; it takes no more writes until it is reopened`, {
      errno: cause.errno,
      cause,
    });
    this.syncs.failed = this.failed;
    return this.failed;
  }

  /** The error of whoever needs what is lost. */
  lostError(): BlockError {
    return new BlockError('bad-image', `${this.options.where}: its content is lost: ${this.lost}`);
  }

  /**
   * Makes durable what was appended (and done) before this call. Joins only a sync that has not begun; after a failed
   * one every later one fails too, since the system reports an error once (record-log.md 4).
   */
  sync(): Done {
    if (this.failed !== null) throw this.failed;
    if (this.syncs.syncedTo === this.header.sequence) return undefined;
    return this.syncs.sync(() => {
      this.tail = alignUp(this.tail);
      return this.header.sequence;
    });
  }

  /** Fills `into` from a record's payload. Until it is done, the place is not used for anything else. */
  read(position: number, into: Uint8Array): Done {
    return this.readers.track(this.file.read(position, into));
  }

  // ---------------------------------------------------------------- lives

  /** Lives whose records are all superseded are dropped at the next change of the superblock. */
  keepLivesOf(positions: Iterable<number>): void {
    const kept = new Set<Life>();
    for (const position of positions) {
      const life = this.lives.find(({ start, end }) => position >= start && position < (end?.position ?? this.tail));
      if (life !== undefined) kept.add(life);
      if (kept.size === this.lives.length) return;
    }
    this.lives = this.lives.filter((life) => kept.has(life));
    if (this.lives.length === 0) this.syncs.raise(this.header.sequence);
  }

  /** The next append begins a life of its own: what was appended so far can be told from what follows (`retire`). */
  endLife(): Stretch {
    this.endAppending();
    return new Stretch(this.lives);
  }

  /**
   * Drops ended lives whose records are all superseded by later ones: durably, behind those.
   * @param stretch what `endLife` returned
   */
  async retire(stretch: Stretch): Promise<void> {
    await this.sync();
    const dropped = this.lives.filter((life) => stretch.lives.includes(life));
    this.lives = this.lives.filter((life) => !stretch.lives.includes(life));
    const ranges = this.readers.keep(dropped.map((life) => rangeOf(life, this.tail)));
    await this.publish();
    await this.readers.giveBack(ranges);
  }

  /**
   * Drops every record, without any I/O: what the user keeps elsewhere, durably, says that none counts any more. Their
   * space is used anew from the next append on.
   */
  drop(): void {
    this.endAppending();
    this.droppedBytes = this.usedBytes;
    // No record at or below this one is needed any more, and none gets its number again.
    this.syncs.raise(this.header.sequence);
    if (this.options.durable) this.clean = true;
    void this.readers.giveBack(this.readers.keep(this.lives.map((life) => rangeOf(life, this.tail))));
    this.lives = [];
    this.lost = null;
  }

  /** Drops every record and changes what the user keeps in the superblock, in one write. */
  dropAll(user: Superblock['user']): Promise<void> {
    this.drop();
    return this.publish(user);
  }

  /** Changes what the user keeps in the superblock; durable when it resolves (unless the log is not `durable`). */
  setUser(user: Superblock['user']): Promise<void> {
    return this.publish(user);
  }

  /**
   * The log, or what its content refers to, is about to be changed: from here on it is whole after another boot only if
   * it is closed before (record-log.md 8). Durable when it is done; nothing to do where the log syncs what it must.
   */
  markUnclean(): Done {
    if (this.options.durable || !this.clean || this.lost !== null) return undefined;
    this.clean = false;
    return this.publish();
  }

  private endAppending(): void {
    if (!this.appending) return;
    this.appending = false;
    this.lives = endLast(this.lives, this.header.sequence, this.chain, this.tail);
  }

  private beginLife(size: number): void {
    if (this.lives.length >= livesMax) {
      throw new BlockError(
        'no-space',
        `${this.options.where}: ${livesMax} lives: it must be emptied before it is used`,
      );
    }
    this.endAppending();
    const { start, end } = firstGap(this.taken(), Math.max(size, this.options.growBytes));
    this.salt = viewOf(this.random.bytes(8).slice()).getBigUint64(0);
    this.chain = this.salt;
    this.tail = start;
    this.limit = end;
    this.lives = [...this.lives, { salt: hex(this.salt), start, firstSequence: this.header.sequence + 1, end: null }];
    this.appending = true;
    if (!this.options.durable) this.clean = false;
    const gate = this.publish();
    this.gate = gate;
    gate.then(
      () => {
        if (this.gate === gate) this.gate = null;
        this.returnSpace();
      },
      () => undefined,
    );
  }

  private taken(): Range[] {
    return [...this.lives.map((life) => rangeOf(life, this.tail)), ...this.readers.kept];
  }

  /** A file that was much longer than what is needed now is shortened. */
  private returnSpace(): void {
    const { droppedBytes, options } = this;
    if (droppedBytes === 0) return;
    this.droppedBytes = 0;
    this.space.shrink(superblockAreaBytes + alignUp(2 * droppedBytes) + options.growBytes, () =>
      this.taken().reduce((last, { end }) => Math.max(last, end), superblockAreaBytes),
    );
  }

  // ---------------------------------------------------------------- the superblock

  /** Writes the superblock as it is to be from here on, after what it says has become true. */
  private publish(user?: Superblock['user']): Promise<void> {
    if (this.lost !== null) return Promise.reject(this.lostError());
    const { durable, bootId, generation } = this.options;
    const { lives, clean } = this;
    const ended = lives.findLast(({ end }) => end !== null)?.end?.sequence ?? 0;
    const before = this.syncs.underWay();
    const isFirst = !this.changed;
    this.changed = true;
    return this.store.inTurn(async () => {
      if (before !== undefined) await before;
      if (this.failed !== null) throw this.failed;
      try {
        // What was found at the opening, the newer superblock among it, may be nowhere but in the page cache; so may
        // what was appended since.
        if (durable && (isFirst || ended > this.syncs.syncedTo)) {
          await this.file.flush();
          this.syncs.raise(ended);
        }
        const { current } = this.store;
        const more = { bootId, generation, clean, lives, user: user ?? current.user, syncedTo: this.syncs.syncedTo };
        await this.store.write({ ...current, ...more }, durable || clean !== current.clean);
      } catch (error) {
        throw this.fail(error, 'write the superblock of');
      }
    });
  }

  /**
   * Waits for what is under way and makes it durable; afterwards the file may be closed. A log that had synced nothing
   * is from then on whole after another boot, too.
   * @param others makes durable what the log's content refers to
   */
  async close(others: () => Done): Promise<void> {
    await this.syncs.underWay();
    await this.store.settled();
    await this.space.stop();
    if (!this.changed || this.failed !== null || this.lost !== null) return;
    await this.sync();
    if (this.clean) return;
    await others();
    this.clean = true;
    await this.publish();
  }
}
