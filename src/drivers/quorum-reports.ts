/** The events of a quorum, in QEMU's shapes (qapi/block-core.json): ranges are told in sectors of 512 bytes. */
import type { Child } from '../block/child.ts';
import type { OpenContext } from '../block/driver.ts';
import type { BlockError } from '../util/errors.ts';

const sectorSize = 512;

export class QuorumReports {
  private readonly context: OpenContext;

  constructor(context: OpenContext) {
    this.context = context;
  }

  /** A child failed, or (no error) was outvoted. */
  bad(
    type: 'read' | 'write' | 'flush',
    child: Child | undefined,
    offset: number,
    length: number,
    error: BlockError | null,
  ): void {
    this.context.emit('QUORUM_REPORT_BAD', {
      type,
      'node-name': child?.nodeName ?? '',
      ...sectors(offset, length),
      ...(error === null ? {} : { error: error.message }),
    });
  }

  /** Too few children succeeded or agreed. */
  failure(offset: number, length: number): void {
    this.context.emit('QUORUM_FAILURE', { reference: this.context.nodeName, ...sectors(offset, length) });
  }
}

function sectors(offset: number, length: number): Record<string, number> {
  const first = Math.floor(offset / sectorSize);
  return { 'sector-num': first, 'sectors-count': Math.ceil((offset + length) / sectorSize) - first };
}
