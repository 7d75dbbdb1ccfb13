/**
 * The replication group of a process: all members of one consistency group, their stages, and the rounds over them
 * (spec: replication-filter, "Stages" and "Operations").
 *
 * Invariant: a round visits the members newest first and ends at the first error, so that a consistency group never
 * half-succeeds in silence; only a failover visits everybody, because one bad disk must not stop the others. Members
 * that are done, or in the middle of their failover, are passed over.
 */
import { BlockError, toBlockError } from '../util/errors.ts';
import { attempt, type Done } from '../util/later.ts';
import { LinkGroup } from './link-group.ts';

export type ReplicationMode = 'primary' | 'secondary';

export type ReplicationStage = 'none' | 'running' | 'failover' | 'failover-failed' | 'done';

/** What moves a member from one stage to another. */
export type StageEvent = 'start' | 'stop' | 'failover' | 'commit-done' | 'commit-failed' | 'close';

/** The legal moves. An event that is missing in a row is an error in that stage. */
export const stageMoves: Readonly<Record<ReplicationStage, Readonly<Partial<Record<StageEvent, ReplicationStage>>>>> = {
  none: { start: 'running', close: 'done' },
  running: { stop: 'done', failover: 'failover', close: 'done' },
  failover: { 'commit-done': 'done', 'commit-failed': 'failover-failed', close: 'failover-failed' },
  'failover-failed': { close: 'failover-failed' },
  done: { close: 'done' },
};

/** The stage after `event`. @throws BlockError wrong-stage, naming the node and both */
export function nextStage(nodeName: string, stage: ReplicationStage, event: StageEvent): ReplicationStage {
  const next = stageMoves[stage][event];
  if (next === undefined) {
    throw new BlockError('wrong-stage', `node '${nodeName}': cannot ${event} in stage ${stage}`);
  }
  return next;
}

/** One row of `query-replication`, with QMP spelling. */
export interface ReplicationInfo {
  readonly node: string;
  readonly mode: ReplicationMode;
  readonly stage: ReplicationStage;
  readonly [member: string]: unknown;
}

/** Whatever takes part in the rounds: the replication filter is one kind. A member, called directly, is strict. */
export interface ReplicationMember {
  readonly nodeName: string;
  readonly mode: ReplicationMode;
  readonly stage: ReplicationStage;
  /** @throws BlockError in any other stage than `none`, or for another mode than its own */
  start(mode: ReplicationMode): Promise<void>;
  /**
   * The first half of a checkpoint: everything that can fail. Its users are held from then on. A failure leaves all as
   * it was.
   */
  prepare(): Promise<void>;
  /**
   * The second half, once the checkpoint is durable for all members; its users go on, also where it fails.
   * @param epoch what the group's owner made durable, for overlays that have no epoch of their own; then it is done in
   * one tick as far as other members can see
   */
  checkpoint(epoch?: number): Done;
  /** Instead of the second half: all is as before `prepare`. */
  unprepare(): void;
  /** @throws BlockError if it does not run, or if an I/O error was recorded */
  getError(): void;
  /** @throws BlockError if it does not run */
  stop(failover: boolean): Promise<void>;
  info(): ReplicationInfo;
}

export class ReplicationGroup {
  /** The one link mode of all members that hold their writers while the other side is away (pair.md 5). */
  readonly links = new LinkGroup();
  #members: ReplicationMember[] = [];
  /** those that are held between the halves of a checkpoint; null: there is none under way */
  #prepared: readonly ReplicationMember[] | null = null;
  #lastRound: Promise<unknown> = Promise.resolve();

  /** Newest first. */
  get members(): readonly ReplicationMember[] {
    return this.#members;
  }

  /** Called at the end of a good open. */
  join(member: ReplicationMember): void {
    this.#members = [member, ...this.#members];
  }

