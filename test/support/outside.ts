/** What a disk looks like from outside of the program: to du, to the file system, to the kernel's table of locks. */
import { readFileSync, statSync } from 'node:fs';
import { run } from './process.ts';

/** KiB that a file takes on its disk, as `du` says. */
export async function usedKib(path: string): Promise<number> {
  const { stdout, stderr } = await run('du', ['-k', path]);
  const used = Number.parseInt(stdout, 10);
  if (Number.isNaN(used)) throw new Error(`du ${path}: ${stderr}`);
  return used;
}

/** The data of a file as `qemu-img map` finds it through SEEK_DATA: `[start, length]` each, in bytes. */
export async function dataRanges(path: string): Promise<[number, number][]> {
  const { stdout, stderr, code } = await run('qemu-img', ['map', '-U', '-f', 'raw', '--output=json', path]);
  if (code !== 0) throw new Error(`qemu-img map ${path}: ${stderr}`);
  const map = JSON.parse(stdout) as { start: number; length: number; data: boolean }[];
  return map.filter(({ data }) => data).map(({ start, length }) => [start, length]);
}

/** Single bytes that are locked on a file or device, as /proc/locks has them. */
export function lockedBytes(path: string): number[] {
  const inode = String(statSync(path).ino);
  const bytes = new Set<number>();
  for (const line of readFileSync('/proc/locks', 'utf8').split('\n')) {
    const [, , , , , file, from, to] = line.split(/\s+/);
    if (file?.split(':')[2] !== inode) continue;
    for (let byte = Number(from); byte <= Number(to); byte += 1) bytes.add(byte);
  }
  return [...bytes].sort((a, b) => a - b);
}
