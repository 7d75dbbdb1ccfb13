/**
 * Random lives of a pair: users write, zero, discard, flush and read while machines die, links are cut, disks fail and
 * people give commands, all from one seed. In the end everything is mended, both sides come in step, hold the same
 * bytes, and no promise is broken.
 */
import type { PairConfig } from '../../src/pair/config.ts';
import type { Placing } from './checker.ts';
import type { FileOperation } from './files.ts';
import { PairHands } from './pair-lives-hands.ts';
import { PairUsers } from './pair-lives-users.ts';
import { otherSide, PairWorld, type SideName, sideNames } from './pair-world.ts';
import { SeededRandom } from './random.ts';

export interface LifeOptions {
  readonly verbose?: boolean;
  /** how many things happen */
  readonly troubles?: number;
  /** else the seed chooses */
  readonly kind?: LifeKind;
  /** syncs fail and space ends; else the seed chooses */
  readonly disksFail?: boolean;
}

const lifeKinds = ['mirror', 'standby', 'standby', 'lock-step'] as const;
export type LifeKind = (typeof lifeKinds)[number];

export interface LifeResult {
  readonly seed: number;
  readonly writes: number;
  readonly flushes: number;
  /** calls of disks that failed */
  readonly failedCalls: number;
  readonly troubles: readonly string[];
  /** checkpoints made, blocks of their views that were compared, promotions */
  readonly checkpoints: { readonly made: number; readonly viewed: number; readonly promotions: number };
}

export async function live(seed: number, options: LifeOptions = {}): Promise<LifeResult> {
  const life = new Life(seed, options);
  try {
    await life.run();
  } catch (error) {
    const lines = life.pair.log.slice(-60).join('\n');
    throw new Error(`seed ${seed}: ${error instanceof Error ? error.stack : String(error)}\n${lines}`);
  }
  const { troubles, pair, users } = life;
  const { writes, flushes } = users;
  return {
    seed,
    writes,
    flushes,
    failedCalls: sum(sides.map((side) => pair.world.failuresOf(side))),
    troubles,
    checkpoints: pair.checkpoints.counts,
  };
}

const sides = ['alpha', 'beta'] as const;

const troubleKinds = [
  'kill',
  'power',
  'kill at io',
  'power at io',
  'cut',
  'hang',
  'stop',
  'failover',
  'switch',
  'restart',
  'restart',
  'alone',
  'heal',
  'both',
  'lose the primary',
  'lose the primary',
  'lose the primary',
  'lose the primary',
  'cut and fail over',
  'cut and fail over',
  'lose the secondary',
  'lose the secondary',
  'lose the secondary',
  'stop and start',
  'stop and start',
  'lose somebody in a switch',
  'lose somebody in a switch',
  'group file fails',
  'group file fails',
  'slow files',
  'slow files',
] as const;

/** What can happen, besides, where disks may fail. */
const diskTroubles = ['a sync fails', 'a sync fails', 'no room for overlays'] as const;

/** What can happen, besides, where checkpoints are kept. */
const checkpointTroubles = [
  'checkpoint',
  'checkpoint',
  'back to the checkpoint',
  'back to the checkpoint',
  'back to the checkpoint',
  'lose somebody in a resync',
  'lose somebody in a resync',
  'lose somebody in a resync',
  'little space',
  'lose somebody in a checkpoint',
] as const;

class Life {
  readonly pair: PairWorld;
  readonly random: SeededRandom;
  readonly troubles: string[] = [];
  readonly troublesWanted: number;
  readonly kind: LifeKind;
  readonly users: PairUsers;
  readonly hands: PairHands;
  readonly #disksFail: boolean;

