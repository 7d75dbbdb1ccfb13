/**
 * What a daemon's `pair-status` says, as the command line reads it: the schema of the command, and the process's id
 * that the daemon adds. Members of a newer daemon are kept, for `status --json`.
 */
import { z } from 'zod';
import { check } from '../qmp/check.ts';
import { pairStatus } from '../qmp/schema/pair.ts';

const schema = z.looseObject({ ...pairStatus.shape, pid: z.int() });

export type DaemonStatus = z.output<typeof schema>;

/** @throws BlockError invalid-option if it is not what a daemon says */
export function readStatus(value: unknown): DaemonStatus {
  return check(schema, value, 'pair-status');
}

/** True if the disk is served there to its users: the other side may offer its last checkpoint, which is not that. */
export function isServing(status: DaemonStatus): boolean {
  return status.serving && status.role === 'primary';
}
