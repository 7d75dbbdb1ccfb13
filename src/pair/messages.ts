/**
 * What two supervisors say to each other: one JSON object a line, checked whole before it acts (pair.md 13).
 *
 * The first line of each side is its hello, with the range of versions that it speaks; the highest version that both
 * know is used. A line that is no message of the protocol ends the connection with a sentence that says what came.
 */
import { z } from 'zod';
import { BlockError } from '../util/errors.ts';
import { disksMax } from './config.ts';

/** Versions of the protocol that this code speaks. 2: `held`. */
export const versions = { min: 1, max: 2 } as const;

/** bytes of one line: a page of checksums is the longest */
export const messageBytesMax = 1 << 20;

/** Ranges of a disk in one message; more are joined with what lies between. */
export const rangesMax = 512;

/** Checksums of one request: 16 MiB in blocks of 64 KiB. */
export const checksumsMax = 4096;

const name = z.string().min(1).max(64);
const generationId = z.string().regex(/^[0-9a-f]{16}$/);
const generation = z.strictObject({ id: generationId, number: z.int().min(1) });
const address = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('unix'), path: z.string().min(1).max(107) }),
  z.strictObject({ type: z.literal('inet'), host: z.string().max(255), port: z.int().min(0).max(65535) }),
]);
const reason = z.string().max(2000);

export const helloSchema = z.object({
  type: z.literal('hello'),
  program: z.literal('blockstep'),
  versions: z.object({ min: z.int().min(1), max: z.int().min(1) }),
  volume: name,
  name,
  role: z.enum(['none', 'primary', 'secondary']),
  generation: generation.nullable(),
  ancestors: z.array(generationId).max(256),
  store: z.enum(['clean', 'resync', 'incomplete']),
  /** as a secondary it keeps checkpoints */
  overlays: z.boolean(),
  lockStep: z.boolean(),
  /** the one that its overlays lead back to */
  checkpoint: z.object({ number: z.int().min(1), ageMs: z.number() }).nullable(),
  /** its disk is that checkpoint: it had to go back to it */
  rolledBack: z.boolean(),
  /** every disk reads as zeroes */
  blank: z.boolean(),
  disks: z.array(z.object({ name: z.string().min(1).max(64), size: z.int().min(1) })).max(disksMax),
  /** random for each life of the process */
  instance: z.string().regex(/^[0-9a-f]{1,32}$/),
  /** where this side listens for replication */
  replication: address,
  /** where its users connect, a disk a line */
  uris: z.array(z.string().max(300)).max(disksMax),
  aloneSince: z.number().nullable(),
  handingOver: generation.nullable(),
  /**
   * the generation that this side had when it became primary, in this life of its process; `wentBack`: its disks had
   * gone back to this checkpoint before. Its own bitmaps know all that was written since
   */
  promotedFrom: z.object({ id: generationId, wentBack: z.int().min(1).nullable() }).nullable(),
  /** whose data this side may overwrite without a common history; `any`: a person decided it */
  overwrite: z.object({ name, any: z.boolean() }).nullable(),
});
export type Hello = z.output<typeof helloSchema>;

const simple = <Type extends string>(type: Type) => z.strictObject({ type: z.literal(type) });

