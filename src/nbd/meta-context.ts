/**
 * Metadata contexts: which there are, which a query selects, and what their block status says
 * (doc/proto.md, "Metadata querying").
 */
import { BlockError } from '../util/errors.ts';
import { clipExtents, type Extent } from '../util/extents.ts';
import { NBD_META_BASE_ALLOCATION, NBD_META_BLOCKSTEP_ORDERED, NBD_STATE_HOLE, NBD_STATE_ZERO } from './constants.ts';

export interface MetaContext {
  /** what stands in a block status chunk; not 0, so that a client that mixes up the two answers is seen */
  readonly id: number;
  readonly name: string;
}

const allocationContext: MetaContext = { id: 1, name: NBD_META_BASE_ALLOCATION };
const orderedContext: MetaContext = { id: 2, name: NBD_META_BLOCKSTEP_ORDERED };

/** The contexts of an export. */
export function contextsOf(exported: { readonly ordered: boolean }): readonly MetaContext[] {
  return exported.ordered ? [allocationContext, orderedContext] : [allocationContext];
}

/** NBD_OPT_LIST_META_CONTEXT: no query asks for all; `base:` for all of a namespace. */
export function listContexts(available: readonly MetaContext[], queries: readonly string[]): MetaContext[] {
  if (queries.length === 0) return [...available];
  return available.filter(({ name }) =>
    queries.some((query) => query === name || (query.endsWith(':') && name.startsWith(query))),
  );
}

/** NBD_OPT_SET_META_CONTEXT: exact names; wildcards and unknown names select nothing. */
export function selectContexts(available: readonly MetaContext[], queries: readonly string[]): MetaContext[] {
  return available.filter(({ name }) => queries.includes(name));
}

/** A query needs a namespace and a colon ("Metadata querying"). */
export function isContextQuery(query: string): boolean {
  return query.indexOf(':') > 0;
}

export function hasOrdered(contexts: readonly MetaContext[]): boolean {
  return contexts.includes(orderedContext);
}

/** True if the context tells where data is; the other one has no meaning of its own: one extent, flags 0. */
export function isAllocation(context: MetaContext): boolean {
  return context === allocationContext;
}

/**
 * The descriptors of a block status chunk, pairs of length and flags, at least one: of the first `length` bytes of the
 * extents, at most `most`.
 */
export function descriptorsOf(
  context: MetaContext,
  extents: readonly Extent[],
  length: number,
  most: number,
): readonly number[] {
  if (!isAllocation(context)) return [length, 0];
  const descriptors: number[] = [];
  for (const extent of clipExtents(extents, length).slice(0, most)) {
    // A length that is no number would go on the wire as 0, which makes clients ask for ever.
    if (!Number.isSafeInteger(extent.length))
      throw new BlockError('io-error', 'block status has an extent of no length');
    // A range that comes from a backing is no hole of what is exported: clients take its content for nothing there.
    const flags = extent.zero ? NBD_STATE_ZERO | (extent.allocated ? 0 : NBD_STATE_HOLE) : 0;
    const last = descriptors.length - 1;
    if (descriptors[last] === flags) descriptors[last - 1] = (descriptors[last - 1] ?? 0) + extent.length;
    else descriptors.push(extent.length, flags);
  }
  // Nothing is known: "a server MAY always safely report a status of 0 for any block" (NBD_CMD_BLOCK_STATUS).
  return descriptors.length === 0 ? [length, 0] : descriptors;
}