  constructor(seed: number, options: LifeOptions) {
    this.random = new SeededRandom(seed * 7919 + 13);
    const disks = ['disk0', 'disk1', 'disk2'].slice(0, this.random.pick([1, 1, 2, 3]));
    this.troublesWanted = options.troubles ?? 1 + this.random.below(6);
    this.kind = options.kind ?? this.random.pick(lifeKinds);
    const disksFail = this.random.chance(0.3);
    this.#disksFail = options.disksFail ?? disksFail;
    this.pair = new PairWorld(seed, {
      disks,
      ...(this.random.chance(0.4) ? { placing: disks.map(() => this.#placing()) } : {}),
      sound: true,
      ...(options.verbose === undefined ? {} : { verbose: options.verbose }),
      config: {
        heartbeatMs: 100,
        peerTimeoutMs: 500,
        stallMsMax: 400,
        windowBytes: this.random.pick([16384, 65536, 1 << 20]),
        ...(this.kind === 'mirror' ? {} : this.#overlays(this.kind)),
      },
    });
    this.users = new PairUsers(this.pair, this.random);
    this.hands = new PairHands(this.pair, this.random, this.users);
  }

  /** Blocks at no border of anything, and a disk that ends somewhere. */
  #placing(): Placing {
    const { random } = this;
    return { shift: random.pick([0, 512, 1236, 3001]), tail: random.pick([null, 0, 512, 1000, 5001, 300_001]) };
  }

  /** One that is poor: zeroes are written there, and a discard may do nothing. */
  #fileSystem(): { holes: boolean; zeroes: boolean } {
    const holes = this.random.chance(0.3);
    return { holes, zeroes: !holes && this.random.chance(0.5) };
  }

  #overlays(kind: 'standby' | 'lock-step'): Partial<PairConfig> {
    const { random } = this;
    return {
      store: 'overlays',
      mode: kind,
      acknowledge: kind === 'lock-step' ? 'local' : 'flush',
      checkpointMs: random.pick([null, 150, 500, 1000]),
      overlays: { folder: '/data', sync: random.chance(0.7) },
      resync: random.pick(['give-up-checkpoint', 'keep-checkpoint']),
    };
  }

  async run(): Promise<void> {
    const { pair } = this;
    for (const side of this.random.chance(0.5) ? sideNames : [...sideNames].reverse()) await pair.start(side);
    for (const side of sides) {
      const disk = pair.world.machine(side)?.disk;
      if (disk !== undefined && this.random.chance(0.2)) disk.knows = this.#fileSystem();
    }
    this.users.start();
    if (this.random.chance(0.7)) await this.hands.until(() => this.hands.inStep());
    for (let count = 0; count < this.troublesWanted; count++) {
      await this.hands.pass(this.random.pick([5, 50, 300, 2000]) * this.random.fraction());
      await this.#trouble();
    }
    await this.hands.mend();
  }

  // ---------------------------------------------------------------- troubles

  async #trouble(): Promise<void> {
    const { pair, random } = this;
    const side = random.pick(['alpha', 'beta'] as const);
    const more = this.hands.keepsCheckpoints && random.chance(0.5);
    const fails = this.#disksFail && random.chance(0.4);
    const kind = fails ? random.pick(diskTroubles) : more ? random.pick(checkpointTroubles) : random.pick(troubleKinds);
    this.troubles.push(`${kind} ${side}`);
    pair.say('test', `${kind} ${side}`);
    switch (kind) {
      case 'kill':
      case 'power':
        return this.hands.end(side, kind);
      case 'both':
        this.hands.end(side, 'power');
        return this.hands.end(otherSide(side), random.pick(['kill', 'power'] as const));
      case 'kill at io':
      case 'power at io':
        return this.hands.endAtIo(side, kind === 'kill at io' ? 'kill' : 'power');
      case 'cut':
        return pair.world.cut('alpha', 'beta');
      case 'heal':
        return pair.world.heal('alpha', 'beta');
      case 'hang':
        return this.hands.hang(side);
      case 'stop':
        return this.hands.stop(side);
      case 'restart':
        return this.hands.restart(side);
      case 'failover':
        return this.hands.failOver(side);
      case 'switch':
        return this.hands.command(side, 'pair-switch');
      case 'alone':
        return this.hands.command(side, 'pair-start', { alone: true });
      case 'lose the primary':
        return this.#losePrimary();
      case 'cut and fail over':
        return this.#cutAndFailOver();
      case 'lose the secondary':
        return this.#loseSecondary();
      case 'stop and start':
        return this.#stopAndStart();
      case 'lose somebody in a switch':
        return this.#switchAndLose(side);
      case 'group file fails':
        return this.#groupFails(side);
      case 'slow files':
        return this.#slowFiles(side);
      case 'checkpoint':
        return this.hands.checkpoint(side);
      case 'back to the checkpoint':
        return this.#backToCheckpoint();
      case 'lose somebody in a resync':
        return this.#resyncAndLose(side);
      case 'lose somebody in a checkpoint':
        return this.#checkpointAndLose(side);
      case 'little space':
        return this.#littleSpace(side);
      case 'a sync fails':
        return this.#failSync(side);
      case 'no room for overlays':
        return this.#fillUp(side);
    }
  }

