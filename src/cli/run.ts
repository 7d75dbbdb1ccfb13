/**
 * `blockstep run -c FILE`: one daemon. The supervisor and the control socket live in this thread, the engine in its
 * own.
 *
 * SIGINT, SIGTERM and the commands `pair-stop` and `quit` stop it cleanly, once: a second signal changes nothing, for
 * Ctrl-C often arrives twice (from the terminal, and handed on by the program that started this one).
 */
import type { Host } from '../host/host.ts';
import { createHost } from '../host/index.ts';
import type { PairConfig } from '../pair/config.ts';
import { PairDaemon } from '../pair/daemon.ts';
import { QmpServer } from '../qmp/server.ts';
import type { QmpEvent, QmpTarget } from '../qmp/target.ts';
import { type BlockError, toBlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import { type ConfigOptions, readConfig } from './config.ts';
import { controlSocket, DataFolder } from './data-folder.ts';
import { EngineProxy } from './engine-proxy.ts';
import { exitCodes } from './exit-codes.ts';
import { createLog, type Log, type LogFormat, type LogLevel } from './log.ts';
import { reserveThreads } from './threads.ts';

export interface RunOptions extends ConfigOptions {
  readonly log: LogFormat;
  readonly logLevel: LogLevel;
}

/** @returns the exit code, when the daemon has stopped */
export async function run(file: string, options: RunOptions): Promise<number> {
  reserveThreads();
  const config = await readConfig(file, options);
  const log = createLog(config.name, options.log, options.logLevel);
  const host = createHost();
  const folder = await DataFolder.take(host, config.dataFolder, config);
  try {
    return await serve(host, config, log);
  } finally {
    await folder.release();
  }
}

async function serve(host: Host, config: PairConfig, log: Log): Promise<number> {
  const stopping = deferred<string>();
  const signalled = (signal: string): void => stopping.resolve(`signal ${signal}`);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, signalled);
  const engine = await EngineProxy.start({ name: config.name });
  const engineEnded = engine.ended.then((error) => ({ error }));
  const daemon = await startPair(host, engine, config, log);
  const server = new QmpServer(host, new DaemonTarget(daemon, (why) => stopping.resolve(why)));
  try {
    await server.listen(controlSocket(config.dataFolder));
  } catch (error) {
    await stopAll(daemon, server, engine, log);
    throw error;
  }
  log({ level: 'info', message: 'ready', pid: process.pid });
  const first = await Promise.race([stopping.promise, engineEnded]);
  if (typeof first !== 'string') {
    // There is nothing left that could be stopped cleanly: as after a crash, the next start finds marks to repair by.
    log({ level: 'error', message: first.error?.message ?? 'the engine ended' });
    return exitCodes.failure.code;
  }
  log({ level: 'info', message: `stopping (${first})` });
  await stopAll(daemon, server, engine, log);
  log({ level: 'info', message: 'stopped cleanly' });
  return exitCodes.ok.code;
}

async function startPair(host: Host, engine: EngineProxy, config: PairConfig, log: Log): Promise<PairDaemon> {
  try {
    return await PairDaemon.start(host, engine, config, log);
  } catch (error) {
    await engine.close().catch((closing: unknown) => log({ level: 'warn', message: toBlockError(closing).message }));
    throw error;
  }
}

/**
 * In the order of the house: who decides, then the door, then what moves bytes. The first error is thrown at the end.
 */
async function stopAll(daemon: PairDaemon, server: QmpServer, engine: EngineProxy, log: Log): Promise<void> {
  let first: BlockError | null = null;
  for (const stop of [() => daemon.stop(), () => server.close(), () => engine.close()]) {
    try {
      await stop();
    } catch (thrown) {
      const error = toBlockError(thrown);
      if (first !== null) log({ level: 'error', message: error.message });
      first ??= error;
    }
  }
  if (first !== null) throw first;
}

/**
 * The pair daemon as its control socket shows it: with the process's id, and with the commands that end the process.
 */
class DaemonTarget implements QmpTarget {
  private readonly daemon: PairDaemon;
  private readonly stop: (why: string) => void;

  constructor(daemon: PairDaemon, stop: (why: string) => void) {
    this.daemon = daemon;
    this.stop = stop;
  }

  async execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (command === 'quit' || command === 'pair-stop') {
      // Answered when it is done; the process ends after the answer.
      if (command === 'pair-stop') await this.daemon.stop();
      this.stop(`command ${command}`);
      return {};
    }
    const result = await this.daemon.execute(command, args);
    return command === 'pair-status' ? { ...(result as object), pid: process.pid } : result;
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    return this.daemon.subscribe(listener);
  }
}
