/**
 * Which requests fail or wait: a list of faults, each with the operation and range it is for, how many requests it lets
 * pass first, how many it meets, and how likely it is. The first error that matches counts; delays add up.
 */
import { z } from 'zod';
import { BlockError, type Errno, errnoNumbers, toBlockError } from '../util/errors.ts';

const operations = ['read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'] as const;
export type FaultOperation = (typeof operations)[number];

/** Most faults of one node. */
export const faultsMax = 1024;
const sectorSize = 512;

export const faultSchema = z.strictObject({
  id: z.string().max(255).optional().describe('to take it away again'),
  operation: z.enum([...operations, 'any']).default('any'),
  errno: z
    .enum(Object.keys(errnoNumbers) as [Errno, ...Errno[]])
    .optional()
    .describe('the error; without it, none'),
  'delay-ms': z.number().nonnegative().max(3_600_000).default(0).describe('how long the request waits first'),
  offset: z.int().nonnegative().optional().describe('start of the range, bytes; without it, everywhere'),
  length: z.int().positive().optional().describe('bytes; without it, to the end'),
  skip: z.int().nonnegative().default(0).describe('how many matching requests pass before'),
  count: z.int().positive().optional().describe('how many requests it meets; without it, all'),
  probability: z.number().min(0).max(1).default(1),
});

export type Fault = z.output<typeof faultSchema>;

/** QEMU's events that stand for one operation; `none`: only `iotype` counts. */
const operationOfEvent = {
  none: 'any',
  read: 'read',
  read_aio: 'read',
  write: 'write',
  write_aio: 'write',
  pwritev: 'write',
  pwritev_zero: 'write-zeroes',
  flush_to_os: 'flush',
  flush_to_disk: 'flush',
} as const satisfies Record<string, Fault['operation']>;

/** QEMU's BlkdebugInjectErrorOptions, without states. */
export const injectErrorSchema = z.strictObject({
  event: z.enum(Object.keys(operationOfEvent) as [keyof typeof operationOfEvent]).default('none'),
  iotype: z.enum(operations).optional(),
  errno: z.int().positive().default(errnoNumbers.EIO).describe('number, as Linux has them'),
  sector: z.int().min(-1).default(-1).describe('of 512 bytes; -1: everywhere'),
  once: z.boolean().default(false),
  immediately: z.boolean().default(false).describe('accepted, changes nothing'),
});

export function faultOf(injected: z.output<typeof injectErrorSchema>): Fault {
  const names = Object.keys(errnoNumbers) as Errno[];
  return faultSchema.parse({
    operation: injected.iotype ?? operationOfEvent[injected.event],
    errno: names.find((name) => errnoNumbers[name] === injected.errno) ?? 'EIO',
    ...(injected.sector < 0 ? {} : { offset: injected.sector * sectorSize, length: sectorSize }),
    ...(injected.once ? { count: 1 } : {}),
  });
}

/** What the faults do to one request. */
export interface Verdict {
  readonly delayMs: number;
  readonly error: BlockError | null;
}

export class Faults {
  private list: { fault: Fault; skip: number; left: number }[] = [];
  private readonly fraction: () => number;

  constructor(fraction: () => number) {
    this.fraction = fraction;
  }

  get any(): boolean {
    return this.list.length > 0;
  }

  add(fault: Fault): void {
    if (this.list.length >= faultsMax) throw new BlockError('invalid-option', `there are ${faultsMax} faults already`);
    this.list.push({ fault, skip: fault.skip, left: fault.count ?? Number.POSITIVE_INFINITY });
  }

  /** Those with this id, or all. Returns how many went. */
  remove(id: string | undefined): number {
    const before = this.list.length;
    this.list = id === undefined ? [] : this.list.filter(({ fault }) => fault.id !== id);
    return before - this.list.length;
  }

  meet(operation: FaultOperation, offset: number, length: number): Verdict {
    let delayMs = 0;
    let error: BlockError | null = null;
    for (const entry of this.list) {
      const { fault } = entry;
      if (!matches(fault, operation, offset, length)) continue;
      if (fault.probability < 1 && this.fraction() >= fault.probability) continue;
      if (entry.skip > 0) {
        entry.skip -= 1;
        continue;
      }
      if (error !== null && fault.errno !== undefined) continue;
      entry.left -= 1;
      delayMs += fault['delay-ms'];
      if (fault.errno !== undefined) error = injectedError(fault.errno, operation, offset);
    }
    this.list = this.list.filter((entry) => entry.left > 0);
    return { delayMs, error };
  }
}

function matches(fault: Fault, operation: FaultOperation, offset: number, length: number): boolean {
  if (fault.operation !== 'any' && fault.operation !== operation) return false;
  if (fault.offset === undefined) return true;
  if (operation === 'flush') return false;
  const end = fault.length === undefined ? Number.POSITIVE_INFINITY : fault.offset + fault.length;
  return offset < end && fault.offset < offset + length;
}

function injectedError(errno: Errno, operation: string, offset: number): BlockError {
  const message = `injected ${errno} on ${operation}${operation === 'flush' ? '' : ` at ${offset}`}`;
  return toBlockError(Object.assign(new Error(message), { code: errno }));
}
