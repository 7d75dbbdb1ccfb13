/**
 * One daemon as the demo sees it: started as a process with a process group of its own (so that Ctrl-C in the terminal
 * does not reach it and the demo decides the order), or found running and taken over; asked for its status; told to
 * stop.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Host } from '../host/host.ts';
import type { QmpClient } from '../qmp/client.ts';
import { type BlockError, toBlockError } from '../util/errors.ts';
import { type DaemonStatus, readStatus } from './daemon-status.ts';
import { connect, type DaemonPlace } from './daemons.ts';
import { processLives } from './data-folder.ts';

const statusMsMax = 3000;
const logBytesMax = 16 * 2 ** 20;
/** A daemon that does not end within this has something badly wrong: it is killed, as a power cut would. */
const stopMsMax = 60_000;

export interface Ending {
  /** null: a signal ended it */
  readonly code: number | null;
  readonly signal: string | null;
}

export class DemoDaemon {
  readonly place: DaemonPlace;
  readonly logFile: string;
  /** what it said last; null: it did not answer the last time */
  status: DaemonStatus | null = null;
  /** the last status that it gave, however long ago */
  last: DaemonStatus | null = null;
  /** why it did not answer */
  error: BlockError | null = null;
  /** how many times in a row it did not answer */
  silences = 0;
  /** how our process ended; null while it runs, and for one that was started by somebody else */
  ending: Ending | null = null;
  private readonly host: Host;
  private child: ChildProcess | null = null;
  private client: QmpClient | null = null;

  constructor(host: Host, place: DaemonPlace) {
    this.host = host;
    this.place = place;
    this.logFile = join(place.dataFolder, 'blockstep.log');
  }

  get name(): string {
    return this.place.name;
  }

  /** Starts the process. What it logs goes into `logFile`. */
  start(configFile: string): void {
    mkdirSync(dirname(this.logFile), { recursive: true });
    keepSmall(this.logFile);
    const log = openSync(this.logFile, 'a');
    const program = join(
      import.meta.dirname,
      `main${import.meta.filename.slice(import.meta.filename.lastIndexOf('.'))}`,
    );
    const child = spawn(process.execPath, [program, 'run', '-c', configFile], {
      detached: true,
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    this.child = child;
    child.on('error', () => this.ended(null, null));
    child.on('exit', (code, signal) => this.ended(code, signal));
  }

  private ended(code: number | null, signal: string | null): void {
    this.ending = { code, signal };
    this.child = null;
  }

  /** Asks for the status, over one connection for as long as it holds. */
  async poll(): Promise<void> {
    try {
      this.client ??= await connect(this.host, this.place, statusMsMax);
      this.status = readStatus(await this.client.execute('pair-status', {}, statusMsMax));
      this.last = this.status;
      this.error = null;
      this.silences = 0;
      // Somebody has started it again: what its end will be is not ours to see.
      if (this.child === null) this.ending = null;
    } catch (thrown) {
      this.disconnect();
      this.status = null;
      this.error = toBlockError(thrown);
      this.silences += 1;
    }
  }

  /** It ended, or has not answered more than once: a socket breaks a moment before the end of its process is known. */
  get isGone(): boolean {
    return this.status === null && (this.ending !== null || this.silences > 1);
  }

  disconnect(): void {
    this.client?.close();
    this.client = null;
  }

  /** Stops it cleanly and waits for its end. @returns true if it was clean, or nothing was running */
  async stop(): Promise<boolean> {
    const pid = this.child?.pid ?? this.status?.pid;
    const ours = this.child !== null;
    this.disconnect();
    if (pid === undefined || !kill(pid, 'SIGTERM')) return true;
    for (let waitedMs = 0; waitedMs < stopMsMax; waitedMs += 20) {
      if (ours ? this.ending !== null : !processLives(pid)) return !ours || this.ending?.code === 0;
      await sleep(20);
    }
    kill(pid, 'SIGKILL');
    return false;
  }

  /** The last line of its log: why it ended. */
  lastWords(): string {
    try {
      return readFileSync(this.logFile, 'utf8').trimEnd().split('\n').at(-1) ?? '';
    } catch {
      return '';
    }
  }
}

function kill(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}

/** The log of a demo that runs for weeks: the last one is kept beside it. */
function keepSmall(file: string): void {
  if ((statSync(file, { throwIfNoEntry: false })?.size ?? 0) > logBytesMax) renameSync(file, `${file}.1`);
}
