/**
 * Performs plans: one step after the other, over QMP and the group file. It decides nothing.
 *
 * Invariant: a step begins only when the one before it is done, a commit included; a plan that was replaced begins no
 * further step. So what a plan's order says of durability holds whatever comes between.
 */
import type { Host, SocketAddress } from '../host/host.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import { isWildcard, type PairConfig } from './config.ts';
import type { PairDisks } from './disks.ts';
import type { GroupFile, GroupRecord } from './generation.ts';
import type { PeerLink } from './link.ts';
import { type Hello, rangesMax } from './messages.ts';
import type { Differences, PairEvent, PairState, Plan, Step } from './pair-state.ts';
import { type Bitmaps, isEmpty } from './ranges.ts';
import { givenUp } from './restart.ts';
import type { SyncWork } from './resync.ts';
import { saveBitmaps } from './saved-bitmaps.ts';

/** How long a primary that stops waits for the other side to note its goodbye. */
const goodbyeMsMax = 2000;
const retryMs = 1000;

/** Steps that only wait for the other side: a plan that replaces theirs does not wait for them, it ends them. */
const waitsForPeer: ReadonlySet<Step['do']> = new Set(['flush-remote', 'await-goodbye', 'await-checkpoint']);

export interface RunnerParts {
  readonly host: Host;
  readonly config: PairConfig;
  readonly group: GroupFile;
  readonly disks: PairDisks;
  readonly link: PeerLink;
  readonly work: SyncWork;
  state(): PairState;
  dispatch(event: PairEvent): void;
  answer(step: Extract<Step, { do: 'answer' }>): void;
  log(level: 'info' | 'warn' | 'error', message: string): void;
  /** a life of this process for the other side's marks */
  newInstance(): string;
}

export class PairRunner {
  readonly #parts: RunnerParts;
  #plan: Plan | null = null;
  #running = false;
  #stopped = false;
  #instance: string;
  #goodbye = deferred();
  /** the other side has made the checkpoint of this request */
  #checkpointed = { request: 0, made: deferred() };
  /** names of the exports of the session, by disk */
  #exports: Readonly<Record<string, string>> = {};
  /** what is known of the difference to the side whose target this one is */
  #differences: Differences | null = null;
  /** what may differ from the other side's checkpoint */
  #behind: Bitmaps | null = null;
  /** resolves when the plan that runs is replaced */
  #replaced = deferred();

  constructor(parts: RunnerParts) {
    this.#parts = parts;
    this.#instance = parts.newInstance();
  }

  get instance(): string {
    return this.#instance;
  }

  /** The plan that runs from now on. */
  run(plan: Plan): void {
    this.#plan = plan;
    this.#replaced.resolve();
    this.#replaced = deferred();
    if (!this.#running) void this.#loop();
  }

  /** Performs a step that waits for nothing. */
  now(step: Step): void {
    switch (step.do) {
      case 'send':
        this.#parts.link.send(step.message);
        return;
      case 'drop-link':
        this.#parts.link.drop(step.reason);
        return;
      case 'answer':
        this.#parts.answer(step);
        return;
      case 'retry-later': {
        const { phase } = this.#parts.state();
        this.#parts.host.clock.after(retryMs, () => {
          if (!this.#stopped) this.#parts.dispatch({ type: 'retry', phase });
        });
        return;
      }
      default:
        throw new TypeError(`${step.do} takes time`);
    }
  }

  goodbyeNoted(): void {
    this.#goodbye.resolve();
  }

