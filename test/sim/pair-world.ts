/**
 * Two daemons of a pair and their user on simulated machines, with the checker looking on.
 */
import assert from 'node:assert/strict';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import type { Host } from '../../src/host/host.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { type PairConfig, pairDefaults } from '../../src/pair/config.ts';
import { PairDaemon } from '../../src/pair/daemon.ts';
import type { GroupRecord } from '../../src/pair/generation.ts';
import type { PairStatus } from '../../src/qmp/schema/pair.ts';
import { loadXxhash } from '../../src/util/xxhash.ts';
import { blockBytes, Checker, Layout, type Placing, versionsIn } from './checker.ts';
import { CheckpointModel } from './checkpoint-model.ts';
import type { SimInode } from './disk.ts';
import { User } from './pair-user.ts';
import { World, type WorldOptions } from './world.ts';

export type { User };

export type SideName = 'alpha' | 'beta';
export const sideNames: readonly SideName[] = ['alpha', 'beta'];
export const otherSide = (side: SideName): SideName => (side === 'alpha' ? 'beta' : 'alpha');

export interface Side {
  readonly host: Host;
  readonly engine: Engine;
  readonly daemon: PairDaemon;
}

export interface PairWorldOptions extends WorldOptions {
  readonly disks?: readonly string[];
  /** blocks of a disk that its user writes; default 64 */
  readonly blocks?: number;
  /** how the blocks of each disk lie; default: at the borders of pages, all disks of one length */
  readonly placing?: readonly Placing[];
  readonly config?: Partial<PairConfig>;
  /** no file is damaged and no call fails: a checkpoint that is durable cannot be lost */
  readonly sound?: boolean;
  /** prints every line that the daemons log */
  readonly verbose?: boolean;
}

const user = 'user';

// Checksums come from a WebAssembly module, which is compiled in real time: simulated time would run away meanwhile,
// and a seed would not give the same run twice. It is compiled before any world runs.
await loadXxhash();

export const nbdPort = 10809;

export class PairWorld {
  readonly world: World;
  readonly disks: readonly string[];
  readonly blocks: number;
  readonly checker: Checker;
  readonly checkpoints: CheckpointModel;
  readonly sides = new Map<SideName, Side>();
  readonly log: string[] = [];
  readonly #config: Partial<PairConfig>;
  readonly #verbose: boolean;
  readonly #layouts: ReadonlyMap<string, Layout>;
  /** by side: how many of its calls had failed when its last start began */
  readonly #failuresBefore = new Map<SideName, number>();
  readonly sound: boolean;

  constructor(seed: number, options: PairWorldOptions = {}) {
    this.world = new World(seed, options.atOnce === undefined ? {} : { atOnce: options.atOnce });
    this.disks = options.disks ?? ['disk0'];
    this.blocks = options.blocks ?? 64;
    this.#layouts = new Map(this.disks.map((disk, index) => [disk, new Layout(this.blocks, options.placing?.[index])]));
    this.checker = new Checker(this.disks, this.blocks);
    this.#config = options.config ?? {};
    this.sound = options.sound ?? false;
    this.#verbose = options.verbose ?? process.env.PAIR_VERBOSE !== undefined;
    this.world.host(user);
    this.checkpoints = new CheckpointModel(this);
  }

  layout(disk: string): Layout {
    return this.#layouts.get(disk) ?? assert.fail(`there is no disk ${disk}`);
  }

  config(side: SideName): PairConfig {
    const inet = (host: string, port: number) => ({ type: 'inet', host, port }) as const;
    return {
      ...pairDefaults,
      store: 'mirror',
      overlays: { folder: '/data', sync: true },
      name: side,
      volume: 'vol',
      role: side === 'alpha' ? 'primary' : 'secondary',
      dataFolder: '/data',
      disks: this.disks.map((name) => ({ name, file: `/data/${name}.img`, size: this.layout(name).length })),
      listen: { supervisor: inet(side, 7000), replication: inet(side, 7001), nbd: [inet(side, nbdPort)] },
      peer: { name: otherSide(side), supervisor: inet(otherSide(side), 7000) },
      insecure: true,
      ...this.#config,
    };
  }

