/**
 * Reopening nodes read-only or for writing under their running users.
 *
 * Invariant: all the nodes or none. A driver makes ready what can fail (a second descriptor), then the permissions are
 * tried, and only when nobody refused is the new state taken everywhere.
 */
import type { Reopening } from './driver.ts';
import { updatePermissions } from './permissions.ts';
import { downward, type Vertex } from './vertex.ts';

/** What is to become of one node. */
export interface ReopenRequest {
  readonly nodeName: string;
  readonly readOnly: boolean;
}

/**
 * Nodes made in place for a reopened one go with it: they have their state from it. A node that was added by itself is
 * reopened only when it is named.
 */
export async function reopenVertices(wanted: ReadonlyMap<Vertex, boolean>): Promise<void> {
  const changes = changesOf(wanted);
  const ready: Reopening[] = [];
  const before = [...changes.keys()].map((vertex) => [vertex, vertex.common] as const);
  try {
    for (const [vertex, readOnly] of changes) {
      const reopening = await vertex.node.reopen?.(readOnly);
      if (reopening !== undefined) ready.push(reopening);
    }
    for (const [vertex, readOnly] of changes) vertex.common = { ...vertex.common, readOnly };
    await updatePermissions([...changes.keys()]);
  } catch (error) {
    for (const [vertex, common] of before) vertex.common = common;
    for (const reopening of ready.reverse()) await reopening.abort();
    throw error;
  }
  for (const reopening of ready) reopening.commit();
}

function changesOf(wanted: ReadonlyMap<Vertex, boolean>): Map<Vertex, boolean> {
  const changes = new Map<Vertex, boolean>();
  for (const [vertex, readOnly] of wanted) {
    const reopened = new Set<Vertex>();
    for (const below of downward([vertex])) {
      if (below !== vertex && (wanted.has(below) || !madeFor(below, reopened))) continue;
      reopened.add(below);
      if (below.readOnly !== readOnly) changes.set(below, readOnly);
    }
  }
  return changes;
}

/** A node made in place belongs to its parent as long as it has no other. */
function madeFor(below: Vertex, above: ReadonlySet<Vertex>): boolean {
  return !below.owned && below.uses.every(({ parent }) => above.has(parent as Vertex));
}
