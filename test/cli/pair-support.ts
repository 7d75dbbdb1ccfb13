/** A pair on this machine for a test: the program as a user runs it, and an end to every process of it. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { readConfig } from '../../src/cli/config.ts';
import { askAll, findDaemons } from '../../src/cli/daemons.ts';
import { demoConfigFiles } from '../../src/cli/demo-config.ts';
import { formatJson } from '../../src/cli/status.ts';
import { createHost } from '../../src/host/index.ts';
import type { PairConfig } from '../../src/pair/config.ts';
import { type Daemon, type RunResult, run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const program = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');

const host = createHost();

/** Three programs start, on a machine that may have much else to do. */
const readyMs = 60_000;

export const blockstep = (...args: string[]): Promise<RunResult> => run(process.execPath, [program, ...args]);

/** The same in a folder. */
export const blockstepIn = (cwd: string, ...args: string[]): Promise<RunResult> =>
  run(process.execPath, [program, ...args], { cwd });

/** What `status --json` says of one daemon; which members are there depends on whether it answered. */
export interface Entry {
  readonly name: string;
  readonly role?: string;
  readonly pid?: number;
  readonly uri?: string;
  readonly connected?: boolean;
  readonly inSync?: boolean;
  readonly error?: string | null;
  readonly [member: string]: unknown;
}

export class TestPair {
  /** holds a.yaml, b.yaml, a/ and b/ */
  readonly data: string;
  private readonly t: TestContext;

  static async make(t: TestContext): Promise<TestPair> {
    // Before the folder goes, which says who they are.
    let pair: TestPair | null = null;
    t.after(() => pair?.killAll());
    pair = new TestPair(t, join(await temporaryFolder(t), 'data'));
    return pair;
  }

  private constructor(t: TestContext, data: string) {
    this.t = t;
    this.data = data;
  }

  config(name: string): string {
    return join(this.data, `${name}.yaml`);
  }

  image(name: string): string {
    return join(this.data, name, 'disk0.img');
  }

  /** Writes the configuration files, as the demo does at its first start. */
  async configure(): Promise<void> {
    await demoConfigFiles(this.data);
  }

  parsed(name: string): Promise<PairConfig> {
    return readConfig(this.config(name));
  }

  async edit(name: string, from: string, to: string): Promise<void> {
    const text = await readFile(this.config(name), 'utf8');
    assert(text.includes(from), `${name}.yaml holds ${from}`);
    await writeFile(this.config(name), text.replace(from, to));
  }

  /** Puts the side's image on a file system of its own, which is there only for the daemon that `runOn` starts. */
  async ownDisk(name: string): Promise<void> {
    await mkdir(join(this.data, `${name}-disk`));
    await this.edit(name, `file: ./${name}/disk0.img`, `file: ./${name}-disk/disk0.img`);
  }

  /** The arguments of `unshare` that start a daemon beside a file system that only it sees: `mount` makes it. */
  onOwnDisk(name: string, mount: string): string[] {
    const script = `cd "$0" && ${mount} && exec "$1" "$2" run -c "$3"`;
    return ['-rm', 'sh', '-c', script, join(this.data, `${name}-disk`), process.execPath, program, this.config(name)];
  }

  runOnOwnDisk(name: string, mount: string): Promise<Daemon> {
    return spawnDaemon(this.t, 'unshare', this.onOwnDisk(name, mount), { ready: /ready/, readyMs });
  }

  /** Starts the demo; ready when one side serves. */
  demo(): Promise<Daemon> {
    return spawnDaemon(this.t, process.execPath, [program, 'demo', '-d', this.data], {
      ready: /serves the disk/,
      readyMs,
    });
  }

  /** Starts one daemon by its configuration file. */
  run(name: string, ready = /ready/): Promise<Daemon> {
    return spawnDaemon(this.t, process.execPath, [program, 'run', '-c', this.config(name)], { ready, readyMs });
  }

  command(name: string, ...args: string[]): Promise<RunResult> {
    return blockstep(name, '-d', this.data, ...args);
  }

  /** As `status --json` says it, but without a process for each look. */
  async status(): Promise<Entry[]> {
    return JSON.parse(formatJson(await askAll(host, await findDaemons({ data: this.data })))) as Entry[];
  }

  async entry(name: string): Promise<Entry> {
    return (await this.status()).find((one) => one.name === name) ?? assert.fail(`status says nothing of ${name}`);
  }

  /** Waits until the daemon is as wished. */
  async until(name: string, what: string, fits: (entry: Entry) => boolean): Promise<Entry> {
    const limit = Date.now() + readyMs;
    for (;;) {
      const entry = await this.entry(name);
      if (fits(entry)) return entry;
      if (Date.now() > limit) assert.fail(`${name} is not ${what}: ${JSON.stringify(entry)}\n${this.log(name)}`);
      await sleep(100);
    }
  }

  /** Waits until the demo has said it: it looks at its daemons every now and then. */
  async untilSaid(demo: Daemon, words: RegExp): Promise<void> {
    const limit = Date.now() + readyMs;
    while (!words.test(demo.stdout())) {
      if (Date.now() > limit) assert.match(demo.stdout(), words);
      await sleep(100);
    }
  }

  /** What a daemon that the demo started has logged. */
  log(name: string): string {
    try {
      return readFileSync(join(this.data, name, 'blockstep.log'), 'utf8');
    } catch {
      return '';
    }
  }

  /** The demo's daemons have process groups of their own: a test that ends early has to find them. */
  private killAll(): void {
    for (const name of ['a', 'b']) {
      try {
        const { pid } = JSON.parse(readFileSync(join(this.data, name, 'daemon.json'), 'utf8')) as { pid: number };
        const commandLine = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        if (commandLine.includes(this.data)) process.kill(pid, 'SIGKILL');
      } catch {
        // Never started, or gone already.
      }
    }
  }
}