  say(side: string, message: string): void {
    const line = `${this.world.now.toFixed(1)} ${side}: ${message}`;
    this.log.push(line);
    if (this.#verbose) console.log(line);
  }

  /** Starts a daemon, on a machine that is new or whose last process is gone. */
  async start(side: SideName, config: Partial<PairConfig> = {}): Promise<Side> {
    const starting = this.begin(side, config);
    return this.world.complete(starting);
  }

  /** The same without letting time pass: the start goes on as the test does. */
  async begin(side: SideName, config: Partial<PairConfig> = {}): Promise<Side> {
    const fresh = this.world.machine(side) === undefined || this.world.isAlive(side);
    const host = fresh ? this.world.host(side) : this.world.restart(side);
    const engine = new Engine(host, drivers, { name: side });
    const last = this.sides.get(side)?.daemon.state ?? null;
    let started: PairDaemon | null = null;
    const look = (): void => {
      if (started === null || this.sides.get(side)?.daemon !== started) return;
      const { record } = started.state;
      const id = record.generation?.id ?? null;
      if (record.role !== 'primary' || id === null) return;
      this.#lookAtPrimary(side, id, record);
    };
    this.checkpoints.starting(side);
    this.#failuresBefore.set(side, this.world.failuresOf(side));
    const target = this.checkpoints.wrap(side, engine, () => started?.state ?? null);
    const daemon = await PairDaemon.start(host, target, { ...this.config(side), ...config }, ({ message }) => {
      this.say(side, message);
      if (!message.startsWith('the last checkpoint is lost') || this.checkpoints.mayLose(side)) return;
      if (this.sound) this.failure ??= new Error(`seed ${this.world.seed}: ${side}: ${message}`);
    });
    started = daemon;
    const one = { host, engine, daemon };
    this.sides.set(side, one);
    this.check(() => this.checkpoints.started(side, last, daemon.state));
    void this.checkpoints.checkStarted(side, engine);
    look();
    daemon.subscribe((event) => {
      if (event.event === 'PAIR_STATE') look();
      const { held } = daemon.state;
      if (event.event === 'PAIR_CHECKPOINT' && held !== null) {
        this.check(() => assert.equal(event.data.number, held.number, `${side}: the checkpoint is held`));
      }
    });
    return one;
  }

  /** A broken promise that was found while time passed: a test fails with it. */
  failure: unknown = null;

  /** What fails in here is a broken promise. */
  check(look: () => void): void {
    try {
      look();
    } catch (error) {
      this.failure ??= error;
    }
  }

  /** At its promotion its disks must hold what it is answerable for; after a proven switchover both are equal. */
  #lookAtPrimary(side: SideName, id: string, record: GroupRecord): void {
    const other = this.sides.get(otherSide(side))?.daemon.state.record;
    const switchover = other?.handingOver?.id === id;
    this.check(() => {
      const promoted = this.checker.primaryAt(side, id, record.ancestors[0] ?? null, () =>
        record.promoting === null ? null : this.checkpoints.promoted(side, record, switchover),
      );
      // On the way to a checkpoint the disks are between two states: users are shown the one.
      if (!promoted || record.promoting === 'checkpoint') return;
      const where = `seed ${this.world.seed}, promotion`;
      for (const disk of this.disks) {
        this.checker.look(side, disk, this.image(side, disk), this.layout(disk), where);
      }
      if (switchover && other.cleanStop !== null) this.assertEqual();
    });
  }

  side(side: SideName): Side {
    const one = this.sides.get(side);
    assert.ok(one !== undefined && this.world.isAlive(side), `${side} is not running`);
    return one;
  }

  /** No call fails any more, and there is space. */
  mendDisks(): void {
    this.world.mend();
    for (const side of sideNames) {
      const disk = this.world.machine(side)?.disk;
      if (disk !== undefined) disk.freeBytes = 2 ** 40;
    }
  }

