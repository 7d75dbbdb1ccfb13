/**
 * The long work of a primary towards its target: comparing all disks by checksums, and the jobs that copy what is
 * missing. Both are begun, go on by themselves, and tell their end; `stop` returns when nothing of them is under way.
 *
 * Compare is sound although users write meanwhile: it runs only in mode alone, where the filter marks every write in
 * the tick in which it begins, and the target does not change (its exports are closed). So a block is marked if it was
 * read different, or if it was written at any time since before the first read.
 */
import type { QmpEvent, QmpTarget } from '../qmp/target.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { type Deferred, deferred } from '../util/later.ts';
import type { DiskConfig } from './config.ts';
import type { PairDisks } from './disks.ts';
import type { Message, MessageOf } from './messages.ts';
import type { Range } from './ranges.ts';

/** bytes of one request for checksums */
export const compareChunkBytes = 16 * 2 ** 20;
/** bytes a checksum stands for */
export const compareBlockBytes = 65_536;

export interface WorkEvents {
  compared(): void;
  copied(): void;
  failed(error: string): void;
}

export interface SyncProgress {
  readonly what: 'compare' | 'copy';
  readonly doneBytes: number;
  readonly totalBytes: number;
}

interface Work {
  readonly what: 'compare' | 'copy';
  stopped: boolean;
  doneBytes: number;
  /** a copy: more was marked meanwhile, perhaps on a disk whose job has ended */
  again: boolean;
  /** ends when nothing of it is under way; never rejects */
  ended: Promise<void>;
}

export class SyncWork {
  readonly #engine: QmpTarget;
  readonly #disks: PairDisks;
  readonly #send: (message: Message) => boolean;
  readonly #events: WorkEvents;
  #work: Work | null = null;
  #requests = 0;
  readonly #waiting = new Map<number, Deferred<string[]>>();
  /** jobs by id, that have not ended */
  readonly #jobs = new Map<string, Deferred>();

  constructor(engine: QmpTarget, disks: PairDisks, send: (message: Message) => boolean, events: WorkEvents) {
    this.#engine = engine;
    this.#disks = disks;
    this.#send = send;
    this.#events = events;
  }

