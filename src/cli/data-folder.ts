/**
 * A daemon's data folder has one instance (pair.md 18): whoever holds the lock on `DIR/lock` is it, and has written
 * into `DIR/daemon.json` who that is. The lock is the system's and goes with the process, so a file left behind by a
 * killed one never keeps anybody out.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { z } from 'zod';
import type { Host, HostFile, SocketAddress } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';

const lockByte = 0;
/** Room for a path in `sockaddr_un` on Linux, without the final zero. */
export const socketPathBytesMax = 107;

const holderSchema = z.object({ name: z.string(), pid: z.int().positive(), volume: z.string() });

/** Who holds a data folder. */
export type Holder = z.infer<typeof holderSchema>;

export class DataFolder {
  readonly path: string;
  private readonly lock: HostFile;

  /** Makes the folder if there is none and holds it until `release`. Rejects with `locked`, saying who holds it. */
  static async take(host: Host, path: string, who: { name: string; volume: string }): Promise<DataFolder> {
    await host.files.makeFolder(path);
    const lock = await host.files.open(join(path, 'lock'), { access: 'write', create: 'if-missing' });
    try {
      const free = lock.locks === null ? !(await holderLives(path)) : lock.locks.exclude(lockByte);
      if (!free) throw new BlockError('locked', `${path} is in use by ${await describeHolder(path)}`);
      const holder: Holder = { name: who.name, pid: process.pid, volume: who.volume };
      await writeFile(join(path, 'daemon.json'), `${JSON.stringify(holder)}\n`);
    } catch (error) {
      await lock.close();
      throw error;
    }
    return new DataFolder(path, lock);
  }

  private constructor(path: string, lock: HostFile) {
    this.path = path;
    this.lock = lock;
  }

  async release(): Promise<void> {
    await this.lock.close();
  }
}

/** Who holds the folder, or held it last; null if nobody ever did. */
export async function readHolder(path: string): Promise<Holder | null> {
  try {
    return holderSchema.parse(JSON.parse(await readFile(join(path, 'daemon.json'), 'utf8')));
  } catch {
    return null;
  }
}

async function describeHolder(path: string): Promise<string> {
  const holder = await readHolder(path);
  return holder === null ? 'another process' : `${holder.name} (process ${holder.pid})`;
}

/** The stand-in for the lock on a machine without the system call: true if the process that is written there lives. */
async function holderLives(path: string): Promise<boolean> {
  const holder = await readHolder(path);
  return holder !== null && holder.pid !== process.pid && processLives(holder.pid);
}

/** True if a process holds the folder. */
export async function folderIsHeld(host: Host, path: string): Promise<boolean> {
  const file = join(path, 'lock');
  if ((await host.files.stat(file)) === null) return false;
  const lock = await host.files.open(file, { access: 'read' });
  try {
    return lock.locks === null ? await holderLives(path) : lock.locks.heldByOther(lockByte);
  } finally {
    await lock.close();
  }
}

/** True if there is such a process (it may be a zombie of ours that is not yet reaped, or another program by now). */
export function processLives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}

/** The control socket of the daemon that holds the folder. */
export function controlSocket(path: string): SocketAddress {
  const absolute = join(path, 'qmp.sock');
  // The system takes 107 bytes of path at most; from the present folder a deep one can be named shortly.
  const short = relative(process.cwd(), absolute);
  const chosen = short.length > 0 && short.length < absolute.length ? short : absolute;
  if (Buffer.byteLength(chosen) > socketPathBytesMax) {
    throw new BlockError(
      'invalid-option',
      `${absolute}: longer than ${socketPathBytesMax} bytes, choose a shorter folder`,
    );
  }
  return { type: 'unix', path: chosen };
}