  /** Called at close, in any stage; nothing happens if it is no member. */
  leave(member: ReplicationMember): void {
    this.#members = this.#members.filter((one) => one !== member);
    if (this.#prepared !== null) this.#prepared = this.#prepared.filter((one) => one !== member);
  }

  /** @throws BlockError node-not-found */
  find(nodeName: string): ReplicationMember {
    const member = this.#members.find((one) => one.nodeName === nodeName);
    if (member === undefined) throw new BlockError('node-not-found', `'${nodeName}' is no replication node`);
    return member;
  }

  /** Starts all; the first failure stops those that this round had started, and is thrown. */
  start(mode: ReplicationMode): Promise<void> {
    return this.#round(async () => {
      this.#refusePrepared();
      const started: ReplicationMember[] = [];
      try {
        for (const member of this.#active()) {
          await member.start(mode);
          started.push(member);
        }
      } catch (error) {
        for (const member of started) await member.stop(false).catch(() => undefined);
        throw error;
      }
    });
  }

  /**
   * All prepare, then `makeDurable` makes the number true for all in one write, then all do the rest (pair.md 22).
   * A failed prepare or write leaves everything as it was.
   */
  checkpoint(makeDurable: () => Promise<void> = () => Promise.resolve()): Promise<void> {
    return this.#round(async () => {
      this.#refusePrepared();
      const members = this.#active();
      await this.#prepareAll(members);
      try {
        await makeDurable();
      } catch (error) {
        for (const member of members) member.unprepare();
        throw error;
      }
      await commit(members);
    });
  }

  /**
   * The first half of a checkpoint by an owner who makes it durable himself: all members are prepared and held, or
   * none. Members that have committed a failover and wait for its end take part. `commit` or `abort` follows.
   */
  prepare(): Promise<void> {
    return this.#round(async () => {
      this.#refusePrepared();
      const members = this.#members.filter(({ stage }) => stage !== 'done');
      await this.#prepareAll(members);
      this.#prepared = members;
    });
  }

  /** The second half: `epoch` is durably the group's. All members forget the old in one tick. */
  commit(epoch: number): Promise<void> {
    return this.#round(async () => {
      const members = this.#prepared;
      if (members === null) throw new BlockError('wrong-state', 'no checkpoint is prepared');
      this.#prepared = null;
      await commit(members, epoch);
    });
  }

  /** Instead of `commit`; nothing happens if nothing is prepared. */
  abort(): Promise<void> {
    return this.#round(async () => this.#unprepare());
  }

  /** @throws BlockError of the first member that does not run or has recorded an I/O error */
  getError(): void {
    for (const member of this.#active()) member.getError();
  }

  /** Stops all. A failover visits every member and then throws the first error. A prepared checkpoint is given up. */
  stop(failover: boolean): Promise<void> {
    return this.#round(async () => {
      this.#unprepare();
      let first: BlockError | null = null;
      for (const member of this.#active()) {
        try {
          await member.stop(failover);
        } catch (error) {
          if (!failover) throw error;
          first ??= toBlockError(error);
        }
      }
      if (first !== null) throw first;
    });
  }

  info(): ReplicationInfo[] {
    return this.#members.map((member) => member.info());
  }

  /** A member that has finished, or whose failover is under way, is no part of a round. */
  #active(): ReplicationMember[] {
    return this.#members.filter((member) => member.stage !== 'done' && member.stage !== 'failover');
  }

  /** One round after another: a member never has two operations at once. */
  #round(work: () => Promise<void>): Promise<void> {
    const round = this.#lastRound.then(work);
    this.#lastRound = round.catch(() => undefined);
    return round;
  }

  async #prepareAll(members: readonly ReplicationMember[]): Promise<void> {
    const prepared: ReplicationMember[] = [];
    try {
      for (const member of members) {
        await member.prepare();
        prepared.push(member);
      }
    } catch (error) {
      for (const member of prepared) member.unprepare();
      throw error;
    }
  }

  #refusePrepared(): void {
    if (this.#prepared !== null)
      throw new BlockError('wrong-state', 'a checkpoint is prepared: commit or abort it first');
  }

  #unprepare(): void {
    for (const member of this.#prepared ?? []) member.unprepare();
    this.#prepared = null;
  }
}

/**
 * With an epoch all members are called in one tick. Without one each overlay makes its own emptying durable: one member
 * after another, and the first failure ends it (spec: "checkpoint").
 */
async function commit(members: readonly ReplicationMember[], epoch?: number): Promise<void> {
  if (epoch !== undefined) {
    const results = await Promise.allSettled(members.map((member) => attempt(() => member.checkpoint(epoch))));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    return;
  }
  for (const [done, member] of members.entries()) {
    try {
      await attempt(() => member.checkpoint());
    } catch (error) {
      for (const rest of members.slice(done + 1)) rest.unprepare();
      throw error;
    }
  }
}
