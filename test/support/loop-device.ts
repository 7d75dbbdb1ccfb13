/** Block devices for tests: loop devices over files, given back after the test. Only root can make them. */
import { closeSync, openSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { cleanup, type Ending } from './cleanup.ts';
import { run } from './process.ts';
import { temporaryFolder } from './temp.ts';

export interface LoopDevice {
  /** /dev/loopN */
  readonly device: string;
  /** the file that it stands on: what is discarded there is a hole here */
  readonly file: string;
  /** Gives both another size. */
  resize(bytes: number): Promise<void>;
}

export async function loopDevice(
  t: Ending,
  bytes: number,
  options: { readOnly?: boolean; sectorBytes?: number /** where the file stands */; folder?: string } = {},
): Promise<LoopDevice> {
  const file = join(options.folder ?? (await temporaryFolder(t)), 'device.img');
  closeSync(openSync(file, 'w'));
  truncateSync(file, bytes);
  const made = await run('losetup', [
    '--find',
    '--show',
    ...(options.readOnly === true ? ['--read-only'] : []),
    ...(options.sectorBytes === undefined ? [] : ['--sector-size', String(options.sectorBytes)]),
    file,
  ]);
  if (made.code !== 0) throw new Error(`a loop device needs root and the kernel's driver: ${made.stderr}`);
  const device = made.stdout.trim();
  cleanup(t, () => run('losetup', ['--detach', device]));
  return {
    device,
    file,
    async resize(to) {
      truncateSync(file, to);
      const told = await run('losetup', ['--set-capacity', device]);
      if (told.code !== 0) throw new Error(told.stderr);
    },
  };
}
