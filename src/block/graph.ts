/**
 * The graph of block nodes: names, children, users, and every change of them.
 *
 * Invariants: a node that can be found is open; a change of edges happens together with the permissions that follow
 * from it, or not at all; changes of edges are made one after another (`change`), while opening a node, which may take
 * long, is not. A node made in place for a parent goes when its last parent does.
 */
import type { Host } from '../host/host.ts';
import { check } from '../qmp/check.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { allPermissions, type Child, type ChildRole, type PermissionNeed, permissionBits } from './child.ts';
import { Drains } from './drain.ts';
import type { ChildPermissions, NodeReference, OpenContext } from './driver.ts';
import { moveEdges, movesOf } from './edge-moves.ts';
import type { BlockParent, Drained, Graph, NodeInfo, RootUse } from './graph-view.ts';
import { OpBlockers } from './op-blockers.ts';
import { applyOptions, type CommonOptions, splitOptions } from './options.ts';
import { updatePermissions, usualPermissions } from './permissions.ts';
import type { DriverRegistry } from './registry.ts';
import { type ReopenRequest, reopenVertices } from './reopen.ts';
import { type EdgeOwner, Use } from './root-use.ts';
import { downward, Edge, rootsAbove, Vertex } from './vertex.ts';

/** Most nodes of one graph, those being opened included. */
export const nodesMax = 4096;
/** How deep options may describe nodes inside nodes. */
export const nestingMax = 32;

export class BlockGraph implements Graph, EdgeOwner {
  readonly host: Host;
  readonly blockers = new OpBlockers();
  private readonly registry: DriverRegistry;
  private readonly services: ReadonlyMap<string, unknown>;
  private readonly emit: (event: string, data: Record<string, unknown>) => void;
  private readonly vertices = new Map<string, Vertex>();
  private readonly drains = new Drains();
  private readonly opening = new Set<Promise<unknown>>();
  private lastChange: Promise<unknown> = Promise.resolve();
  private generatedNames = 100;
  private closed = false;

  constructor(
    host: Host,
    registry: DriverRegistry,
    services: ReadonlyMap<string, unknown>,
    emit: (event: string, data: Record<string, unknown>) => void,
  ) {
    this.host = host;
    this.registry = registry;
    this.services = services;
    this.emit = emit;
  }

  async add(options: Record<string, unknown>): Promise<NodeInfo> {
    if (options['node-name'] === undefined) throw new BlockError('invalid-option', 'node-name: is missing');
    return await this.open(options, null, 0);
  }

  async remove(nodeName: string): Promise<void> {
    const vertex = await this.change(async () => {
      const found = this.vertexOf(nodeName);
      const [use] = found.uses;
      if (use !== undefined) throw new BlockError('in-use', `node '${nodeName}' is in use by ${use.user}`);
      found.state = 'closing';
      return found;
    });
    await this.destroy(vertex);
  }

  find(nodeName: string): NodeInfo {
    return this.vertexOf(nodeName);
  }

  list(): readonly NodeInfo[] {
    return [...this.vertices.values()].filter((vertex) => vertex.state === 'open');
  }

  async use(nodeName: string, parent: BlockParent, need: PermissionNeed): Promise<RootUse> {
    const edge = await this.connect(() => new Edge('root', 'data', parent, this.vertexOf(nodeName), need));
    return new Use(edge, this);
  }

  async replace(from: string, to: string): Promise<void> {
    await this.drained(this.vertexOf(from), async () => {
      const old = await this.change(async () => {
        const [vertex, other] = [this.vertexOf(from), this.vertexOf(to)];
        const below = downward([other]).filter((each) => each !== other);
        const refused = vertex.uses.find(({ parent }) => parent instanceof Vertex && below.includes(parent));
        if (refused !== undefined) throw cycle(refused.parent as Vertex, other);
        await this.move(movesOf(vertex, other, vertex), other);
        return vertex;
      });
      await this.dropUnused(old);
    });
  }

