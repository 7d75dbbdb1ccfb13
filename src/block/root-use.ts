/**
 * A use of a node by something outside the graph, as its holder sees it: an edge, without what only the graph may do.
 */
import type { ChildRole, PermissionNeed } from './child.ts';
import type { RootUse } from './graph-view.ts';
import type { Edge } from './vertex.ts';

/** Who changes edges: the graph. */
export interface EdgeOwner {
  disconnect(edge: Edge): Promise<void>;
  setNeed(edge: Edge, need: PermissionNeed): Promise<void>;
}

export class Use implements RootUse {
  private readonly edge: Edge;
  private readonly graph: EdgeOwner;
  private released = false;

  constructor(edge: Edge, graph: EdgeOwner) {
    this.edge = edge;
    this.graph = graph;
  }

  get name(): string {
    return this.edge.name;
  }

  get role(): ChildRole {
    return this.edge.role;
  }

  get node(): Edge['node'] {
    return this.edge.node;
  }

  get nodeName(): string {
    return this.edge.nodeName;
  }

  async release(): Promise<void> {
    if (this.released) return;
    this.released = true;
    await this.graph.disconnect(this.edge);
  }

  async setPermissions(need: PermissionNeed): Promise<void> {
    await this.graph.setNeed(this.edge, need);
  }
}