  // ---- what usually follows on what

  async #losePrimary(): Promise<void> {
    const primary = this.hands.primary;
    if (this.random.chance(0.5)) await this.hands.endAtIo(primary, this.random.pick(['kill', 'power'] as const));
    else this.hands.end(primary, this.random.pick(['kill', 'power'] as const));
    await this.hands.pass(this.random.fraction() * 1500);
    const other = otherSide(primary);
    if (this.random.chance(0.3)) await this.hands.endAtIo(other, 'power');
    await this.hands.restart(other);
    await this.hands.failOver(other);
    await this.hands.pass(this.random.fraction() * 1000);
    if (this.random.chance(0.7)) await this.hands.restart(primary);
  }

  async #cutAndFailOver(): Promise<void> {
    const primary = this.hands.primary;
    this.pair.world.cut('alpha', 'beta');
    if (this.random.chance(0.4)) await this.hands.endAtIo(primary, this.random.pick(['kill', 'power'] as const));
    await this.hands.pass(this.random.fraction() * 1500);
    await this.hands.failOver(otherSide(primary));
    await this.hands.pass(this.random.fraction() * 500);
    if (this.random.chance(0.7)) this.pair.world.heal('alpha', 'beta');
  }

  /** The other side comes back and is brought into step, if it is left in peace. */
  async #loseSecondary(): Promise<void> {
    const primary = this.hands.primary;
    const other = otherSide(primary);
    this.hands.end(other, this.random.pick(['kill', 'power', 'power'] as const));
    await this.hands.pass(this.random.fraction() * 300);
    await this.hands.restart(other);
    if (this.random.chance(0.5))
      await this.hands.endAtIo(this.random.pick(sides), this.random.pick(['kill', 'power'] as const));
    await this.hands.pass(this.random.fraction() * 600);
    if (this.random.chance(0.3)) await this.hands.failOver(other);
  }

  async #stopAndStart(): Promise<void> {
    const first = this.random.chance(0.7) ? this.hands.primary : otherSide(this.hands.primary);
    await this.hands.stop(first);
    if (this.random.chance(0.7)) await this.hands.stop(otherSide(first));
    await this.hands.pass(this.random.fraction() * 300);
    await this.hands.restart(first);
    await this.hands.restart(otherSide(first));
    await this.hands.pass(this.random.fraction() * 600);
    if (this.random.chance(0.4)) this.hands.end(this.hands.primary, 'power');
  }

  async #switchAndLose(side: SideName): Promise<void> {
    for (let waited = 0; waited < 20 && !this.hands.inStep(); waited++) await this.hands.pass(100);
    const ending = this.random.chance(0.6)
      ? this.hands.endAtIo(side, this.random.pick(['kill', 'power'] as const))
      : null;
    const asked = this.random.pick(sides);
    const daemon = this.pair.world.isAlive(asked) ? this.pair.sides.get(asked)?.daemon : undefined;
    void daemon?.execute(this.random.pick(['pair-switch', 'pair-failover'])).catch(() => undefined);
    await ending;
    await this.hands.pass(this.random.fraction() * 500);
    if (this.random.chance(0.3)) await this.hands.failOver(otherSide(side));
  }

  /** What is written of it may be lost, or stand there all the same; perhaps it is killed before it can be mended. */
  async #groupFails(side: SideName): Promise<void> {
    const operations = this.random.pick<FileOperation[]>([['sync'], ['write'], ['sync', 'open'], ['sync', 'write']]);
    const count = this.random.pick([1, 1, 2, 50]);
    const faults = operations.map((operation) =>
      this.pair.world.fault(side, { operation, path: '/data/group', errno: 'EIO', count }),
    );
    if (this.hands.keepsCheckpoints && this.random.chance(0.5)) await this.hands.checkpoint(side);
    else if (this.random.chance(0.5)) await this.hands.failOver(side);
    await this.hands.pass(this.random.fraction() * this.random.pick([50, 1000]));
    if (this.random.chance(0.5)) this.hands.end(side, this.random.pick(['kill', 'power'] as const));
    for (const fault of faults) fault.remove();
    if (this.random.chance(0.7)) await this.hands.restart(side);
  }

  /** Longer than anybody waits, or shorter; meanwhile people want something. */
  async #slowFiles(side: SideName): Promise<void> {
    const operation = this.random.pick<FileOperation>(['sync', 'sync', 'write', 'read', 'open']);
    const path = this.random.pick([/group$/, /img$/, /(hidden|active)$/, /./]);
    const fault = this.pair.world.fault(side, { operation, path, delayMs: this.random.pick([100, 350, 3000]) });
    await this.hands.pass(this.random.fraction() * 300);
    const asked = this.random.pick(sides);
    const daemon = this.pair.world.isAlive(asked) ? this.pair.sides.get(asked)?.daemon : undefined;
    const command = this.random.pick(['pair-switch', 'pair-failover', 'pair-checkpoint', null]);
    if (command !== null) void daemon?.execute(command).catch(() => undefined);
    await this.hands.pass(this.random.fraction() * 2000);
    fault.remove();
    if (this.random.chance(0.3)) this.hands.end(side, this.random.pick(['kill', 'power'] as const));
  }

  // ---- checkpoints

  async #checkpointAndLose(side: SideName): Promise<void> {
    for (let waited = 0; waited < 20 && !this.hands.inStep(); waited++) await this.hands.pass(100);
    const ending = this.hands.endAtIo(side, this.random.pick(['kill', 'power'] as const));
    for (let count = 0; count < 3; count++) void this.hands.checkpoint(this.random.pick(sides)).catch(() => undefined);
    await ending;
    await this.hands.pass(this.random.fraction() * 100);
    await this.hands.restart(side);
  }

  /** The primary is lost; the other side goes back to its checkpoint, and may die on the way, more than once. */
  async #backToCheckpoint(): Promise<void> {
    if (this.random.chance(0.5)) await this.hands.checkpoint(this.random.pick(sides));
    await this.hands.pass(this.random.fraction() * 400);
    const primary = this.hands.primary;
    const other = otherSide(primary);
    if (this.random.chance(0.7)) this.hands.end(primary, this.random.pick(['kill', 'power'] as const));
    else this.pair.world.cut('alpha', 'beta');
    await this.hands.pass(this.random.fraction() * 1500);
    const endings = this.random.pick([0, 0, 1, 2]);
    const first = endings > 0 ? this.hands.endAtIo(other, this.random.pick(['kill', 'power'] as const)) : null;
    await this.hands.restart(other);
    await this.hands.command(other, 'pair-failover', { to: 'checkpoint' });
    await first;
    await this.hands.restart(other);
    if (endings > 1) {
      await this.hands.endAtIo(other, this.random.pick(['kill', 'power'] as const));
      await this.hands.restart(other);
    }
    if (this.random.chance(0.3)) await this.hands.command(other, 'pair-failover', { to: 'checkpoint' });
    await this.hands.pass(this.random.fraction() * 1000);
    if (this.random.chance(0.7)) await this.hands.restart(primary);
    if (this.random.chance(0.7)) this.pair.world.heal('alpha', 'beta');
  }

  /** The other side is away for a while, comes back, and one of the two is lost while it is brought into step. */
  async #resyncAndLose(side: SideName): Promise<void> {
    const other = otherSide(this.hands.primary);
    if (this.random.chance(0.5)) this.pair.world.cut('alpha', 'beta');
    else this.hands.end(other, this.random.pick(['kill', 'power'] as const));
    await this.hands.pass(this.random.fraction() * 1500);
    this.pair.world.heal('alpha', 'beta');
    await this.hands.restart(other);
    for (let waited = 0; waited < 400 && this.pair.phase(other) !== 'syncing'; waited++) await this.hands.pass(10);
    await this.hands.pass(this.random.fraction() * this.random.pick([10, 100]));
    if (this.random.chance(0.5)) await this.hands.endAtIo(side, this.random.pick(['kill', 'power'] as const));
    else this.hands.end(side, this.random.pick(['kill', 'power'] as const));
    await this.hands.pass(this.random.fraction() * 300);
    if (this.random.chance(0.7)) await this.hands.restart(side);
    if (this.random.chance(0.4)) await this.hands.failOver(other);
  }

  async #littleSpace(side: SideName): Promise<void> {
    const disk = this.pair.world.machine(side)?.disk;
    if (disk !== undefined) disk.freeBytes = this.random.pick([0, 100_000, 1_000_000]);
    if (this.random.chance(0.5)) await this.#resyncAndLose(side);
  }

  // ---- disks that fail

  /** A sync fails, once or until the device is mended, of a file that the pair needs or may need. */
  async #failSync(side: SideName): Promise<void> {
    const { pair, random } = this;
    const disk = random.pick(pair.disks as [string, ...string[]]);
    const files = [`${disk}.img`, `${disk}.img`, 'group', ...(this.hands.keepsCheckpoints ? overlaysOf(disk) : [])];
    const path = `/data/${random.pick(files as [string, ...string[]])}`;
    const count = random.chance(0.6) ? 1 : Number.POSITIVE_INFINITY;
    const skip = random.below(random.pick([1, 4, 20]));
    pair.say('test', `sync of ${path} will fail, ${count} times after ${skip}`);
    pair.world.fault(side, { operation: 'sync', path, errno: 'EIO', count, skip });
    await this.#meanwhile(side);
  }

  /** What the overlays of a side need is used up, for a while. */
  async #fillUp(side: SideName): Promise<void> {
    const { pair, random } = this;
    const skip = random.below(random.pick([1, 20, 100]));
    pair.say('test', `no room for overlays after ${skip} writes`);
    const disk = pair.world.machine(side)?.disk;
    if (disk !== undefined && random.chance(0.5)) disk.freeBytes = 0;
    pair.world.fault(side, { operation: 'write', path: /\.(hidden|active)$/, errno: 'ENOSPC', skip });
    await this.#meanwhile(side);
  }

  /** Something else may happen before it is mended, and it may last. */
  async #meanwhile(side: SideName): Promise<void> {
    const { random } = this;
    await this.hands.pass(random.fraction() * 1500);
    if (random.chance(0.2)) await this.hands.checkpoint(random.pick(sides));
    if (random.chance(0.2)) await this.#resyncAndLose(random.pick(sides));
    if (random.chance(0.2)) this.hands.end(side, random.pick(['kill', 'power'] as const));
    if (random.chance(0.2)) await this.hands.failOver(random.pick(sides));
    if (random.chance(0.6)) this.pair.mendDisks();
    await this.hands.pass(random.fraction() * 1000);
    if (random.chance(0.5)) await this.hands.restart(side);
  }
}

const sum = (counts: readonly number[]): number => counts.reduce((a, b) => a + b, 0);
const overlaysOf = (disk: string): string[] => [`${disk}.hidden`, `${disk}.active`, `${disk}.hidden`];
