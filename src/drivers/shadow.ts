/**
 * `shadow`: an overlay made for checkpoints. What is written to it is appended to a record log in its `file`; an index
 * in memory says where each block stands; what the index does not have is read from `backing`.
 *
 *     index: block 7 -> position, block 9 -> zero            file: | superblock x2 | record | record | record | ...
 *
 * Invariants: the index holds blocks of the present epoch only, and only such whose record was written; emptying raises
 * the epoch, at a cost that does not depend on what the overlay held (record-log.md 8); it reads back after a crash.
 * Blocks are `granularity` bytes; a write of a part of a block takes the rest from what is read there now, under a
 * range lock (record-log.md 7). An overlay whose content is lost (damaged, or of a later epoch) opens, and refuses all
 * I/O until it is emptied.
 */
import { z } from 'zod';
import type { Child } from '../block/child.ts';
import { defineDriver, type OpenContext } from '../block/driver.ts';
import { writeFlags } from '../block/node.ts';
import { nodeReference } from '../block/options.ts';
import { recordHeaderBytes, recordKinds } from '../block/record-format.ts';
import { RecordLog } from '../block/record-log.ts';
import type { LogFile } from '../block/record-space.ts';
import { BlockIndex } from '../util/block-index.ts';
import { isRange } from '../util/bytes.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { attempt } from '../util/later.ts';
import { enterBlocks, Shadow } from './shadow-node.ts';

const optionsSchema = z.strictObject({
  file: nodeReference.describe('the node that the record log is kept in'),
  backing: nodeReference.nullable().default(null).describe('what shows through; null: zeroes'),
  granularity: z
    .union([z.literal(4096), z.literal(16384), z.literal(65536)])
    .default(4096)
    .describe('bytes of a block'),
  size: z.int().positive().optional().describe('bytes; default: the length of the backing'),
  volume: z.string().max(256).default('').describe('the volume it belongs to; a log of another one is refused'),
  epoch: z.int().positive().optional().describe('the epoch that its group holds; default: it has one of its own'),
  sync: z
    .boolean()
    .default(true)
    .describe('false: what was not closed before the machine went down is lost, and said to be (for tmpfs and tests)'),
  'grow-bytes': z
    .int()
    .min(65536)
    .default(16 * 1024 * 1024)
    .describe('bytes by which the file grows ahead of need'),
  'reuse-bytes': z
    .int()
    .min(65536)
    .default(128 * 1024 * 1024)
    .describe('bytes of old records from which on their space is used anew: after an emptying, or by compaction'),
});
type Options = z.infer<typeof optionsSchema>;

/** What an overlay keeps in the superblock of its log. */
const userSchema = z.object({ granularity: z.int(), length: z.int(), epoch: z.int() });

export const shadowDriver = defineDriver<Options>({
  name: 'shadow',
  summary: 'An overlay on an append-only log, made for checkpoints: emptied at once, whole after a crash.',
  options: optionsSchema,
  async open(options, context) {
    const file = await context.attach('file', 'file', options.file);
    const backing = options.backing === null ? null : await context.attach('backing', 'backing', options.backing);
    const length = options.size ?? backing?.node.length;
    if (length === undefined) throw new BlockError('invalid-option', 'size: is needed where there is no backing');
    return await openShadow(options, context, file, backing, length);
  },
});

/** Reads the log back into an index of what counts in the present epoch. */
async function openShadow(
  options: Options,
  context: OpenContext,
  file: Child,
  backing: Child | null,
  length: number,
): Promise<Shadow> {
  const { granularity } = options;
  const where = `overlay '${context.nodeName}'`;
  const index = new BlockIndex();
  let epoch = options.epoch ?? 1;
  let newest = 0;
  const log = await RecordLog.open(
    logFile(file, context),
    context.host.random,
    {
      where,
      volume: options.volume,
      generation: '',
      bootId: context.host.bootId,
      durable: options.sync,
      growBytes: options['grow-bytes'],
      user: { granularity, length, epoch },
    },
    (user) => {
      const known = userSchema.safeParse(user).data;
      if (known?.granularity !== granularity || known.length !== length) {
        const made = known === undefined ? 'something else' : `${known.length} bytes in blocks of ${known.granularity}`;
        throw new BlockError(
          'bad-image',
          `${where} was made for ${made}, not for ${length} in blocks of ${granularity}`,
        );
      }
      epoch = options.epoch ?? known.epoch;
      return (header, position) => {
        newest = Math.max(newest, header.epoch);
        if (header.epoch !== epoch) return;
        const isZero = header.kind === recordKinds.zero;
        const isWhole = isZero ? header.payloadBytes === 0 : header.payloadBytes === header.length;
        if (!isWhole || !isRange(header.offset, header.length, length) || header.offset % granularity !== 0) {
          throw new BlockError('bad-image', `${where}: record ${header.sequence} is about no blocks of it`);
        }
        const at = isZero ? recordHeaderBytes - position : position;
        enterBlocks(index, granularity, header.offset, header.length, at);
      };
    },
  );
  // What was changed for the first time in a later epoch was kept for that one only.
  if (newest > epoch) log.lost ??= `it holds epoch ${newest}, and its group says ${epoch}`;
  if (log.lost === null) log.keepLivesOf(positionsOf(index));
  return new Shadow({
    log,
    index,
    epoch,
    backing,
    length,
    granularity,
    reuseBytes: options['reuse-bytes'],
    belongsToGroup: options.epoch !== undefined,
    clock: context.host.clock,
  });
}

function* positionsOf(index: BlockIndex): Generator<number> {
  for (const [, position] of index.entries()) yield Math.abs(position);
}

/**
 * After a flush that failed nothing is read from it: what was not durable may be gone, and somebody may have made the
 * file work again since (`blockdev-reopen`). In the index of the overlay it still is.
 */
function logFile(child: Child, { host, nodeName }: OpenContext): LogFile {
  let unread: BlockError | null = null;
  const failed = (error: unknown): never => {
    const cause = toBlockError(error);
    const text = `overlay '${nodeName}' may have lost what was written: EIO until the overlay is opened anew`;
    unread ??= new BlockError('io-error', `${cause.message}: ${text}`, { cause });
    throw error;
  };
  return {
    get length() {
      return child.node.length;
    },
    read(offset, into) {
      if (unread !== null) throw unread;
      return child.node.read(offset, into);
    },
    write: (offset, from) => child.node.write(offset, from, writeFlags.none),
    flush: () => attempt(() => child.node.flush())?.catch(failed),
    async resize(length) {
      const { node, nodeName } = child;
      if (node.resize === undefined) {
        throw new BlockError('no-space', `node '${nodeName}' has ${node.length} bytes and cannot grow to ${length}`);
      }
      await node.resize(length);
    },
    turn: () => new Promise((resolve) => host.clock.endOfTurn(resolve)),
  };
}
