/**
 * An edge of the graph: a parent's use of a node, with a role, and the permissions it needs and shares.
 * Parents reach the node through `child.node`, each time: the graph may put another node there under a running parent.
 */
import type { DriverNode } from './driver.ts';

/** What a parent does to a node, or lets others do (QEMU's BlockPermission). */
export type Permission = 'consistent-read' | 'write' | 'write-unchanged' | 'resize';

/**
 * `file`: the protocol below a format; `backing`: what an overlay shows through; `data`: content; `filtered`: the one
 * child of a filter.
 */
export type ChildRole = 'file' | 'backing' | 'data' | 'filtered';

/** Bit masks of permissions; the bit numbers are image-locking's. */
export const permissionBits = {
  'consistent-read': 1,
  write: 2,
  'write-unchanged': 4,
  resize: 8,
} as const satisfies Record<Permission, number>;
export const allPermissions = 15;
/** An or of `permissionBits`. */
export type PermissionMask = number;

export interface PermissionNeed {
  /** what this parent does */
  readonly needs: PermissionMask;
  /** what it lets every other parent of the node do */
  readonly shares: PermissionMask;
  /** what it lets be done to what stands below the node; default: what it shares */
  readonly sharesBelow?: PermissionMask;
}

export interface Child {
  /** the parent's name for it: `file`, `backing`, `children.0` */
  readonly name: string;
  readonly role: ChildRole;
  /** the node, now */
  readonly node: DriverNode;
  readonly nodeName: string;
}
