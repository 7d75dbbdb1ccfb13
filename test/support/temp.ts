/**
 * Folders for one test: made under the system's temporary folder (short, so that unix sockets fit), removed after it.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cleanup, type Ending } from './cleanup.ts';

/** A new empty folder that goes, with all in it, when the test has ended. */
export async function temporaryFolder(t: Ending): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'bs-'));
  cleanup(t, () => rm(folder, { recursive: true, force: true, maxRetries: 3 }));
  return folder;
}
