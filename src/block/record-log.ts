/**
 * The record log: append-only records in a file, and a superblock that says which of them count (record-log.md).
 *
 * One module for two users (`shadow`, `journal`): it knows records, lives, syncs and damage; what a record means, and the
 * index over the records, is the user's. Invariants:
 * - a record counts only if it chains, from the salt of a life in the superblock, through every record before it;
 * - the first record after a sync stands in a physical block that no synced byte is in;
 * - after a failed append or sync nothing is appended and no sync succeeds, until the log was opened anew.
 */
import type { HostRandom } from '../host/host.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import {
  encodeRecord,
  type Hash64,
  loadHash64,
  type RecordKind,
  recordHeaderBytes,
  recordPayloadBytesMax,
} from './record-format.ts';
import { type RecordVisitor, scanLives } from './record-scan.ts';
import {
  decodeSuperblock,
  encodeSuperblock,
  livesMax,
  type Superblock,
  superblockAreaBytes,
  superblockBytes,
} from './record-superblock.ts';

/** bytes that a torn write may damage together */
export const physicalBlockBytes = 4096;

/** What a log is kept in: a `file` node, in effect. */
export interface LogFile {
  readonly length: number;
  read(offset: number, into: Uint8Array): Done;
  write(offset: number, from: Uint8Array): Done;
  flush(): Done;
  /** Makes it at least `length` bytes long; what is new reads as zeroes. */
  grow(length: number): Promise<void>;
}

export interface RecordLogOptions {
  /** for messages: the path or node name */
  readonly where: string;
  /** the volume that the log belongs to; a log of another one is refused */
  readonly volume: string;
  readonly generation: string;
  /** what tells one boot of the host from the next */
  readonly bootId: string;
  /** false: nothing is synced but by `sync` (record-log.md 8) */
  readonly durable: boolean;
  /** bytes by which the file is extended ahead of need */
  readonly growBytes: number;
}

const align = (position: number): number => Math.ceil(position / physicalBlockBytes) * physicalBlockBytes;

export class RecordLog {
  /** The position of the payload of the last record appended, in bytes of the file. */
  appendedAt = 0;
  /** The first error of an append or a sync; it sticks. */
  failed: BlockError | null = null;

  private readonly file: LogFile;
  private readonly hash: Hash64;
  private readonly options: RecordLogOptions;
  private readonly random: HostRandom;
  private superblockNow: Superblock;
  private salt = 0n;
  private chain = 0n;
  private sequence: number;
  private syncedTo: number;
  private tail: number;
  private scratch: Uint8Array | null = null;
  private readonly pending = new Set<Promise<void>>();
  private growing: Promise<void> | null = null;
  private syncRunning: Promise<void> | null = null;
  private syncWaiting: Promise<void> | null = null;
  private superblockWriting: Promise<void> = Promise.resolve();

  private constructor(
    file: LogFile,
    hash: Hash64,
    random: HostRandom,
    options: RecordLogOptions,
    superblock: Superblock,
    end: { sequence: number; position: number },
  ) {
    this.file = file;
    this.hash = hash;
    this.random = random;
    this.options = options;
    this.superblockNow = superblock;
    this.sequence = end.sequence;
    this.syncedTo = superblock.syncedTo;
    this.tail = end.position;
  }

  /**
   * Opens a log for appending: reads what counts, ends the last life and begins one of its own, durably.
   * A file without a superblock that is empty or reads as zeroes becomes a new log.
   * @param visit is told each record that counts, in order; the position is its payload's
   * @throws BlockError bad-image: not a log, of another volume or version, or damaged below what was known durable
   */
  static async open(
    file: LogFile,
    random: HostRandom,
    options: RecordLogOptions,
    visit: RecordVisitor,
  ): Promise<RecordLog> {
    const hash = await loadHash64();
    const found = await readSuperblock(file, hash, options);
    const superblock = found ?? freshSuperblock(options);
    const end = await scanLives(file, hash, superblock, options.where, visit);
    const log = new RecordLog(file, hash, random, options, superblock, end);
    if (superblock.lives.length >= livesMax) {
      throw new BlockError(
        'bad-image',
        `${options.where}: ${livesMax} openings since it was last emptied; empty it first`,
      );
    }
    const lives = superblock.lives.map((life, index) =>
      index < superblock.lives.length - 1 || life.end !== null
        ? life
        : { ...life, end: { sequence: end.sequence, chain: hex(end.chain), position: end.position } },
    );
    await log.beginLife(lives, align(end.position));
    return log;
  }

