/** The commands about the graph. */
import type { z } from 'zod';
import { allPermissions } from '../../block/child.ts';
import type { Graph, NodeInfo } from '../../block/graph-view.ts';
import type { ReopenRequest } from '../../block/reopen.ts';
import type { Host } from '../../host/host.ts';
import type { Handlers } from '../../qmp/command.ts';
import type { blockDeviceInfo, blockdevOptions, blockSchema, blockStats } from '../../qmp/schema/block.ts';
import { BlockError } from '../../util/errors.ts';
import { sameJson } from '../../util/json.ts';
import type { Engine } from '../engine.ts';
import type { ExportInfo } from '../exports.ts';

export function blockCommands(engine: Engine): Handlers<typeof blockSchema> {
  const { graph } = engine;
  return {
    'blockdev-add': async (options) => {
      await graph.add(options);
    },
    'blockdev-del': (args) => {
      graph.blockers.check(args['node-name'], 'delete');
      return graph.remove(args['node-name']);
    },
    'blockdev-reopen': ({ options }) => graph.reopen(options.map((given) => reopenRequest(graph, given))),
    'x-blockdev-flush': (args) => flush(graph, args['node-name']),
    'x-blockdev-change': ({ parent, child, node }) => {
      if ((child === undefined) === (node === undefined)) {
        throw new BlockError(
          'invalid-option',
          'arguments: give exactly one of "child" (to take away) and "node" (to add)',
        );
      }
      if (node !== undefined) return graph.addChild(parent, node);
      return graph.removeChild(parent, child ?? '');
    },
    block_resize: ({ device, 'node-name': nodeName, size }) => {
      const name = nodeName ?? device;
      if (name === undefined || (nodeName !== undefined && device !== undefined)) {
        throw new BlockError('invalid-option', 'arguments: give exactly one of "node-name" and "device"');
      }
      graph.blockers.check(name, 'resize');
      return graph.resize(name, size);
    },
    'query-named-block-nodes': () => describeNodes(engine, graph.list()),
    'query-block': async () => {
      const exports = engine.exports.list();
      const nodes = await describeNodes(
        engine,
        exports.map(({ nodeName }) => graph.find(nodeName)),
      );
      return exports.flatMap(({ id }, i) => {
        const inserted = nodes[i];
        return inserted === undefined
          ? []
          : { device: id, type: 'unknown' as const, removable: false, locked: false, inserted };
      });
    },
    'query-blockstats': (args) => (args['query-nodes'] === true ? [] : engine.exports.list().map(describeStats)),
  };
}

async function flush(graph: Graph, nodeName: string): Promise<void> {
  const parent = { description: 'x-blockdev-flush', drainBegin: () => undefined, drainEnd: () => undefined };
  const use = await graph.use(nodeName, parent, { needs: 0, shares: allPermissions });
  try {
    await use.node.flush();
  } finally {
    await use.release();
  }
}

function describeNodes(engine: Engine, nodes: readonly NodeInfo[]): Promise<z.input<typeof blockDeviceInfo>[]> {
  const byName = new Map(engine.graph.list().map((node) => [node.nodeName, node]));
  return Promise.all(
    nodes.map(async (node) => describeNode(node, byName, await allocatedBytes(engine.host, filenameOf(node, byName)))),
  );
}

/** QEMU's BlockStats. What is not measured is 0. */
function describeStats({ id, nodeName, stats }: ExportInfo): z.input<typeof blockStats> {
  return {
    device: id,
    'node-name': nodeName,
    stats: {
      rd_bytes: stats.readBytes,
      wr_bytes: stats.writtenBytes,
      unmap_bytes: stats.discardedBytes,
      rd_operations: stats.reads,
      wr_operations: stats.writes,
      flush_operations: stats.flushes,
      unmap_operations: stats.discards,
      wr_highest_offset: stats.writtenEnd,
      ...unmeasured,
    },
  };
}

const unmeasured = {
  rd_total_time_ns: 0,
  wr_total_time_ns: 0,
  flush_total_time_ns: 0,
  unmap_total_time_ns: 0,
  rd_merged: 0,
  wr_merged: 0,
  unmap_merged: 0,
  failed_rd_operations: 0,
  failed_wr_operations: 0,
  failed_flush_operations: 0,
  failed_unmap_operations: 0,
  invalid_rd_operations: 0,
  invalid_wr_operations: 0,
  invalid_flush_operations: 0,
  invalid_unmap_operations: 0,
  account_invalid: false,
  account_failed: false,
  timed_stats: [],
};

