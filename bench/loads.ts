/**
 * The loads: fio's nbd engine, and nbd_load, a client so cheap that the server is the limit (fio's own limit is near
 * 100 thousand requests a second on one core).
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { RunningServer } from './servers.ts';

const runFile = promisify(execFile);
const clientCpu = '0';
/** of each server's file */
export const fileBytes = 1024 * 1024 * 1024;

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

export interface FioRun {
  readonly way: 'randread' | 'randwrite';
  /** unix socket of an NBD server; its export is `disk` */
  readonly socket: string;
  readonly seconds: number;
  readonly bytes: number;
}

/** fio's nbd engine, 4k requests, 32 at a time; `wrapper` is a command that runs it. */
export async function runFio(asked: FioRun, wrapper: readonly string[] = []): Promise<{ iops: number; count: number }> {
  const [program = '', ...args] = [
    ...wrapper,
    ...['fio', '--name=load', '--ioengine=nbd', `--uri=nbd+unix:///disk?socket=${asked.socket}`],
    ...[`--rw=${asked.way}`, '--bs=4k', '--iodepth=32', `--size=${asked.bytes}`],
    ...['--time_based', `--runtime=${asked.seconds}`, '--output-format=json'],
  ];
  const { stdout } = await runFile(program, args, { maxBuffer: 1 << 24, cwd: '/tmp' });
  const job = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0];
  const { iops, total_ios: count } = asked.way === 'randread' ? job.read : job.write;
  return { iops, count };
}

export function fioLoad(way: 'randread' | 'randwrite', ratioMin: number): Load {
  return {
    name: `fio ${way} 4k qd32`,
    ratioMin,
    async run(server, seconds) {
      const before = server.cpuSeconds();
      const asked = { way, socket: server.socket, seconds, bytes: fileBytes };
      const { iops, count } = await runFio(asked, ['taskset', '-c', clientCpu]);
      return { iops, cpuMicros: ((server.cpuSeconds() - before) / count) * 1e6 };
    },
  };
}

export interface CheapRun {
  readonly way: 'read' | 'write';
  /** unix socket of an NBD server; its export is `disk` */
  readonly socket: string;
  readonly seconds: number;
  /** the process whose CPU time is told; null: none */
  readonly pid: number | null;
}

/**
 * nbd_load, 4k requests at random places, 32 at a time.
 * @param program the compiled nbd_load.c
 */
export async function runCheap(
  program: string,
  { way, socket, seconds, pid }: CheapRun,
  wrapper: readonly string[] = [],
): Promise<{ iops: number; count: number; cpuMicros: number }> {
  const [first = '', ...args] = [...wrapper, program, socket, 'disk', way, '4096', '32', String(seconds)];
  const { stdout } = await runFile(first, pid === null ? args : [...args, String(pid)]);
  const found = /^(\d+) IOPS(?:\s+([\d.]+) us CPU\/op)?\s+(\d+) requests/.exec(stdout);
  if (found === null) throw new Error(`nbd_load said: ${stdout}`);
  return { iops: Number(found[1]), cpuMicros: Number(found[2]), count: Number(found[3]) };
}

/** @param program the compiled nbd_load.c */
export function cheapLoad(program: string, way: 'read' | 'write', ratioMin: number): Load {
  return {
    name: `nbd_load ${way} 4k qd32`,
    ratioMin,
    run(server, seconds) {
      const asked = { way, socket: server.socket, seconds, pid: server.pid };
      return runCheap(program, asked, ['taskset', '-c', clientCpu]);
    },
  };
}

export async function compileCheapLoad(into: string): Promise<string> {
  const program = `${into}/nbd_load`;
  await runFile('gcc', ['-O2', '-o', program, new URL('./nbd_load.c', import.meta.url).pathname]);
  return program;
}
