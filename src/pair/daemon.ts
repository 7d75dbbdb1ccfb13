/**
 * One side of a pair: the supervisor over an engine. It opens the group file and the disks, then lets events, decisions
 * (`pair.ts`) and steps (`runner.ts`) follow each other. It is a QMP target itself: its own commands, and the engine's.
 */
import type { z } from 'zod';
import type { Host, SocketAddress } from '../host/host.ts';
import { check } from '../qmp/check.ts';
import type { Handlers } from '../qmp/command.ts';
import { pairSchema } from '../qmp/schema/pair.ts';
import type { QmpEvent, QmpTarget } from '../qmp/target.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { type Deferred, deferred } from '../util/later.ts';
import { CheckpointClock } from './checkpoint-clock.ts';
import type { PairConfig } from './config.ts';
import { PeerLink } from './link.ts';
import { checksumsMax, type Hello, type Message, type MessageOf, versions } from './messages.ts';
import { type LogLine, type OpenedSide, openSide } from './open-side.ts';
import { decide } from './pair.ts';
import type { Command, PairEvent, PairState, Step } from './pair-state.ts';
import { SyncWork } from './resync.ts';
import { PairRunner, toHex } from './runner.ts';
import { isInSync, noticeOf, pairStatus, reach, uriOf } from './status.ts';

/** The longest that a clean stop may take; after it the stop is a crash that the next start mends. */
const stopMsMax = 15_000;

export class PairDaemon implements QmpTarget {
  readonly #host: Host;
  readonly #engine: QmpTarget;
  readonly #config: PairConfig;
  readonly #log: (line: LogLine) => void;
  readonly #opened: OpenedSide;
  readonly #link: PeerLink;
  readonly #work: SyncWork;
  readonly #runner: PairRunner;
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #answers = new Map<Command['name'], Deferred<string>[]>();
  readonly #checkpoints: CheckpointClock;
  readonly #unsubscribe: () => void;
  #state: PairState;
  #events: PairEvent[] = [];
  #deciding = false;
  #told = '';
  /** what the log was told last of what keeps the pair from being whole */
  #noticed: string | null = null;
  #stopping: Promise<void> | null = null;

  /**
   * Opens everything and begins. Resolves when the side listens; it serves when its rules allow it.
   * @throws BlockError in one clear line: a disk that is missing, of another size, not writable; a port in use; ...
   */
  static async start(
    host: Host,
    engine: QmpTarget,
    config: PairConfig,
    log: (line: LogLine) => void,
  ): Promise<PairDaemon> {
    const opened = await openSide(host, engine, config, log);
    const daemon = new PairDaemon(host, engine, config, log, opened);
    try {
      await daemon.#link.start();
    } catch (error) {
      await daemon.#close(true);
      throw error;
    }
    daemon.#dispatch({ type: 'started' });
    return daemon;
  }