  checkpointed(request: number): void {
    if (request === this.#checkpointed.request) this.#checkpointed.made.resolve();
  }

  /** No plan begins any more. */
  stop(): void {
    this.#stopped = true;
    this.#plan = null;
    this.#replaced.resolve();
  }

  async #loop(): Promise<void> {
    this.#running = true;
    for (let plan = this.#plan; plan !== null; plan = this.#plan) {
      const failure = await this.#perform(plan);
      if (this.#plan !== plan) continue;
      this.#plan = null;
      if (failure === null) this.#parts.dispatch({ type: 'plan-done', plan: plan.name });
      else this.#parts.dispatch({ type: 'plan-failed', plan: plan.name, ...failure });
    }
    this.#running = false;
  }

  async #perform(plan: Plan): Promise<{ step: Step['do']; error: string } | null> {
    for (const step of plan.steps) {
      if (this.#plan !== plan) return null;
      try {
        const performed = this.#step(step);
        await (waitsForPeer.has(step.do) ? Promise.race([performed, this.#replaced.promise]) : performed);
      } catch (error) {
        const { message } = toBlockError(error);
        this.#parts.log('warn', `${plan.name}, ${step.do}: ${message}`);
        return { step: step.do, error: message };
      }
    }
    return null;
  }

  async #step(step: Step): Promise<unknown> {
    const { disks, work, group, link, dispatch } = this.#parts;
    const { overlays } = disks;
    switch (step.do) {
      case 'commit':
        return this.#commit(step.change);
      case 'set-mode':
        return disks.setMode(step.mode);
      case 'build-primary':
        // From now on users write.
        this.#differences = null;
        return disks.buildPrimary();
      case 'tear-primary':
        return disks.tearPrimary();
      case 'open-exports':
        return disks.openExports();
      case 'begin-close-exports':
        return this.#beginCloseExports();
      case 'drop-users':
        return disks.dropUsers();
      case 'refuse-users':
        return disks.refuseUsers(step.reason ?? this.#whoIsPrimary());
      case 'open-replication':
        return this.#openReplication();
      case 'close-replication':
        return disks.closeReplication();
      case 'announce':
        return this.#announce(step.fresh);
      case 'ask-to-attach':
        return link.send({ type: 'attach', how: step.how, bytes: await disks.missingBytes() });
      case 'open-overlays':
        return this.#openOverlays();
      case 'drop-overlays':
        await overlays.close();
        return overlays.remove();
      case 'check-space':
        return overlays.checkSpace(step.bytes);
      case 'keep-old':
        return overlays.keep();
      case 'checkpoint':
        return this.#checkpoint(step);
      case 'show-view':
        // It may have been found lost when the overlays were opened.
        return this.#parts.state().record.checkpoint === null ? undefined : overlays.show();
      case 'hide-view':
        return overlays.hide();
      case 'begin-takeover':
        return overlays.beginTakeover();
      case 'end-takeover':
        return this.#endTakeover(step.change);
      case 'promoted':
        return dispatch({ type: 'promoted' });
      case 'tell-checkpoint':
        return this.#tellCheckpoint(step.request);
      case 'await-checkpoint':
        return this.#awaitCheckpoint();
      case 'attach':
        return disks.attach(step.exports, this.#replicationAddress(step.theirs));
      case 'detach':
        return disks.detach();
      case 'mark':
        return disks.markAll(step.what);
      case 'mark-ranges':
        return disks.markRanges(step.ranges);
      case 'remember-differences':
        // Tried again, after a part of the graph is gone: nothing was written since.
        if (this.#differences?.from === step.from) return;
        // What a failed flush may have lost here stands in no bitmap: the other side had proven it.
        if (!(await disks.proves(false))) return;
        this.#differences = { from: step.from, ranges: await disks.joinedBitmaps(rangesMax) };
        return;
      case 'agree':
        return link.send({ type: 'target', differs: this.#differences });
      case 'start-compare':
        return work.startCompare();
      case 'start-copy':
        return work.startCopy(step.targetIsZero);
      case 'stop-work':
        return work.stop();
      case 'flush-remote':
        return step.bounded
          ? this.#inTime(disks.flushRemote(step.proven), 'proved no flush')
          : disks.flushRemote(step.proven);
      case 'flush-own':
        return disks.flushOwn();
      case 'reopen-disks':
        // Something else failed, the group file say: nothing is lost.
        if (await disks.proves(false)) return;
        // What the failed flush lost must be sent again: for the other side this is another life.
        this.#instance = this.#parts.newInstance();
        return disks.reopenDisks();
      case 'keep-behind':
        this.#behind = await disks.bitmaps();
        return;
      case 'forget':
        return disks.forget();
      case 'save-clean-stop':
        return this.#saveCleanStop(step);
      case 'offer': {
        const equal = this.#parts.state().record.cleanStop === null ? { equal: false } : {};
        return link.send({ type: 'hand-over', generation: step.generation, ...equal });
      }
      case 'await-goodbye':
        return this.#awaitGoodbye();
      case 'finish':
        await work.stop();
        return group.close();
      case 'send':
      case 'drop-link':
      case 'answer':
      case 'retry-later':
        return this.now(step);
    }
  }

  /** The one place where the group file is written: durable, then known to the decisions, then the next step. */
  async #commit(change: Partial<GroupRecord>): Promise<void> {
    const { group, state, dispatch } = this.#parts;
    const record = { ...state().record, ...change };
    await group.commit(record);
    dispatch({ type: 'committed', record, sequence: group.sequence });
  }

  async #saveCleanStop({ proof, equal, behind, change }: Extract<Step, { do: 'save-clean-stop' }>): Promise<void> {
    const { disks, host, config } = this.#parts;
    if (proof === null || !(await disks.proves(equal))) return this.#commit({ ...change, cleanStop: null });
    const missing = await disks.bitmaps();
    const kept = behind !== null && isEmpty(missing) ? this.#behind : null;
    const bitmaps = await saveBitmaps(host, config.dataFolder, kept ?? missing);
    const saved = kept === null ? proof : { ...proof, checkpoint: behind };
    const cleanStop = { proof: saved, bitmaps, equal: kept !== null, atMs: host.clock.wall() };
    await this.#commit({ ...change, cleanStop });
  }

  #beginCloseExports(): void {
    const { disks, dispatch, log } = this.#parts;
    disks.closeExports().then(
      () => dispatch({ type: 'exports-closed' }),
      (error: unknown) => log('error', `closing the exports: ${toBlockError(error).message}`),
    );
  }

  async #openReplication(): Promise<void> {
    const { disks, host } = this.#parts;
    // From now on the disks change by what the other side sends.
    this.#differences = null;
    const session = toHex(host.random.bytes(8));
    this.#exports = await disks.openReplication(session, this.#instance);
  }

  #announce(fresh: boolean): void {
    const { link, state } = this.#parts;
    const checkpoint = state().record.checkpoint?.number ?? null;
    link.send({ type: 'attached', exports: { ...this.#exports }, checkpoint, fresh });
  }

  // ------------------------------------------------------------ checkpoints

  /** What is lost is said, and left behind: the next checkpoint is made of what the disks hold (record-log.md 8). */
  async #openOverlays(): Promise<void> {
    const { disks, state, log, config } = this.#parts;
    const { record } = state();
    const kept = record.checkpoint !== null;
    const lost = await disks.overlays.open(record.epoch, kept);
    if (lost === null) return;
    const text = `the last checkpoint is lost: ${lost}`;
    await disks.overlays.close();
    if (record.promoting !== null) throw new BlockError('bad-image', text);
    if (kept) log('warn', text);
    await this.#commit(kept ? givenUp(record, config) : { epoch: record.epoch + 1 });
    await disks.overlays.remove();
    // A mixture that leads nowhere: another kind of sync begins.
    if (record.store === 'resync') throw new BlockError('bad-image', text);
    await disks.overlays.open(record.epoch + 1, false);
  }

  /** One write: the number, the epoch that empties the overlays of all disks, and what else comes true with it. */
  async #checkpoint({ change, ifChanged, atMs }: Extract<Step, { do: 'checkpoint' }>): Promise<void> {
    const { disks, state, host, dispatch } = this.#parts;
    const { record } = state();
    if (ifChanged && record.checkpoint !== null) {
      const held = [...(await disks.overlays.heldBytes()).values()];
      if (held.every(({ hidden, active }) => hidden + active === 0)) return dispatch({ type: 'checkpoint-unchanged' });
    }
    const epoch = record.epoch + 1;
    const number = record.checkpoints + 1;
    let durable = false;
    const makeDurable = async (): Promise<void> => {
      await this.#commit({
        ...change,
        epoch,
        checkpoint: { number, atMs: atMs ?? host.clock.wall() },
        checkpoints: number,
      });
      durable = true;
    };
    const takeBack = (): Promise<void> =>
      this.#takeBack().catch((error: unknown) => {
        const { message } = toBlockError(error);
        dispatch({ type: 'unsure', error: `checkpoint ${number} was not made, and cannot be taken back: ${message}` });
        throw error;
      });
    try {
      await disks.overlays.checkpoint(epoch, makeDurable, takeBack);
    } catch (error) {
      // Made, and not all overlays have forgotten the old one: what they keep from now on leads nowhere.
      if (durable) await this.#commit({ checkpoint: null });
      throw error;
    }
  }

