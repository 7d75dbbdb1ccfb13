/**
 * Who may do what to a node at the same time (QEMU: docs/devel/block-... "permissions"; here in our own terms).
 *
 * Every edge says what its parent does to the node (needs) and what it lets all other parents do (shares). A change of
 * the graph is tried: the needs are computed from the top down, every node is checked, drivers that guard something
 * outside the graph (file: image locks) are asked, and only when nobody refuses does it stand.
 *
 * Drivers are told twice, so that a refusal can always be taken back: first to widen (take what the old or the new
 * state needs, share what both share), which may fail; at the end to narrow to what is really needed, which may not.
 */
import { BlockError } from '../util/errors.ts';
import {
  allPermissions,
  type ChildRole,
  type Permission,
  type PermissionMask,
  type PermissionNeed,
  permissionBits,
} from './child.ts';
import type { ChildPermissions } from './driver.ts';
import type { PermissionSum } from './graph-view.ts';
import { downward, type Edge, upward, type Vertex } from './vertex.ts';

const read = permissionBits['consistent-read'];
const { write, resize } = permissionBits;
const writeUnchanged = permissionBits['write-unchanged'];
const changing = write | writeUnchanged | resize;

/** What a parent does to a child when its driver does not say otherwise. */
export const usualPermissions: Readonly<Record<ChildRole, ChildPermissions>> = {
  filtered: (parents) => parents,
  // A format keeps structures of its own in the file: nobody else may change them, whatever its users share.
  file: (_parents, readOnly) => ({
    needs: readOnly ? read : read | write | resize,
    shares: read | writeUnchanged,
  }),
  // Content that is split over children cannot be shortened or grown behind the back of what splits it.
  data: (parents) => ({ needs: parents.needs, shares: parents.shares & ~resize }),
  // An overlay that lets its own content change does not mind a backing that changes.
  backing: (parents) => ({
    needs: parents.needs & read,
    shares: read | writeUnchanged | ((parents.shares & write) === 0 ? 0 : write | resize),
  }),
};

/** Names of the permissions in a mask, for messages. */
export function permissionNames(mask: PermissionMask): string {
  const names = (Object.keys(permissionBits) as Permission[]).filter((name) => (mask & permissionBits[name]) !== 0);
  return names.map((name) => `'${name}'`).join(', ');
}

/**
 * Brings the permissions of the vertices at and below `starts` in line with the edges as they now are.
 * @throws BlockError `permission-conflict` or `read-only` (or what a driver refused with); all permissions are then as
 * before, and the caller takes its change of the edges back
 */
export async function updatePermissions(starts: readonly Vertex[]): Promise<void> {
  const order = downward(starts);
  const needs = new Map<Edge, PermissionNeed>();
  const changes: Change[] = [];
  for (const vertex of order) {
    const sum = checkedSum(vertex, (edge) => needs.get(edge) ?? edge.need);
    if (sum.needs !== vertex.sum.needs || sum.shares !== vertex.sum.shares) changes.push(new Change(vertex, sum));
    for (const edge of vertex.edges) {
      if (edge.needFrom === null) continue;
      const need = guarded(edge, edge.needFrom(sum, vertex.readOnly));
      needs.set(edge, vertex.common.forceShare ? { needs: need.needs, shares: allPermissions } : need);
    }
  }
  await widen(changes);
  for (const [edge, need] of needs) edge.need = need;
  for (const change of changes) await change.narrow();
}

/** A filter that stands for a vertex has to see every change of it, those of what it is made of included. */
function guarded(edge: Edge, need: PermissionNeed): PermissionNeed {
  return edge.guards ? { ...need, shares: need.shares & ~(write | resize) } : need;
}

async function widen(changes: readonly Change[]): Promise<void> {
  const done: Change[] = [];
  try {
    for (const change of changes) {
      await change.widen();
      done.push(change);
    }
  } catch (error) {
    for (const change of done.reverse()) await change.giveBack();
    throw error;
  }
}

/** One vertex whose sum changes. */
class Change {
  private readonly vertex: Vertex;
  private readonly from: PermissionSum;
  private readonly to: PermissionSum;
  private readonly wide: PermissionSum;

  constructor(vertex: Vertex, to: PermissionSum) {
    this.vertex = vertex;
    this.from = vertex.sum;
    this.to = to;
    this.wide = { needs: this.from.needs | to.needs, shares: this.from.shares & to.shares };
  }

  async widen(): Promise<void> {
    if (!same(this.wide, this.from)) await this.tell(this.wide);
  }

  async narrow(): Promise<void> {
    if (!same(this.wide, this.to)) await this.tell(this.to);
    this.vertex.sum = this.to;
  }

  async giveBack(): Promise<void> {
    if (!same(this.wide, this.from)) await this.tell(this.from);
  }

  private async tell(sum: PermissionSum): Promise<void> {
    await this.vertex.node.permissionsChanging?.(sum.needs, sum.shares);
  }
}

function same(a: PermissionSum, b: PermissionSum): boolean {
  return a.needs === b.needs && a.shares === b.shares;
}

function checkedSum(vertex: Vertex, needOf: (edge: Edge) => PermissionNeed): PermissionSum {
  let needs = 0;
  let shares = allPermissions;
  for (const edge of vertex.uses) {
    const need = needOf(edge);
    for (const other of vertex.uses) {
      const refused = edge === other ? 0 : need.needs & ~needOf(other).shares;
      if (refused !== 0) throw conflict(vertex, edge, other, refused);
    }
    if (vertex.readOnly && (need.needs & changing) !== 0) throw readOnly(vertex, edge, need.needs & changing);
    needs |= need.needs;
    shares &= need.sharesBelow ?? need.shares;
  }
  return { needs, shares: vertex.common.forceShare ? allPermissions : shares };
}

function conflict(vertex: Vertex, edge: Edge, other: Edge, refused: PermissionMask): BlockError {
  // What a job keeps others from follows all the way down.
  const filter = upward(vertex).find(({ edges }) => edges.some(({ guards }) => guards));
  return new BlockError(
    'permission-conflict',
    `${edge.user} needs ${permissionNames(refused)} on node '${vertex.nodeName}', ` +
      `which its use by ${other.user} does not allow` +
      (filter === undefined || other.parent === filter ? '' : `: above it stands '${filter.nodeName}', a job's filter`),
  );
}

function readOnly(vertex: Vertex, edge: Edge, needs: PermissionMask): BlockError {
  return new BlockError(
    'read-only',
    `node '${vertex.nodeName}' is read-only, and ${edge.user} needs ${permissionNames(needs)} on it`,
  );
}
