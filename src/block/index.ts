/**
 * The block layer as a library (`blockstep/block`): the contract of a node, how a driver is written, and the graph.
 */
export { BlockError, type BlockErrorCode, blockErrorKinds, type Errno, errnoNumbers } from '../util/errors.ts';
export { addExtent, clipExtents, type Extent } from '../util/extents.ts';
export { after, type Done } from '../util/later.ts';
export {
  allPermissions,
  type Child,
  type ChildRole,
  type Permission,
  type PermissionMask,
  type PermissionNeed,
  permissionBits,
} from './child.ts';
export { DirtyBitmap, type DirtyRange, granularityMax, granularityMin } from './dirty-bitmap.ts';
export {
  type ChildPermissions,
  type DriverDefinition,
  type DriverNode,
  defineDriver,
  filterOver,
  type NodeReference,
  type OpenContext,
  passThrough,
} from './driver.ts';
export { BlockGraph, nestingMax, nodesMax } from './graph.ts';
export type { BlockParent, Drained, Graph, NodeInfo, PermissionSum, RootUse } from './graph-view.ts';
export { type BlockNode, type WriteFlags, writeFlags } from './node.ts';
export { nodeReference } from './options.ts';
export { DriverRegistry } from './registry.ts';
export { blockStatusOf, joinStatus, statusExtentsMax } from './status.ts';
