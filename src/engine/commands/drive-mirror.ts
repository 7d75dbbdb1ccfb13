/**
 * `drive-mirror`: blockdev-mirror to a target that is a file name or an NBD URI. The target's node is made for the job,
 * and closed after it unless it has taken the place of the source.
 */
import type { z } from 'zod';
import { startBlockdevMirror } from '../../jobs/mirror.ts';
import { parseNbdUri } from '../../nbd/uri.ts';
import type { jobSchema } from '../../qmp/schema/job.ts';
import { BlockError } from '../../util/errors.ts';
import type { Engine } from '../engine.ts';

type DriveMirror = z.output<Extract<(typeof jobSchema)[number], { name: 'drive-mirror' }>['arguments']>;

/** @throws BlockError, and no node was made then */
export async function startDriveMirror(engine: Engine, args: DriveMirror): Promise<void> {
  const { device: asked, target, mode, 'node-name': given, format, 'job-id': jobId = asked, ...mirror } = args;
  const { graph, jobs, exports } = engine;
  const device = exports.nodeOf(asked) ?? asked;
  const { length } = graph.find(device).node;
  const nodeName = given ?? `drive-mirror-${jobId}`.slice(0, 255);
  await graph.add({ ...(await targetOptions(engine, target, mode !== 'existing')), 'node-name': nodeName });
  let job: { readonly concluded: Promise<void> };
  try {
    if (mode !== 'existing' && !isUri(target)) {
      // Emptied as a node, so that the locks of whoever else has the file are in the way.
      await graph.resize(nodeName, 0);
      await graph.resize(nodeName, length);
    }
    await startBlockdevMirror(graph, jobs, { ...mirror, device, target: nodeName, 'job-id': jobId });
    job = jobs.find(jobId);
  } catch (error) {
    await graph.remove(nodeName).catch(() => undefined);
    throw error;
  }
  // A node that has parents now is in the place of the source, and is refused to be taken away.
  void job.concluded.then(() => graph.remove(nodeName)).catch(() => undefined);
}

function isUri(target: string): boolean {
  return /^nbds?(\+unix)?:\/\//i.test(target);
}

async function targetOptions({ host }: Engine, target: string, make: boolean): Promise<Record<string, unknown>> {
  if (isUri(target)) {
    const { address, exportName, tls } = parseNbdUri(target);
    if (tls !== null) throw new BlockError('not-supported', 'arguments.target: TLS is not supported yet');
    const server = address.type === 'unix' ? address : { ...address, port: String(address.port) };
    return { driver: 'nbd', server, export: exportName };
  }
  if (make) await (await host.files.open(target, { access: 'write', create: 'if-missing' })).close();
  return { driver: 'raw', file: { driver: 'file', filename: target } };
}
