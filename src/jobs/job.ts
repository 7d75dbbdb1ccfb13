/**
 * Jobs: long work over the graph that a user starts, watches and ends (QMP's `query-jobs` and its verbs).
 *
 * `job-state.ts` decides; a `Job` performs what was decided and is the door for both sides: users (verbs, info) and the
 * body that does the work (`JobControl`). Invariant: a body is cleaned exactly once, after its end, however it ends.
 */
import { BlockError, toBlockError } from '../util/errors.ts';
import { type Deferred, type Done, deferred } from '../util/later.ts';
import {
  decide,
  initialState,
  type JobEnding,
  type JobEvent,
  type JobState,
  type JobStatus,
  jobVerbs,
} from './job-state.ts';

export type { JobStatus, JobVerb } from './job-state.ts';
export { jobMoves, jobVerbs } from './job-state.ts';

/** What a job does about an I/O error (QEMU's BlockdevOnError). */
export type OnError = 'report' | 'ignore' | 'stop' | 'enospc' | 'auto';

/** How a job ended, for its body to clean up by. */
export type JobOutcome = 'completed' | 'failed' | 'cancelled';

/** The work of a job. */
export interface JobBody {
  /** Works until done. A rejection fails the job; `cancelled` from a pause point is passed on. */
  run(control: JobControl): Promise<void>;
  /** The last step, after `finalize`: a mirror pivots here. A rejection fails the job. */
  prepare?(ending: JobEnding | null): Promise<void>;
  /** Gives back everything. Called once, last. Its own failure is reported as the job's. */
  clean?(outcome: JobOutcome): Promise<void>;
}

/** What a body sees of its job. */
export interface JobControl {
  /** bytes a second; 0: no limit. May change at any time. */
  readonly speed: number;
  readonly cancelled: boolean;
  readonly pauseWanted: boolean;
  readonly ending: JobEnding | null;
  /** Rests here while a user wants it. @throws BlockError cancelled */
  pausePoint(): Done;
  /** Resolves when a user said something, or `wake` was called; a wake that came before is not lost. */
  wait(): Promise<void>;
  wake(): void;
  /** The first call tells users that the job may be completed. */
  becomeReady(): void;
  setProgress(currentBytes: number, totalBytes: number): void;
  /** Tells users of an I/O error and says what to do about it; `stop` pauses the job at its next pause point. */
  ioError(operation: 'read' | 'write', error: BlockError, policy: OnError): 'report' | 'ignore' | 'stop';
}

export interface JobOptions {
  readonly id: string;
  /** QMP's JobType: `mirror`, `backup`, `commit` */
  readonly type: string;
  readonly body: JobBody;
  /** default 0: no limit */
  readonly speed?: number | undefined;
  /** default true */
  readonly autoFinalize?: boolean | undefined;
  /** default true */
  readonly autoDismiss?: boolean | undefined;
  /** not listed, not to be cancelled by a user, no events (spec: replication-filter) */
  readonly internal?: boolean;
}

export type Emit = (event: string, data: Record<string, unknown>) => void;

/** One entry of `query-jobs`. */
export interface JobInfo {
  id: string;
  type: string;
  status: JobStatus;
  'current-progress': number;
  'total-progress': number;
  error?: string;
}

/** One entry of `query-block-jobs`. */
export interface BlockJobInfo {
  type: string;
  device: string;
  len: number;
  offset: number;
  speed: number;
  busy: boolean;
  paused: boolean;
  'io-status': 'ok' | 'failed' | 'nospace';
  ready: boolean;
  status: JobStatus;
  'auto-finalize': boolean;
  'auto-dismiss': boolean;
  error?: string;
}

export class Job implements JobControl {
  readonly id: string;
  readonly type: string;
  readonly internal: boolean;
  /** Resolves when the job has concluded, however it ended; never rejects. */
  readonly concluded: Promise<void>;
  private state: JobState;
  private readonly body: JobBody;
  private readonly emit: Emit;
  private readonly gone: (job: Job) => void;
  private readonly end: Deferred = deferred();
  private speedLimit: number;
  private currentBytes = 0;
  private totalBytes = 0;
  private ioStatus: BlockJobInfo['io-status'] = 'ok';
  private failure: BlockError | null = null;
  private blocks: readonly { lift(): void }[] = [];
  private waiter: Deferred | null = null;
  private woken = false;