  /** What the log's user keeps in the superblock. */
  get user(): Superblock['user'] {
    return this.superblockNow.user;
  }

  /** The sequence of the last record; 0: there is none. */
  get lastSequence(): number {
    return this.sequence;
  }

  /** Bytes of the file that hold, or held, records of the lives that count. */
  get usedBytes(): number {
    return this.tail - superblockAreaBytes;
  }

  /**
   * Appends one record; `payload` is copied before this returns. `appendedAt` is then its payload's position.
   * @param payload at most `recordPayloadBytesMax` bytes; empty for a zero record
   */
  append(kind: RecordKind, epoch: number, offset: number, length: number, payload: Uint8Array): Done {
    if (this.failed !== null) throw this.failed;
    if (payload.length > recordPayloadBytesMax) throw new BlockError('invalid-request', 'record payload too long');
    const size = recordHeaderBytes + payload.length;
    const position = this.tail;
    const whole = this.takeScratch(size);
    // The one copy: header and payload leave in one write, and the caller has its bytes back.
    whole.set(payload, recordHeaderBytes);
    this.sequence += 1;
    this.chain = encodeRecord(
      this.hash,
      whole.subarray(0, size),
      {
        kind,
        sequence: this.sequence,
        epoch,
        offset,
        length,
        syncedTo: this.syncedTo,
        payloadBytes: payload.length,
      },
      this.salt,
      this.chain,
    );
    this.tail = position + size;
    this.appendedAt = position + recordHeaderBytes;
    return this.writeOut(position, whole, size);
  }

  private takeScratch(size: number): Uint8Array {
    const scratch = this.scratch;
    if (scratch !== null && scratch.length >= size) return scratch;
    this.scratch = new Uint8Array(Math.max(size, recordHeaderBytes + 65536));
    return this.scratch;
  }

  private writeOut(position: number, whole: Uint8Array, size: number): Done {
    const room = this.roomFor(position + size);
    let done: Done;
    try {
      done = room === undefined ? this.file.write(position, whole.subarray(0, size)) : undefined;
    } catch (error) {
      throw this.fail(error, 'append');
    }
    if (room === undefined && done === undefined) return undefined;
    this.scratch = null; // it is being written; the next append takes another
    const written = (
      room === undefined ? Promise.resolve(done) : room.then(() => this.file.write(position, whole.subarray(0, size)))
    ).then(
      () => {
        // An append that failed before this one was written leaves a gap that this one stands behind.
        if (this.failed !== null) throw this.failed;
      },
      (error: unknown) => {
        throw this.fail(error, 'append');
      },
    );
    this.track(written);
    return written;
  }

  private track(written: Promise<void>): void {
    this.pending.add(written);
    const ended = (): void => {
      this.pending.delete(written);
    };
    written.then(ended, ended);
  }

  /** Extends the file ahead of need; a promise only where the bytes up to `end` are not there yet. */
  private roomFor(end: number): Done {
    const { growBytes } = this.options;
    if (end + growBytes / 2 > this.file.length && this.growing === null) {
      const target = align(end) + growBytes;
      this.growing = this.file.grow(target).finally(() => {
        this.growing = null;
      });
      this.growing.catch((error: unknown) => this.fail(error, 'extend'));
    }
    if (end <= this.file.length) return undefined;
    return (this.growing ?? Promise.resolve()).then(() => this.roomFor(end));
  }

  private fail(error: unknown, doing: string): BlockError {
    const cause = toBlockError(error, `${doing} ${this.options.where}`);
    this.failed ??= new BlockError(cause.code, `${cause.message}; the log takes no more writes until it is reopened`, {
      errno: cause.errno,
      cause,
    });
    return this.failed;
  }

  /**
   * Makes durable what was appended (and done) before this call. Joins only a sync that has not begun; after a failed one
   * every later one fails too, since the system reports an error once (record-log.md 4).
   */
  sync(): Done {
    if (this.failed !== null) throw this.failed;
    if (this.syncWaiting !== null) return this.syncWaiting;
    if (this.syncRunning === null) return this.beginSync();
    const next = this.syncRunning.then(
      () => this.beginSync(),
      () => this.beginSync(),
    );
    this.syncWaiting = next;
    return next;
  }