const laterSchema = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('heartbeat'), inSync: z.boolean() }),
  /**
   * S: I am the target of this session; my replication exports are closed. `differs`: when you were promoted from this
   * generation, our disks differed in these ranges at most (pair.md 16)
   */
  z.strictObject({
    type: z.literal('target'),
    differs: z
      .strictObject({
        from: generationId,
        ranges: z.record(name, z.array(z.tuple([z.int().min(0), z.int().min(1)])).max(rangesMax)),
      })
      .nullable(),
  }),
  /** S: I shall never take this generation (pair.md 15) */
  z.strictObject({ type: z.literal('refused'), id: generationId }),
  /**
   * P: make your disks durable, then tell me: before checksums are believed, and before the short last flush of a sync
   */
  simple('flush'),
  simple('flushed'),
  z.strictObject({
    type: z.literal('checksum'),
    request: z.int().min(0),
    disk: name,
    offset: z.int().min(0),
    length: z.int().min(1),
    block: z.int().min(512),
  }),
  z.strictObject({
    type: z.literal('checksums'),
    request: z.int().min(0),
    checksums: z.array(z.string().max(32)).max(checksumsMax),
    error: reason.nullable(),
  }),
  /**
   * P: open your exports. `sync`: mark yourself incomplete first; `join`: you have everything (pair.md 12). `bytes`:
   * what the sync will write at least
   */
  z.strictObject({ type: z.literal('attach'), how: z.enum(['sync', 'join']), bytes: z.int().min(0) }),
  /** `checkpoint`: the number of the one that the sync leaves to go back to */
  z.strictObject({
    type: z.literal('attached'),
    exports: z.record(name, z.string().max(255)),
    checkpoint: z.int().min(1).nullable(),
    /** it was made for this sync, of what was found */
    fresh: z.boolean(),
  }),
  /** P: all of it is on your side: flush, lift the mark, take this generation */
  z.strictObject({ type: z.literal('sync-end'), generation, ancestors: z.array(generationId).max(256) }),
  /** `checkpoint`: the number of the one that was made in the same write */
  z.strictObject({ type: z.literal('took'), id: generationId, checkpoint: z.int().min(1).nullable() }),
  /** S: a person wants a checkpoint, or in lock-step the clock does: make one when I have all that you answered */
  simple('checkpoint-request'),
  /** P: you have all that I answered before; make one. `asked`: that holds for your own request too */
  z.strictObject({ type: z.literal('checkpoint'), request: z.int().min(1), asked: z.boolean() }),
  /** S: the last checkpoint is this one now; `request`: the one of yours that it answers */
  z.strictObject({
    type: z.literal('checkpointed'),
    number: z.int().min(1),
    ageMs: z.number().min(0),
    request: z.int().min(1).nullable(),
  }),
  /** S: my last checkpoint is held for so long from now; null: none is any more. Since version 2 */
  z.strictObject({
    type: z.literal('held'),
    held: z.strictObject({ number: z.int().min(1), forMs: z.number().min(0) }).nullable(),
  }),
  z.strictObject({ type: z.literal('checkpoint-failed'), request: z.int().min(1), reason }),
  /** P: from now on a flush of my users waits for you */
  simple('in-step'),
  /** S: a person asks for a switchover */
  simple('switch-request'),
  z.strictObject({ type: z.literal('switch-refused'), reason }),
  /**
   * P: writers are gone, you have all that they were answered: promote yourself with this generation. `equal` (false
   * where it stands): my disk failed, do not take it for a copy of yours.
   */
  z.strictObject({ type: z.literal('hand-over'), generation, equal: z.boolean().optional() }),
  z.strictObject({ type: z.literal('took-over'), id: generationId }),
  /** S: a person forces a failover: stop serving */
  simple('stop-serving'),
  simple('stopped-serving'),
  /** to the side that is to be kept */
  z.strictObject({ type: z.literal('resolve') }),
  /** I stop. `clean`: you have every write */
  z.strictObject({ type: z.literal('goodbye'), clean: z.boolean() }),
  simple('goodbye-noted'),
]);

export type Message = z.output<typeof laterSchema>;
export type MessageOf<Type extends Message['type']> = Extract<Message, { type: Type }>;

export function encodeMessage(message: Message | Hello): Uint8Array {
  return new TextEncoder().encode(`${JSON.stringify(message)}\n`);
}

/** @throws BlockError protocol-error, in words that name what came instead */
export function decodeHello(line: string): Hello {
  const value = parse(line);
  const hello = helloSchema.safeParse(value);
  if (hello.success) return hello.data;
  const looks = typeof value === 'object' && value !== null && 'program' in value && value.program === 'blockstep';
  if (!looks) throw new BlockError('protocol-error', `the peer is not a blockstep supervisor: it said ${shown(line)}`);
  const other = z.object({ versions: z.object({ min: z.number(), max: z.number() }) }).safeParse(value);
  if (other.success) agreeVersion(other.data.versions);
  const [issue] = hello.error.issues;
  throw new BlockError('protocol-error', `the peer's hello is wrong at ${issue?.path.join('.')}: ${issue?.message}`);
}

/** The version to speak with a side that knows `theirs`. @throws BlockError protocol-error: no version in common */
export function agreeVersion(theirs: { min: number; max: number }): number {
  const version = Math.min(versions.max, theirs.max);
  if (version >= versions.min && version >= theirs.min) return version;
  throw new BlockError(
    'protocol-error',
    `the peer speaks versions ${theirs.min} to ${theirs.max} of the pair's protocol, this side ${versions.min} to ` +
      `${versions.max}: update the older one`,
  );
}

export function decodeMessage(line: string): Message {
  const message = laterSchema.safeParse(parse(line));
  if (message.success) return message.data;
  const [issue] = message.error.issues;
  const where = issue?.path.join('.') ?? '';
  throw new BlockError('protocol-error', `the peer sent ${shown(line)}: ${where} ${issue?.message ?? 'is wrong'}`);
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    throw new BlockError('protocol-error', `the peer is not a blockstep supervisor: it said ${shown(line)}`);
  }
}

function shown(line: string): string {
  return JSON.stringify(line.length > 60 ? `${line.slice(0, 60)}...` : line);
}
