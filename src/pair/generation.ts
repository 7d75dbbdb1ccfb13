/**
 * The group file of one side: role, generation and marks, durable (pair.md 13).
 *
 * Two checksummed copies, each in a block of 4096 bytes of its own (record-log.md 1). A commit overwrites the older one
 * and syncs; a reader takes the newer valid one. Invariant: whatever tears one write leaves the state before it or the
 * state after it, never a third. A commit that failed counts as not made: the next one overwrites the same block.
 *
 *      0                    4096                 8192
 *      | copy, sequence 6   | copy, sequence 7   |        <- 7 is read, the next commit goes to the first block
 */
import { z } from 'zod';

import type { Host, HostFile } from '../host/host.ts';
import { getU64, putU64, viewOf } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { type Hash64, loadHash64 } from '../util/xxhash.ts';
import { disksMax } from './config.ts';

/** One state of the group's data that a promotion or going alone began. */
const generation = z.strictObject({
  /** random; what is compared */
  id: z.string().regex(/^[0-9a-f]{16}$/),
  /** counts up; for people */
  number: z.int().min(1),
});
export type Generation = z.output<typeof generation>;

const generationId = z.string().regex(/^[0-9a-f]{16}$/);
const wallMs = z.number();

const checkpoint = z.strictObject({ number: z.int().min(1), atMs: wallMs });
export type Checkpoint = z.output<typeof checkpoint>;

/** How many ids of earlier generations are kept: beyond that a very old copy is a split brain, never a silent merge. */
export const ancestorsMax = 20;
const refusedMax = 4;

/**
 * What is proven of the other side's disks: that they differ from ours only where mayDiffer says so (pair.md 12). It
 * holds for a side that has one of these ids; one without an id is known only by its instance.
 */
const proof = z.strictObject({
  peers: z.array(generationId.nullable()).max(4),
  /** the life of the other side's process that the missing bits are about */
  instance: z.string().max(32).nullable(),
  /** the other side's checkpoint that the bits are about also if it had to go back to it; null: they are not */
  checkpoint: z.int().min(1).nullable().default(null),
});
export type Proof = z.output<typeof proof>;

export const groupRecord = z.strictObject({
  volume: z.string().max(64),
  name: z.string().max(64),
  role: z.enum(['none', 'primary', 'secondary']),
  /** null: holds nothing yet (a fresh side) */
  generation: generation.nullable(),
  /** the ids that `generation` descends from, newest first */
  ancestors: z.array(generationId).max(ancestorsMax),
  /**
   * `incomplete`: a mixture of states, or data whose record was lost; refuses failover. `resync`: the disk is such a
   * mixture, but its overlays keep the last checkpoint, and only that is offered (pair.md 11).
   */
  store: z.enum(['clean', 'resync', 'incomplete']),
  /** overlays of a lower epoch are empty: raising it empties those of all disks in one write (record-log.md 8) */
  epoch: z.int().min(1).default(1),
  /** secondary: the checkpoint that its overlays lead back to; null: there is none */
  checkpoint: checkpoint.nullable().default(null),
  /** the number of the last checkpoint that was made here: none is given twice (pair.md 20) */
  checkpoints: z.int().min(0).default(0),
  /** secondary: a start went back to `checkpoint`, and nothing was received since: the disk equals it */
  rolledBack: z.boolean().default(false),
  /**
   * secondary: it last received in lock-step, whatever its configuration says now: what the disk has beyond
   * `checkpoint` belongs to no state of a machine. null: a file from before this was noted
   */
  lockStep: z.boolean().nullable().default(null),
  /** primary: since when it has, or may have, what the other side has not */
  aloneSince: wallMs.nullable(),
  /**
   * primary: the mark of a clean stop, with the checksum of the bitmaps that were saved beside it. `equal`: they say
   * only what changed since the other side's checkpoint; as long as it has not gone back to that, both are equal
   */
  cleanStop: z
    .strictObject({ proof, bitmaps: z.string().max(32), equal: z.boolean().default(false), atMs: wallMs })
    .nullable(),
  /** a promotion that has begun and is finished by the next start (pair.md 14) */
  promoting: z.enum(['latest', 'checkpoint']).nullable(),
  /** primary: the generation that was offered in a switchover (pair.md 15) */
  handingOver: generation.nullable(),
  /** secondary: offered generations that it will never take */
  refused: z.array(generationId).max(refusedMax),
  /** the other side as last seen */
  peer: z.strictObject({ name: z.string().max(64), generation: generation.nullable() }).nullable(),
  splitBrain: z.strictObject({ sinceMs: wallMs, other: generationId.nullable() }).nullable(),
  /** secondary: the last moment up to which it surely has every flushed write; `goodbye`: the primary then stopped */
  latest: z.strictObject({ asOfMs: wallMs, goodbye: z.boolean() }).nullable(),
  /** secondary: when it was last known to be in step */
  inStepMs: wallMs.nullable(),
  /** a person decided that the other side's data is to be overwritten, whatever it is */
  overwrite: z.string().max(64).nullable(),
  /** bytes by disk */
  disks: z.record(z.string(), z.int().min(1)),
});
export type GroupRecord = z.output<typeof groupRecord>;

