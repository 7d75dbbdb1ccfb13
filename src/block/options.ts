/**
 * The options that every node has (QEMU: qapi/block-core.json, BlockdevOptions), checked, inherited by nodes made in
 * place, and applied over the operations of a driver, so that no driver has to know them.
 */
import { z } from 'zod';
import { check } from '../qmp/check.ts';
import { isZero } from '../util/bytes.ts';
import { BlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { DriverNode, NodeReference } from './driver.ts';
import { type WriteFlags, writeFlags } from './node.ts';

/** Longest name of a node, characters. */
export const nodeNameLengthMax = 255;

const nodeName = z
  .string()
  .max(nodeNameLengthMax)
  .regex(/^[A-Za-z][A-Za-z0-9._-]*$/, 'must begin with a letter and hold only letters, digits, "-", "." and "_"');

const commonShape = {
  driver: z.string(),
  'node-name': nodeName.optional(),
  'read-only': z.boolean().optional(),
  'auto-read-only': z.boolean().optional(),
  discard: z.enum(['ignore', 'unmap']).optional(),
  'detect-zeroes': z.enum(['off', 'on', 'unmap']).optional(),
  'force-share': z.boolean().optional(),
  cache: z.strictObject({ direct: z.boolean().optional(), 'no-flush': z.boolean().optional() }).optional(),
} as const;

/** Of every node, beside what its driver takes. */
export const commonSchema = z.object(commonShape);

/** For a driver's schema: a child, as the name of a node or as the options of a node to be made in place. */
export const nodeReference: z.ZodType<NodeReference> = z.union(
  [z.string().min(1).max(nodeNameLengthMax), z.looseObject({ driver: z.string() })],
  'expected the name of a node, or the options of one',
);

/** The options of a node that are the graph's business; all are decided. */
export interface CommonOptions {
  readonly driver: string;
  /** undefined: a name is made */
  readonly nodeName: string | undefined;
  readonly readOnly: boolean;
  /** opened read-only where it cannot be opened for writing */
  readonly autoReadOnly: boolean;
  /** `ignore`: a discard does nothing, and zeroes stay allocated */
  readonly discard: 'ignore' | 'unmap';
  /** written zeroes are turned into write-zeroes; `unmap`: with holes */
  readonly detectZeroes: 'off' | 'on' | 'unmap';
  /** other users may do what they like to it; only when read-only */
  readonly forceShare: boolean;
  readonly direct: boolean;
  /** a flush does nothing, and what was written may be lost */
  readonly noFlush: boolean;
}

/**
 * Takes the graph's options out of a node's options; the rest is for the driver's schema.
 * @param parent the node that it is made for in place: what is not given is its
 * @throws BlockError invalid-option, naming the member
 */
export function splitOptions(
  given: Readonly<Record<string, unknown>>,
  parent: CommonOptions | null,
): { common: CommonOptions; own: Record<string, unknown> } {
  const checked = check(commonSchema, given, '');
  const common: CommonOptions = {
    driver: checked.driver,
    nodeName: checked['node-name'],
    readOnly: checked['read-only'] ?? parent?.readOnly ?? false,
    autoReadOnly: checked['auto-read-only'] ?? parent?.autoReadOnly ?? false,
    // A parent that ignores discards passes none on, so a child made in place need not ignore them again.
    discard: checked.discard ?? (parent === null ? 'ignore' : 'unmap'),
    detectZeroes: checked['detect-zeroes'] ?? 'off',
    forceShare: checked['force-share'] ?? parent?.forceShare ?? false,
    direct: checked.cache?.direct ?? parent?.direct ?? false,
    noFlush: checked.cache?.['no-flush'] ?? parent?.noFlush ?? false,
  };
  if (common.forceShare && !common.readOnly) {
    throw new BlockError('invalid-option', 'force-share: only a read-only node can be shared by force');
  }
  if (common.detectZeroes === 'unmap' && common.discard !== 'unmap') {
    throw new BlockError('invalid-option', 'detect-zeroes: unmap needs discard=unmap');
  }
  const own: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(commonShape, name)) own[name] = value;
  }
  return { common, own };
}

/** Puts the common options over a driver's operations: those it leaves alone stay the driver's own, at no cost. */
export function applyOptions(node: DriverNode, common: CommonOptions): void {
  if (common.noFlush) ignoreFlushes(node);
  if (common.discard === 'ignore') {
    const writeZeroes = node.writeZeroes.bind(node);
    node.discard = nothing;
    node.writeZeroes = (offset, length, flags): Done => writeZeroes(offset, length, flags | writeFlags.noHole);
  }
  if (common.detectZeroes !== 'off') detectZeroes(node, common.detectZeroes === 'unmap' ? 0 : writeFlags.noHole);
}

function nothing(): Done {
  return undefined;
}

function ignoreFlushes(node: DriverNode): void {
  const write = node.write.bind(node);
  const writeZeroes = node.writeZeroes.bind(node);
  node.flush = nothing;
  node.write = (offset, from, flags): Done => write(offset, from, flags & ~writeFlags.fua);
  node.writeZeroes = (offset, length, flags): Done => writeZeroes(offset, length, flags & ~writeFlags.fua);
}

function detectZeroes(node: DriverNode, more: WriteFlags): void {
  const write = node.write.bind(node);
  node.write = (offset, from, flags): Done =>
    isZero(from) ? node.writeZeroes(offset, from.length, flags | more) : write(offset, from, flags);
}
