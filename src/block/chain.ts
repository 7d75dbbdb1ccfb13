/**
 * Looking around in a graph: what stands below a node in its backing chain, with filters looked through, and what
 * stands above it.
 */

import { BlockError } from '../util/errors.ts';
import type { Child } from './child.ts';
import type { Graph, NodeInfo } from './graph-view.ts';
import type { BlockNode } from './node.ts';

/** The service `devices`: what users have on top of nodes under names of their own. Exports are the one kind. */
export interface Devices {
  /** The node below the device, or null: there is no such device. */
  nodeOf(device: string): string | null;
}

/** The first node at or below the name that is no filter. @throws BlockError node-not-found */
export function throughFilters(graph: Graph, nodeName: string): NodeInfo {
  for (let info = graph.find(nodeName); ; ) {
    const below = info.isFilter ? info.children.find(({ role }) => role === 'filtered') : undefined;
    if (below === undefined) return info;
    info = graph.find(below.nodeName);
  }
}

/** The backing child of the node, filters looked through; null: it has none. */
export function backingOf(graph: Graph, nodeName: string): Child | null {
  return throughFilters(graph, nodeName).children.find(({ role }) => role === 'backing') ?? null;
}

/**
 * The overlays from `top` down to the one whose backing is `base`, filters left out.
 * @throws BlockError invalid-option if `base` is not in the backing chain of `top`
 */
export function overlaysAbove(graph: Graph, top: string, base: string): NodeInfo[] {
  const overlays: NodeInfo[] = [];
  for (let name = top; !isOrFilters(graph, name, base); ) {
    const overlay = throughFilters(graph, name);
    const below = backingOf(graph, name);
    if (below === null) throw new BlockError('invalid-option', `'${base}' is not in the backing chain of '${top}'`);
    overlays.push(overlay);
    name = below.nodeName;
  }
  return overlays;
}

/** Is `name` the node, or a filter over it? */
function isOrFilters(graph: Graph, name: string, node: string): boolean {
  for (let info = graph.find(name); ; ) {
    if (info.nodeName === node) return true;
    const below = info.isFilter ? info.children.find(({ role }) => role === 'filtered') : undefined;
    if (below === undefined) return false;
    info = graph.find(below.nodeName);
  }
}

/** Is `nodeName` the node `top`, or anywhere below it? */
export function standsIn(graph: Graph, top: string, nodeName: string): boolean {
  if (top === nodeName) return true;
  return graph.find(top).children.some((child) => standsIn(graph, child.nodeName, nodeName));
}

/** Who uses the node from outside the graph, other than through the nodes `except`; descriptions. */
export function usersAbove(graph: Graph, nodeName: string, ...except: readonly string[]): string[] {
  const users = new Set<string>();
  const seen = new Set(except);
  const visit = (name: string): void => {
    if (seen.has(name)) return;
    seen.add(name);
    // A parent that is still being opened is not to be found, and has no users yet.
    const info = graph.list().find(({ nodeName: one }) => one === name);
    for (const user of info?.users ?? []) users.add(user);
    for (const parent of info?.parentNodes ?? []) visit(parent);
  };
  visit(nodeName);
  return [...users];
}

/** The node that a name means where a device or a node may stand; a device of that name comes first. */
export function nodeOfDevice(graph: Graph, devices: Devices, name: string): NodeInfo {
  return graph.find(devices.nodeOf(name) ?? name);
}

/** A run of bytes of which all, or none, is allocated in one of the overlays. */
export interface AllocationRun {
  /** bytes, above 0 */
  readonly length: number;
  readonly allocated: boolean;
}

/**
 * The run at `offset`, as long as its status is uniform, at most `lengthMax`. It ends where the status cannot be told:
 * whoever asks there hears why.
 */
export async function allocationRun(
  overlays: readonly BlockNode[],
  offset: number,
  lengthMax: number,
): Promise<AllocationRun> {
  const first = await shortRun(overlays, offset, lengthMax);
  let { length } = first;
  while (length < lengthMax) {
    const next = await shortRun(overlays, offset + length, lengthMax - length).catch(() => null);
    if (next?.allocated !== first.allocated) break;
    length += next.length;
  }
  return { length, allocated: first.allocated };
}

/** bytes of a disk that are looked through between two pauses: where much is allocated, each block has to be found */
const scanBytesMin = 2 ** 20;
const scanBytesMax = 64 * 2 ** 20;
/** the same where nothing is: a disk of many TiB is mostly that */
const emptyBytesMax = 2 ** 30;

/**
 * Tells of everything that is allocated in one of the overlays.
 * @param pause called between two stretches of the disk, so that a large one holds nobody up
 */
export async function findAllocated(
  overlays: readonly BlockNode[],
  length: number,
  pause: () => Promise<void>,
  found: (offset: number, length: number) => void,
): Promise<void> {
  let scanBytes = scanBytesMin;
  for (let at = 0; at < length; ) {
    if (at > 0) await pause();
    let allocated = false;
    for (let end = Math.min(at + scanBytes, length); at < end; ) {
      let run = await shortRun(overlays, at, end - at);
      if (run.allocated) {
        end = Math.min(end, at + scanBytesMax);
        run = await allocationRun(overlays, at, end - at);
        found(at, run.length);
      }
      allocated ||= run.allocated;
      at += run.length;
    }
    scanBytes = allocated ? scanBytesMin : Math.min(2 * scanBytes, emptyBytesMax);
  }
}

async function shortRun(overlays: readonly BlockNode[], offset: number, lengthMax: number): Promise<AllocationRun> {
  let length = lengthMax;
  for (const overlay of overlays) {
    const [first] = await overlay.blockStatus(offset, length);
    if (first === undefined) throw new BlockError('io-error', `no block status at ${offset}`);
    length = Math.min(length, first.length);
    if (first.allocated) return { length, allocated: true };
  }
  return { length, allocated: false };
}
