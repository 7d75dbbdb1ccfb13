/**
 * The words of the pair's state machine: phases, events, steps. No behaviour.
 *
 * A *plan* is a named list of steps that the runner performs one after the other; a step is durable, or done, before
 * the next begins. The first failure ends a plan. A new plan takes the place of the one that runs: its remaining steps
 * are dropped once the step under way has ended (one that only waits for the other side is left). What may take long (a
 * sync, closing an export) is begun by a step and told by an event, so that no plan waits for the other side.
 */
import type { z } from 'zod';
import type { linkMode } from '../qmp/schema/replication.ts';
import type { Checkpoint, Generation, GroupRecord, Proof } from './generation.ts';
import type { Hello, Message, MessageOf } from './messages.ts';

/** Mode of the replication of all disks. */
export type LinkMode = z.output<typeof linkMode>;

export const phases = {
  starting: 'the group file has been read, nothing is served',
  'no-role': 'the group file is missing or unreadable beside disks with data: a person decides',
  waiting: 'primary: serves nobody; waits for a hello, or for `start --alone`',
  'going-alone': 'primary: a new generation becomes durable, then users are answered',
  alone: 'primary: serves; what the other side lacks stands in the bitmaps',
  comparing: 'primary: serves alone and finds out by checksums what differs',
  attaching: 'primary: serves alone; the other side marks itself and opens its exports',
  copying: 'primary: forwards; the jobs copy what is missing',
  settling: 'primary: everything is copied; the other side makes it durable',
  closing: 'primary: flushes wait for both; the other side takes the generation',
  joining: 'primary: has proof that both are equal; connects before it serves',
  'in-step': 'primary: a flush that was answered is durable on both sides',
  switching: 'primary: a switchover: writers are sent away, both sides flushed',
  'handing-over': 'primary: has handed over durably; serves only if the other side refused',
  demoting: 'primary: another generation descends from this one: becomes its target',
  fencing: 'primary: stops serving because a failover was forced',
  detached: 'secondary: no session',
  target: 'secondary: agreed to receive; its exports are closed',
  syncing: 'secondary: receives; incomplete until the sync has ended',
  following: 'secondary: in step',
  detaching: 'secondary: a session ends: exports closed, disks flushed, noted',
  promoting: 'secondary that becomes primary',
  stopping: 'a clean stop',
  stopped: 'ended',
} as const;

export type Phase = keyof typeof phases;

export interface Session {
  readonly theirs: Hello;
  /** the other side has said that it is the target */
  readonly agreed: boolean;
  /** the other side durably refused what we were handing over */
  readonly handOverRefused: boolean;
}

/** In which ranges our disk differed at most, by disk, from that of a generation. */
export type Differences = NonNullable<MessageOf<'target'>['differs']>;

/** A checkpoint that no other one follows until then (wall time). */
export interface Held {
  readonly number: number;
  readonly untilMs: number;
}

/** Which state of the disks a failover makes the one that is served. */
export type FailoverTo = 'latest' | 'checkpoint';

/** What the configuration says that decisions depend on. */
export interface PairSelf {
  readonly name: string;
  readonly peer: string;
  readonly degraded: 'continue' | 'stop';
  /** as a secondary this side keeps checkpoints */
  readonly overlays: boolean;
  /** and they outlive a power cut: each is made of durable disks */
  readonly durable: boolean;
  readonly lockStep: boolean;
  /** how long what the primary's user was told is flushed may be on its way here: none, but in lock-step; ms */
  readonly behindMs: number;
  /** a resync that does not fit beside the last checkpoint is refused (pair.md 11) */
  readonly keepCheckpoint: boolean;
}

export type Command =
  /** `to` null: the latest write, in lock-step the checkpoint */
  | { readonly name: 'failover'; readonly force: boolean; readonly to: FailoverTo | null }
  /** `holdMs`: no other one is made for so long; null: it is not held */
  | { readonly name: 'checkpoint'; readonly holdMs: number | null }
  | { readonly name: 'release' }
  | { readonly name: 'switch' }
  | { readonly name: 'resolve'; readonly keep: string }
  | { readonly name: 'start-alone' }
  | { readonly name: 'stop' };

