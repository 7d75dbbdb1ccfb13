/** Block status beyond one call: whole ranges, and several nodes that hold the same content. */
import { addExtent, type Extent } from '../util/extents.ts';
import type { BlockNode } from './node.ts';

/** Most extents that one walk gathers. */
export const statusExtentsMax = 65536;

/**
 * The status of a whole range: asks again where a node stops early.
 * @returns extents from `offset` on; they cover the range unless there are more than `extentsMax`
 */
export async function blockStatusOf(
  node: BlockNode,
  offset: number,
  length: number,
  extentsMax = statusExtentsMax,
): Promise<Extent[]> {
  const extents: Extent[] = [];
  for (let at = offset; at < offset + length && extents.length < extentsMax; ) {
    const from = at;
    for (const extent of await node.blockStatus(at, offset + length - at)) {
      addExtent(extents, extent.length, extent.zero, extent.allocated);
      at += extent.length;
    }
    // A node that tells nothing would be asked for ever: the rest counts as data, which is always true.
    if (at === from) {
      addExtent(extents, offset + length - at, false, true);
      break;
    }
  }
  return extents;
}

/** What holds of both: zero if both are, allocated if either is; as far as both reach. */
export function joinStatus(a: readonly Extent[], b: readonly Extent[]): Extent[] {
  const joined: Extent[] = [];
  let i = 0;
  let j = 0;
  let leftA = a[0]?.length ?? 0;
  let leftB = b[0]?.length ?? 0;
  for (;;) {
    const one = a[i];
    const other = b[j];
    if (one === undefined || other === undefined) return joined;
    const length = Math.min(leftA, leftB);
    addExtent(joined, length, one.zero && other.zero, one.allocated || other.allocated);
    leftA -= length;
    leftB -= length;
    if (leftA === 0) leftA = a[++i]?.length ?? 0;
    if (leftB === 0) leftB = b[++j]?.length ?? 0;
  }
}
