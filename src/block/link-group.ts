/**
 * The link group: the one mode of all replication filters that hold their writers while the other side is away.
 *
 * Invariant (pair.md 5, "one link down, all down"): every member has the same mode at every instant; a link that breaks
 * takes all members out of forwarding in the same tick, before any waiting user of any of them is answered. Only the
 * supervisor sets the next mode: it has durably opened a new generation first (pair.md 7).
 */
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { CopyTarget } from './copy-target.ts';

/**
 * - `held`: writes and flushes wait: at start, and after a link went down, until the supervisor has decided
 * - `alone`: writes are marked, not forwarded; flushes are local
 * - `syncing`: what the other side has is kept up to date, the rest stays marked; flushes are local
 * - `in-sync`: everything is forwarded, flushes wait for the other side
 * - `barrier`: in sync, and new writes wait: a checkpoint of lock-step is being made (pair.md 21)
 * - `refusing`: writes and flushes fail: whoever is held in the end is let go
 */
export type LinkMode = 'held' | 'alone' | 'syncing' | 'in-sync' | 'barrier' | 'refusing';

export const linkModes: readonly LinkMode[] = ['held', 'alone', 'syncing', 'in-sync', 'barrier', 'refusing'];

/** `link-down`: a forward failed or was lost, a flush included; the others are the supervisor's decisions. */
export type LinkEvent = LinkMode | 'link-down';

const anyMode = {
  held: 'held',
  alone: 'alone',
  syncing: 'syncing',
  'in-sync': 'in-sync',
  barrier: 'barrier',
  refusing: 'refusing',
} as const;

/**
 * The transition table: row = mode, column = event. `syncing`, `in-sync` and `barrier` further need every member
 * connected, the last two every missing bitmap empty. A broken link matters only to a mode that forwards.
 */
export const linkMoves: Readonly<Record<LinkMode, Readonly<Record<LinkEvent, LinkMode>>>> = {
  held: { ...anyMode, 'link-down': 'held' },
  alone: { ...anyMode, 'link-down': 'alone' },
  syncing: { ...anyMode, 'link-down': 'held' },
  'in-sync': { ...anyMode, 'link-down': 'held' },
  barrier: { ...anyMode, 'link-down': 'held' },
  refusing: { ...anyMode, 'link-down': 'refusing' },
};

/** True for the modes that send writes to the other side, or have sent what is not answered yet. */
export function forwards(mode: LinkMode): boolean {
  return mode === 'syncing' || isInSync(mode);
}

/** The other side has everything but what is on its way. */
function isInSync(mode: LinkMode): boolean {
  return mode === 'in-sync' || mode === 'barrier';
}

/** What a supervisor does to one member; the replication filter with `on-link-down: hold` is the one kind. */
export interface LinkMember {
  readonly nodeName: string;
  /** bytes of the disk */
  readonly length: number;
  /** it has a child whose connection is not known to be broken */
  readonly connected: boolean;
  readonly missingBytes: number;
  /** how long a user may wait for the other side, ms (pair.md 6) */
  readonly stallMsMax: number;
  /** First pass of a change: begin or end forwarding. Must not throw, issue a request or answer a user. */
  enter(mode: LinkMode): void;
  /** Second pass, with every member in the new mode: go on with the requests that were waiting for it. */
  resume(): void;
  connect(reference: string): Promise<void>;
  disconnect(): Promise<void>;
  mark(what: MarkRequest): void;
  forget(): void;
  /** Resolves when the other side proved everything forwarded so far durable. */
  proveDurable(): Done;
  bitmap(): ReplicationBitmap;
  /** The missing blocks, for a sync over the link as it is. @throws BlockError wrong-state if it does not forward */
  copyTarget(): CopyTarget;
}

/** `ranges` and `all` go to missing; `unproven`: all of mayDiffer does (the other side is another instance). */
export interface MarkRequest {
  readonly ranges?: readonly (readonly [number, number])[] | undefined;
  readonly all?: boolean | undefined;
  readonly unproven?: boolean | undefined;
}

export interface ReplicationBitmap {
  /** `[offset, length]` in bytes, in order; neighbours are joined if there are too many (a superset) */
  readonly mayDiffer: [number, number][];
  readonly missingBytes: number;
  readonly mayDifferBytes: number;
}

export class LinkGroup {
  #mode: LinkMode = 'held';
  #members: LinkMember[] = [];
  #changes = 0;

  get mode(): LinkMode {
    return this.#mode;
  }

  get members(): readonly LinkMember[] {
    return this.#members;
  }

  /** @throws BlockError wrong-state while the group forwards: a new member would not be in sync */
  join(member: LinkMember): void {
    if (forwards(this.#mode)) {
      throw new BlockError('wrong-state', `node '${member.nodeName}' cannot join a replication that is ${this.#mode}`);
    }
    this.#members.push(member);
  }

  /** The mode of a group without members is `held` again: the next pair begins as the first did. */
  leave(member: LinkMember): void {
    this.#members = this.#members.filter((one) => one !== member);
    if (this.#members.length === 0) this.#mode = 'held';
  }

  /** @throws BlockError node-not-found */
  find(nodeName: string): LinkMember {
    const member = this.#members.find((one) => one.nodeName === nodeName);
    if (member === undefined) {
      throw new BlockError('node-not-found', `'${nodeName}' is no replication node with on-link-down=hold`);
    }
    return member;
  }

  /** Sets the mode of all members in this tick. @throws BlockError wrong-state, naming the node that forbids it */
  setMode(mode: LinkMode): void {
    if (this.#members.length === 0) {
      throw new BlockError('wrong-state', 'there is no replication node with on-link-down=hold');
    }
    for (const member of this.#members) {
      if (forwards(mode) && !member.connected) {
        throw new BlockError('wrong-state', `cannot be ${mode}: node '${member.nodeName}' is not connected`);
      }
      if (isInSync(mode) && member.missingBytes > 0) {
        throw new BlockError(
          'wrong-state',
          `cannot be ${mode}: node '${member.nodeName}' still misses ${member.missingBytes} bytes`,
        );
      }
    }
    this.#move(mode);
  }

  /** A link broke, or a forward failed: all members leave forwarding now. */
  linkDown(): void {
    this.#move('link-down');
  }

  /**
   * The process ends, and nobody will set another mode: whoever is held is let go, with an error. Only once nobody can
   * hear an answer any more: above a quorum that error may count as success (see `pair.md` 7).
   */
  shutDown(): void {
    if (this.#mode === 'held') this.#move('refusing');
  }

  /**
   * Two passes, so that no member sends or answers anything while another one still has the old mode. A request that
   * is sent in the second pass may fail at once and take the link down again: then the inner change is the last word.
   */
  #move(event: LinkEvent): void {
    const before = this.#mode;
    const mode = linkMoves[before][event];
    if (mode === before) return;
    this.#mode = mode;
    const change = ++this.#changes;
    for (const member of this.#members) member.enter(mode);
    for (const member of this.#members) {
      if (this.#changes !== change) return;
      member.resume();
    }
  }
}