/** A record in which nothing has happened yet. */
export function emptyRecord(from: Pick<GroupRecord, 'volume' | 'name' | 'role' | 'store' | 'disks'>): GroupRecord {
  return {
    ...from,
    generation: null,
    ancestors: [],
    aloneSince: null,
    cleanStop: null,
    promoting: null,
    handingOver: null,
    refused: [],
    peer: null,
    splitBrain: null,
    latest: null,
    inStepMs: null,
    overwrite: null,
    epoch: 1,
    checkpoint: null,
    checkpoints: 0,
    rolledBack: false,
    lockStep: false,
  };
}

/** `earlier` before the rest, each once, as many as are kept. */
export function joinAncestors(...lists: readonly (readonly (string | null | undefined)[])[]): string[] {
  const joined = new Set<string>();
  for (const id of lists.flat()) if (id != null) joined.add(id);
  return [...joined].slice(0, ancestorsMax);
}

/** A new generation above the record's one. `others` are further ids that it descends from. */
export function openGeneration(
  record: Pick<GroupRecord, 'generation' | 'ancestors' | 'peer'>,
  id: string,
  others: { ids: readonly (string | null)[]; number: number } = { ids: [], number: 0 },
): Pick<GroupRecord, 'generation' | 'ancestors'> {
  const own = record.generation;
  const known = record.peer?.generation?.id;
  // The id that the other side holds is kept near the front, so that a flapping link never pushes it out of the list.
  const keep = known !== undefined && record.ancestors.includes(known) ? [known] : [];
  return {
    generation: { id, number: Math.max(own?.number ?? 0, others.number) + 1 },
    ancestors: joinAncestors([own?.id], others.ids, keep, record.ancestors),
  };
}

export function addRefused(record: Pick<GroupRecord, 'refused'>, id: string): string[] {
  return [id, ...record.refused.filter((one) => one !== id)].slice(0, refusedMax);
}

// ---------------------------------------------------------------- the copies

export const copyBytes = 4096;
const headerBytes = 32;
const magic = 0x4253_4752; // "BSGR"
const formatVersion = 1;

/** One copy, padded to its block. @throws BlockError invalid-option if the record does not fit */
export function encodeCopy(record: GroupRecord, sequence: number, hash: Hash64): Uint8Array {
  const payload = new TextEncoder().encode(JSON.stringify(record));
  if (payload.length > copyBytes - headerBytes) {
    throw new BlockError(
      'invalid-option',
      `the group file has no room for this group (${Object.keys(record.disks).length} disks; at most ${disksMax})`,
    );
  }
  const block = new Uint8Array(copyBytes);
  const view = viewOf(block);
  view.setUint32(0, magic);
  view.setUint32(4, formatVersion);
  view.setUint32(8, payload.length);
  putU64(view, 16, sequence);
  block.set(payload, headerBytes);
  view.setBigUint64(24, hash(block));
  return block;
}

