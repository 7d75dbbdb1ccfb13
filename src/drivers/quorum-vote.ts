/**
 * Reads of a quorum by vote: every child reads, the content that most of them have wins, if that is enough of them.
 *
 * Buffers: the first child reads into the caller's; the others into scratch memory, which is used again as long as all
 * children answer at once; a read that takes time keeps its own.
 */
import type { Child } from '../block/child.ts';
import { writeFlags } from '../block/node.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import type { QuorumReports } from './quorum-reports.ts';

export class VotedReads {
  private readonly threshold: number;
  private readonly rewrites: boolean;
  private readonly reports: QuorumReports;
  private scratch: Uint8Array[] = [];

  constructor(threshold: number, rewrites: boolean, reports: QuorumReports) {
    this.threshold = threshold;
    this.rewrites = rewrites;
    this.reports = reports;
  }

  read(children: readonly Child[], offset: number, into: Uint8Array): Done {
    const buffers = this.buffersFor(children.length, into);
    let results: Done[] | null = null;
    for (const [index, child] of children.entries()) {
      let done: Done;
      try {
        done = child.node.read(offset, buffers[index] ?? into);
      } catch (error) {
        done = Promise.reject(error);
      }
      if (done === undefined) continue;
      results ??= new Array<Done>(children.length).fill(undefined);
      results[index] = done;
    }
    if (results === null) return this.vote(children, offset, buffers, null);
    this.scratch = [];
    return this.voteLater(children, offset, buffers, results);
  }

  private async voteLater(
    children: readonly Child[],
    offset: number,
    buffers: readonly Uint8Array[],
    results: readonly Done[],
  ): Promise<void> {
    const outcomes = await Promise.allSettled(results);
    const errors = outcomes.map((outcome) => (outcome.status === 'rejected' ? toBlockError(outcome.reason) : null));
    await this.vote(children, offset, buffers, errors);
  }

  /** Leaves what won in the first buffer. */
  private vote(
    children: readonly Child[],
    offset: number,
    buffers: readonly Uint8Array[],
    errors: readonly (BlockError | null)[] | null,
  ): Done {
    const [into] = buffers;
    if (into === undefined) return undefined;
    if (errors === null && buffers.every((buffer) => same(buffer, into)) && buffers.length >= this.threshold) {
      return undefined;
    }
    for (const [index, error] of (errors ?? []).entries()) {
      if (error !== null) this.reports.bad('read', children[index], offset, into.length, error);
    }
    const readable = buffers.flatMap((_, index) => (errors?.[index] == null ? [index] : []));
    let winners: number[] = [];
    for (const index of readable) {
      const agreeing = readable.filter((other) => same(buffers[other], buffers[index]));
      if (agreeing.length > winners.length) winners = agreeing;
    }
    if (winners.length < this.threshold) {
      this.reports.failure(offset, into.length);
      throw (
        errors?.find((error) => error !== null) ??
        new BlockError('io-error', `children differ at ${offset}: only ${winners.length} of ${children.length} agree`)
      );
    }
    const winner = buffers[winners[0] ?? 0] ?? into;
    const losers = readable.filter((index) => !winners.includes(index));
    for (const index of losers) this.reports.bad('read', children[index], offset, into.length, null);
    // Copied: the caller's buffer was the first child's, and that one was outvoted or failed.
    if (winner !== into) into.set(winner);
    return this.rewrites && losers.length > 0 ? this.rewrite(children, losers, offset, into) : undefined;
  }

  /** Best effort, as the read has succeeded; a child that cannot be written is reported. */
  private async rewrite(children: readonly Child[], losers: number[], offset: number, from: Uint8Array): Promise<void> {
    for (const index of losers) {
      const child = children[index];
      try {
        await child?.node.write(offset, from, writeFlags.none);
      } catch (error) {
        this.reports.bad('write', child, offset, from.length, toBlockError(error));
      }
    }
  }

  private buffersFor(count: number, into: Uint8Array): Uint8Array[] {
    const buffers = [into];
    for (let i = 1; i < count; i += 1) {
      let scratch = this.scratch[i];
      if (scratch === undefined || scratch.length < into.length) {
        scratch = new Uint8Array(into.length);
        this.scratch[i] = scratch;
      }
      buffers.push(scratch.length === into.length ? scratch : scratch.subarray(0, into.length));
    }
    return buffers;
  }
}

function same(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && Buffer.compare(a, b) === 0);
}