  /** Has a call of the side's last process failed? What its daemon then says to its users breaks no promise. */
  hasFailed(side: SideName): boolean {
    return this.world.failuresOf(side) > (this.#failuresBefore.get(side) ?? 0);
  }

  kill(side: SideName): void {
    this.say(side, 'KILLED');
    this.world.kill(side);
  }

  powerCut(side: SideName, how: { readonly loseUnsynced?: boolean } = {}): void {
    this.say(side, 'POWER CUT');
    this.checkpoints.powerCut(side);
    this.world.powerCut(side, how);
  }

  /** A clean stop, as Ctrl-C does it: the daemon, the engine, then the process. */
  async stop(side: SideName): Promise<void> {
    const { daemon, engine } = this.side(side);
    await this.world.complete(daemon.stop());
    await this.world.complete(engine.close());
    this.world.kill(side);
    this.say(side, 'stopped');
  }

  status(side: SideName): Promise<PairStatus> {
    return this.world.complete(this.side(side).daemon.execute('pair-status') as Promise<PairStatus>);
  }

  command(side: SideName, command: string, args: Record<string, unknown> = {}): Promise<{ text: string }> {
    return this.world.complete(this.side(side).daemon.execute(command, args) as Promise<{ text: string }>);
  }

  phase(side: SideName): string {
    return this.world.isAlive(side) ? (this.sides.get(side)?.daemon.state.phase ?? 'starting') : 'dead';
  }

  /** Lets time pass until both sides are in step. */
  inStep(limitMs = 120_000): Promise<void> {
    return this.until(() => {
      const phases = sideNames.map((side) => this.phase(side));
      return phases.includes('in-step') && phases.includes('following');
    }, limitMs);
  }

  async until(condition: () => boolean, limitMs = 120_000): Promise<void> {
    try {
      await this.world.run(() => condition() || this.failure !== null, limitMs);
      if (this.failure !== null) throw this.failure;
    } catch (error) {
      const tail = this.log.slice(-40).join('\n');
      const phases = sideNames.map((side) => `${side} is ${this.phase(side)}`).join(', ');
      throw new Error(`${String(error)}\n${phases}\n${tail}`);
    }
  }

  /** On the user's machine, which never dies. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.world.host(user).clock.after(ms, resolve);
    });
  }

  /** A user of one disk of one side. */
  async connect(side: SideName, disk = this.disks[0] ?? ''): Promise<User> {
    return this.world.complete(this.openUser(side, disk));
  }

  async openUser(side: SideName, disk: string): Promise<User> {
    const client = await NbdClient.connect(this.world.host(user), {
      address: { type: 'inet', host: side, port: nbdPort },
      exportName: disk,
      timeoutMs: 3000,
    });
    return new User(this, side, disk, client);
  }

  /** What the operating system of a side would read from an image now. */
  image(side: SideName, disk: string): Uint8Array {
    const bytes = new Uint8Array(this.#imageOf(side, disk).size);
    this.readImage(side, disk, 0, bytes);
    return bytes;
  }

  readImage(side: SideName, disk: string, offset: number, into: Uint8Array): void {
    this.#imageOf(side, disk).read(offset, into);
  }

  #imageOf(side: SideName, disk: string): SimInode {
    const inode = this.world.machine(side)?.disk.names.get(`/data/${disk}.img`);
    assert.ok(inode !== undefined, `${side} has no image of ${disk}`);
    return inode;
  }

  /** Both images hold the same bytes. */
  assertEqual(): void {
    for (const disk of this.disks) {
      const [a, b] = [this.image('alpha', disk), this.image('beta', disk)];
      assert.equal(a.length, b.length);
      for (let at = 0; at < a.length; at += blockBytes) {
        const [mine, theirs] = [a.subarray(at, at + blockBytes), b.subarray(at, at + blockBytes)];
        if (Buffer.compare(mine, theirs) === 0) continue;
        const found = `${versionsIn(mine).join('+')} on alpha, ${versionsIn(theirs).join('+')} on beta`;
        assert.fail(`seed ${this.world.seed}: ${disk} at ${at}: ${found}`);
      }
    }
  }
}