export interface PairState {
  readonly phase: Phase;
  readonly self: PairSelf;
  /** as it is durable */
  readonly record: GroupRecord;
  readonly sequence: number;
  /** the plan that runs */
  readonly plan: PlanName | null;
  readonly session: Session | null;
  /** the other side as it last said hello; kept while it is away */
  readonly peer: Hello | null;
  /** a checked hello came over the present connection */
  readonly connected: boolean;
  /** the other side answers, and both hellos say that it may not serve: a failover here is what is needed */
  readonly noPrimary: boolean;
  /** the exports for users are open, or may be */
  readonly serving: boolean;
  /** the graph of a primary stands */
  readonly built: boolean;
  readonly proof: Proof | null;
  /** the id that a sync's end has offered to the other side: it may hold it */
  readonly offered: string | null;
  /** what this side had when it was promoted; its bitmaps know all that was written since (pair.md 16) */
  readonly promotedFrom: Hello['promotedFrom'];
  /** our disks were blank at the start and mayDiffer has everything since: a blank target equals but for that */
  readonly zeroBase: boolean;
  /** secondary: wall time of the last word of the primary that both are in step */
  readonly asOfMs: number | null;
  /** why there is no session though the other side answers, or what a person has to do */
  readonly refusal: string | null;
  /** the last failure of a step, until the plan that it stopped has succeeded */
  readonly error: string | null;
  /** a command that is not answered yet */
  readonly pending: Exclude<Command['name'], 'stop' | 'checkpoint' | 'release'> | null;
  readonly forced: boolean;
  /** what the failover that waits goes to */
  readonly to: FailoverTo;
  /** a command for a checkpoint: it waits for one to begin, or for the one that runs */
  readonly asked: 'no' | 'waiting' | 'running';
  /** for how long the checkpoint that was asked for is to be held */
  readonly holdMs: number | null;
  /** primary: the number of the last request for a checkpoint; it is under way while `checkpointing` */
  readonly request: number;
  readonly checkpointing: boolean;
  /** primary: one is to begin as soon as nothing else is under way; `askedThere`: on command of the other side */
  readonly checkpointWanted: boolean;
  readonly askedThere: 'no' | 'waiting' | 'running';
  /** secondary: the primary's request that the checkpoint under way answers */
  readonly checkpointFor: number | null;
  /** secondary: the last checkpoint is held */
  readonly held: Held | null;
  /** primary: the other side holds one, as it told; the time is by our clock */
  readonly heldThere: Held | null;
  /** the last checkpoint: primary: of the other side; secondary: also one that would have been equal */
  readonly checkpoint: Checkpoint | null;
  readonly stopWanted: boolean;
  /** primary, lock-step: a switchover waits for the end of a barrier */
  readonly switchWanted: boolean;
  /** a clean stop: the other side is still in step, exports are closed */
  readonly stopping: { readonly inStep: boolean; readonly exportsClosed: boolean } | null;
}

export type PlanName =
  | 'note'
  | 'serve-alone'
  | 'go-alone'
  | 'lose-session'
  | 'mark'
  | 'copy'
  | 'close'
  | 'end-sync'
  | 'join'
  | 'leave-join'
  | 'send-away'
  | 'hand-over'
  | 'let-go'
  | 'take-back'
  | 'demote'
  | 'become-target'
  | 'flush-own'
  | 'open-for-sync'
  | 'take'
  | 'detach-secondary'
  | 'reopen'
  | 'promote'
  | 'keep'
  | 'fence'
  | 'fence-in-step'
  | 'open-keeping'
  | 'checkpoint'
  | 'end-checkpoint'
  | 'save-and-stop'
  | 'stop-alone'
  | 'finish';

