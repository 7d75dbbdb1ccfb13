/** What the kernel tells of a block device. */
import * as fs from 'node:fs';
import { isReadOnly, logicalBlock, type SystemCalls } from './system-calls.ts';

/** The kernel's unit for the size of a device, whatever the device's own blocks are. */
const sectorLength = 512;

/** Of a device that is not open, or without system calls: bytes. */
export function sizeOfDevice(device: number): number {
  const major = Math.floor(device / 256) % 4096;
  const minor = (device % 256) + Math.floor(device / 1_048_576) * 256;
  return Number(fs.readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'latin1')) * sectorLength;
}

/** The logical block, bytes: what it reads, writes, zeroes and discards is a multiple of this. */
export function deviceBlock(fd: number, calls: SystemCalls): number {
  const length = Int32Array.of(0);
  return calls.now(logicalBlock(fd, length)) ? (length[0] ?? sectorLength) : sectorLength;
}

/** The kernel opens some devices for writing that refuse every write. */
export function isReadOnlyDevice(fd: number, calls: SystemCalls): boolean {
  const flag = Int32Array.of(0);
  return calls.now(isReadOnly(fd, flag)) && flag[0] !== 0;
}