  async insertAbove(below: string, filter: string): Promise<void> {
    await this.drained(this.vertexOf(below), async () => {
      await this.change(async () => {
        const [vertex, above] = [this.vertexOf(below), this.vertexOf(filter)];
        await this.move(movesOf(vertex, above, vertex), above, filteredEdge(above), true);
      });
    });
  }

  async takeOut(filter: string, to?: string): Promise<() => Promise<void>> {
    const vertex = this.vertexOf(filter);
    await this.drained(vertex, async () => {
      await this.change(async () => {
        const edge = filteredEdge(this.vertexOf(filter));
        const below = edge.vertex;
        const place = to === undefined ? below : this.vertexOf(to);
        const moves = movesOf(vertex, place, below);
        if (place !== below)
          for (const [use, end] of movesOf(below, place, below)) if (use !== edge) moves.set(use, end);
        await this.move(moves, place, edge, false);
        vertex.state = 'closing';
      });
    });
    return () => this.destroy(vertex);
  }

  async reopen(requests: readonly ReopenRequest[]): Promise<void> {
    const drains: Drained[] = [];
    try {
      for (const { nodeName } of requests) drains.push(await this.drain(nodeName));
      await this.change(async () => {
        await reopenVertices(new Map(requests.map((how) => [this.vertexOf(how.nodeName), how])));
      });
    } finally {
      for (const drained of drains) drained.end();
    }
  }

  async addChild(parent: string, node: string): Promise<void> {
    const vertex = this.vertexOf(parent);
    this.vertexOf(node);
    if (vertex.node.addChild === undefined) throw fixedChildren(vertex);
    await this.drained(vertex, () => vertex.node.addChild?.(node));
  }

  async removeChild(parent: string, childName: string): Promise<void> {
    const vertex = this.vertexOf(parent);
    if (!vertex.edges.some((edge) => edge.name === childName)) {
      throw new BlockError('invalid-option', `node '${parent}' has no child '${childName}'`);
    }
    if (vertex.node.removeChild === undefined) throw fixedChildren(vertex);
    await this.drained(vertex, () => vertex.node.removeChild?.(childName));
  }

  async drain(nodeName: string): Promise<Drained> {
    return await this.drains.begin(this.vertexOf(nodeName));
  }

  async resize(nodeName: string, length: number): Promise<void> {
    if (!Number.isSafeInteger(length) || length < 0) {
      throw new BlockError('invalid-option', `size: ${length} is not a length`);
    }
    const vertex = this.vertexOf(nodeName);
    const { node } = vertex;
    if (node.resize === undefined) {
      throw new BlockError('not-supported', `driver '${vertex.driver}' of node '${nodeName}' cannot change its length`);
    }
    const parent: BlockParent = { description: 'block_resize', drainBegin: () => undefined, drainEnd: () => undefined };
    const use = await this.use(nodeName, parent, { needs: permissionBits.resize, shares: allPermissions });
    try {
      await this.drained(vertex, async () => {
        await node.resize?.(length);
        // What it stands on has changed as well, and may have other users.
        for (const changed of downward([vertex])) this.tellChanged(changed);
      });
    } finally {
      await use.release();
    }
  }

  async close(): Promise<void> {
    this.closed = true;
    await Promise.allSettled(this.opening);
    for (const vertex of this.vertices.values()) {
      const root = vertex.uses.find((edge) => !(edge.parent instanceof Vertex));
      if (root === undefined) continue;
      this.closed = false;
      throw new BlockError('in-use', `node '${vertex.nodeName}' is in use by ${root.user}`);
    }
    for (const vertex of downward(this.vertices.values())) {
      if (vertex.state !== 'open') continue;
      vertex.state = 'closing';
      await this.destroy(vertex);
    }
  }

  // ------------------------------------------------------------ for the edges' owners

  /** Takes an edge away; what its parent needed is not needed any more. */
  async disconnect(edge: Edge): Promise<void> {
    const { vertex } = edge;
    await this.change(async () => {
      edge.unlink();
      await updatePermissions([vertex]);
    });
    await this.dropUnused(vertex);
  }