  private beginSync(): Done {
    this.syncWaiting = null;
    if (this.failed !== null) throw this.failed;
    const upTo = this.sequence;
    this.tail = align(this.tail);
    if (this.pending.size === 0) {
      let done: Done;
      try {
        done = this.file.flush();
      } catch (error) {
        throw this.fail(error, 'sync');
      }
      if (done === undefined) {
        this.syncedTo = upTo;
        return undefined;
      }
      return this.runSync(done, upTo);
    }
    return this.runSync(
      Promise.allSettled(this.pending).then(() => this.file.flush()),
      upTo,
    );
  }

  private runSync(done: Promise<void>, upTo: number): Promise<void> {
    const running = done.then(
      () => {
        this.syncRunning = null;
        if (this.failed !== null) throw this.failed;
        this.syncedTo = Math.max(this.syncedTo, upTo);
      },
      (error: unknown) => {
        this.syncRunning = null;
        throw this.fail(error, 'sync');
      },
    );
    this.syncRunning = running;
    return running;
  }

  /** Fills `into` from a record's payload. */
  read(position: number, into: Uint8Array): Done {
    return this.file.read(position, into);
  }

  /** Changes what the user keeps in the superblock; durable when it resolves (unless the log is not `durable`). */
  setUser(user: Superblock['user']): Promise<void> {
    return this.writeSuperblock({ user });
  }

  /**
   * Drops every record and begins again at the start of the file: its space is used anew. The caller has made sure that
   * no record is read any more.
   */
  async restart(user: Superblock['user']): Promise<void> {
    await Promise.allSettled(this.pending);
    await this.beginLife([], superblockAreaBytes, user);
  }

  private async beginLife(lives: Superblock['lives'], start: number, user?: Superblock['user']): Promise<void> {
    const salt = hex(new DataView(this.random.bytes(8).slice().buffer).getBigUint64(0));
    await this.writeSuperblock({
      lives: [...lives, { salt, start, firstSequence: this.sequence + 1, end: null }],
      ...(user === undefined ? {} : { user }),
    });
    this.salt = BigInt(`0x${salt}`);
    this.chain = this.salt;
    this.tail = start;
  }

  private writeSuperblock(change: Partial<Superblock>): Promise<void> {
    const write = async (): Promise<void> => {
      if (this.failed !== null) throw this.failed;
      const next: Superblock = {
        ...this.superblockNow,
        bootId: this.options.bootId,
        generation: this.options.generation,
        ...change,
        sequence: this.superblockNow.sequence + 1,
        syncedTo: this.syncedTo,
      };
      try {
        if (this.file.length < superblockAreaBytes) await this.file.grow(superblockAreaBytes + this.options.growBytes);
        await this.file.write((next.sequence % 2) * superblockBytes, encodeSuperblock(this.hash, next));
        if (this.options.durable) await this.file.flush();
      } catch (error) {
        throw this.fail(error, 'write the superblock of');
      }
      this.superblockNow = next;
    };
    this.superblockWriting = this.superblockWriting.then(write, write);
    return this.superblockWriting;
  }

  /** Waits for what is under way and makes it durable; afterwards the file may be closed. */
  async close(): Promise<void> {
    await Promise.allSettled(this.pending);
    await Promise.allSettled([this.growing, this.superblockWriting]);
    if (this.failed === null) await this.sync();
  }
}

const hex = (value: bigint): string => value.toString(16).padStart(16, '0');

function freshSuperblock(options: RecordLogOptions): Superblock {
  const { volume, generation, bootId } = options;
  return { volume, generation, bootId, sequence: 0, lives: [], syncedTo: 0, user: {} };
}

/** The newer whole copy, or null for a file that never was a log. */
async function readSuperblock(file: LogFile, hash: Hash64, options: RecordLogOptions): Promise<Superblock | null> {
  const { where, volume } = options;
  const area = new Uint8Array(Math.min(superblockAreaBytes, file.length));
  await file.read(0, area);
  const copies: Superblock[] = [];
  for (let at = 0; at + superblockBytes <= area.length; at += superblockBytes) {
    const copy = decodeSuperblock(hash, area.subarray(at, at + superblockBytes), where);
    if (copy !== null) copies.push(copy);
  }
  const newest = copies.sort((a, b) => b.sequence - a.sequence)[0];
  if (newest === undefined) {
    if (area.every((byte) => byte === 0)) return null;
    throw new BlockError('bad-image', `${where}: not a record log, or both copies of its superblock are damaged`);
  }
  if (newest.volume !== volume) {
    throw new BlockError('bad-image', `${where}: belongs to volume "${newest.volume}", not to "${volume}"`);
  }
  return newest;
}
