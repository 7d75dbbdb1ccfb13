/**
 * A node whose connection to its data can break by itself (the nbd driver's): whoever forwards to it must know at once,
 * also while nothing is in flight (pair.md 5).
 */
import type { BlockError } from '../util/errors.ts';
import type { BlockNode } from './node.ts';

export interface Breakable {
  /**
   * Calls the listener each time the connection breaks, in the tick in which that is seen; if it is broken already, in
   * the next microtask. Returns how to stop listening.
   */
  onBroken(listener: (error: BlockError) => void): () => void;
  /**
   * Cuts the connection for good: every request in flight fails with `connection-lost` and so does every later one.
   * For a peer that hangs (pair.md 6): what waits for it would otherwise keep the node from being drained and closed.
   */
  breakConnection(reason: string): void;
}

/** The node as a `Breakable`; null if it has no connection that could break. */
export function asBreakable(node: BlockNode): (BlockNode & Breakable) | null {
  return 'onBroken' in node && 'breakConnection' in node ? (node as BlockNode & Breakable) : null;
}
