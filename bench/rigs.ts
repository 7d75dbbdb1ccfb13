/**
 * Two daemons with the graph of docs/howto/replication-by-hand.md, of blockstep or of QEMU (as its own
 * docs/block-replication.txt has it): a primary with a quorum over its disk and the other side, a secondary with two
 * overlays. Everything lies on a memory file system and talks over unix sockets; neither kind is bound to a CPU.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Host } from '../src/host/index.ts';
import { NbdClient } from '../src/nbd/client.ts';
import { QmpClient } from '../src/qmp/client.ts';

const startMsMax = 20_000;
const entry = new URL('../src/cli/main.ts', import.meta.url).pathname;
const secondaryDisk = 'incoming';

type Options = Record<string, unknown>;

export interface RigKind {
  readonly name: string;
  /** The program with a QMP socket, and nothing in it. */
  command(socket: string): string[];
  /** Makes an empty overlay over a disk of that length. */
  makeOverlay(path: string, length: number): void;
  /** The option `driver` of an overlay, and what else it takes. */
  readonly overlay: Options;
}

export const blockstepRig: RigKind = {
  name: 'blockstep',
  command: (socket) => [
    process.execPath,
    entry,
    'storage-daemon',
    ...['--chardev', `socket,id=qmp,path=${socket},server=on,wait=off`, '--monitor', 'qmp'],
  ],
  makeOverlay: (path) => execFileSync('truncate', ['--size', '0', path]),
  overlay: { driver: 'shadow', sync: false },
};

export const qemuRig: RigKind = {
  name: 'QEMU',
  command: (socket) => [
    'qemu-system-x86_64',
    ...['-S', '-M', 'none', '-display', 'none', '-nodefaults', '-qmp', `unix:${socket},server=on,wait=off`],
  ],
  makeOverlay: (path, length) => execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, String(length)]),
  overlay: { driver: 'qcow2' },
};

/** Daemons that run: they end with the measurement, however that ends, a signal and a fault of its own included. */
const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** One daemon. */
class Side {
  readonly qmp: QmpClient;
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;

  private constructor(child: ChildProcess, exited: Promise<void>, qmp: QmpClient) {
    this.#child = child;
    this.#exited = exited;
    this.qmp = qmp;
  }

  static async start(host: Host, kind: RigKind, socket: string): Promise<Side> {
    const [program = '', ...args] = kind.command(socket);
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    running.add(child);
    let over = false;
    const exited = new Promise<void>((resolve) => {
      for (const event of ['close', 'error'] as const) {
        child.once(event, () => {
          over = true;
          running.delete(child);
          resolve();
        });
      }
    });
    for (let waitedMs = 0; !over && waitedMs < startMsMax; waitedMs += 20) {
      try {
        return new Side(child, exited, await QmpClient.connect(host, { type: 'unix', path: socket }));
      } catch {
        await sleep(20);
      }
    }
    child.kill('SIGKILL');
    throw new Error(`${kind.name}: ${program} did not start`);
  }

  async stop(): Promise<void> {
    this.qmp.close();
    this.#child.kill('SIGKILL');
    await this.#exited;
  }
}

export class Rig {
  readonly #host: Host;
  readonly #folder: string;
  readonly #kind: RigKind;
  readonly #sides: Side[] = [];

  private constructor(host: Host, kind: RigKind, folder: string) {
    this.#host = host;
    this.#kind = kind;
    this.#folder = folder;
  }

  /** Both daemons over `primary.raw` and `secondary.raw` of the folder, equal and `length` long; replication runs. */
  static async start(host: Host, kind: RigKind, folder: string, length: number): Promise<Rig> {
    const rig = new Rig(host, kind, folder);
    try {
      await rig.#start(length);
      return rig;
    } catch (error) {
      await rig.stop();
      throw error;
    }
  }

