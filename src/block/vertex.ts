/**
 * The two kinds of thing that a graph is made of, without any rules: a vertex (an opened driver under a name) and an
 * edge (a parent's use of a vertex; the parent is another vertex, or somebody outside the graph).
 *
 * Invariant: an edge stands in `uses` of the vertex it points to, and, if its parent is a vertex, in `edges` of that.
 */
import { BlockError } from '../util/errors.ts';
import { allPermissions, type Child, type ChildRole, type PermissionNeed } from './child.ts';
import type { ChildPermissions, DriverDefinition, DriverNode } from './driver.ts';
import type { BlockParent, NodeInfo, PermissionSum } from './graph-view.ts';
import type { CommonOptions } from './options.ts';

export class Vertex implements NodeInfo {
  readonly nodeName: string;
  readonly definition: DriverDefinition;
  readonly options: Record<string, unknown>;
  common: CommonOptions;
  /** to its children, in the order they were attached */
  edges: Edge[] = [];
  /** from its parents */
  uses: Edge[] = [];
  /** what its parents need and share, as the driver was last told */
  sum: PermissionSum = { needs: 0, shares: allPermissions };
  /** made by `add` for itself: stays without parents. Made in place: goes with its last parent. */
  readonly owned: boolean;
  state: 'opening' | 'open' | 'closing' = 'opening';
  private opened: DriverNode | null = null;

  constructor(
    nodeName: string,
    definition: DriverDefinition,
    common: CommonOptions,
    options: Record<string, unknown>,
    owned: boolean,
  ) {
    this.nodeName = nodeName;
    this.definition = definition;
    this.common = common;
    this.options = options;
    this.owned = owned;
  }

  get node(): DriverNode {
    if (this.opened === null) throw new BlockError('wrong-state', `node '${this.nodeName}' is not open yet`);
    return this.opened;
  }

  opens(node: DriverNode): void {
    this.opened = node;
    this.state = 'open';
  }

  get driver(): string {
    return this.definition.name;
  }

  get readOnly(): boolean {
    return this.common.readOnly;
  }

  get isFilter(): boolean {
    return this.definition.isFilter === true;
  }

  get children(): readonly Child[] {
    return this.edges;
  }

  get parents(): readonly string[] {
    return this.uses.map((edge) => edge.user);
  }

  get parentNodes(): readonly string[] {
    return this.uses.flatMap(({ parent }) => (parent instanceof Vertex ? [parent.nodeName] : []));
  }

  get users(): readonly string[] {
    return this.uses.flatMap(({ parent }) => (parent instanceof Vertex ? [] : [parent.description]));
  }
}

export class Edge implements Child {
  readonly name: string;
  readonly role: ChildRole;
  /** who uses: a vertex, or somebody outside */
  readonly parent: Vertex | BlockParent;
  /** a vertex's need follows from what its own parents need; null: the need is said from outside */
  readonly needFrom: ChildPermissions | null;
  need: PermissionNeed;
  /** the parent was put above the vertex to stand for it: nobody else may change the vertex meanwhile */
  guards = false;
  vertex: Vertex;
  /** the same as `vertex.node`; a field of its own because every request asks it */
  node: DriverNode;

  constructor(
    name: string,
    role: ChildRole,
    parent: Vertex | BlockParent,
    vertex: Vertex,
    need: PermissionNeed | ChildPermissions,
  ) {
    this.name = name;
    this.role = role;
    this.parent = parent;
    this.needFrom = typeof need === 'function' ? need : null;
    this.need = typeof need === 'function' ? { needs: 0, shares: allPermissions } : need;
    this.vertex = vertex;
    this.node = vertex.node;
  }

  get nodeName(): string {
    return this.vertex.nodeName;
  }

  /** The user of the node, for messages. */
  get user(): string {
    return this.parent instanceof Vertex ? `node '${this.parent.nodeName}' as '${this.name}'` : this.parent.description;
  }

  /** Enters the edge at both ends. */
  link(): void {
    this.vertex.uses.push(this);
    if (this.parent instanceof Vertex) this.parent.edges.push(this);
  }

  /** Takes the edge out at both ends. */
  unlink(): void {
    this.vertex.uses = this.vertex.uses.filter((edge) => edge !== this);
    if (this.parent instanceof Vertex) this.parent.edges = this.parent.edges.filter((edge) => edge !== this);
  }

  /** Points the edge to another vertex; the parent's end stays where it is. */
  moveTo(vertex: Vertex): void {
    this.vertex.uses = this.vertex.uses.filter((edge) => edge !== this);
    this.vertex = vertex;
    this.node = vertex.node;
    vertex.uses.push(this);
  }
}

/** The vertices from `starts` downward, every parent before its children. */
export function downward(starts: Iterable<Vertex>): Vertex[] {
  return ordered(starts, (vertex) => vertex.edges.map((edge) => edge.vertex));
}

/** The vertices from `start` upward, every child before its parents. */
export function upward(start: Vertex): Vertex[] {
  return ordered([start], (vertex) =>
    vertex.uses.flatMap((edge) => (edge.parent instanceof Vertex ? [edge.parent] : [])),
  );
}

/** Those outside the graph who stand above a vertex. */
export function rootsAbove(vertex: Vertex): Set<BlockParent> {
  const roots = new Set<BlockParent>();
  for (const above of upward(vertex)) {
    for (const { parent } of above.uses) if (!(parent instanceof Vertex)) roots.add(parent);
  }
  return roots;
}

/** Topological order: depth first, a vertex after all that follow from it, then turned round. */
function ordered(starts: Iterable<Vertex>, next: (vertex: Vertex) => Vertex[]): Vertex[] {
  const seen = new Set<Vertex>();
  const done: Vertex[] = [];
  const visit = (vertex: Vertex): void => {
    if (seen.has(vertex)) return;
    seen.add(vertex);
    for (const following of next(vertex)) visit(following);
    done.push(vertex);
  };
  for (const start of starts) visit(start);
  return done.reverse();
}
