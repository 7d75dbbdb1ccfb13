/**
 * Two daemons of a pair as real processes, the links between them in the test's hand, and what goes on written down.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { controlSocket } from '../../src/cli/data-folder.ts';
import type { Host } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import type { PairStatus } from '../../src/qmp/schema/pair.ts';
import { cleanup, type Ending } from '../support/cleanup.ts';
import { type Daemon, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { CutLink } from './cut-link.ts';
import { otherSide, type SideName, sideNames } from './history.ts';

const program = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');
/** Much else may be going on on the machine. */
const limitMs = 60_000;
const compileCache = process.env.NODE_COMPILE_CACHE ?? join(import.meta.dirname, '../../node_modules/.cache/compile');

export interface RealPairOptions {
  readonly disks: readonly string[];
  readonly diskBytes: number;
  readonly stallMsMax: number;
  readonly heartbeatMs: number;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  readonly store: 'mirror' | 'overlays';
  /** default: standby */
  readonly mode?: 'standby' | 'lock-step';
  /** the time between two checkpoints, or off; default: the daemon's own */
  readonly checkpoint?: string;
  /** of the link between the two, one way */
  readonly delayMs: number;
  /** prints each line when it is said */
  readonly verbose: boolean;
}

interface Running {
  readonly daemon: Daemon;
  /** a signal that ends it has been sent, or a command: its exit is no surprise */
  expected: boolean;
  exited: boolean;
  hung: boolean;
}

export class RealPair {
  readonly data: string;
  readonly host: Host = createHost();
  readonly options: RealPairOptions;
  /** what the test did and saw, and what the daemons logged */
  readonly log: string[] = [];
  /** how often a process of the side was ended on purpose */
  readonly endings: Record<SideName, number> = { a: 0, b: 0 };
  /** ms that the side has been stopped, until the last SIGCONT */
  readonly hungMs: Record<SideName, number> = { a: 0, b: 0 };
  failure: unknown = null;
  readonly #ending: Ending;
  readonly #running = new Map<SideName, Running>();
  readonly #links: CutLink[] = [];

  static async make(t: Ending, options: RealPairOptions): Promise<RealPair> {
    const pair = new RealPair(t, await temporaryFolder(t), options);
    await pair.#configure();
    return pair;
  }

  private constructor(t: Ending, data: string, options: RealPairOptions) {
    this.#ending = t;
    this.data = data;
    this.options = options;
  }

  say(who: string, text: string): void {
    this.#note(`${new Date().toISOString().slice(11, 23)} ${who}: ${text}`);
  }

  fail(error: unknown): void {
    this.failure ??= error;
  }

  // ---------------------------------------------------------------- processes

  isAlive(side: SideName): boolean {
    return this.#running.get(side)?.exited === false;
  }

  isHung(side: SideName): boolean {
    return this.#running.get(side)?.hung === true;
  }

  /** Alive, and not stopped. */
  answers(side: SideName): boolean {
    return this.isAlive(side) && !this.isHung(side);
  }

  /** Starts the side's daemon if it does not run; resolves when it is ready, or was killed meanwhile. */
  async start(side: SideName): Promise<void> {
    if (this.isAlive(side)) return;
    // One that was killed a moment ago may still hold the data folder.
    await this.#running.get(side)?.daemon.exited;
    const args = [program, 'run', '-c', join(this.data, `${side}.yaml`)];
    const env = { NODE_COMPILE_CACHE: compileCache };
    const daemon = await spawnDaemon(this.#ending, process.execPath, args, { env });
    const one: Running = { daemon, expected: false, exited: false, hung: false };
    this.#running.set(side, one);
    this.say('test', `${side} runs as process ${daemon.pid}`);
    void daemon.exited.then((code) => this.#exited(side, one, code));
    await this.until(`${side} is ready`, () => one.exited || one.hung || /\bready\b/.test(daemon.stderr()));
  }

  kill(side: SideName): void {
    this.#end(side, 'SIGKILL');
  }

  /** Ctrl-C, or as the system's service manager does it. Resolves when the process has ended. */
  async stop(side: SideName, signal: 'SIGINT' | 'SIGTERM' = 'SIGINT'): Promise<void> {
    const one = this.#running.get(side);
    if (one === undefined || one.exited) return;
    this.#end(side, signal);
    await this.until(`${side} has stopped`, () => one.exited);
  }

  hang(side: SideName): void {
    const one = this.#running.get(side);
    if (one === undefined || one.exited || one.hung) return;
    this.say('test', `SIGSTOP ${side}`);
    one.hung = true;
    const since = performance.now();
    one.daemon.kill('SIGSTOP');
    this.#resumes.set(side, () => {
      one.hung = false;
      this.hungMs[side] += performance.now() - since;
      if (one.exited) return;
      this.say('test', `SIGCONT ${side}`);
      one.daemon.kill('SIGCONT');
    });
  }