  constructor(options: JobOptions, emit: Emit, gone: (job: Job) => void) {
    this.id = options.id;
    this.type = options.type;
    this.internal = options.internal ?? false;
    this.body = options.body;
    this.speedLimit = options.speed ?? 0;
    this.emit = this.internal ? () => undefined : emit;
    this.gone = gone;
    this.concluded = this.end.promise;
    this.state = initialState({
      autoFinalize: options.autoFinalize ?? true,
      autoDismiss: (options.autoDismiss ?? true) || this.internal,
    });
    this.emit('JOB_STATUS_CHANGE', { id: this.id, status: this.status });
  }

  get status(): JobStatus {
    return this.state.status;
  }

  /** Why it failed; null while it has not. */
  get error(): BlockError | null {
    return this.failure;
  }

  // -------------------------------------------------------------- users

  start(): void {
    this.apply({ type: 'start' });
  }

  /** What other operations are kept from while the body holds its nodes; lifted when they are given back. */
  keep(blocks: readonly { lift(): void }[]): void {
    this.blocks = blocks;
  }

  /** Before `start`: it never was. */
  forget(): void {
    for (const block of this.blocks) block.lift();
    this.apply({ type: 'forgotten' });
    this.end.resolve();
  }

  pause(): void {
    this.apply({ type: 'verb', verb: 'pause' });
  }

  resume(): void {
    this.ioStatus = 'ok';
    this.apply({ type: 'verb', verb: 'resume' });
  }

  /** Without `force` a ready job ends well, without its last step (as `block-job-cancel`; `job-cancel` forces). */
  cancel(force = true): void {
    this.apply({ type: 'verb', verb: 'cancel', force });
  }

  /** For a shutdown: a job that is ending already goes on to its end. */
  cancelIfItCan(): void {
    if (jobVerbs.cancel.includes(this.status) && !this.state.finalizing) this.cancel(true);
  }

  complete(): void {
    this.apply({ type: 'verb', verb: 'complete' });
  }

  finalize(): void {
    this.apply({ type: 'verb', verb: 'finalize' });
  }

  dismiss(): void {
    this.apply({ type: 'verb', verb: 'dismiss' });
  }

  /** @param speed bytes a second; 0: no limit */
  setSpeed(speed: number): void {
    this.apply({ type: 'verb', verb: 'set-speed' });
    this.speedLimit = speed;
    this.wake();
  }

  info(): JobInfo {
    return {
      id: this.id,
      type: this.type,
      status: this.status,
      'current-progress': this.currentBytes,
      'total-progress': this.totalBytes,
      ...this.errorMember(),
    };
  }

  blockInfo(): BlockJobInfo {
    const { status } = this;
    return {
      ...this.progress(),
      busy: status === 'running' || status === 'ready',
      paused: this.state.pauseWanted,
      'io-status': this.ioStatus,
      ready: status === 'ready' || status === 'standby',
      status,
      'auto-finalize': this.state.autoFinalize,
      'auto-dismiss': this.state.autoDismiss,
      ...this.errorMember(),
    };
  }

  // -------------------------------------------------------------- the body

  get speed(): number {
    return this.speedLimit;
  }

  get cancelled(): boolean {
    return this.state.cancelled;
  }

  get pauseWanted(): boolean {
    return this.state.pauseWanted;
  }

  get ending(): JobEnding | null {
    return this.state.ending;
  }

  pausePoint(): Done {
    if (this.state.cancelled) throw new BlockError('cancelled', `job '${this.id}' was cancelled`);
    return this.state.pauseWanted ? this.rest() : undefined;
  }

  wait(): Promise<void> {
    if (this.woken) {
      this.woken = false;
      return Promise.resolve();
    }
    this.waiter ??= deferred();
    return this.waiter.promise;
  }

  wake(): void {
    const { waiter } = this;
    this.waiter = null;
    if (waiter === null) this.woken = true;
    else waiter.resolve();
  }

  becomeReady(): void {
    if (this.status === 'running') this.apply({ type: 'ready' });
  }

  setProgress(currentBytes: number, totalBytes: number): void {
    this.currentBytes = currentBytes;
    this.totalBytes = totalBytes;
  }

  ioError(operation: 'read' | 'write', error: BlockError, policy: OnError): 'report' | 'ignore' | 'stop' {
    const noSpace = error.errno === 'ENOSPC';
    const stops = policy === 'stop' || (policy === 'enospc' && noSpace);
    const action = stops ? 'stop' : policy === 'ignore' ? 'ignore' : 'report';
    this.emit('BLOCK_JOB_ERROR', { device: this.id, operation, action });
    if (action !== 'ignore') this.ioStatus = noSpace ? 'nospace' : 'failed';
    if (action === 'stop') this.apply({ type: 'stopped' });
    return action;
  }