export type Copy =
  | { readonly kind: 'valid'; readonly record: GroupRecord; readonly sequence: number }
  /** sound, but of a later format: never to be taken for damage */
  | { readonly kind: 'newer'; readonly version: number }
  | { readonly kind: 'blank' }
  | { readonly kind: 'damaged' };

export function decodeCopy(bytes: Uint8Array, hash: Hash64): Copy {
  const block = bytes.slice(0, copyBytes);
  if (block.length < copyBytes) return { kind: 'damaged' };
  if (block.every((byte) => byte === 0)) return { kind: 'blank' };
  const view = viewOf(block);
  const stored = view.getBigUint64(24);
  view.setBigUint64(24, 0n);
  if (view.getUint32(0) !== magic || hash(block) !== stored) return { kind: 'damaged' };
  const version = view.getUint32(4);
  if (version !== formatVersion) return { kind: 'newer', version };
  const length = view.getUint32(8);
  if (length > copyBytes - headerBytes) return { kind: 'damaged' };
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(block.subarray(headerBytes, headerBytes + length));
    const record = groupRecord.safeParse(JSON.parse(text));
    return record.success ? { kind: 'valid', record: record.data, sequence: getU64(view, 16) } : { kind: 'damaged' };
  } catch {
    return { kind: 'damaged' };
  }
}

// ---------------------------------------------------------------- the file

const fileName = 'group';

/** What reading the group file gave; a reason goes into a message. */
export type GroupFound =
  | { readonly kind: 'missing' }
  | { readonly kind: 'unreadable'; readonly reason: string }
  | { readonly kind: 'read'; readonly record: GroupRecord };

export class GroupFile {
  readonly path: string;
  readonly found: GroupFound;
  /** of the state that is durable; 0 before the first commit */
  sequence: number;
  /** said once: one of the copies could not be used */
  readonly note: string | null;
  readonly #host: Host;
  readonly #folder: string;
  readonly #hash: Hash64;
  #file: HostFile | null = null;
  /** the block that the next commit overwrites */
  #older: 0 | 1;

  private constructor(host: Host, folder: string, hash: Hash64, read: ReadCopies) {
    this.#host = host;
    this.#folder = folder;
    this.#hash = hash;
    this.path = `${folder}/${fileName}`;
    this.found = read.found;
    this.sequence = read.sequence;
    this.#older = read.older;
    this.note = read.note;
  }

  /**
   * What was read is durable when this resolves.
   * @throws BlockError bad-image if a later version of blockstep wrote it; io-error, ... if it cannot be made durable
   */
  static async open(host: Host, folder: string): Promise<GroupFile> {
    const hash = await loadHash64();
    await host.files.makeFolder(folder);
    const path = `${folder}/${fileName}`;
    const read = await readCopies(host, path, hash);
    await settle(host, folder, path, read.newest);
    return new GroupFile(host, folder, hash, read);
  }