  readonly #resumes = new Map<SideName, () => void>();

  resume(side: SideName): void {
    this.#resumes.get(side)?.();
    this.#resumes.delete(side);
  }

  #end(side: SideName, signal: 'SIGKILL' | 'SIGINT' | 'SIGTERM'): void {
    const one = this.#running.get(side);
    if (one === undefined || one.exited) return;
    this.say('test', `${signal} ${side}`);
    one.expected = true;
    this.endings[side]++;
    one.daemon.kill(signal);
    if (one.hung) this.resume(side);
    if (signal === 'SIGKILL') one.exited = true;
  }

  #exited(side: SideName, one: Running, code: number | null): void {
    one.exited = true;
    for (const line of one.daemon.stderr().split('\n')) if (line !== '') this.#note(line);
    this.say('test', `${side} has ended (${code ?? 'by a signal'})`);
    if (!one.expected) this.fail(new Error(`${side} ended by itself (${code}): ${one.daemon.stderr().slice(-2000)}`));
    else if (code !== null && code !== 0) this.fail(new Error(`${side} ended with ${code}: ${one.daemon.stderr()}`));
  }

  // ---------------------------------------------------------------- links

  /** `held`: silent; `cut`: broken. */
  cut(how: 'held' | 'cut'): void {
    this.say('test', `link ${how}`);
    for (const link of this.#links) how === 'held' ? link.hold() : link.cut();
  }

  resetLinks(): void {
    this.say('test', 'link reset');
    for (const link of this.#links) link.reset();
  }

  /** @param lost what was held back is lost, and so its connections */
  mendLink(lost: boolean): void {
    this.say('test', `link mended${lost ? ', connections lost' : ''}`);
    for (const link of this.#links) {
      if (lost) link.reset();
      link.mend();
    }
  }

  // ---------------------------------------------------------------- asking

  /** What the side says of itself; null if it does not answer. */
  async status(side: SideName): Promise<PairStatus | null> {
    if (!this.answers(side)) return null;
    const before = this.endings[side];
    try {
      return (await this.ask(side, 'pair-status', {}, 10_000)) as PairStatus;
    } catch (error) {
      // One that starts has no control socket yet, one that ends has none any more; the limits of `until` stand.
      if (this.endings[side] === before) this.say(side, `no status: ${error instanceof Error ? error.message : error}`);
      return null;
    }
  }

  /** Gives a command as a person would; a refusal is only noted, no answer at all is a failure. */
  async command(side: SideName, command: string, args: Record<string, unknown> = {}): Promise<boolean> {
    if (!this.answers(side)) return false;
    const before = this.endings[side];
    this.say('test', `${command} ${side}`);
    try {
      const { text } = (await this.ask(side, command, args, limitMs)) as { text: string };
      this.say(side, `${command}: ${text}`);
      return true;
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.say(side, `${command}: refused: ${why}`);
      const silent = error instanceof Error && 'code' in error && error.code === 'timed-out';
      if (silent && this.endings[side] === before) this.fail(new Error(`${side} does not answer ${command}`));
      return false;
    }
  }

  /** @throws BlockError what the daemon answers, or that it does not */
  async ask(side: SideName, command: string, args: Record<string, unknown> = {}, ms = limitMs): Promise<unknown> {
    const client = await QmpClient.connect(this.host, controlSocket(join(this.data, side)), { connectMs: ms });
    try {
      return await client.execute(command, args, ms);
    } finally {
      client.close();
    }
  }

  /** One side serves, in step, and the other follows. @returns the one that serves */
  async inStep(): Promise<SideName | null> {
    const [a, b] = await Promise.all([this.status('a'), this.status('b')]);
    if (a?.phase === 'in-step' && b?.phase === 'following') return 'a';
    return b?.phase === 'in-step' && a?.phase === 'following' ? 'b' : null;
  }

  /** Waits for what comes by itself. */
  async until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
    const end = performance.now() + limitMs;
    while (!(await holds())) {
      if (this.failure !== null) throw this.failure;
      if (performance.now() > end) assert.fail(`not within ${limitMs} ms: ${what}`);
      await sleep(20);
    }
  }

  async pass(ms: number): Promise<void> {
    await sleep(ms);
    if (this.failure !== null) throw this.failure;
  }

  // ---------------------------------------------------------------- the rest

  userSocket(side: SideName): string {
    return join(this.data, side, 'nbd.sock');
  }

  imageBytes(side: SideName, disk: string): Buffer {
    return readFileSync(join(this.data, side, `${disk}.img`));
  }

  /** Everything that is known, for the report of a failure. */
  story(): string {
    for (const side of sideNames) {
      const one = this.#running.get(side);
      if (one !== undefined && !one.exited) this.#noteAll(one.daemon.stderr());
    }
    const lines = this.log.toSorted((one, another) => (one.slice(0, 12) < another.slice(0, 12) ? -1 : 1));
    return lines.slice(-150).join('\n');
  }

  #noteAll(text: string): void {
    for (const line of text.split('\n')) if (line !== '') this.#note(line);
  }

  #note(line: string): void {
    this.log.push(line);
    if (this.options.verbose) console.log(line);
  }

  async #configure(): Promise<void> {
    const ports = new Map<string, number>();
    for (const side of sideNames) {
      await mkdir(join(this.data, side));
      for (const door of ['supervisor', 'replication']) {
        const link = await CutLink.open(join(this.data, side, `${door}.sock`), this.options.delayMs);
        cleanup(this.#ending, () => link.close());
        this.#links.push(link);
        ports.set(`${side} ${door}`, link.port);
      }
    }
    for (const side of sideNames) await writeFile(join(this.data, `${side}.yaml`), this.#config(side, ports));
  }

  #config(side: SideName, ports: ReadonlyMap<string, number>): string {
    const { disks, diskBytes, stallMsMax, heartbeatMs, peerTimeoutMs, windowBytes, store, mode, checkpoint } =
      this.options;
    const peer = otherSide(side);
    return `name: ${side}
volume: lives
role: ${side === 'a' ? 'primary' : 'secondary'}
data: ./${side}
disks: [${disks.map((name) => `{name: ${name}, size: ${diskBytes}}`).join(', ')}]
listen:
  nbd: unix:./${side}/nbd.sock
  supervisor: unix:./${side}/supervisor.sock
  replication: unix:./${side}/replication.sock
peer:
  name: ${peer}
  supervisor: 127.0.0.1:${ports.get(`${peer} supervisor`)}
advertise:
  replication: 127.0.0.1:${ports.get(`${side} replication`)}
store: ${store}
stall-ms-max: ${stallMsMax}
heartbeat-ms: ${heartbeatMs}
peer-timeout-ms: ${peerTimeoutMs}
window: ${windowBytes}
${mode === undefined ? '' : `mode: ${mode}\n`}${checkpoint === undefined ? '' : `checkpoint: ${checkpoint}\n`}`;
  }
}