  /** Changes what a user outside the graph needs and shares, or refuses and changes nothing. */
  async setNeed(edge: Edge, need: PermissionNeed): Promise<void> {
    await this.change(async () => {
      const before = edge.need;
      edge.need = need;
      try {
        await updatePermissions([edge.vertex]);
      } catch (error) {
        edge.need = before;
        throw error;
      }
    });
  }

  // ------------------------------------------------------------ opening and closing

  private async open(given: Record<string, unknown>, parent: Vertex | null, depth: number): Promise<Vertex> {
    if (this.closed) throw new BlockError('shutting-down', 'the graph is being closed');
    if (this.vertices.size >= nodesMax) throw new BlockError('in-use', `there are ${nodesMax} nodes already`);
    if (depth > nestingMax) throw new BlockError('invalid-option', `more than ${nestingMax} nodes inside each other`);
    const { common, own } = splitOptions(given, parent?.common ?? null);
    const definition = this.registry.find(common.driver);
    const checked = check(definition.options, own, '');
    const nodeName = common.nodeName ?? this.generateName();
    if (this.vertices.has(nodeName)) throw new BlockError('name-in-use', `there is already a node '${nodeName}'`);
    const vertex = new Vertex(nodeName, definition, common, { ...given }, parent === null);
    this.vertices.set(nodeName, vertex);
    const opened = this.openDriver(vertex, checked, depth);
    this.opening.add(opened);
    try {
      await opened;
    } finally {
      this.opening.delete(opened);
    }
    return vertex;
  }

  /** Opens the driver; where it fails, nothing of the node is left. */
  private async openDriver(vertex: Vertex, options: unknown, depth: number): Promise<void> {
    try {
      await this.tryOpen(vertex, options, depth).catch((error: unknown) => {
        if (!wantsReadOnly(vertex.common, error)) throw error;
        vertex.common = { ...vertex.common, readOnly: true };
        return this.tryOpen(vertex, options, depth);
      });
    } catch (error) {
      this.vertices.delete(vertex.nodeName);
      throw error;
    }
  }

  private async tryOpen(vertex: Vertex, options: unknown, depth: number): Promise<void> {
    try {
      const node = await vertex.definition.open(options, this.contextOf(vertex, depth));
      applyOptions(node, vertex.common);
      vertex.opens(node);
    } catch (error) {
      await this.detachAll(vertex);
      throw toBlockError(error, `node '${vertex.nodeName}'`);
    }
  }

  private contextOf(vertex: Vertex, depth: number): OpenContext {
    return {
      host: this.host,
      nodeName: vertex.nodeName,
      get readOnly(): boolean {
        return vertex.common.readOnly;
      },
      cache: { direct: vertex.common.direct },
      emit: this.emit,
      attach: (name, role, reference, permissions) => this.attach(vertex, depth, name, role, reference, permissions),
      detach: async (child) => await this.detach(child),
      service: <T>(name: string): T => {
        if (!this.services.has(name)) {
          throw new BlockError(
            'not-supported',
            `driver '${vertex.driver}' needs the service '${name}', which is not here`,
          );
        }
        return this.services.get(name) as T;
      },
    };
  }

  private async attach(
    parent: Vertex,
    depth: number,
    name: string,
    role: ChildRole,
    reference: NodeReference,
    permissions: ChildPermissions = usualPermissions[role],
  ): Promise<Child> {
    const made = typeof reference === 'string' ? null : await this.open({ ...reference }, parent, depth + 1);
    const nodeName = typeof reference === 'string' ? reference : (made?.nodeName ?? '');
    try {
      return await this.connect(() => {
        if (parent.edges.some((edge) => edge.name === name)) {
          throw new BlockError('name-in-use', `node '${parent.nodeName}' already has a child '${name}'`);
        }
        const vertex = this.vertexOf(nodeName);
        if (downward([vertex]).includes(parent)) throw cycle(parent, vertex);
        return new Edge(name, role, parent, vertex, permissions);
      });
    } catch (error) {
      if (made !== null) await this.dropUnused(made);
      throw error;
    }
  }

