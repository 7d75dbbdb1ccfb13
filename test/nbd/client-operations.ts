/**
 * Random operations, many in flight at once and overlapping, against an array: what the contract of a block node
 * promises is that overlapping requests take effect in the order issued, so the array changes at the issue.
 */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import type { NbdBackend } from '../../src/nbd/backend.ts';

/** The disk as it must be; a byte is unknown after a discard, until it is written. */
export class DiskModel {
  readonly bytes: Uint8Array;
  readonly unknown: Uint8Array;

  constructor(length: number) {
    this.bytes = new Uint8Array(length);
    this.unknown = new Uint8Array(length);
  }

  /** Throws where `content`, read from `offset`, differs from what was there when the read was issued. */
  static compare(content: Uint8Array, expected: Uint8Array, unknown: Uint8Array, offset: number): void {
    for (let index = 0; index < content.length; index += 1) {
      if (unknown[index] === 0 && content[index] !== expected[index]) {
        assert.fail(`byte ${offset + index} is ${content[index]}, expected ${expected[index]}`);
      }
    }
  }
}

export interface RandomOptions {
  readonly count: number;
  /** bytes of a request at most */
  readonly lengthMax: number;
  /** offsets and lengths are multiples of it */
  readonly align?: number;
  readonly zeroes?: boolean;
  /** requests in flight at once */
  readonly depth?: number;
  /** a request may fail so; then what it would have written is unknown */
  readonly mayFail?: (error: unknown) => boolean;
}

/** A small generator of random numbers, so that a seed gives the same run: 0 <= x < below, whole numbers. */
export function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Content of which every 4 KiB differ from those around. */
export function patterned(length: number): Uint8Array {
  const content = new Uint8Array(length);
  for (let at = 0; at < length; at += 4096) content.fill((at >> 12) % 251, at, at + 4096);
  return content;
}

/** A seed for this run, printed; `SEED` gives one again. */
export function seedOf(t: TestContext): number {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  t.diagnostic(`SEED=${seed}`);
  return seed;
}

/** Does random operations on `disk`, and compares every read with the model. Returns how many failed as they may. */
export async function randomOperations(
  disk: NbdBackend,
  model: DiskModel,
  seed: number,
  options: RandomOptions,
): Promise<number> {
  const pick = random(seed);
  const align = options.align ?? 1;
  const inFlight = new Set<Promise<unknown>>();
  let failed = 0;
  for (let index = 0; index < options.count; index += 1) {
    const offset = align * pick(disk.length / align);
    const length = Math.min(align * (1 + pick(options.lengthMax / align)), disk.length - offset);
    const { issued, written } = operation(disk, model, pick, offset, length, options.zeroes ?? true);
    const done: Promise<unknown> = Promise.resolve(issued).catch((error: unknown) => {
      if (options.mayFail?.(error) !== true) throw error;
      failed += 1;
      if (written) model.unknown.fill(1, offset, offset + length);
    });
    inFlight.add(done);
    done.then(() => inFlight.delete(done)).catch(() => undefined);
    while (inFlight.size >= (options.depth ?? 32)) await Promise.race(inFlight);
    if (pick(20) === 0) await Promise.all(inFlight);
  }
  await Promise.all(inFlight);
  return failed;
}

function operation(
  disk: NbdBackend,
  model: DiskModel,
  pick: (below: number) => number,
  offset: number,
  length: number,
  zeroes: boolean,
): { issued: undefined | Promise<unknown>; written: boolean } {
  const end = offset + length;
  const kind = pick(20);
  if (kind < 8) {
    const into = new Uint8Array(length).fill(0xcc);
    const expected = model.bytes.slice(offset, end);
    const unknown = model.unknown.slice(offset, end);
    const done = Promise.resolve(disk.read(offset, into));
    return { issued: done.then(() => DiskModel.compare(into, expected, unknown, offset)), written: false };
  }
  if (kind < 15) {
    const content = new Uint8Array(length).fill(1 + pick(255));
    content[0] = pick(256);
    model.bytes.set(content, offset);
    model.unknown.fill(0, offset, end);
    return { issued: disk.write(offset, content, pick(8) === 0 ? 1 : 0), written: true };
  }
  if (kind < 17 && zeroes) {
    model.bytes.fill(0, offset, end);
    model.unknown.fill(0, offset, end);
    return { issued: disk.writeZeroes(offset, length, pick(4)), written: true };
  }
  if (kind === 17) {
    model.unknown.fill(1, offset, end);
    return { issued: disk.discard(offset, length), written: true };
  }
  if (kind === 18) return { issued: disk.flush(), written: false };
  return { issued: statusFits(disk, model, offset, length), written: false };
}

/** Extents lie within the range, are not empty, and say zero only of what reads as zeroes. */
async function statusFits(disk: NbdBackend, model: DiskModel, offset: number, length: number): Promise<void> {
  const expected = model.bytes.slice(offset, offset + length);
  const unknown = model.unknown.slice(offset, offset + length);
  const extents = await disk.blockStatus(offset, length);
  assert.ok(extents.length > 0);
  let at = 0;
  for (const extent of extents) {
    assert.ok(extent.length > 0);
    const zeroes = new Uint8Array(extent.length);
    if (extent.zero) {
      DiskModel.compare(zeroes, expected.subarray(at), unknown.subarray(at, at + extent.length), offset + at);
    }
    at += extent.length;
  }
  assert.ok(at <= length, 'extents reach beyond the range');
}

/** The whole disk, read in pieces, against the model. */
export async function compareAll(disk: NbdBackend, model: DiskModel): Promise<void> {
  const piece = 1 << 20;
  for (let at = 0; at < disk.length; at += piece) {
    const into = new Uint8Array(Math.min(piece, disk.length - at));
    await disk.read(at, into);
    const end = at + into.length;
    DiskModel.compare(into, model.bytes.subarray(at, end), model.unknown.subarray(at, end), at);
  }
}
