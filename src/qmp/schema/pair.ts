/**
 * Commands of a daemon of a pair: its supervisor serves them beside the engine's.
 */
import { z } from 'zod';
import { defineCommand, defineEvent } from '../command.ts';
import { noArguments, nothing, size } from './common.ts';

const wallMs = z.number().describe('milliseconds since 1970');
const store = z.enum(['clean', 'resync', 'incomplete', 'promoting']);
const role = z.enum(['none', 'primary', 'secondary']);
const checkpoint = z
  .strictObject({
    number: z.int().min(1).describe('given by the secondary, never twice'),
    ageMs: z.number().describe('how long ago it was made'),
  })
  .nullable()
  .describe('the last one; null: there is none');
const generation = z
  .strictObject({ id: z.string().describe('random'), number: z.int().min(1).describe('counts up, for people') })
  .meta({ id: 'PairGeneration' });

export const pairDisk = z
  .strictObject({
    name: z.string(),
    file: z.string(),
    size,
    uri: z.string().describe('where its users connect'),
    role,
    generation: generation.nullable(),
    connected: z.boolean(),
    inSync: z.boolean(),
    forwardedBytes: size.describe('sent to the other side since this process serves'),
    lagBytes: size.describe('written here, not yet acknowledged there: the window, or what may differ when apart'),
    missingBytes: size.describe('to be copied to the other side'),
    checkpoint,
    hiddenBytes: size.describe('secondary: old content that is kept since the last checkpoint'),
    activeBytes: size.describe('secondary, lock-step: what its own user wrote since the last checkpoint'),
    aloneSince: wallMs.nullable(),
    store,
    io: z.enum(['sync', 'async']).nullable().describe('`async`: the device is slow; null: the engine did not say'),
    stalledMs: size.describe('how long the oldest call to the device has been under way'),
    error: z.string().nullable(),
    diverged: z
      .array(z.tuple([size, size]))
      .describe('ranges that the local disk could not write, and that are sent again when it can be read'),
  })
  .meta({ id: 'PairDisk' });

export const pairStatus = z
  .strictObject({
    name: z.string(),
    volume: z.string(),
    role,
    phase: z.string().describe('the state of the supervisor; the architecture page has the table'),
    state: z.string().describe('the same in words'),
    serving: z.boolean().describe('users are served'),
    uri: z.string().describe('of the first disk'),
    uris: z.array(z.string()),
    connected: z.boolean().describe('the other side answers'),
    inSync: z.boolean().describe('every flush that was answered is durable on both sides'),
    generation: generation.nullable(),
    forwardedBytes: size,
    lagBytes: size,
    checkpoint,
    held: z
      .strictObject({
        number: z.int().min(1),
        untilMs: wallMs,
        forMs: z.number().describe('from now on'),
      })
      .nullable()
      .describe('on both sides: the checkpoint after which none is made until then, as asked for; null: none is held'),
    space: z
      .strictObject({
        freeBytes: size.describe('of the file system that the overlays are on'),
        wantedBytes: size.describe('what they take if every block is written between two checkpoints'),
        warning: z.string().nullable(),
      })
      .nullable()
      .describe('secondary with overlays'),
    aloneSince: wallMs.nullable().describe('primary: since when it has, or may have, what the other side has not'),
    store,
    syncProgress: z.strictObject({ what: z.enum(['compare', 'copy']), doneBytes: size, totalBytes: size }).nullable(),
    splitBrain: z.strictObject({ sinceMs: wallMs, reason: z.string() }).nullable(),
    latestAsOf: z
      .strictObject({
        ms: wallMs,
        goodbye: z.boolean().describe('the primary stopped then: nothing is missing'),
        text: z.string(),
      })
      .nullable()
      .describe('secondary without a session: up to when it surely has every flushed write'),
    peer: z.strictObject({
      name: z.string(),
      role: role.nullable(),
      generation: generation.nullable(),
      uris: z.array(z.string()),
    }),
    disks: z.array(pairDisk),
    notice: z.string().nullable().describe('what keeps the pair from being whole, and what a person can do'),
    error: z.string().nullable(),
  })
  .meta({ id: 'PairStatus' });
export type PairStatus = z.output<typeof pairStatus>;

/** For how long a checkpoint may be held; longer ones would be forgotten. */
export const holdMsMin = 100;
export const holdMsMax = 24 * 3_600_000;

const done = z.strictObject({ text: z.string().describe('what was done, in a sentence') });

export const pairSchema = [
  defineCommand({
    name: 'pair-status',
    summary: 'Role, generation, and how far the other side is.',
    arguments: noArguments,
    returns: pairStatus,
  }),
  defineCommand({
    name: 'pair-failover',
    summary:
      'Makes this side primary. With a primary that answers and is in step: a switchover. ' +
      'Returns when users are served.',
    arguments: z.strictObject({
      to: z
        .enum(['latest', 'checkpoint'])
        .optional()
        .describe('default: `latest`, in lock-step `checkpoint`; a mirror has only `latest`'),
      force: z.boolean().optional().describe('also with incomplete disks, and against a primary that answers'),
    }),
    returns: done,
  }),
  defineCommand({
    name: 'pair-checkpoint',
    summary:
      'Makes a checkpoint that holds every write that was answered before. On either side, while both are in step. ' +
      'In lock-step later writes wait until it is made.',
    arguments: z.strictObject({
      holdMs: z
        .int()
        .min(holdMsMin)
        .max(holdMsMax)
        .optional()
        .describe('secondary, standby: makes no other one for so long; ended by short space and with the session'),
      release: z.literal(true).optional().describe('makes none, but ends the hold; an error if there is none'),
    }),
    returns: z.strictObject({ number: z.int().min(1), text: z.string() }),
  }),
  defineCommand({
    name: 'pair-switch',
    summary: 'Changes the roles of two sides that are in step, without losing anything.',
    arguments: noArguments,
    returns: done,
  }),
  defineCommand({
    name: 'pair-resolve',
    summary: 'After a split brain: keeps the data of one side; the other one becomes its target.',
    arguments: z.strictObject({ keep: z.string().min(1).max(64).describe('name of the side that is kept') }),
    returns: done,
  }),
  defineCommand({
    name: 'pair-start',
    summary: 'Serves although the other side does not answer: a person knows that it does not serve either.',
    arguments: z.strictObject({ alone: z.literal(true) }),
    returns: done,
  }),
  defineCommand({
    name: 'pair-stop',
    summary: 'A clean stop: users are sent away, both sides flushed, marks saved. Returns when it is done.',
    arguments: noArguments,
    returns: nothing,
  }),
] as const;

export const pairEvents = [
  defineEvent({
    name: 'PAIR_CHECKPOINT',
    summary: 'Secondary: a checkpoint was made, or the last one was given up.',
    data: z.strictObject({ number: z.int().min(1).nullable(), reason: z.string().nullable() }),
  }),
  defineEvent({
    name: 'PAIR_STATE',
    summary: 'The supervisor went to another state.',
    data: z.strictObject({
      phase: z.string(),
      role,
      connected: z.boolean(),
      inSync: z.boolean(),
      generation: generation.nullable(),
      notice: z.string().nullable(),
      error: z.string().nullable(),
    }),
  }),
];
