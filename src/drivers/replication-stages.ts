/**
 * What a user of the replication filter may do in which stage (spec: replication-filter, "Stages"), as a table.
 */
import type { ReplicationMode, ReplicationStage } from '../block/replication-group.ts';
import { BlockError } from '../util/errors.ts';

/**
 * - `refused`: EIO, not recorded
 * - `child`: to the child; its failure is the request's
 * - `recorded`: to the child; a failure is recorded, the writer gets success
 * - `split`: what is allocated in an overlay goes to the active disk, any other piece to the secondary disk
 */
export type StageAccess = 'refused' | 'child' | 'recorded' | 'split';

interface Access {
  readonly read: StageAccess;
  /** zeroes are a write */
  readonly write: StageAccess;
}

const refused: Access = { read: 'refused', write: 'refused' };

/** A flush goes to the child in every stage. */
export const stageAccess: Readonly<Record<ReplicationMode, Readonly<Record<ReplicationStage, Access>>>> = {
  primary: {
    none: refused,
    running: { read: 'refused', write: 'recorded' },
    failover: refused,
    'failover-failed': refused,
    done: refused,
  },
  secondary: {
    none: refused,
    running: { read: 'child', write: 'child' },
    failover: { read: 'child', write: 'child' },
    'failover-failed': { read: 'child', write: 'split' },
    done: { read: 'child', write: 'child' },
  },
};

/** The EIO of a stage. */
export function refusedInStage(nodeName: string, stage: ReplicationStage): BlockError {
  return new BlockError('wrong-stage', `node '${nodeName}': replication is in stage ${stage}`);
}