export type Step =
  /** one durable write of the group file */
  | { readonly do: 'commit'; readonly change: Partial<GroupRecord> }
  | { readonly do: 'set-mode'; readonly mode: LinkMode }
  /** the filters and quorums of a primary over the disks; nothing if they stand */
  | { readonly do: 'build-primary' }
  | { readonly do: 'tear-primary' }
  /** opens the writable exports for users; waits for a closing under way */
  | { readonly do: 'open-exports' }
  /** users are hung up; `exports-closed` comes when their requests have ended */
  | { readonly do: 'begin-close-exports' }
  /** users are hung up; those still held are let go with an error, once none can hear an answer any more (pair.md 7) */
  | { readonly do: 'drop-users' }
  /** the users' server refuses the disks in these words; null: says who is primary */
  | { readonly do: 'refuse-users'; readonly reason: string | null }
  /** opens exports for one session */
  | { readonly do: 'open-replication' }
  /** says that they are open. `fresh`: the checkpoint was made for this sync */
  | { readonly do: 'announce'; readonly fresh: boolean }
  | { readonly do: 'close-replication' }
  /** asks the other side to open its exports, and says how much the sync will write there */
  | { readonly do: 'ask-to-attach'; readonly how: 'sync' | 'join' }
  // ---- the overlays of a secondary
  | { readonly do: 'open-overlays' }
  /** closed, and their files are gone: nothing in them counts */
  | { readonly do: 'drop-overlays' }
  /** fails if a sync of so many bytes may not fit beside the checkpoint */
  | { readonly do: 'check-space'; readonly bytes: number }
  /** old content is kept before the exported disks are changed */
  | { readonly do: 'keep-old' }
  /**
   * a checkpoint of all disks, whose one durable write has this change as well. `ifChanged`: only if something was
   * written since the last. `atMs`: the wall time of what the disks hold; null: now
   */
  | {
      readonly do: 'checkpoint';
      readonly change: Partial<GroupRecord>;
      readonly ifChanged: boolean;
      readonly atMs: number | null;
    }
  /** users are shown the last checkpoint, or are hung up */
  | { readonly do: 'show-view' }
  | { readonly do: 'hide-view' }
  /** the last checkpoint is what users get, and goes into the disks; `end-takeover` waits for that, and commits it */
  | { readonly do: 'begin-takeover' }
  | { readonly do: 'end-takeover'; readonly change: Partial<GroupRecord> }
  /** says that users are served, while a promotion goes on */
  | { readonly do: 'promoted' }
  | { readonly do: 'tell-checkpoint'; readonly request: number | null }
  /** primary: until the other side has made the checkpoint that was asked for */
  | { readonly do: 'await-checkpoint' }
  | { readonly do: 'attach'; readonly exports: Readonly<Record<string, string>>; readonly theirs: Hello }
  | { readonly do: 'detach' }
  /** `held`: what going back to the checkpoint changes */
  | { readonly do: 'mark'; readonly what: 'all' | 'unproven' | 'held' }
  | { readonly do: 'mark-ranges'; readonly ranges: Differences['ranges'] }
  /** keeps what the bitmaps say, for the side that was promoted from this generation */
  | { readonly do: 'remember-differences'; readonly from: string }
  /** agrees to be the target, and says what is known of the difference */
  | { readonly do: 'agree' }
  | { readonly do: 'start-compare' }
  | { readonly do: 'start-copy'; readonly targetIsZero: boolean }
  | { readonly do: 'stop-work' }
  /**
   * a flush that the other side proves; `proven`: afterwards it has all that it was given; `bounded`: no longer than a
   * user may wait (pair.md 6)
   */
  | { readonly do: 'flush-remote'; readonly proven: boolean; readonly bounded: boolean }
  /** lock-step: keeps what may differ from the other side's checkpoint, which the flush that follows forgets */
  | { readonly do: 'keep-behind' }
  /** the other side's disks are known to be equal */
  | { readonly do: 'forget' }
  | { readonly do: 'flush-own' }
  | { readonly do: 'reopen-disks' }
  | { readonly do: 'send'; readonly message: Message }
  | { readonly do: 'drop-link'; readonly reason: string }
  /**
   * makes the own disks durable, saves the bitmaps, then commits the mark of a clean stop; without it where a disk
   * cannot be made durable, or (`equal`) where the two may differ. `behind`: if they do not, the bitmaps that are saved
   * are those that were kept, about this checkpoint of the other side
   */
  | {
      readonly do: 'save-clean-stop';
      readonly proof: Proof | null;
      readonly equal: boolean;
      readonly behind: number | null;
      readonly change: Partial<GroupRecord>;
    }
  /** offers this generation to the other side; whether both are equal is what the mark of a clean stop says */
  | { readonly do: 'offer'; readonly generation: Generation }
  | { readonly do: 'await-goodbye' }
  | { readonly do: 'answer'; readonly command: Command['name']; readonly error: string | null; readonly text: string }
  | { readonly do: 'retry-later' }
  | { readonly do: 'finish' };

