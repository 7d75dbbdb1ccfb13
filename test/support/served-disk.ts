/** An engine of this process that serves one image over NBD, for programs that look at it from outside. */
import { join } from 'node:path';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import type { Host } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { cleanup, type Ending } from './cleanup.ts';
import { temporaryFolder } from './temp.ts';

export interface ServedDisk {
  readonly engine: Engine;
  /** its NBD URI */
  readonly uri: string;
}

/** Serves a node made of these options, writable, as `disk`; its node is named `disk` too. */
export async function serveDisk(
  t: Ending,
  options: Readonly<Record<string, unknown>>,
  host: Host = createHost(),
): Promise<ServedDisk> {
  const engine = new Engine(host, drivers);
  // What a close finds wrong with the disk is for the test that asks about it.
  cleanup(t, () => engine.close().catch(() => undefined));
  const socket = join(await temporaryFolder(t), 'nbd');
  await engine.execute('blockdev-add', { ...options, 'node-name': 'disk' });
  await engine.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  await engine.execute('block-export-add', {
    type: 'nbd',
    id: 'export0',
    'node-name': 'disk',
    name: 'disk',
    writable: options['read-only'] !== true,
  });
  return { engine, uri: `nbd+unix:///disk?socket=${socket}` };
}
