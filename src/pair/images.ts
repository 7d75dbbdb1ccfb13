/**
 * The image files of a group before the engine opens them: which are there, which are made, which hold data.
 * A disk that the group file knows and that is missing is never made anew: that would be empty data in the place of
 * lost.
 */
import type { Host, HostFile } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import type { DiskConfig } from './config.ts';

const scanBytes = 1 << 20;

export interface Images {
  /** every disk reads as zeroes */
  readonly blank: boolean;
  /** those that are not there */
  readonly missing: readonly DiskConfig[];
}

/** @throws BlockError naming the disk: another size, no regular file, not to be opened for writing */
export async function inspectImages(host: Host, disks: readonly DiskConfig[]): Promise<Images> {
  const missing: DiskConfig[] = [];
  let blank = true;
  for (const disk of disks) {
    const stat = await host.files.stat(disk.file);
    if (stat === null) {
      missing.push(disk);
      continue;
    }
    if (stat.kind !== 'file' && stat.kind !== 'block') {
      throw new BlockError('invalid-option', `disk ${disk.name}: ${disk.file} is neither a file nor a block device`);
    }
    const file = await host.files.open(disk.file, { access: 'write' });
    try {
      const size = file.size();
      // A file that was being made when the power went has no content yet: it is made whole.
      if (size === 0 && stat.kind === 'file') {
        missing.push(disk);
        continue;
      }
      if (size !== disk.size) {
        throw new BlockError(
          'bad-image',
          `disk ${disk.name}: ${disk.file} has ${size} bytes, the configuration says ${disk.size}: ` +
            `write \`size: ${size}\`, a disk keeps its size`,
        );
      }
      // A sync that failed was told to the process before us; what it lost is shown until the cache forgets it.
      await file.sync();
      await file.dropCache();
      if (blank) blank = await readsAsZeroes(file);
    } finally {
      await file.close();
    }
  }
  return { blank, missing };
}

/** Makes images of the right size that read as zeroes; durable when it resolves. */
export async function createImages(host: Host, disks: readonly DiskConfig[]): Promise<void> {
  const folders = new Set<string>();
  for (const disk of disks) {
    if (disk.file.startsWith('/dev/') && !disk.file.startsWith('/dev/shm/')) {
      // An image there would be in memory.
      throw new BlockError('file-not-found', `disk ${disk.name}: there is no device ${disk.file}`);
    }
    const folder = folderOf(disk.file);
    await host.files.makeFolder(folder);
    const file = await host.files.open(disk.file, { access: 'write', create: 'if-missing' });
    try {
      await file.truncate(disk.size);
      await file.sync();
    } finally {
      await file.close();
    }
    folders.add(folder);
  }
  for (const folder of folders) await host.files.syncFolder(folder);
}

/** What a process that was killed has made may be nowhere but in memory yet: it is durable when this resolves. */
export async function settleImages(host: Host, disks: readonly DiskConfig[]): Promise<void> {
  for (const disk of disks) {
    const file = await host.files.open(disk.file, { access: 'write' });
    try {
      await file.sync();
    } finally {
      await file.close();
    }
  }
  for (const folder of new Set(disks.map((disk) => folderOf(disk.file)))) await host.files.syncFolder(folder);
}

function folderOf(path: string): string {
  const slash = path.lastIndexOf('/');
  if (slash < 0) return '.';
  return slash === 0 ? '/' : path.slice(0, slash);
}

/** Looks only at what the file system calls data; a file that cannot tell is read whole. */
async function readsAsZeroes(file: HostFile): Promise<boolean> {
  const size = file.size();
  const bytes = new Uint8Array(scanBytes);
  let at = 0;
  while (at < size) {
    const data = await file.seekData(at);
    const from = data ?? at;
    if (from >= size) return true;
    const hole = data === null ? null : await file.seekHole(from);
    // A file that says nothing sensible is read to its end.
    const end = hole === null || hole <= from ? size : hole;
    for (let offset = from; offset < end; offset += scanBytes) {
      const part = bytes.subarray(0, Math.min(scanBytes, end - offset));
      await file.read(offset, part);
      if (part.some((byte) => byte !== 0)) return false;
    }
    at = end;
  }
  return true;
}
