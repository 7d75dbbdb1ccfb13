/** An overlay for tests, on a log in memory: small enough that its space is used anew, and opened again and again. */
import type { DriverNode } from '../../src/block/driver.ts';
import { parent, testGraph, writer } from '../block/fixture.ts';

/**
 * @param log options of the node that keeps the records
 * @param size bytes of the overlay
 * @param given the epoch of its group; without one it has its own
 */
export async function overlayOn(log: Record<string, unknown>, size: number, given?: number) {
  const { graph } = testGraph();
  await graph.add({ 'node-name': 'log', driver: 'memory', ...log });
  const small = { 'grow-bytes': 65536, 'reuse-bytes': 65536 };
  const open = async (epoch = given) => {
    const group = epoch === undefined ? {} : { epoch };
    await graph.add({ driver: 'shadow', 'node-name': 'top', file: 'log', size, ...small, ...group });
    const use = await graph.use('top', parent('the test'), writer);
    const node: DriverNode = graph.find('top').node;
    const close = async () => {
      await use.release();
      await graph.remove('top');
    };
    return { node, close };
  };
  return { log: graph.find('log').node, open };
}
