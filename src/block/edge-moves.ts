/**
 * Moving edges to other vertices, with the permissions that follow from it: all of them or none. Whoever calls holds
 * the users and makes no other change meanwhile.
 */
import { BlockError } from '../util/errors.ts';
import { updatePermissions } from './permissions.ts';
import { downward, type Edge, Vertex } from './vertex.ts';

/**
 * The edges to a vertex, and where each goes: to `to`, but those that `to` itself stands on, and that would close a
 * circle above it, to `rest`.
 */
export function movesOf(from: Vertex, to: Vertex, rest: Vertex): Map<Edge, Vertex> {
  if (to.node.length < from.node.length) {
    throw new BlockError(
      'invalid-request',
      `node '${to.nodeName}' (${to.node.length} bytes) is shorter than ` +
        `'${from.nodeName}' (${from.node.length} bytes)`,
    );
  }
  const below = downward([to]);
  const closes = ({ parent }: Edge): boolean => parent instanceof Vertex && below.includes(parent);
  return new Map(from.uses.map((edge) => [edge, closes(edge) ? rest : to]));
}

/**
 * @param guard the edge of a filter that guards from now on what it points to, or does so no longer
 * @throws BlockError what `updatePermissions` refuses with; all is as before then
 */
export async function moveEdges(
  moves: ReadonlyMap<Edge, Vertex>,
  guard: Edge | null = null,
  guards = false,
): Promise<void> {
  const before = [...moves.keys()].map((edge) => [edge, edge.vertex] as const);
  const guarded = guard?.guards ?? false;
  const starts = new Set<Vertex>();
  for (const edge of guard === null ? moves.keys() : [...moves.keys(), guard]) {
    for (const end of [edge.parent, edge.vertex, moves.get(edge)]) if (end instanceof Vertex) starts.add(end);
  }
  for (const [edge, to] of moves) edge.moveTo(to);
  if (guard !== null) guard.guards = guards;
  try {
    await updatePermissions([...starts]);
  } catch (error) {
    for (const [edge, from] of before) edge.moveTo(from);
    if (guard !== null) guard.guards = guarded;
    throw error;
  }
}
