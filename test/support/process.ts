/**
 * Other programs, run by a test. None outlives it: `run` kills at its time limit, `spawnDaemon` after the test.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { cleanup, type Ending } from './cleanup.ts';

/** What a program that was run to its end said. `code` is null if a signal ended it. */
export interface RunResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** given to its standard input, which is then closed */
  readonly input?: string | Uint8Array;
  /** after this long it is killed and `run` rejects; default 30 000 */
  readonly timeoutMs?: number;
  /** added to the environment */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/**
 * Runs a program to its end. Rejects if it cannot be started or takes too long; an exit code is a result, not an error.
 */
export function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const timeoutMs = options.timeoutMs ?? 30_000;
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: 'pipe',
      env: { ...process.env, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    const output = gather(child);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, timeoutMs);
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', (code) => {
      clearTimeout(timer);
      if (late) {
        const said = `${output.stdout()}${output.stderr()}`;
        reject(new Error(`${command} ${args.join(' ')}: not done after ${timeoutMs} ms; it said: ${said}`));
      } else resolve({ code, stdout: output.stdout(), stderr: output.stderr() });
    });
    // A program that ends without reading its input breaks this pipe; its exit code tells the story.
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input);
  });
}

/** A program that runs beside the test. */
export interface Daemon {
  readonly pid: number;
  stdout(): string;
  stderr(): string;
  kill(signal?: NodeJS.Signals): void;
  /** Its exit code, or null if a signal ended it. */
  readonly exited: Promise<number | null>;
}

export interface DaemonOptions {
  /** `spawnDaemon` resolves when its output (stdout or stderr) has matched this; without it, as soon as it runs */
  readonly ready?: RegExp;
  /** how long to wait for `ready`; default 15 000 */
  readonly readyMs?: number;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/** Starts a program that is killed after the test. Rejects if it ends, or is not ready in time, with what it said. */
export async function spawnDaemon(
  t: Ending,
  command: string,
  args: readonly string[],
  options: DaemonOptions = {},
): Promise<Daemon> {
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  const output = gather(child);
  let running = true;
  const exited = new Promise<number | null>((resolve) => {
    child.on('exit', (code) => {
      running = false;
      resolve(code);
    });
  });
  cleanup(t, async () => {
    if (!running || child.pid === undefined) return;
    child.kill('SIGKILL');
    child.kill('SIGCONT');
    await exited;
  });
  await ready(child, output, options, `${command} ${args.join(' ')}`);
  const pid = child.pid;
  if (pid === undefined) throw new Error(`${command}: no process`);
  return { pid, stdout: output.stdout, stderr: output.stderr, kill: (signal) => void child.kill(signal), exited };
}

interface Output {
  stdout(): string;
  stderr(): string;
}

function gather(child: ChildProcess): Output {
  const texts = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      texts[name] += text;
    });
  }
  return { stdout: () => texts.stdout, stderr: () => texts.stderr };
}

function ready(child: ChildProcess, output: Output, options: DaemonOptions, what: string): Promise<void> {
  const readyMs = options.readyMs ?? 15_000;
  return new Promise((resolve, reject) => {
    const said = () => `it said: ${output.stdout()}${output.stderr()}`;
    const timer = setTimeout(() => settle(new Error(`${what}: not ready after ${readyMs} ms; ${said()}`)), readyMs);
    let settled = false;
    const settle = (error?: Error) => {
      if (settled) return;
      settled = true;
      clearTimeout(timer);
      if (error === undefined) resolve();
      else reject(error);
    };
    const look = () => {
      if (options.ready?.test(output.stdout()) || options.ready?.test(output.stderr())) settle();
    };
    child.on('error', settle);
    child.on('close', (code, signal) =>
      settle(new Error(`${what}: ended (${code ?? signal}) at its start; ${said()}`)),
    );
    if (options.ready === undefined) child.on('spawn', () => settle());
    child.stdout?.on('data', look);
    child.stderr?.on('data', look);
  });
}
