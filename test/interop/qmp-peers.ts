/**
 * Processes that a test drives over QMP, ours and QEMU's, with the same commands: our storage daemon, QEMU's storage
 * daemon, and a QEMU without a machine (it has the commands of replication, which QEMU's storage daemon has not).
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createHost } from '../../src/host/index.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import type { QmpEvent } from '../../src/qmp/target.ts';
import type { BlockError } from '../../src/util/errors.ts';
import { until } from '../qmp/fake-target.ts';
import { cleanup, type Ending } from '../support/cleanup.ts';
import { type Daemon, spawnDaemon } from '../support/process.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-system-x86_64', 'qemu-storage-daemon');

export type Vendor = 'blockstep' | 'qemu' | 'qemu-storage-daemon';

const entry = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');
const withoutMachine = '-M none -S -display none -nodefaults -qmp'.split(' ');

export interface Peer {
  readonly vendor: Vendor;
  readonly daemon: Daemon;
  readonly qmp: QmpClient;
  /** path of the QMP socket */
  readonly qmpSocket: string;
  readonly events: QmpEvent[];
  /** where `startServer` listens */
  readonly nbdSocket: string;
  run(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>;
  /** Starts the NBD server. */
  startServer(): Promise<void>;
  uri(exportName: string): string;
}

/** Starts one in `folder`, which names are relative to; `name` tells its sockets from those of others there. */
export async function peer(t: Ending, vendor: Vendor, folder: string, name: string): Promise<Peer> {
  const qmpSocket = join(folder, `${name}.qmp`);
  const nbdSocket = join(folder, `${name}.nbd`);
  const monitor = ['--chardev', `socket,id=c,path=${qmpSocket},server=on,wait=off`, '--monitor', 'chardev=c'];
  const [program, args] =
    vendor === 'qemu'
      ? ['qemu-system-x86_64', [...withoutMachine, `unix:${qmpSocket},server=on,wait=off`]]
      : vendor === 'blockstep'
        ? [process.execPath, [entry, 'storage-daemon', ...monitor]]
        : [vendor, monitor];
  const daemon = await spawnDaemon(t, program, args, { cwd: folder });
  await until(() => existsSync(qmpSocket));
  const qmp = await connect(qmpSocket);
  cleanup(t, () => qmp.close());
  const events: QmpEvent[] = [];
  qmp.subscribe((event) => events.push(event));
  return {
    vendor,
    daemon,
    qmp,
    qmpSocket,
    events,
    nbdSocket,
    run: (command, given) => qmp.execute(command, given),
    startServer: async () => {
      await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: nbdSocket } } });
    },
    uri: (exportName) => `nbd+unix:///${exportName}?socket=${nbdSocket}`,
  };
}

/** The socket is there a moment before somebody listens on it. */
async function connect(path: string): Promise<QmpClient> {
  for (;;) {
    try {
      return await QmpClient.connect(createHost(), { type: 'unix', path }, { commandMs: 20_000 });
    } catch (error) {
      if ((error as BlockError).code !== 'connection-failed') throw error;
      await sleep(10);
    }
  }
}
