/** A storage daemon in a process of its own, with one NBD server, and a QMP client to it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createHost } from '../../src/host/index.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import type { QmpEvent } from '../../src/qmp/target.ts';
import { cleanup, type Ending } from './cleanup.ts';
import { type Daemon, spawnDaemon } from './process.ts';
import { temporaryFolder } from './temp.ts';

const program = join(import.meta.dirname, '..', '..', 'src', 'cli', 'storage-daemon.ts');

export interface StorageDaemon {
  readonly daemon: Daemon;
  readonly qmp: QmpClient;
  /** the unix socket of the NBD server */
  readonly socket: string;
  /** the NBD URI of an export */
  uri(name: string): string;
  /** The next event of that name that has not been asked for yet; rejects after some seconds. */
  event(name: string): Promise<Record<string, unknown>>;
}

/** Starts it with these nodes, and exports that follow the NBD server: `blockdevs` and `exports` are option texts. */
export async function storageDaemon(
  t: Ending,
  what: { readonly blockdevs: readonly string[]; readonly exports: readonly string[] },
): Promise<StorageDaemon> {
  const folder = await temporaryFolder(t);
  const [socket, qmpSocket, pidfile] = ['nbd', 'qmp', 'pid'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const daemon = await spawnDaemon(t, process.execPath, [
    program,
    ...what.blockdevs.flatMap((each) => ['--blockdev', each]),
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...what.exports.flatMap((each) => ['--export', each]),
    ...['--chardev', `socket,path=${qmpSocket},server=on,wait=off,id=c`, '--monitor', 'chardev=c'],
    ...['--pidfile', pidfile],
  ]);
  let over = false;
  void daemon.exited.then(() => {
    over = true;
  });
  while (!isWritten(pidfile)) {
    if (over) throw new Error(`the daemon ended: ${daemon.stderr()}`);
    await sleep(20);
  }
  const qmp = await QmpClient.connect(createHost(), { type: 'unix', path: qmpSocket });
  cleanup(t, () => qmp.close());
  const events: QmpEvent[] = [];
  qmp.subscribe((event) => events.push(event));
  return {
    daemon,
    qmp,
    socket,
    uri: (name) => `nbd+unix:///${name}?socket=${socket}`,
    async event(name) {
      for (let waitedMs = 0; waitedMs < 10_000; waitedMs += 20) {
        const index = events.findIndex(({ event }) => event === name);
        if (index >= 0) return events.splice(index, 1)[0]?.data ?? {};
        await sleep(20);
      }
      throw new Error(`no event ${name}; there were ${events.map(({ event }) => event).join(', ')}`);
    },
  };
}

function isWritten(pidfile: string): boolean {
  try {
    return readFileSync(pidfile, 'utf8').endsWith('\n');
  } catch {
    return false;
  }
}