  startCompare(): void {
    this.#start(
      'compare',
      (work) => this.#compare(work),
      () => this.#events.compared(),
    );
  }

  /** Copies what the bitmaps of all disks miss. While a copy runs: once more after it, then told once. */
  startCopy(targetIsZero: boolean): void {
    if (this.#work?.what === 'copy') this.#work.again = true;
    this.#start(
      'copy',
      (work) => this.#copy(work, targetIsZero),
      () => this.#events.copied(),
    );
  }

  /** Ends what runs, without telling anybody. */
  async stop(): Promise<void> {
    const work = this.#work;
    this.#work = null;
    if (work === null) return;
    work.stopped = true;
    const gone = new BlockError('cancelled', 'the session ended');
    for (const waiting of this.#waiting.values()) waiting.reject(gone);
    this.#waiting.clear();
    for (const id of this.#jobs.keys()) await this.#engine.execute('job-cancel', { id }).catch(() => undefined);
    await work.ended;
  }

  async progress(): Promise<SyncProgress | null> {
    const work = this.#work;
    if (work === null) return null;
    const sizes = this.#disks.disks.reduce((sum, disk) => sum + disk.size, 0);
    if (work.what === 'compare') return { what: 'compare', doneBytes: work.doneBytes, totalBytes: sizes };
    const jobs = (await this.#engine.execute('query-jobs')) as {
      id: string;
      'current-progress': number;
      'total-progress': number;
    }[];
    const own = jobs.filter((job) => this.#jobs.has(job.id));
    return {
      what: 'copy',
      doneBytes: own.reduce((sum, job) => sum + job['current-progress'], 0),
      totalBytes: own.reduce((sum, job) => sum + job['total-progress'], 0),
    };
  }

  onChecksums(message: MessageOf<'checksums'>): void {
    const waiting = this.#waiting.get(message.request);
    this.#waiting.delete(message.request);
    if (message.error === null) waiting?.resolve(message.checksums);
    else waiting?.reject(new BlockError('io-error', `the other side: ${message.error}`));
  }

  onEngineEvent({ event, data }: QmpEvent): void {
    if (event !== 'BLOCK_JOB_COMPLETED' && event !== 'BLOCK_JOB_CANCELLED') return;
    const job = typeof data.device === 'string' ? this.#jobs.get(data.device) : undefined;
    const { error } = data;
    if (event === 'BLOCK_JOB_CANCELLED') job?.reject(new BlockError('cancelled', 'the copy was cancelled'));
    else if (typeof error === 'string') job?.reject(new BlockError('io-error', error));
    else job?.resolve();
  }

  #start(what: Work['what'], run: (work: Work) => Promise<void>, done: () => void): void {
    if (this.#work !== null) return;
    const work: Work = { what, stopped: false, doneBytes: 0, again: false, ended: Promise.resolve() };
    this.#work = work;
    work.ended = this.#repeat(work, run).then(
      () => this.#end(work, done),
      (error: unknown) => this.#end(work, () => this.#events.failed(toBlockError(error).message)),
    );
  }

  async #repeat(work: Work, run: (work: Work) => Promise<void>): Promise<void> {
    do {
      work.again = false;
      await run(work);
    } while (work.again && !work.stopped);
  }

  #end(work: Work, tell: () => void): void {
    if (this.#work === work) this.#work = null;
    if (!work.stopped) tell();
  }

  // ------------------------------------------------------------ compare

  async #compare(work: Work): Promise<void> {
    for (const disk of this.#disks.disks) {
      for (let offset = 0; offset < disk.size && !work.stopped; offset += compareChunkBytes) {
        const length = Math.min(compareChunkBytes, disk.size - offset);
        const differing = await this.#compareChunk(disk, offset, length).catch((error: unknown) => {
          throw ofDisk(disk.name, error, `${length} bytes at ${offset}: `);
        });
        await this.#disks.mark(disk.name, differing);
        work.doneBytes += length;
      }
    }
  }

  async #compareChunk(disk: DiskConfig, offset: number, length: number): Promise<Range[]> {
    const asked = this.#ask(disk.name, offset, length);
    const [mine, theirs] = await Promise.all([
      this.#disks.checksums(disk.name, offset, length, compareBlockBytes),
      asked,
    ]);
    const count = Math.ceil(length / compareBlockBytes);
    if (mine.length !== count || theirs.length !== count) {
      throw new BlockError('protocol-error', `${count} checksums were asked for, the other side gave ${theirs.length}`);
    }
    const ranges: [number, number][] = [];
    for (let index = 0; index < count; index++) {
      if (mine[index] === theirs[index]) continue;
      const at = index * compareBlockBytes;
      const bytes = Math.min(compareBlockBytes, length - at);
      const last = ranges.at(-1);
      if (last !== undefined && last[0] + last[1] === offset + at) last[1] += bytes;
      else ranges.push([offset + at, bytes]);
    }
    return ranges;
  }

  #ask(disk: string, offset: number, length: number): Promise<string[]> {
    const request = this.#requests++;
    const waiting = deferred<string[]>();
    this.#waiting.set(request, waiting);
    // Also handled where nobody waits yet: the own checksums may fail first.
    waiting.promise.catch(() => undefined);
    if (!this.#send({ type: 'checksum', request, disk, offset, length, block: compareBlockBytes })) {
      this.#waiting.delete(request);
      waiting.reject(new BlockError('connection-lost', 'the other side is gone'));
    }
    return waiting.promise;
  }

  // ------------------------------------------------------------ copy

  async #copy(work: Work, targetIsZero: boolean): Promise<void> {
    const results = await Promise.allSettled(
      this.#disks.disks.map((disk) => this.#copyDisk(work, disk.name, targetIsZero)),
    );
    for (const [index, result] of results.entries()) {
      if (result.status === 'rejected') throw ofDisk(this.#disks.disks[index]?.name ?? '', result.reason);
    }
  }

  async #copyDisk(work: Work, disk: string, targetIsZero: boolean): Promise<void> {
    const id = `sync-${disk}`;
    const ended = deferred();
    ended.promise.catch(() => undefined);
    this.#jobs.set(id, ended);
    try {
      await this.#engine.execute('replication-sync', {
        node: `${disk}-replication`,
        source: this.#disks.localOf(disk),
        'job-id': id,
        'target-is-zero': targetIsZero,
      });
      if (work.stopped) await this.#engine.execute('job-cancel', { id }).catch(() => undefined);
      await ended.promise;
    } finally {
      this.#jobs.delete(id);
    }
  }
}

/** For people: which disk it is that cannot be compared or copied, and where. */
function ofDisk(disk: string, thrown: unknown, where = ''): BlockError {
  const { code, errno, message } = toBlockError(thrown);
  return new BlockError(code, `disk ${disk}: ${where}${message}`, { errno, cause: thrown });
}
