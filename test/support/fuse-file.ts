/**
 * Files that are slow, or fail, on demand: what `nbdkit` serves, mounted as a file by `nbdfuse`. Needs root and
 * /dev/fuse.
 */
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cleanup, type Ending } from './cleanup.ts';
import { run, spawnDaemon } from './process.ts';
import { temporaryFolder } from './temp.ts';
import { requireTools } from './tools.ts';

/** The path of a file that is what an `nbdkit` with these arguments serves: plugin, filters, parameters. */
export async function fuseFile(t: Ending, nbdkit: readonly string[]): Promise<string> {
  requireTools('nbdkit', 'nbdfuse');
  const folder = await temporaryFolder(t);
  const socket = join(folder, 'socket');
  const path = join(folder, 'disk');
  await spawnDaemon(t, 'nbdkit', ['--foreground', '--unix', socket, ...nbdkit]);
  await until(() => existsSync(socket), 'nbdkit listens');
  writeFileSync(path, '');
  await spawnDaemon(t, 'nbdfuse', [path, '--unix', socket]);
  cleanup(t, () => run('umount', ['--lazy', path]));
  await until(() => statSync(path).size > 0, 'nbdfuse has mounted');
  return path;
}

async function until(holds: () => boolean, what: string): Promise<void> {
  for (let attempt = 0; attempt < 1000; attempt += 1) {
    if (holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`not in time: ${what}`);
}
