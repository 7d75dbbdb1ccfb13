/**
 * The graph as its users see it: exports, jobs and commands hold this interface; `graph.ts` is behind it.
 */
import type { Host } from '../host/host.ts';
import type { Done } from '../util/later.ts';
import type { Child, PermissionMask, PermissionNeed } from './child.ts';
import type { DriverNode } from './driver.ts';
import type { OpBlockers } from './op-blockers.ts';
import type { ReopenRequest } from './reopen.ts';

/** Whoever stands above a root: an export, a job, a test. */
export interface BlockParent {
  /** For messages: `export "disk0"`, `job "m0"`. */
  readonly description: string;
  /** Stop issuing requests; done when none of its own is under way. */
  drainBegin(): Done;
  drainEnd(): void;
  /** The node below was replaced or resized: its length may have changed. */
  nodeChanged?(): void;
}

/** A vertex, as told to status commands. */
export interface NodeInfo {
  readonly nodeName: string;
  readonly driver: string;
  readonly readOnly: boolean;
  readonly isFilter: boolean;
  /** options as they were given, without secrets */
  readonly options: Record<string, unknown>;
  readonly node: DriverNode;
  readonly children: readonly Child[];
  /** descriptions of the parents */
  readonly parents: readonly string[];
  /** names of the parents that are nodes */
  readonly parentNodes: readonly string[];
  /** descriptions of the users outside the graph that stand right above it */
  readonly users: readonly string[];
}

/** A use of a node by something outside the graph. */
export interface RootUse extends Child {
  /** Gives the node back. */
  release(): Promise<void>;
  /** Changes what it needs and shares; refused like an attach. */
  setPermissions(need: PermissionNeed): Promise<void>;
}

export interface Graph {
  readonly host: Host;
  /** `blockdev-add`: options with QMP spelling, `driver` and `node-name` among them. */
  add(options: Record<string, unknown>): Promise<NodeInfo>;
  /** `blockdev-del`: refused while it has a parent, naming it. */
  remove(nodeName: string): Promise<void>;
  /** @throws BlockError node-not-found */
  find(nodeName: string): NodeInfo;
  list(): readonly NodeInfo[];
  /** Attaches a parent from outside the graph. `permission-conflict` names both users and the permission. */
  use(nodeName: string, parent: BlockParent, need: PermissionNeed): Promise<RootUse>;
  /** Puts node `to` in the place of `from` for all its parents (those of `to` itself excluded), drained around it. */
  replace(from: string, to: string): Promise<void>;
  /**
   * Puts node `filter`, which stands above `below`, in its place for all its parents but those that stand below the
   * filter themselves: they would close a circle. Until it is taken out again nobody else may change what it stands on.
   * Drained around it.
   */
  insertAbove(below: string, filter: string): Promise<void>;
  /**
   * Puts what a filter stands on by now in its place for all its parents, and takes the filter out of the graph: as one
   * change, because others come between, above or below, at any time. With `to`, that node takes the place of both.
   * Drained around it. What it returns closes the filter and is called once; it may take long, and holds nobody.
   */
  takeOut(filter: string, to?: string): Promise<() => Promise<void>>;
  /** All or none of the nodes, with those made in place for them; drained around it. */
  reopen(requests: readonly ReopenRequest[]): Promise<void>;
  /** What must not be begun on a node by command. */
  readonly blockers: OpBlockers;
  /** `x-blockdev-change` */
  addChild(parent: string, node: string): Promise<void>;
  removeChild(parent: string, childName: string): Promise<void>;
  /** Holds every parent above the node and waits until nothing is in flight in it and below it; nests. */
  drain(nodeName: string): Promise<Drained>;
  resize(nodeName: string, length: number): Promise<void>;
  /** Closes every node; all parents must be gone. */
  close(): Promise<void>;
}

/** The end of a drain. */
export interface Drained {
  end(): void;
}

/** What all parents of a node need and share, in sum. */
export interface PermissionSum {
  readonly needs: PermissionMask;
  readonly shares: PermissionMask;
}
