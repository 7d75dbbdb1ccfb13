/**
 * `blockstep demo`, which is `npm start`: a pair of daemons on this machine, with a disk to try.
 *
 * The demo starts both as processes of their own, shows how they are, and stops them when it is told to: the primary
 * first, so that the secondary has everything. It never starts a daemon that died while it ran: what the pair does then
 * is what there is to see, and the person decides.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Host } from '../host/host.ts';
import { createHost } from '../host/index.ts';
import { BlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import { isServing } from './daemon-status.ts';
import { findDaemons, shortPath } from './daemons.ts';
import { DataFolder } from './data-folder.ts';
import { demoConfigFiles } from './demo-config.ts';
import { DemoDaemon } from './demo-daemon.ts';
import { describeEnding, describeOffer, describePair, describeUses } from './demo-words.ts';
import { exitCodes } from './exit-codes.ts';
import { StatusLine } from './status-line.ts';

const pollMs = 500;
/** until both daemons answer */
const startMsMax = 60_000;

/** @returns the exit code, when both daemons have stopped */
export async function demo(folder: string): Promise<number> {
  const stopping = deferred<'stop'>();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => stopping.resolve('stop'));
  // A reader that goes away (`npm start | head`) is no reason to leave the daemons behind.
  process.stdout.on('error', () => stopping.resolve('stop'));
  const host = createHost();
  const held = await DataFolder.take(host, folder, { name: 'a demo', volume: 'demo' });
  try {
    return await new Demo(host, folder, stopping.promise).run();
  } finally {
    await held.release();
  }
}

class Demo {
  private readonly host: Host;
  private readonly folder: string;
  private readonly stopping: Promise<'stop'>;
  private readonly line: StatusLine;
  private daemons: DemoDaemon[] = [];
  /** what was said last about each daemon, so that it is said once */
  private readonly said = new Map<string, string>();

  constructor(host: Host, folder: string, stopping: Promise<'stop'>) {
    this.host = host;
    this.folder = folder;
    this.stopping = stopping;
    this.line = new StatusLine(process.stdout, () => host.clock.now());
  }

  async run(): Promise<number> {
    const files = await demoConfigFiles(this.folder);
    const places = await Promise.all(files.map((config) => findDaemons({ config })));
    this.daemons = places.flat().map((place) => new DemoDaemon(this.host, place));
    let failed: BlockError | null = null;
    try {
      if ((await this.start()) !== 'stop') await this.watch();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      failed = error;
    }
    this.line.clear();
    const clean = await this.stop();
    if (failed instanceof DaemonFailed) {
      process.stderr.write(`blockstep: ${failed.message}\n`);
      return failed.exitCode;
    }
    if (failed !== null) throw failed;
    return clean ? exitCodes.ok.code : exitCodes.failure.code;
  }

  /** Starts what does not run already, and waits until both answer. */
  private async start(): Promise<'stop' | undefined> {
    for (const daemon of this.daemons) {
      await daemon.poll();
      if (daemon.status !== null) this.line.say(`${daemon.name} is running already (process ${daemon.status.pid})`);
      else {
        this.line.say(`starting ${daemon.name}`);
        daemon.start(daemon.place.configFile ?? '');
      }
    }
    for (let waitedMs = 0; waitedMs < startMsMax; waitedMs += 100) {
      if ((await Promise.race([sleep(100), this.stopping])) === 'stop') return 'stop';
      await Promise.all(this.daemons.map((daemon) => daemon.poll()));
      for (const daemon of this.daemons) {
        if (daemon.ending !== null) throw new DaemonFailed(daemon);
      }
      if (this.daemons.every((daemon) => daemon.status !== null)) return undefined;
    }
    const silent = this.daemons.find((daemon) => daemon.status === null);
    throw silent?.error ?? new BlockError('timed-out', 'the daemons do not answer');
  }

  private async watch(): Promise<void> {
    for (;;) {
      for (const daemon of this.daemons) this.tell(daemon);
      this.line.show(describePair(this.daemons), describePair(this.daemons, { checkpoint: false }));
      if ((await Promise.race([sleep(pollMs), this.stopping])) === 'stop') return;
      await Promise.all(this.daemons.map((daemon) => daemon.poll()));
    }
  }

  /** Says once what is new about a daemon: that it serves, that it offers a checkpoint, that it is gone. */
  private tell(daemon: DemoDaemon): void {
    const { name, status } = daemon;
    if (status === null && !daemon.isGone) return;
    const serves = status !== null && isServing(status);
    const offer = describeOffer(daemon);
    const news = status === null ? 'gone' : serves ? `serves ${status.uri}` : (offer ?? 'there');
    const before = this.said.get(name);
    this.said.set(name, news);
    if (news === before) return;
    if (status === null) {
      this.line.say(describeEnding(daemon, this.daemons, shortPath(daemon.place.configFile ?? '')));
      return;
    }
    if (before === 'gone') this.line.say(`${name} is back (process ${status.pid})`);
    if (before?.startsWith('serves') === true && !serves) this.line.say(`${name} does not serve any more`);
    if (serves) this.line.say(describeUses(status));
    else if (offer !== null) this.line.say(offer);
  }

  /** The primary first (pair.md 18): then the secondary has all that was written. */
  private async stop(): Promise<boolean> {
    // One that somebody has started again since the last look is stopped as well.
    await Promise.all(this.daemons.map((daemon) => daemon.poll()));
    const rank = (daemon: DemoDaemon): number => (daemon.status?.role === 'primary' ? 0 : 1);
    const order = [...this.daemons].sort((one, other) => rank(one) - rank(other));
    let clean = true;
    for (const daemon of order) {
      const answered = daemon.last !== null;
      const running = daemon.status !== null || daemon.ending === null;
      const stopped = await daemon.stop();
      // One that never answered has failed to start, and that is said already.
      if (!answered || !running) continue;
      clean &&= stopped;
      const log = shortPath(daemon.logFile);
      this.line.say(stopped ? `${daemon.name} stopped` : `${daemon.name} did not stop cleanly; its log is ${log}`);
    }
    return clean;
  }
}

/** A daemon that ended before it was ready: the demo ends with the same exit code and its last words. */
class DaemonFailed extends BlockError {
  readonly exitCode: number;

  constructor(daemon: DemoDaemon) {
    super('shutting-down', `${daemon.name} could not start: ${daemon.lastWords()}`);
    this.exitCode = daemon.ending?.code ?? exitCodes.failure.code;
  }
}
