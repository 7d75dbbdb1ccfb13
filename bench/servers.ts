/**
 * The servers that are compared, each over a file of its own, all of equal content, on a memory file system.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** the CPU of a server; the clients run on CPU 0 */
const serverCpu = 1;
const startMsMax = 10_000;
const clockTicksPerSecond = 100;
const entry = new URL('../src/cli/main.ts', import.meta.url).pathname;

export interface ServerKind {
  readonly name: string;
  readonly command: string;
  args(file: string, socket: string): string[];
}

export const qemuNbd: ServerKind = {
  name: 'qemu-nbd',
  command: 'qemu-nbd',
  args: (file, socket) => ['-f', 'raw', '-e', '8', '--persistent', '-x', 'disk', '-k', socket, file],
};

/** A page-cached raw export of the storage daemon: file, raw, export. `nodeArgs` are options of Node. */
export function ours(nodeArgs: readonly string[]): ServerKind {
  return {
    name: 'blockstep',
    command: process.execPath,
    args: (file, socket) => [
      ...nodeArgs,
      entry,
      'storage-daemon',
      ...['--blockdev', `driver=file,node-name=file0,filename=${file}`],
      ...['--blockdev', 'driver=raw,node-name=disk0,file=file0'],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'type=nbd,id=disk,node-name=disk0,name=disk,writable=on'],
    ],
  };
}

export class RunningServer {
  readonly kind: ServerKind;
  readonly socket: string;
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  #said = '';

  private constructor(kind: ServerKind, file: string, socket: string) {
    this.kind = kind;
    this.socket = socket;
    const args = ['-c', String(serverCpu), kind.command, ...kind.args(file, socket)];
    this.#child = spawn('taskset', args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#exited = new Promise((resolve) => {
      this.#child.once('close', () => resolve());
      this.#child.once('error', () => resolve());
    });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.on('data', (text: Buffer) => {
        this.#said += text.toString();
      });
    }
  }

  /** Starts it and waits until it answers. */
  static async start(kind: ServerKind, file: string, socket: string): Promise<RunningServer> {
    const server = new RunningServer(kind, file, socket);
    for (let waitedMs = 0; !(await answers(socket)); waitedMs += 50) {
      if (waitedMs > startMsMax || server.#child.exitCode !== null) {
        await server.stop();
        throw new Error(`${kind.name} did not start: ${server.#said}`);
      }
      await sleep(50);
    }
    return server;
  }

  /** taskset becomes the server, so this is the server's id. */
  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** User and system seconds of all its threads so far. */
  cpuSeconds(): number {
    const stat = readFileSync(`/proc/${this.pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / clockTicksPerSecond;
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#child.kill('SIGTERM');
    const late = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    await this.#exited;
    clearTimeout(late);
  }
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    socket.once('data', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
    socket.once('close', () => resolve(false));
  });
}