  /** Durable when it resolves. After a rejection the state before is the one that counts. */
  async commit(record: GroupRecord): Promise<void> {
    const sequence = this.sequence + 1;
    const block = encodeCopy(record, sequence, this.#hash);
    if (this.sequence === 0) await this.#create(block);
    else await this.#overwrite(block);
    this.sequence = sequence;
  }

  async close(): Promise<void> {
    const file = this.#file;
    this.#file = null;
    await file?.close();
  }

  /** The first commit: the file appears whole or not at all. What could not be read is kept beside it. */
  async #create(block: Uint8Array): Promise<void> {
    const { files } = this.#host;
    const next = `${this.path}.new`;
    await files.remove(next);
    const file = await files.open(next, { access: 'write', create: 'exclusive' });
    try {
      await file.write(0, block);
      await file.write(copyBytes, new Uint8Array(copyBytes));
      await file.sync();
    } finally {
      await file.close();
    }
    if (this.found.kind === 'unreadable') await files.rename(this.path, `${this.path}.damaged`);
    await files.rename(next, this.path);
    await files.syncFolder(this.#folder);
    this.#older = 1;
  }

  async #overwrite(block: Uint8Array): Promise<void> {
    this.#file ??= await this.#host.files.open(this.path, { access: 'write' });
    try {
      await this.#file.write(this.#older * copyBytes, block);
      await this.#file.sync();
    } catch (error) {
      // A failed sync is reported once: only a new opening can be believed again (record-log.md 4).
      await this.close().catch(() => undefined);
      throw toBlockError(error, `write ${this.path}`);
    }
    this.#older = this.#older === 0 ? 1 : 0;
  }
}

/**
 * A process that was killed in a commit may have left it in memory only: whoever goes on with that state, and loses the
 * power, would find the one before it. The copy that counts is written once more, as a sync alone may say nothing of
 * it: if the last one failed, the system has forgotten that it is dirty. Torn, it leaves the state before it, which
 * counts as well until this has ended.
 */
async function settle(host: Host, folder: string, path: string, newest: NewestCopy | null): Promise<void> {
  if ((await host.files.stat(path)) === null) return;
  try {
    const file = await host.files.open(path, { access: 'write' });
    try {
      if (newest !== null) await file.write(newest.at, newest.bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    await host.files.syncFolder(folder);
  } catch (error) {
    throw toBlockError(error, `make ${path} durable`);
  }
}

interface NewestCopy {
  readonly at: number;
  readonly bytes: Uint8Array;
}

interface ReadCopies {
  readonly found: GroupFound;
  readonly sequence: number;
  readonly older: 0 | 1;
  readonly newest: NewestCopy | null;
  readonly note: string | null;
}

async function readCopies(host: Host, path: string, hash: Hash64): Promise<ReadCopies> {
  const none = { sequence: 0, older: 1, newest: null, note: null } as const;
  const unreadable = (reason: string): ReadCopies => ({ ...none, found: { kind: 'unreadable', reason } });
  if ((await host.files.stat(path)) === null) return { ...none, found: { kind: 'missing' } };
  const bytes = new Uint8Array(2 * copyBytes);
  try {
    const file = await host.files.open(path, { access: 'read' });
    try {
      await file.read(0, bytes);
    } finally {
      await file.close();
    }
  } catch (error) {
    return unreadable(toBlockError(error).message);
  }
  const first = decodeCopy(bytes.subarray(0, copyBytes), hash);
  const second = decodeCopy(bytes.subarray(copyBytes), hash);
  for (const copy of [first, second]) {
    if (copy.kind !== 'newer') continue;
    throw new BlockError('bad-image', `${path} has format ${copy.version}, this blockstep knows ${formatVersion}`);
  }
  const newer = newerOf(first, second);
  if (newer === null) return unreadable(`${path}: neither of its two copies is valid`);
  const older = newer === first ? 1 : 0;
  const at = older === 1 ? 0 : copyBytes;
  const damaged = first.kind === 'damaged' || second.kind === 'damaged';
  return {
    found: { kind: 'read', record: newer.record },
    sequence: newer.sequence,
    older,
    newest: { at, bytes: bytes.subarray(at, at + copyBytes) },
    note: damaged ? `${path}: one copy is damaged, the other one (number ${newer.sequence}) is used` : null,
  };
}

function newerOf(first: Copy, second: Copy): Extract<Copy, { kind: 'valid' }> | null {
  if (first.kind !== 'valid') return second.kind === 'valid' ? second : null;
  if (second.kind !== 'valid') return first;
  return second.sequence > first.sequence ? second : first;
}