  async #endTakeover(change: Partial<GroupRecord>): Promise<void> {
    const { disks, state } = this.#parts;
    const epoch = state().record.epoch + 1;
    const makeDurable = (): Promise<void> => this.#commit({ ...change, epoch, checkpoint: null, rolledBack: false });
    await disks.overlays.endTakeover(epoch, makeDurable, () => this.#takeBack());
  }

  /** A write that failed may stand in the file all the same: what goes on is written over it before anybody goes on. */
  #takeBack(): Promise<void> {
    return this.#commit({});
  }

  #tellCheckpoint(request: number | null): void {
    const { state, host, link } = this.#parts;
    const { checkpoint } = state();
    if (checkpoint === null) return;
    const ageMs = Math.max(0, host.clock.wall() - checkpoint.atMs);
    link.send({ type: 'checkpointed', number: checkpoint.number, ageMs, request });
  }

  #awaitCheckpoint(): Promise<void> {
    const { request } = this.#parts.state();
    const made = deferred();
    this.#checkpointed = { request, made };
    return this.#inTime(made.promise, 'made no checkpoint');
  }

  /** As long as a user may wait for the other side (pair.md 6). @throws BlockError timed-out */
  async #inTime(answered: Promise<void>, what: string): Promise<void> {
    const { host, config } = this.#parts;
    const { name } = config.peer;
    const late = deferred();
    const timer = host.clock.after(config.stallMsMax, () =>
      late.reject(new BlockError('timed-out', `${name} ${what} within ${config.stallMsMax} ms (\`stall-ms-max\`)`)),
    );
    try {
      await Promise.race([answered, late.promise]);
    } finally {
      timer.cancel();
    }
  }

  /** A wildcard is reached where the other side's supervisor is reached. */
  #replicationAddress(theirs: Hello): SocketAddress {
    const told = theirs.replication;
    const { supervisor } = this.#parts.config.peer;
    if (told.type !== 'inet' || !isWildcard(told)) return told;
    if (supervisor.type === 'unix') throw new BlockError('invalid-option', 'the other side advertises no address');
    return { type: 'inet', host: supervisor.host, port: told.port };
  }

  #whoIsPrimary(): string {
    const { peer, self } = this.#parts.state();
    if (peer?.role !== 'primary') return `is on ${self.name}, which is secondary; the primary is ${self.peer}`;
    const where = peer.uris.length === 0 ? '' : ` at ${peer.uris.join(' ')}`;
    return `is on ${self.name}, which is secondary; the primary is ${peer.name}${where}`;
  }

  async #awaitGoodbye(): Promise<void> {
    const timer = this.#parts.host.clock.after(goodbyeMsMax, () => this.#goodbye.resolve());
    await this.#goodbye.promise;
    timer.cancel();
  }
}

export function toHex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
