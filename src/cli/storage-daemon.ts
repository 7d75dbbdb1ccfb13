/**
 * `blockstep storage-daemon`: the engine by hand, with the options of qemu-storage-daemon. It serves until `quit` or a
 * signal, then stops cleanly: exports closed, everything flushed, sockets and pid file removed.
 */
import { spawn } from 'node:child_process';
import { DriverRegistry } from '../block/registry.ts';
import { drivers } from '../drivers/index.ts';
import { Engine } from '../engine/engine.ts';
import { createHost, type Host, type HostFile } from '../host/index.ts';
import { QmpServer } from '../qmp/server.ts';
import { programVersion } from '../qmp/version.ts';
import { BlockError } from '../util/errors.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import {
  inOption,
  parseStorageOptions,
  type StorageOptions,
  type StorageStep,
  storageHelp,
} from './storage-options.ts';
import { reserveThreads } from './threads.ts';

/** Runs until it is stopped; gives the exit code. @throws BlockError if it cannot start, or a stop that failed */
export async function storageDaemon(argv: string[]): Promise<number> {
  reserveThreads();
  const options = parseStorageOptions(argv, new DriverRegistry(drivers));
  if (options.show !== null) {
    process.stdout.write(options.show === 'help' ? storageHelp : `blockstep storage-daemon ${programVersion}\n`);
    return exitCodes.ok.code;
  }
  if (options.daemonize) return await startInBackground();
  try {
    await serve(createHost(), options);
  } catch (error) {
    report({ failed: error instanceof Error ? error.message : String(error) });
    throw error;
  }
  return exitCodes.ok.code;
}

/** What a daemon in the background tells the one that started it, once: a line that has nobody else to see it. */
type Report = { readonly serving: true } | { readonly failed: string };

function report(what: Report): void {
  if (process.send === undefined || !process.connected) return;
  process.send(what, () => process.disconnect());
}

async function serve(host: Host, options: StorageOptions): Promise<void> {
  const engine = new Engine(host, drivers, { name: 'storage-daemon' });
  const qmp = new QmpServer(host, engine);
  const stopped = stopOnSignals(engine);
  let pidfile: Pidfile | null = null;
  let failure: unknown;
  try {
    for (const step of options.steps) await perform(step, engine, qmp);
    if (options.pidfile !== null) pidfile = await Pidfile.write(host, options.pidfile);
    report({ serving: true });
    await engine.quit;
  } catch (error) {
    failure = error;
  }
  const ends = [() => engine.close(), () => qmp.close(), async () => await pidfile?.remove()];
  for (const end of ends) {
    try {
      await end();
    } catch (error) {
      failure ??= error;
    }
  }
  stopped();
  if (failure !== undefined) throw failure;
}

async function perform(step: StorageStep, engine: Engine, qmp: QmpServer): Promise<void> {
  try {
    if (step.kind === 'command') await engine.execute(step.command, step.args);
    else await qmp.listen(step.address);
  } catch (error) {
    throw inOption(step.option, error);
  }
}

/** The first signal asks for a clean stop, the second ends the process at once. */
function stopOnSignals(engine: Engine): () => void {
  let asked = false;
  const stop = (signal: NodeJS.Signals): void => {
    if (asked) {
      process.stderr.write(`blockstep: second ${signal}: stopped without a clean end\n`);
      process.exit(exitCodes.failure.code);
    }
    asked = true;
    engine.requestQuit('host-signal');
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, stop);
  // The clock's timers keep no process alive, and a daemon may serve nothing yet.
  const alive = setInterval(() => undefined, 0x7fff_ffff);
  return () => {
    clearInterval(alive);
    for (const signal of signals) process.off(signal, stop);
  };
}

/** A file that holds the process id while the process lives: it is locked, so that a second daemon does not take it. */
class Pidfile {
  readonly #host: Host;
  readonly #file: HostFile;

  private constructor(host: Host, file: HostFile) {
    this.#host = host;
    this.#file = file;
  }

  static async write(host: Host, path: string): Promise<Pidfile> {
    const file = await host.files.open(path, { access: 'write', create: 'if-missing' });
    try {
      if (file.locks !== null && !file.locks.exclude(0)) {
        throw new BlockError('locked', `--pidfile ${path}: another process holds it`);
      }
      await file.truncate(0);
      await file.write(0, new TextEncoder().encode(`${process.pid}\n`));
    } catch (error) {
      await file.close();
      throw error;
    }
    return new Pidfile(host, file);
  }

  async remove(): Promise<void> {
    await this.#host.files.remove(this.#file.path);
    await this.#file.close();
  }
}

/** Starts the same again without a terminal, and ends when that serves, or with its error. */
async function startInBackground(): Promise<number> {
  const [program = process.execPath, ...rest] = process.argv;
  const args = [...process.execArgv, ...rest.filter((argument) => argument !== '--daemonize')];
  const child = spawn(program, args, { detached: true, stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
  let said: Report | null = null;
  child.once('message', (message) => {
    said = message as Report;
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', (error) => reject(new BlockError('io-error', `--daemonize: ${error.message}`)));
    child.once('exit', resolve);
    // After the one message the daemon lets go of the channel; one that failed ends then by itself, with its code.
    child.once('disconnect', () => {
      if (said !== null && 'serving' in said) resolve(exitCodes.ok.code);
    });
  });
  child.unref();
  if (code !== exitCodes.ok.code) process.stderr.write(`blockstep: ${failureOf(said)}\n`);
  return code ?? exitCodes.failure.code;
}

function failureOf(said: Report | null): string {
  return said !== null && 'failed' in said ? said.failed : '--daemonize: the daemon ended before it served';
}

if (import.meta.main) {
  storageDaemon(process.argv.slice(2)).then(
    (code) => process.exit(code),
    (error: unknown) => {
      process.stderr.write(`blockstep: ${error instanceof BlockError ? error.message : String(error)}\n`);
      process.exit(exitCodeOf(error));
    },
  );
}
