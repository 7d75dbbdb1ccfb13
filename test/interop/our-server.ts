/** Our NBD server in a process of its own, for foreign clients. */
import { truncate, writeFile } from 'node:fs/promises';
import type { TestContext } from 'node:test';
import { type Daemon, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const script = new URL('../support/serve.ts', import.meta.url).pathname;

export interface OurServer {
  readonly daemon: Daemon;
  readonly socket: string;
  /** `nbd+unix://` URI of the export `disk` */
  readonly uri: string;
  uriOf(exportName: string): string;
}

/** Serves a file, or memory, over a unix socket until the test ends. */
export async function ourServer(
  t: TestContext,
  what: { readonly file: string } | { readonly memory: number },
  ...more: string[]
): Promise<OurServer> {
  const socket = `${await temporaryFolder(t)}/nbd.sock`;
  const source = 'file' in what ? ['--file', what.file] : ['--memory', String(what.memory)];
  const daemon = await spawnDaemon(t, process.execPath, [script, ...source, '--unix', socket, ...more], {
    ready: /^ready/m,
  });
  const uriOf = (exportName: string) => `nbd+unix:///${exportName}?socket=${socket}`;
  return { daemon, socket, uri: uriOf('disk'), uriOf };
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
