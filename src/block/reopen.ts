/**
 * Reopening nodes read-only or for writing, or because they failed, under their running users.
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
  /** by command: a node that gave up believing its file opens it once more (default false) */
  readonly anew?: boolean;
}

type Wanted = Omit<ReopenRequest, 'nodeName'>;

/**
 * Nodes made in place for a reopened one go with it: they have their state from it. A node that was added by itself is
 * reopened only when it is named.
 */
export async function reopenVertices(wanted: ReadonlyMap<Vertex, Wanted>): Promise<void> {
  const changes = changesOf(wanted);
  const ready: Reopening[] = [];
  const before = [...changes.keys()].map((vertex) => [vertex, vertex.common] as const);
  try {
    for (const [vertex, { readOnly, anew = false }] of changes) {
      const reopening = await vertex.node.reopen?.(readOnly, anew);
      if (reopening !== undefined) ready.push(reopening);
    }
    for (const [vertex, { readOnly }] of changes) vertex.common = { ...vertex.common, readOnly };
    await updatePermissions([...changes.keys()]);
  } catch (error) {
    for (const [vertex, common] of before) vertex.common = common;
    for (const reopening of ready.reverse()) await reopening.abort();
    throw error;
  }
  for (const reopening of ready) reopening.commit();
}

function changesOf(wanted: ReadonlyMap<Vertex, Wanted>): Map<Vertex, Wanted> {
  const changes = new Map<Vertex, Wanted>();
  for (const [vertex, how] of wanted) {
    const reopened = new Set<Vertex>();
    for (const below of downward([vertex])) {
      if (below !== vertex && (wanted.has(below) || !madeFor(below, reopened))) continue;
      reopened.add(below);
      if (how.anew === true || below.readOnly !== how.readOnly) changes.set(below, how);
    }
  }
  return changes;
}

/** A node made in place belongs to its parent as long as it has no other. */
function madeFor(below: Vertex, above: ReadonlySet<Vertex>): boolean {
  return !below.owned && below.uses.every(({ parent }) => above.has(parent as Vertex));
}