/**
 * A child is what it is now, by its name, or what the node was made with.
 * @throws BlockError invalid-option if anything but `read-only` differs
 */
function reopenRequest(graph: Graph, given: z.output<typeof blockdevOptions>): ReopenRequest {
  const { 'read-only': readOnly = false, 'auto-read-only': automatic, ...wanted } = given;
  const nodeName = given['node-name'];
  const { options: madeWith, children } = graph.find(nodeName);
  const { 'read-only': was, 'auto-read-only': wasAutomatic, ...made } = madeWith;
  for (const name of new Set([...Object.keys(wanted), ...Object.keys(made)])) {
    const child = children.find((one) => one.name === name);
    if (child !== undefined && child.nodeName === wanted[name]) continue;
    const isStale = typeof made[name] === 'string' && child !== undefined && child.nodeName !== made[name];
    if (!isStale && sameJson(wanted[name], made[name])) continue;
    throw new BlockError('invalid-option', `${name}: of node '${nodeName}' cannot be changed by a reopen`);
  }
  if (typeof readOnly !== 'boolean') throw new BlockError('invalid-option', 'read-only: expected true or false');
  return { nodeName, readOnly, anew: true };
}

type Nodes = ReadonlyMap<string, NodeInfo>;

/** QEMU's BlockDeviceInfo. There are no rate limits, no write threshold and no encryption here: the zeroes are true. */
function describeNode(node: NodeInfo, nodes: Nodes, allocated: number | undefined): z.input<typeof blockDeviceInfo> {
  const file = fileOf(node, nodes);
  const backing = backingOf(node, nodes);
  const info = node.node.info?.();
  const detectZeroes = node.options['detect-zeroes'];
  return {
    file,
    'node-name': node.nodeName,
    ro: node.readOnly,
    drv: node.driver,
    ...(backing === undefined ? {} : { backing_file: fileOf(backing, nodes) }),
    backing_file_depth: backingDepth(node, nodes),
    children: node.children.map(({ name, nodeName }) => ({ child: name, 'node-name': nodeName })),
    active: true,
    encrypted: false,
    detect_zeroes: detectZeroes === 'on' || detectZeroes === 'unmap' ? detectZeroes : 'off',
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image: {
      filename: file,
      format: node.driver,
      'virtual-size': node.node.length,
      ...(allocated === undefined ? {} : { 'actual-size': allocated }),
    },
    cache: { writeback: true, direct: cacheOption(node, 'direct'), 'no-flush': cacheOption(node, 'no-flush') },
    write_threshold: 0,
    parents: [...node.parents],
    ...(info === undefined ? {} : { info }),
  };
}

/** The file below, or the options as QEMU writes them. */
function fileOf(node: NodeInfo, nodes: Nodes): string {
  return filenameOf(node, nodes) ?? `json:${JSON.stringify(node.options)}`;
}

/** The file below, found through the children that hold it alone. */
function filenameOf(node: NodeInfo, nodes: Nodes): string | undefined {
  const { filename } = node.options;
  if (typeof filename === 'string') return filename;
  const below = node.children.find(({ role }) => role === 'file' || role === 'filtered');
  const child = below === undefined ? undefined : nodes.get(below.nodeName);
  return child === undefined ? undefined : filenameOf(child, nodes);
}

/** Bytes that a file takes on its disk; undefined where that cannot be told. */
async function allocatedBytes(host: Host, filename: string | undefined): Promise<number | undefined> {
  if (filename === undefined) return undefined;
  const stat = await host.files.stat(filename).catch(() => null);
  return stat?.allocated;
}

function backingOf(node: NodeInfo, nodes: Nodes): NodeInfo | undefined {
  const backing = node.children.find(({ role }) => role === 'backing');
  return backing === undefined ? undefined : nodes.get(backing.nodeName);
}

function backingDepth(node: NodeInfo, nodes: Nodes): number {
  const backing = backingOf(node, nodes);
  return backing === undefined ? 0 : 1 + backingDepth(backing, nodes);
}

function cacheOption(node: NodeInfo, name: 'direct' | 'no-flush'): boolean {
  const { cache } = node.options;
  return typeof cache === 'object' && cache !== null && (cache as Record<string, unknown>)[name] === true;
}
