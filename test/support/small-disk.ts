/** A file system that is soon full. Needs root: it is mounted, and unmounted after the test. */

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { cleanup, type Ending } from './cleanup.ts';
import { run } from './process.ts';
import { temporaryFolder } from './temp.ts';

/** The folder where a tmpfs of so many bytes is mounted. */
export async function smallDisk(t: Ending, bytes: number): Promise<string> {
  const folder = join(await temporaryFolder(t), 'small');
  mkdirSync(folder);
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', folder]);
  if (mounted.code !== 0) throw new Error(`a small file system needs root: ${mounted.stderr}`);
  cleanup(t, () => run('umount', ['--lazy', folder]));
  return folder;
}