  async #start(length: number): Promise<void> {
    for (const name of ['hidden', 'active']) this.#kind.makeOverlay(this.#path(name), length);
    for (const name of ['primary', 'secondary']) {
      this.#sides.push(await Side.start(this.#host, this.#kind, this.#path(`${name}.qmp`)));
    }
    const { primary, secondary } = this;
    const file = (name: string): Options => ({ driver: 'file', filename: this.#path(name) });
    const overlay = (name: string, backing: string): Options => ({
      ...this.#kind.overlay,
      'node-name': name,
      file: file(name),
      backing,
    });
    await secondary.execute('blockdev-add', { driver: 'raw', 'node-name': 'disk', file: file('secondary.raw') });
    await secondary.execute('blockdev-add', overlay('hidden', 'disk'));
    await secondary.execute('blockdev-add', overlay('active', 'hidden'));
    const filter = { driver: 'replication', 'node-name': 'top', mode: 'secondary', 'top-id': 'top', file: 'active' };
    await secondary.execute('blockdev-add', filter);
    await this.#serve(secondary, 'secondary.nbd', 'disk', secondaryDisk);
    await this.#export(secondary, 'top', 'view');
    await secondary.execute('xen-set-replication', { enable: true, primary: false });

    await primary.execute('blockdev-add', { driver: 'raw', 'node-name': 'local', file: file('primary.raw') });
    const server = { type: 'unix', path: this.#path('secondary.nbd') };
    const remote = { driver: 'nbd', server, export: secondaryDisk };
    await primary.execute('blockdev-add', {
      driver: 'replication',
      'node-name': 'forward',
      mode: 'primary',
      file: remote,
    });
    const fifo = { driver: 'quorum', 'read-pattern': 'fifo', 'vote-threshold': 1, children: ['local', 'forward'] };
    await primary.execute('blockdev-add', { ...fifo, 'node-name': 'disk' });
    await this.#serve(primary, 'primary.nbd', 'disk', 'disk');
    await primary.execute('xen-set-replication', { enable: true, primary: true });
  }

  get primary(): QmpClient {
    return this.#side(0).qmp;
  }

  get secondary(): QmpClient {
    return this.#side(1).qmp;
  }

  /** The NBD socket of the primary; its export is `disk`. */
  get socket(): string {
    return this.#path('primary.nbd');
  }

  user(): Promise<NbdClient> {
    return NbdClient.connect(this.#host, { address: { type: 'unix', path: this.socket }, exportName: 'disk' });
  }

  /** A client of the secondary's view. */
  view(): Promise<NbdClient> {
    const address = { type: 'unix', path: this.#path('secondary.nbd') } as const;
    return NbdClient.connect(this.#host, { address, exportName: 'view' });
  }

  async checkpoint(): Promise<void> {
    await this.secondary.execute('xen-colo-do-checkpoint');
  }

  /** Throws if a write was not forwarded: then what was measured was not replication. */
  async checkForwarded(): Promise<void> {
    const status = (await this.primary.execute('query-xen-replication-status')) as { error: boolean; desc?: string };
    if (status.error) throw new Error(`${this.#kind.name}: replication failed: ${status.desc}`);
  }

  /** The primary is dead, and what it wrote to is gone. */
  async losePrimary(): Promise<void> {
    await this.#side(0).stop();
    await this.secondary.execute('block-export-del', { id: secondaryDisk, mode: 'hard' });
  }

  async failover(): Promise<void> {
    await this.secondary.execute('xen-set-replication', { enable: false, primary: false, failover: true });
  }

  async stop(): Promise<void> {
    for (const side of this.#sides) await side.stop();
  }

  async #serve(side: QmpClient, socket: string, node: string, name: string): Promise<void> {
    await side.execute('nbd-server-start', { addr: { type: 'unix', data: { path: this.#path(socket) } } });
    await this.#export(side, node, name);
  }

  async #export(side: QmpClient, node: string, name: string): Promise<void> {
    await side.execute('block-export-add', { type: 'nbd', id: name, 'node-name': node, name, writable: true });
  }

  #side(index: number): Side {
    const side = this.#sides[index];
    if (side === undefined) throw new Error(`${this.#kind.name}: there is no such side`);
    return side;
  }

  #path(name: string): string {
    return `${this.#folder}/${name}`;
  }
}