  private async detach(child: Child): Promise<void> {
    if (!(child instanceof Edge)) throw new BlockError('invalid-request', 'not a child of this graph');
    await this.disconnect(child);
  }

  private async detachAll(vertex: Vertex): Promise<void> {
    for (const edge of [...vertex.edges].reverse()) await this.disconnect(edge);
  }

  /** A node that was made in place and has lost its last parent goes. */
  private async dropUnused(vertex: Vertex): Promise<void> {
    if (vertex.owned || vertex.uses.length > 0 || vertex.state !== 'open') return;
    vertex.state = 'closing';
    await this.destroy(vertex);
  }

  /** Closes a vertex in state `closing`. What fails is left behind: there is nobody who could still use the node. */
  private async destroy(vertex: Vertex): Promise<void> {
    try {
      await vertex.node.settle?.();
      if (!vertex.readOnly) await vertex.node.flush();
    } catch {
      // Nobody was promised durability: every acknowledged flush was one of its own.
    }
    try {
      await vertex.node.close?.();
    } finally {
      await this.detachAll(vertex);
      this.vertices.delete(vertex.nodeName);
      this.blockers.forget(vertex.nodeName);
    }
  }

  // ------------------------------------------------------------ changes

  /** Runs changes of edges and permissions one after another. */
  private change<T>(work: () => Promise<T>): Promise<T> {
    const result = this.lastChange.then(work);
    this.lastChange = result.catch(() => undefined);
    return result;
  }

  private async drained(vertex: Vertex, work: () => Promise<void> | undefined): Promise<void> {
    const drained = await this.drains.begin(vertex);
    try {
      await work();
    } finally {
      drained.end();
    }
  }

  /** Enters a new edge, or refuses and leaves all as it was. */
  private async connect(make: () => Edge): Promise<Edge> {
    return await this.change(async () => {
      const edge = make();
      edge.link();
      try {
        await updatePermissions(edge.parent instanceof Vertex ? [edge.parent] : [edge.vertex]);
      } catch (error) {
        edge.unlink();
        throw error;
      }
      this.drains.edgesChanged();
      return edge;
    });
  }

  /** @param to where the users are now */
  private async move(moves: ReadonlyMap<Edge, Vertex>, to: Vertex, guard?: Edge, guards?: boolean): Promise<void> {
    await moveEdges(moves, guard, guards);
    this.drains.edgesChanged();
    this.tellChanged(to);
  }

  private tellChanged(vertex: Vertex): void {
    for (const root of rootsAbove(vertex)) root.nodeChanged?.();
  }

  // ------------------------------------------------------------ names

  private vertexOf(nodeName: string): Vertex {
    const vertex = this.vertices.get(nodeName);
    if (vertex?.state === 'open') return vertex;
    throw new BlockError('node-not-found', `there is no node '${nodeName}'`);
  }

  private generateName(): string {
    for (;;) {
      const name = `#block${this.generatedNames}`;
      this.generatedNames += 1;
      if (!this.vertices.has(name)) return name;
    }
  }
}

function fixedChildren(vertex: Vertex): BlockError {
  return new BlockError(
    'not-supported',
    `driver '${vertex.driver}' of node '${vertex.nodeName}' takes and loses no children at run time`,
  );
}

function filteredEdge(filter: Vertex): Edge {
  const edge = filter.edges.find(({ role }) => role === 'filtered');
  if (edge === undefined) throw new BlockError('invalid-option', `node '${filter.nodeName}' is no filter`);
  return edge;
}

function cycle(parent: Vertex, child: Vertex): BlockError {
  return new BlockError(
    'invalid-request',
    `node '${parent.nodeName}' stands below '${child.nodeName}': making it a parent of that one would close a circle`,
  );
}

function wantsReadOnly(common: CommonOptions, error: unknown): boolean {
  return (
    common.autoReadOnly &&
    !common.readOnly &&
    error instanceof BlockError &&
    (error.code === 'access-denied' || error.code === 'read-only')
  );
}
