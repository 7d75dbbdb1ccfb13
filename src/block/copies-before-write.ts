/**
 * What a copy-before-write filter offers beyond a block node: whoever owns the point in time that it keeps (a
 * replication group, a backup job) tells it when a new one begins.
 */
import type { BlockNode } from './node.ts';

export interface CopiesBeforeWrite {
  /** A new point in time: every block is copied again before its next change. Nothing may be under way in the node. */
  forgetCopies(): void;
  /** The target holds the old content of this range already (a hidden overlay that was kept over a restart). */
  markCopied(offset: number, length: number): void;
  /** Copies the old content of what was not copied yet in the range, as before a change; bytes that it copied. */
  saveOld(offset: number, length: number): Promise<number>;
  /** Bytes that were copied since the point in time, in whole granules. */
  readonly copiedBytes: number;
}

/** The node as a copy-before-write filter, or null. */
export function copiesBeforeWrite(node: BlockNode): (BlockNode & CopiesBeforeWrite) | null {
  return 'forgetCopies' in node && 'markCopied' in node ? (node as BlockNode & CopiesBeforeWrite) : null;
}