  private constructor(
    host: Host,
    engine: QmpTarget,
    config: PairConfig,
    log: (line: LogLine) => void,
    opened: OpenedSide,
  ) {
    this.#host = host;
    this.#engine = engine;
    this.#config = config;
    this.#log = log;
    this.#opened = opened;
    this.#state = opened.state;
    this.#link = new PeerLink(
      host,
      {
        name: config.name,
        peerName: config.peer.name,
        listen: config.listen.supervisor,
        peer: config.peer.supervisor,
        heartbeatMs: config.heartbeatMs,
        peerTimeoutMs: config.peerTimeoutMs,
      },
      {
        hello: () => ({ hello: this.#hello(), sequence: this.#opened.group.sequence }),
        inSync: () => this.#state.phase === 'in-step',
        onHello: (mine, sequence, theirs) => this.#dispatch({ type: 'hello', mine, sequence, theirs }),
        onMessage: (message) => this.#onMessage(message),
        onLost: (reason) => this.#dispatch({ type: 'link-lost', reason }),
        onRefused: (reason) => this.#dispatch({ type: 'link-refused', reason }),
      },
    );
    const send = (message: Message): boolean => this.#link.send(message);
    this.#work = new SyncWork(engine, opened.disks, send, {
      compared: () => this.#dispatch({ type: 'compared' }),
      copied: () => this.#dispatch({ type: 'copied' }),
      failed: (error) => this.#dispatch({ type: 'work-failed', error }),
    });
    this.#runner = new PairRunner({
      host,
      config,
      group: opened.group,
      disks: opened.disks,
      link: this.#link,
      work: this.#work,
      state: () => this.#state,
      dispatch: (event) => this.#dispatch(event),
      answer: (step) => this.#answer(step),
      log: (level, message) => log({ level, message }),
      newInstance: () => toHex(host.random.bytes(8)),
    });
    this.#checkpoints = new CheckpointClock(host, config, opened.disks.overlays, {
      due: (early) => this.#dispatch({ type: 'checkpoint-due', early }),
      ask: (holdMs) => this.#ask({ name: 'checkpoint', holdMs }),
      holdOver: () => this.#dispatch({ type: 'hold-over' }),
      isFollowing: () => this.#state.phase === 'following',
      warn: (message) => log({ level: 'warn', message }),
    });
    this.#unsubscribe = engine.subscribe((event) => this.#onEngineEvent(event));
  }

  /** The decisions' state, for tests and for the page. */
  get state(): PairState {
    return this.#state;
  }

  /** Where users connect. */
  get users(): readonly SocketAddress[] {
    return this.#opened.users;
  }

  /** A clean stop. Calling it again gives the same promise. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    const definition = pairSchema.find((one) => one.name === command);
    if (definition === undefined) return this.#engine.execute(command, args);
    const checked = check(definition.arguments as z.ZodType, args, 'arguments');
    const handler = this.#commands[definition.name] as (args: unknown) => unknown;
    return (await handler(checked)) ?? {};
  }

  /** The engine's events and `PAIR_STATE`. */
  subscribe(listener: (event: QmpEvent) => void): () => void {
    const unsubscribe = this.#engine.subscribe(listener);
    this.#listeners.add(listener);
    return () => {
      unsubscribe();
      this.#listeners.delete(listener);
    };
  }

  readonly #commands: Handlers<typeof pairSchema> = {
    'pair-status': async () =>
      pairStatus({
        state: this.#state,
        config: this.#config,
        engine: this.#engine,
        clock: this.#host.clock,
        users: this.#opened.users,
        overlays: this.#opened.disks.overlays,
        space: this.#checkpoints.space,
        progress: () => this.#work.progress(),
      }),
    'pair-failover': async ({ to, force }) => {
      if (to === 'checkpoint' && this.#config.store === 'mirror') {
        throw new BlockError('not-supported', 'to: a mirror has no checkpoints, only `latest`');
      }
      const before = this.#state;
      const text = await this.#ask({ name: 'failover', force: force === true, to: to ?? null });
      const where = reach(before, this.#state.to, this.#host.clock.wall());
      return { text: where === '' ? text : `${text}; ${where}` };
    },
    'pair-checkpoint': async ({ holdMs, release }) => {
      const hold = holdMs === undefined ? null : holdMs;
      if (release === true && hold !== null) {
        throw new BlockError('invalid-option', 'release: ends a hold, `holdMs` begins one; say one of them');
      }
      const text = await (release === true ? this.#ask({ name: 'release' }) : this.#checkpoints.ask(hold));
      return { number: this.#state.checkpoint?.number ?? 1, text };
    },
    'pair-switch': async () => ({ text: await this.#ask({ name: 'switch' }) }),
    'pair-resolve': async ({ keep }) => ({ text: await this.#ask({ name: 'resolve', keep }) }),
    'pair-start': async () => ({ text: await this.#ask({ name: 'start-alone' }) }),
    'pair-stop': () => this.stop(),
  };

  // ---------------------------------------------------------------- events and decisions

  /** Events are decided one after the other, also those that a decision's own steps bring about. */
  #dispatch(event: PairEvent): void {
    this.#events.push(event);
    if (this.#deciding) return;
    this.#deciding = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) this.#decide(next);
    } finally {
      this.#deciding = false;
    }
  }

  #decide(event: PairEvent): void {
    const before = this.#state;
    const given = { wallMs: this.#host.clock.wall(), id: toHex(this.#host.random.bytes(8)) };
    const { state, plan, now } = decide(before, event, given);
    this.#state = state;
    if (isInSync(state)) this.#link.succeeded();
    if (before.phase !== state.phase) {
      const why = 'reason' in event ? `: ${event.reason}` : 'error' in event ? `: ${event.error}` : '';
      this.#log({ level: 'info', message: `${before.phase} -> ${state.phase}${why}`, event: event.type });
    }
    if (state.error !== null && state.error !== before.error) this.#log({ level: 'error', message: state.error });
    for (const step of now ?? []) this.#runner.now(step);
    if (plan !== undefined) this.#runner.run(plan);
    this.#tell();
    this.#tellCheckpoint(before);
    if (state.held !== before.held) this.#tellHold(before, event);
  }

  /** Emits PAIR_STATE if something of it changed; the log hears what a person should know, once. */
  #tell(): void {
    const { phase, record, connected, error } = this.#state;
    const notice = noticeOf(this.#state);
    const ends = phase === 'stopping' || phase === 'stopped';
    if (isInSync(this.#state)) this.#noticed = null;
    else if (notice !== null && notice !== this.#noticed && !ends && this.#state.session === null) {
      this.#noticed = notice;
      this.#log({ level: 'info', message: notice });
    }
    const data = {
      phase,
      role: record.role,
      connected,
      inSync: isInSync(this.#state),
      generation: record.generation,
      notice,
      error,
    };
    const text = JSON.stringify(data);
    if (text === this.#told) return;
    this.#told = text;
    this.#emit('PAIR_STATE', data);
  }

  /** Emits PAIR_CHECKPOINT for a checkpoint of this side that was made, or given up. */
  #tellCheckpoint({ record: before }: PairState): void {
    const { record, error } = this.#state;
    if (record.checkpoint === before.checkpoint) return;
    if (record.checkpoint !== null) {
      this.#emit('PAIR_CHECKPOINT', { number: record.checkpoint.number, reason: null });
      return;
    }
    const why = record.role === 'primary' ? 'this side is primary' : (error ?? 'the disk is written without it');
    this.#emit('PAIR_CHECKPOINT', { number: null, reason: why });
  }

  /** Its time begins to run, or is over; if it ends otherwise than by command, whoever reads it should know. */
  #tellHold({ held: before }: PairState, { type: event }: PairEvent): void {
    const { held } = this.#state;
    this.#checkpoints.holdIs(held);
    const level = held !== null || event === 'command' ? 'info' : 'warn';
    const until = held === null ? '' : ` until ${new Date(held.untilMs).toISOString()}`;
    const number = (held ?? before)?.number;
    this.#log({
      level,
      message: `checkpoint ${number} is ${held === null ? 'not held any more' : `held${until}`}`,
      event,
    });
  }

  #emit(event: string, data: Record<string, unknown>): void {
    const wallMs = this.#host.clock.wall();
    const timestamp = { seconds: Math.floor(wallMs / 1000), microseconds: (wallMs % 1000) * 1000 };
    for (const listener of [...this.#listeners]) listener({ event, data, timestamp });
  }

  #onMessage(message: Message): void {
    switch (message.type) {
      case 'checksum':
        void this.#giveChecksums(message);
        return;
      case 'checksums':
        this.#work.onChecksums(message);
        return;
      case 'goodbye-noted':
        this.#runner.goodbyeNoted();
        return;
      case 'checkpointed':
        this.#dispatch({ type: 'message', message });
        if (message.request !== null) this.#runner.checkpointed(message.request);
        return;
      default:
        this.#dispatch({ type: 'message', message });
    }
  }

  /** Only a target's disks hold still, and only then are they asked for. */
  async #giveChecksums({ request, disk, offset, length, block }: MessageOf<'checksum'>): Promise<void> {
    let checksums: string[] = [];
    let error: string | null = null;
    try {
      const known = this.#config.disks.find((one) => one.name === disk);
      if (this.#state.phase !== 'target') throw new BlockError('wrong-state', `${this.#config.name} is no target now`);
      if (known === undefined || length > checksumsMax * block) {
        throw new BlockError('invalid-request', `checksums of ${length} bytes of "${disk}" cannot be given`);
      }
      checksums = await this.#opened.disks.checksums(disk, offset, length, block);
    } catch (thrown) {
      error = toBlockError(thrown).message.slice(0, 1000);
    }
    this.#link.send({ type: 'checksums', request, checksums, error });
  }

  #onEngineEvent(event: QmpEvent): void {
    this.#work.onEngineEvent(event);
    if (event.event === 'REPLICATION_LINK' && event.data.state === 'down') {
      const { node, reason } = event.data;
      this.#dispatch({ type: 'replication-down', reason: `${String(node)}: ${String(reason)}` });
    }
    if (event.event === 'REPLICATION_DIVERGED') this.#dispatch({ type: 'diverged' });
  }

  #hello(): Hello {
    const { record } = this.#state;
    const { config, opened } = { config: this.#config, opened: this.#opened };
    const decided = record.overwrite !== null;
    const overwrite = record.overwrite ?? config.overwrite;
    return {
      type: 'hello',
      program: 'blockstep',
      versions: { ...versions },
      volume: record.volume,
      name: config.name,
      role: record.role,
      generation: record.generation,
      ancestors: [...record.ancestors],
      store: record.store,
      overlays: config.store === 'overlays',
      lockStep: config.mode === 'lock-step',
      checkpoint: this.#ownCheckpoint(),
      rolledBack: record.rolledBack,
      // Once anything was written here the first look at the disks says nothing any more.
      blank: this.#blank(),
      disks: config.disks.map(({ name, size }) => ({ name, size })),
      instance: this.#runner.instance,
      replication: config.advertise?.replication ?? opened.replication,
      uris: config.disks.map((disk) => uriOf(opened.users, disk.name)),
      aloneSince: record.aloneSince,
      handingOver: record.handingOver,
      promotedFrom: this.#state.promotedFrom,
      overwrite: overwrite === null ? null : { name: overwrite, any: decided },
    };
  }

  #ownCheckpoint(): Hello['checkpoint'] {
    const { record, checkpoint } = this.#state;
    if (record.checkpoint === null || checkpoint === null) return null;
    return { number: checkpoint.number, ageMs: Math.max(0, this.#host.clock.wall() - checkpoint.atMs) };
  }

  #blank(): boolean {
    const { record } = this.#state;
    const untouched = record.generation === null && record.store === 'clean';
    return this.#opened.state.zeroBase && untouched;
  }

  // ---------------------------------------------------------------- commands and the end

  #ask(command: Command): Promise<string> {
    const answer = deferred<string>();
    const waiting = this.#answers.get(command.name) ?? [];
    waiting.push(answer);
    this.#answers.set(command.name, waiting);
    this.#dispatch({ type: 'command', command });
    return answer.promise;
  }

  /**
   * The oldest question of a kind is answered first; one that is refused at once is the newest. A failover that is
   * forced joins the one that waits.
   */
  #answer(step: Extract<Step, { do: 'answer' }>): void {
    const waiting = this.#answers.get(step.command) ?? [];
    const refusedAtOnce = step.error !== null && this.#state.pending === step.command;
    const count = step.command === 'failover' ? waiting.length : 1;
    for (const answer of refusedAtOnce ? waiting.splice(-1) : waiting.splice(0, count)) {
      if (step.error === null) answer.resolve(step.text);
      else answer.reject(new BlockError('wrong-state', step.error));
    }
  }

  async #stop(): Promise<void> {
    const stopped = this.#ask({ name: 'stop' });
    const late = deferred();
    const timer = this.#host.clock.after(stopMsMax, () => late.resolve());
    const inTime = await Promise.race([stopped.then(() => true), late.promise.then(() => false)]);
    timer.cancel();
    if (!inTime) this.#log({ level: 'warn', message: `not stopped within ${stopMsMax} ms: the next start compares` });
    await this.#close(inTime);
  }

  /** @param clean false: something hangs, a disk or a user: nothing is waited for */
  async #close(clean: boolean): Promise<void> {
    this.#runner.stop();
    this.#checkpoints.stop();
    this.#unsubscribe();
    for (const waiting of this.#answers.values()) {
      for (const answer of waiting) answer.reject(new BlockError('shutting-down', `${this.#config.name} is stopping`));
    }
    this.#answers.clear();
    await this.#link.close();
    const closed = this.#closeFiles(clean);
    if (clean) await closed;
    else closed.catch((error: unknown) => this.#log({ level: 'warn', message: toBlockError(error).message }));
  }

  async #closeFiles(clean: boolean): Promise<void> {
    await this.#work.stop();
    await this.#opened.disks.close(clean);
    await this.#opened.group.close();
  }
}
