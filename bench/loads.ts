/**
 * The loads: fio's nbd engine, and nbd_load, a client so cheap that the server is the limit (fio's own limit is near
 * 100 thousand requests a second on one core).
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { RunningServer } from './servers.ts';

const runFile = promisify(execFile);
const clientCpu = '0';

export interface Measured {
  /** requests a second */
  readonly iops: number;
  /** microseconds of the server's CPU for a request */
  readonly cpuMicros: number;
}

export interface Load {
  readonly name: string;
  /** blockstep to qemu-nbd, at least */
  readonly ratioMin: number;
  run(server: RunningServer, seconds: number): Promise<Measured>;
}

export function fioLoad(way: 'randread' | 'randwrite', ratioMin: number): Load {
  return {
    name: `fio ${way} 4k qd32`,
    ratioMin,
    async run(server, seconds) {
      const before = server.cpuSeconds();
      const { stdout } = await runFile(
        'taskset',
        [
          ...[
            '-c',
            clientCpu,
            'fio',
            '--name=load',
            '--ioengine=nbd',
            `--uri=nbd+unix:///disk?socket=${server.socket}`,
          ],
          ...[`--rw=${way}`, '--bs=4k', '--iodepth=32', '--size=1g', '--time_based', `--runtime=${seconds}`],
          '--output-format=json',
        ],
        { maxBuffer: 1 << 24, cwd: '/tmp' },
      );
      const used = server.cpuSeconds() - before;
      const job = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0];
      const { iops, total_ios: count } = way === 'randread' ? job.read : job.write;
      return { iops, cpuMicros: (used / count) * 1e6 };
    },
  };
}

/** @param program the compiled nbd_load.c */
export function cheapLoad(program: string, way: 'read' | 'write', ratioMin: number): Load {
  return {
    name: `nbd_load ${way} 4k qd32`,
    ratioMin,
    async run(server, seconds) {
      const args = [
        '-c',
        clientCpu,
        program,
        server.socket,
        'disk',
        way,
        '4096',
        '32',
        String(seconds),
        String(server.pid),
      ];
      const { stdout } = await runFile('taskset', args);
      const found = /^(\d+) IOPS\s+([\d.]+) us/.exec(stdout);
      if (found === null) throw new Error(`nbd_load said: ${stdout}`);
      return { iops: Number(found[1]), cpuMicros: Number(found[2]) };
    },
  };
}

export async function compileCheapLoad(into: string): Promise<string> {
  const program = `${into}/nbd_load`;
  await runFile('gcc', ['-O2', '-o', program, new URL('./nbd_load.c', import.meta.url).pathname]);
  return program;
}
