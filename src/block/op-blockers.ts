/**
 * Operations that must not be begun on a node while something else goes on there, each with the reason, for people
 * (replication-filter.md, "Operations"). They are for what a user asks for by command; I/O and the permissions of
 * parents are another matter, and whoever blocks a node may itself do there what it likes.
 *
 * Invariant: a block ends when its maker lifts it, or with its node, whichever comes first.
 */
import { BlockError } from '../util/errors.ts';

export type BlockOperation =
  | 'resize'
  | 'eject'
  | 'change'
  | 'delete'
  | 'snapshot'
  | 'stream'
  | 'commit-source'
  | 'commit-target'
  | 'mirror-source'
  | 'mirror-target'
  | 'backup-source'
  | 'backup-target'
  | 'replace';

/** What replication, or a job, keeps from its nodes while it runs: all of them. */
export const blockOperations: readonly BlockOperation[] = [
  'resize',
  'eject',
  'change',
  'delete',
  'snapshot',
  'stream',
  'commit-source',
  'commit-target',
  'mirror-source',
  'mirror-target',
  'backup-source',
  'backup-target',
  'replace',
];

/** A block that stands; `lift` may be called when it is gone already. */
export interface OpBlock {
  lift(): void;
}

interface Entry {
  readonly operations: readonly BlockOperation[];
  readonly reason: string;
}

export class OpBlockers {
  private readonly byNode = new Map<string, Set<Entry>>();

  /** @param reason a clause: `replication 'x' runs on it` */
  block(nodeName: string, operations: readonly BlockOperation[], reason: string): OpBlock {
    const entry: Entry = { operations, reason };
    const entries = this.byNode.get(nodeName) ?? new Set();
    this.byNode.set(nodeName, entries);
    entries.add(entry);
    return {
      lift: (): void => {
        entries.delete(entry);
        if (entries.size === 0 && this.byNode.get(nodeName) === entries) this.byNode.delete(nodeName);
      },
    };
  }

  /** All operations on several nodes. */
  blockAll(nodeNames: readonly string[], reason: string): OpBlock[] {
    return nodeNames.map((name) => this.block(name, blockOperations, reason));
  }

  /** @throws BlockError op-blocked, with the reason */
  check(nodeName: string, operation: BlockOperation): void {
    for (const { operations, reason } of this.byNode.get(nodeName) ?? []) {
      if (!operations.includes(operation)) continue;
      throw new BlockError('op-blocked', `node '${nodeName}' is busy (${wordsOf(operation)} is blocked): ${reason}`);
    }
  }

  /** The reasons that stand on a node, for status commands. */
  reasons(nodeName: string): string[] {
    return [...(this.byNode.get(nodeName) ?? [])].map(({ reason }) => reason);
  }

  /** The node is gone: another one of that name starts without. */
  forget(nodeName: string): void {
    this.byNode.delete(nodeName);
  }
}

function wordsOf(operation: BlockOperation): string {
  const [kind, role] = operation.split('-');
  return role === undefined ? operation : `being ${role} of a ${kind}`;
}
