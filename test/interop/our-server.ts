/** Our NBD server in a process of its own, for foreign clients. */
import { access, truncate, writeFile } from 'node:fs/promises';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Daemon, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const script = new URL('../support/serve.ts', import.meta.url).pathname;
const entry = new URL('../../src/cli/main.ts', import.meta.url).pathname;

export interface OurServer {
  readonly daemon: Daemon;
  readonly socket: string;
  /** `nbd+unix://` URI of the export `disk` */
  readonly uri: string;
  uriOf(exportName: string): string;
}

export interface ServeHow {
  readonly readOnly?: boolean;
  readonly ordered?: boolean;
}

/**
 * Serves over a unix socket until the test ends: a file through the storage daemon (file, raw, export), or the node
 * `disk0` of other `--blockdev` texts; memory through the NBD library alone, where the name `refused` is refused.
 */
export async function ourServer(
  t: TestContext,
  what: { readonly file: string } | { readonly memory: number } | { readonly blockdevs: readonly string[] },
  how: ServeHow = {},
): Promise<OurServer> {
  const socket = `${await temporaryFolder(t)}/nbd.sock`;
  const args = 'memory' in what ? libraryArgs(what.memory, socket, how) : daemonArgs(nodesOf(what, how), socket, how);
  const daemon = await spawnDaemon(t, process.execPath, args);
  // The daemon writes its pid file once everything serves; the library's one export is there with the socket.
  while (!(await isThere('memory' in what ? socket : pidfileOf(socket)))) {
    const ended = await Promise.race([daemon.exited, sleep(20, 'running')]);
    if (ended !== 'running') throw new Error(`the server ended (${ended}): ${daemon.stdout()}${daemon.stderr()}`);
  }
  const uriOf = (exportName: string) => `nbd+unix:///${exportName}?socket=${socket}`;
  return { daemon, socket, uri: uriOf('disk'), uriOf };
}

const pidfileOf = (socket: string) => `${socket}.pid`;

function libraryArgs(memory: number, socket: string, how: ServeHow): string[] {
  return [
    ...[script, '--memory', String(memory), '--unix', socket],
    ...(how.readOnly === true ? ['--read-only'] : []),
    ...(how.ordered === true ? ['--ordered'] : []),
  ];
}

function nodesOf(what: { readonly file: string } | { readonly blockdevs: readonly string[] }, how: ServeHow): string[] {
  if ('blockdevs' in what) return [...what.blockdevs];
  const only = how.readOnly === true ? ',read-only=on' : '';
  return [`driver=file,node-name=file0,filename=${what.file}${only}`, `driver=raw,node-name=disk0,file=file0${only}`];
}

function daemonArgs(blockdevs: readonly string[], socket: string, how: ServeHow): string[] {
  const exported = `type=nbd,id=disk,node-name=disk0,name=disk,writable=${how.readOnly === true ? 'off' : 'on'}`;
  return [
    ...[entry, 'storage-daemon'],
    ...blockdevs.flatMap((text) => ['--blockdev', text]),
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', `${exported},ordered=${how.ordered === true ? 'on' : 'off'}`],
    ...['--pidfile', pidfileOf(socket)],
  ];
}

async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

/** The same over TCP on loopback: gives `nbd://127.0.0.1:PORT/disk`. */
export async function ourTcpServer(t: TestContext, memory: number): Promise<string> {
  const args = [script, '--memory', String(memory)];
  const daemon = await spawnDaemon(t, process.execPath, args, { ready: /^ready/m });
  const address = /^ready (\S+)$/m.exec(daemon.stdout())?.[1];
  return `nbd://${address}/disk`;
}

/** Makes a file of zeroes that is one hole. */
export async function emptyFile(path: string, size: number): Promise<void> {
  await writeFile(path, '');
  await truncate(path, size);
}
