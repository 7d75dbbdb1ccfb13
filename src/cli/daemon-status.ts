/**
 * What `pair-status` says, as the command line reads it. The daemon is the authority: members that this version does
 * not know are kept for `status --json`.
 */
import { z } from 'zod';
import { check } from '../qmp/check.ts';

const disk = z.looseObject({ name: z.string(), uri: z.string().nullable().optional() });

const schema = z.looseObject({
  name: z.string(),
  role: z.enum(['primary', 'secondary']).nullable(),
  pid: z.int(),
  uri: z.string().nullable(),
  connected: z.boolean(),
  inSync: z.boolean(),
  generation: z.unknown(),
  forwardedBytes: z.number(),
  lagBytes: z.number(),
  checkpoint: z.looseObject({ number: z.number(), ageMs: z.number() }).nullable(),
  aloneSince: z.union([z.string(), z.number()]).nullable(),
  error: z.string().nullable(),
  state: z.string().optional(),
  disks: z.array(disk).optional(),
});

export type DaemonStatus = z.infer<typeof schema>;

/** @throws BlockError invalid-option if it is not what a daemon says */
export function readStatus(value: unknown): DaemonStatus {
  return check(schema, value, 'pair-status');
}
