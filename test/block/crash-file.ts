/** A file for record logs that can crash, and a log over it. */
import type { RecordHeader } from '../../src/block/record-format.ts';
import { RecordLog } from '../../src/block/record-log.ts';
import type { RecordLogOptions } from '../../src/block/record-options.ts';
import type { LogFile } from '../../src/block/record-space.ts';
import { BlockError } from '../../src/util/errors.ts';

/** A small deterministic generator, so that a failing seed can be run again. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 0x1_0000_0000;
  };
}

/** A file whose writes since the last flush can be lost, torn at 512 bytes and reordered by `crash`. */
export class CrashFile implements LogFile {
  bytes = new Uint8Array(0);
  private durable = new Uint8Array(0);
  private unsynced: { offset: number; from: Uint8Array }[] = [];
  readonly random: () => number;
  failNext: 'write' | 'flush' | null = null;

  constructor(random: () => number) {
    this.random = random;
  }

  /** A file that durably holds these bytes. */
  static holding(bytes: Uint8Array, random: () => number): CrashFile {
    const file = new CrashFile(random);
    file.bytes = bytes.slice();
    file.durable = bytes.slice();
    return file;
  }

  get length(): number {
    return this.bytes.length;
  }

  private maybeLater(): undefined | Promise<void> {
    return this.random() < 0.3 ? new Promise((resolve) => setImmediate(resolve)) : undefined;
  }

  private failing(what: 'write' | 'flush'): void {
    if (this.failNext !== what) return;
    this.failNext = null;
    throw new BlockError('io-error', `injected ${what} error`);
  }

  read(offset: number, into: Uint8Array): undefined {
    into.fill(0);
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): undefined | Promise<void> {
    this.failing('write');
    const copy = from.slice();
    this.bytes.set(copy, offset);
    this.unsynced.push({ offset, from: copy });
    return this.maybeLater();
  }

  flush(): undefined | Promise<void> {
    this.failing('flush');
    const covered = this.unsynced.length;
    const later = this.maybeLater();
    const finish = (): undefined => {
      for (const { offset, from } of this.unsynced.slice(0, covered)) this.durable.set(from, offset);
      this.unsynced = this.unsynced.slice(covered);
    };
    if (later === undefined) return finish();
    return later.then(finish);
  }

  async resize(length: number): Promise<void> {
    for (const name of ['bytes', 'durable'] as const) {
      const resized = new Uint8Array(length);
      resized.set(this[name].subarray(0, length));
      this[name] = resized;
    }
  }

  turn(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  /** The process is gone, its page cache is not. */
  kill(): CrashFile {
    const next = new CrashFile(this.random);
    next.bytes = this.bytes.slice();
    next.durable = this.durable.slice();
    next.unsynced = [...this.unsynced];
    return next;
  }

  /** The power goes; whoever still has this file does nothing to the next. */
  crash(): CrashFile {
    const next = this.kill();
    next.lose();
    return next;
  }

  private lose(): void {
    for (const { offset, from } of this.unsynced) {
      for (let at = offset; at < offset + from.length; ) {
        const end = Math.min((Math.floor(at / 512) + 1) * 512, offset + from.length, this.durable.length);
        if (this.random() < 0.5) this.durable.set(from.subarray(at - offset, Math.max(end, at) - offset), at);
        at = Math.max(end, at + 1);
      }
    }
    this.unsynced = [];
    this.bytes = this.durable.slice();
  }
}

export const options: RecordLogOptions = {
  where: 'log',
  volume: 'v',
  generation: 'g',
  bootId: 'b',
  durable: true,
  growBytes: 64 * 1024,
  user: {},
};

export async function open(file: CrashFile, over: Partial<RecordLogOptions> = {}) {
  const records: { header: RecordHeader; payload: Uint8Array }[] = [];
  const hostRandom = {
    bytes: (count: number) => Uint8Array.from({ length: count }, () => Math.floor(file.random() * 256)),
    fraction: file.random,
  };
  const log = await RecordLog.open(file, hostRandom, { ...options, ...over }, () => (header, position) => {
    const payload = new Uint8Array(header.payloadBytes);
    file.read(position, payload);
    records.push({ header, payload });
  });
  return { log, records };
}
