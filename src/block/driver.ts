/**
 * How a driver is written: one file, options as a schema, operations over its children (`defineDriver`).
 *
 * `open` gets checked options and a context that attaches children; it returns the operations. A filter is a driver
 * with one `filtered` child: `filterOver(child, { what it changes })`. No module state, no inheritance.
 */
import type { z } from 'zod';
import type { Host } from '../host/host.ts';
import type { BlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import type { Child, ChildRole, PermissionMask, PermissionNeed } from './child.ts';
import type { BlockNode, WriteFlags } from './node.ts';

/** How a child is named in options: a node's name, or the options of a node to be made for it. */
export type NodeReference = string | { readonly driver: string; readonly [option: string]: unknown };

/** What a driver may offer beyond the contract. All optional. */
export interface DriverNode extends BlockNode {
  /** Ends once nothing of its own is under way: windows, caches, requests that were answered before their child. */
  settle?(): Done;
  /** Frees what it holds; its children are detached by the graph afterwards. No requests are under way. */
  close?(): Done;
  /** Children at run time (`x-blockdev-change`). Detach the named child with `context.detach`. */
  addChild?(reference: string): Promise<void>;
  removeChild?(name: string): Promise<void>;
  /**
   * The permissions its parents now need and share in sum (file: image locks). A throw refuses the change; nothing has
   * changed then.
   */
  permissionsChanging?(needs: PermissionMask, shares: PermissionMask): Done;
  /**
   * Makes ready to be read-only, or writable; nothing has changed before `commit`. `anew`: somebody asked for it by
   * command, so what the node gave up believing is opened once more, if it can be believed by now. Nothing comes back
   * where nothing is to be done. Absent: the driver has no state of its own about it, or asks `context.readOnly` each
   * time. No requests are under way.
   */
  reopen?(readOnly: boolean, anew: boolean): Promise<Reopening | undefined>;
  /**
   * A write that this node was given too failed in a sibling that decides, or a flush, which is about all of the disk:
   * what it holds there may now differ (pair.md 8).
   */
  siblingFailed?(offset: number, length: number): void;
  /**
   * Why every write and flush fails now; null or absent: they may be tried. Whoever needs this node for a success asks
   * before it gives a request to others, so that what is refused has not half happened.
   */
  readonly refusal?: BlockError | null;
  /**
   * Overlapping requests in the order sent, a flush covers all before it: may `blockstep:ordered` be announced over
   * this node? Absent: yes.
   */
  readonly ordered?: boolean;
  /**
   * A flush covers also what was issued before it and is still under way, so nobody has to wait for answers first (an
   * ordered NBD server: pair.md 3). Absent: no, it covers what was done, as the contract says.
   */
  readonly flushesInOrder?: boolean;
  /** Commands of the driver's own at run time (`blkdebug`: faults, a power cut). @throws BlockError `invalid-option` */
  control?(args: Readonly<Record<string, unknown>>): Promise<Record<string, unknown>>;
  /** What status commands show of this driver, with QMP spelling. */
  info?(): Record<string, unknown>;
}

/** A reopening that is ready; one of both is called, once. */
export interface Reopening {
  commit(): void;
  abort(): Promise<void>;
}

/** What `open` may use. */
export interface OpenContext {
  readonly host: Host;
  readonly nodeName: string;
  /** now: a reopen changes it */
  readonly readOnly: boolean;
  /** `cache` of the node's options: `direct` bypasses the page cache (the graph itself keeps `no-flush`). */
  readonly cache: { readonly direct: boolean };
  /** Emits a QMP event of this node. */
  emit(event: string, data: Record<string, unknown>): void;
  /**
   * Attaches a child. `permissions` gives what this node does to the child, from what its own parents do to it; without
   * it the usual for the role holds (filter: pass through; file: as the format needs; backing: consistent-read only).
   */
  attach(name: string, role: ChildRole, reference: NodeReference, permissions?: ChildPermissions): Promise<Child>;
  detach(child: Child): Promise<void>;
  /**
   * Something that lives beside the graph, put there by the engine under a name: `replication-group`, `job-manager`.
   */
  service<T>(name: string): T;
}

export type ChildPermissions = (parents: PermissionNeed, readOnly: boolean) => PermissionNeed;

export interface DriverDefinition<Options = unknown> {
  /** QEMU's driver name, or ours where QEMU has none */
  readonly name: string;
  /** one line for the reference */
  readonly summary: string;
  /**
   * the driver's own options; `driver`, `node-name`, `read-only`, `discard`, `cache`, `detect-zeroes`, `auto-read-only`
   * are the graph's
   */
  readonly options: z.ZodType<Options>;
  /** has one `filtered` child and looks like it */
  readonly isFilter?: boolean;
  open(options: Options, context: OpenContext): Promise<DriverNode>;
}

/** Ties the options' type to `open`; the registry takes the result. */
export function defineDriver<Options>(definition: DriverDefinition<Options>): DriverDefinition {
  return definition as DriverDefinition;
}

/** The operations of a filter that changes nothing: each goes to the child that stands there now. */
export function passThrough(child: Child): BlockNode {
  return {
    get length(): number {
      return child.node.length;
    },
    read: (offset: number, into: Uint8Array): Done => child.node.read(offset, into),
    write: (offset: number, from: Uint8Array, flags: WriteFlags): Done => child.node.write(offset, from, flags),
    writeZeroes: (offset: number, length: number, flags: WriteFlags): Done =>
      child.node.writeZeroes(offset, length, flags),
    discard: (offset: number, length: number): Done => child.node.discard(offset, length),
    flush: (): Done => child.node.flush(),
    blockStatus: (offset: number, length: number): Extent[] | Promise<Extent[]> =>
      child.node.blockStatus(offset, length),
  };
}

/**
 * A filter: the child's operations, with some changed. (A spread of `passThrough` would freeze `length`: its getter is
 * copied as the value that it has at that moment.)
 */
export function filterOver(child: Child, changes: Partial<DriverNode>): DriverNode {
  const node: DriverNode = Object.defineProperty(passThrough(child), 'ordered', {
    get: () => child.node.ordered !== false,
    configurable: true,
  });
  return Object.defineProperties(node, Object.getOwnPropertyDescriptors(changes));
}