  private async rest(): Promise<void> {
    while (this.state.pauseWanted) {
      this.apply({ type: 'rested' });
      await this.wait();
    }
    if (this.state.cancelled) throw new BlockError('cancelled', `job '${this.id}' was cancelled`);
  }

  // -------------------------------------------------------------- the runner

  private apply(event: JobEvent): void {
    const { state, actions } = decide(this.state, event);
    this.state = state;
    for (const action of actions) {
      switch (action.type) {
        case 'status':
          this.statusChanged(action.status);
          break;
        case 'run':
          void this.run();
          break;
        case 'wake':
          this.wake();
          break;
        case 'tell-ready':
          this.emit('BLOCK_JOB_READY', this.progress());
          break;
        case 'tell-pending':
          this.emit('BLOCK_JOB_PENDING', { type: this.type, id: this.id });
          break;
        case 'prepare':
          void this.prepare();
          break;
        case 'clean':
          void this.clean();
          break;
      }
    }
  }

  private statusChanged(status: JobStatus): void {
    this.emit('JOB_STATUS_CHANGE', { id: this.id, status });
    if (status === 'concluded') this.end.resolve();
    if (status === 'null') this.gone(this);
  }

  private async run(): Promise<void> {
    try {
      await this.body.run(this);
    } catch (thrown) {
      const error = toBlockError(thrown);
      if (this.state.cancelled) return this.apply({ type: 'ended', how: 'cancelled' });
      this.failure = error;
      return this.apply({ type: 'ended', how: 'failed' });
    }
    this.apply({ type: 'ended', how: this.state.cancelled ? 'cancelled' : 'done' });
  }

  private async prepare(): Promise<void> {
    try {
      await this.body.prepare?.(this.state.ending);
    } catch (thrown) {
      this.failure = toBlockError(thrown);
    }
    this.apply({ type: 'prepared', how: this.failure === null ? 'done' : 'failed' });
  }

  private async clean(): Promise<void> {
    const { cancelled } = this.state;
    try {
      await this.body.clean?.(cancelled ? 'cancelled' : this.failure === null ? 'completed' : 'failed');
    } catch (thrown) {
      this.failure ??= toBlockError(thrown);
    }
    for (const block of this.blocks) block.lift();
    if (cancelled) this.emit('BLOCK_JOB_CANCELLED', this.progress());
    else this.emit('BLOCK_JOB_COMPLETED', { ...this.progress(), ...this.errorMember() });
    this.apply({ type: 'cleaned' });
  }

  private progress(): { type: string; device: string; len: number; offset: number; speed: number } {
    return {
      type: this.type,
      device: this.id,
      len: this.totalBytes,
      offset: this.currentBytes,
      speed: this.speedLimit,
    };
  }

  private errorMember(): { error?: string } {
    return this.failure === null ? {} : { error: this.failure.message };
  }
}

/** Jobs that may exist at the same time. */
export const jobsMax = 1024;

export class JobManager {
  private readonly jobs = new Map<string, Job>();
  private readonly emit: Emit;

  constructor(emit: Emit) {
    this.emit = emit;
  }

  /** A job in status `created`; `start` sets it going. @throws BlockError name-in-use */
  create(options: JobOptions): Job {
    if (this.jobs.has(options.id)) throw new BlockError('name-in-use', `there is already a job '${options.id}'`);
    if (this.jobs.size >= jobsMax) throw new BlockError('in-use', `there are ${jobsMax} jobs already`);
    const job = new Job(options, this.emit, (gone) => this.jobs.delete(gone.id));
    this.jobs.set(job.id, job);
    return job;
  }

  /** @throws BlockError job-not-found; internal jobs are found only by their maker */
  find(id: string): Job {
    return this.get(id) ?? fail('job-not-found', id);
  }

  /** The same, for the older commands (`block-job-...`): a job that is not there has an error class of its own. */
  findActive(id: string): Job {
    return this.get(id) ?? fail('job-not-active', id);
  }

  private get(id: string): Job | null {
    const job = this.jobs.get(id);
    return job === undefined || job.internal ? null : job;
  }

  /** The jobs that users see, oldest first. */
  list(): Job[] {
    return [...this.jobs.values()].filter((job) => !job.internal);
  }

  /** Cancels every job and waits for its end. */
  async close(): Promise<void> {
    const all = [...this.jobs.values()];
    for (const job of all) job.cancelIfItCan();
    await Promise.all(all.map((job) => job.concluded));
    this.jobs.clear();
  }
}

function fail(code: 'job-not-found' | 'job-not-active', id: string): never {
  throw new BlockError(code, `there is no job '${id}'`);
}