export interface Plan {
  readonly name: PlanName;
  readonly steps: readonly Step[];
}

export type PairEvent =
  | { readonly type: 'started' }
  /** both hellos of a connection; `sequence` is that of the group file when ours was made */
  | { readonly type: 'hello'; readonly mine: Hello; readonly sequence: number; readonly theirs: Hello }
  | { readonly type: 'message'; readonly message: Message }
  | { readonly type: 'link-lost'; readonly reason: string }
  /** somebody answers, but it is no side of this pair, or one that cannot be understood */
  | { readonly type: 'link-refused'; readonly reason: string }
  | { readonly type: 'replication-down'; readonly reason: string }
  | { readonly type: 'committed'; readonly record: GroupRecord; readonly sequence: number }
  | { readonly type: 'plan-done'; readonly plan: PlanName }
  | { readonly type: 'plan-failed'; readonly plan: PlanName; readonly step: Step['do']; readonly error: string }
  | { readonly type: 'compared' }
  | { readonly type: 'copied' }
  | { readonly type: 'work-failed'; readonly error: string }
  | { readonly type: 'exports-closed' }
  /** a write that was forwarded failed on the local disk: the range is marked (pair.md 8) */
  | { readonly type: 'diverged' }
  /** secondary: the clock, or (`early`) a store that has little space left */
  | { readonly type: 'checkpoint-due'; readonly early: boolean }
  /** secondary: the time of the hold has passed */
  | { readonly type: 'hold-over' }
  /** a promotion goes on, and users are served */
  | { readonly type: 'promoted' }
  /** secondary: nothing was written since the last checkpoint: it is as good as a new one */
  | { readonly type: 'checkpoint-unchanged' }
  /** secondary: a checkpoint that was not made may stand in the group file: nothing may change until it is written */
  | { readonly type: 'unsure'; readonly error: string }
  /** the time after a failure has passed; `phase`: in which that was */
  | { readonly type: 'retry'; readonly phase: Phase }
  | { readonly type: 'command'; readonly command: Command };

/** What the world gives to a decision: the time, and a random id that was never used. */
export interface Given {
  readonly wallMs: number;
  readonly id: string;
}

export interface Decision {
  readonly state: PairState;
  /** takes the place of the plan that runs; undefined: that one goes on */
  readonly plan?: Plan;
  /** steps that wait for nothing (send, answer, drop-link, retry-later), performed at once */
  readonly now?: readonly Step[];
}

/** The state at a start, before anything happened. */
export function initialState(from: {
  self: PairState['self'];
  record: GroupRecord;
  sequence: number;
  proof: Proof | null;
  blank: boolean;
  built: boolean;
}): PairState {
  return {
    phase: 'starting',
    self: from.self,
    record: from.record,
    sequence: from.sequence,
    plan: null,
    session: null,
    peer: null,
    connected: false,
    noPrimary: false,
    serving: false,
    built: from.built,
    proof: from.proof,
    offered: null,
    promotedFrom: null,
    zeroBase: from.blank,
    asOfMs: null,
    refusal: null,
    error: null,
    pending: null,
    forced: false,
    to: 'latest',
    asked: 'no',
    holdMs: null,
    request: 0,
    checkpointing: false,
    checkpointWanted: false,
    askedThere: 'no',
    checkpointFor: null,
    held: null,
    heldThere: null,
    checkpoint: from.record.checkpoint,
    stopWanted: false,
    switchWanted: false,
    stopping: null,
  };
}

export function isPrimaryPhase(phase: Phase): boolean {
  return phases[phase].startsWith('primary');
}

export type { Checkpoint, Generation, GroupRecord, Proof };
