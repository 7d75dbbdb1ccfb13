/**
 * An overlay whose emptying is durable elsewhere: the owner of a group makes one number durable for all its overlays
 * (record-log.md 8), and then tells each.
 */
import type { BlockNode } from './node.ts';

export interface Epochal {
  /** False: it has an epoch of its own, and `makeEmpty` raises it. */
  readonly belongsToGroup: boolean;
  /** Content of another epoch than this one is not there. */
  readonly epoch: number;
  /**
   * Drops all content: `epoch` is durably the group's. No I/O, so that all overlays change in one tick; nothing may be
   * under way in the node.
   * @param epoch above the present one
   */
  emptyAt(epoch: number): void;
}

/** The node as an overlay of a group, or null: it has an epoch of its own, or none. */
export function epochal(node: BlockNode): (BlockNode & Epochal) | null {
  return isEpochal(node) && node.belongsToGroup ? node : null;
}

function isEpochal(node: BlockNode): node is BlockNode & Epochal {
  return 'emptyAt' in node && 'belongsToGroup' in node;
}
