/**
 * Random lives of a pair: users write, flush and read while machines die, links are cut and people give commands, all
 * from one seed. In the end everything is mended, both sides come in step, hold the same bytes, and no promise is
 * broken.
 */
import assert from 'node:assert/strict';
import { otherSide, PairWorld, type SideName, sideNames, type User } from './pair-world.ts';
import { SeededRandom } from './random.ts';

export interface LifeOptions {
  readonly verbose?: boolean;
  /** how many things happen */
  readonly troubles?: number;
}

export interface LifeResult {
  readonly seed: number;
  readonly writes: number;
  readonly flushes: number;
  readonly troubles: readonly string[];
}

export async function live(seed: number, options: LifeOptions = {}): Promise<LifeResult> {
  const life = new Life(seed, options);
  try {
    await life.run();
  } catch (error) {
    const lines = life.pair.log.slice(-60).join('\n');
    throw new Error(`seed ${seed}: ${error instanceof Error ? error.stack : String(error)}\n${lines}`);
  }
  return { seed, writes: life.writes, flushes: life.flushes, troubles: life.troubles };
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
] as const;

class Life {
  readonly pair: PairWorld;
  readonly random: SeededRandom;
  readonly troubles: string[] = [];
  readonly troublesWanted: number;
  writes = 0;
  flushes = 0;
  /** how often users flush, and how often they rest */
  readonly #flushShare: number;
  readonly #pauses: number;
  #over = false;
  #failure: unknown = null;
  readonly #users = new Set<User>();
  /** users have little to do: what matters is over */
  #calm = false;
  /** users do not write: the last comparison */
  #quiet = false;

  constructor(seed: number, options: LifeOptions) {
    this.random = new SeededRandom(seed * 7919 + 13);
    const disks = ['disk0', 'disk1', 'disk2'].slice(0, this.random.pick([1, 1, 2, 3]));
    this.troublesWanted = options.troubles ?? 1 + this.random.below(6);
    this.#flushShare = this.random.pick([0.01, 0.05, 0.2]);
    this.#pauses = this.random.pick([0, 0.02, 0.2]);
    this.pair = new PairWorld(seed, {
      disks,
      ...(options.verbose === undefined ? {} : { verbose: options.verbose }),
      config: {
        heartbeatMs: 100,
        peerTimeoutMs: 500,
        stallMsMax: 400,
        windowBytes: this.random.pick([16384, 65536, 1 << 20]),
      },
    });
  }

  async run(): Promise<void> {
    const { pair } = this;
    for (const side of this.random.chance(0.5) ? sideNames : [...sideNames].reverse()) await pair.start(side);
    for (const disk of pair.disks) void this.#useDisk(disk).catch((error: unknown) => this.#fail(error));
    if (this.random.chance(0.7)) await this.#until(() => this.#inStep());
    for (let count = 0; count < this.troublesWanted; count++) {
      await this.#pass(this.random.pick([5, 50, 300, 2000]) * this.random.fraction());
      await this.#trouble();
    }
    await this.#mend();
  }

  // ---------------------------------------------------------------- troubles

  async #trouble(): Promise<void> {
    const { pair, random } = this;
    const side = random.pick(['alpha', 'beta'] as const);
    const kind = random.pick(troubleKinds);
    this.troubles.push(`${kind} ${side}`);
    pair.say('test', `${kind} ${side}`);
    switch (kind) {
      case 'kill':
      case 'power':
        return this.#end(side, kind);
      case 'both':
        this.#end(side, 'power');
        return this.#end(otherSide(side), random.pick(['kill', 'power'] as const));
      case 'kill at io':
      case 'power at io':
        return this.#endAtIo(side, kind === 'kill at io' ? 'kill' : 'power');
      case 'cut':
        return pair.world.cut('alpha', 'beta');
      case 'heal':
        return pair.world.heal('alpha', 'beta');
      case 'hang':
        return this.#hang(side);
      case 'stop':
        return this.#stop(side);
      case 'restart':
        return this.#restart(side);
      case 'failover':
        return this.#command(side, 'pair-failover');
      case 'switch':
        return this.#command(side, 'pair-switch');
      case 'alone':
        return this.#command(side, 'pair-start', { alone: true });
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
    }
  }

  // ---- what usually follows on what

  get #primary(): SideName {
    return (
      sideNames.find((side) => this.pair.world.isAlive(side) && this.pair.sides.get(side)?.daemon.state.serving) ??
      'alpha'
    );
  }

  async #losePrimary(): Promise<void> {
    const primary = this.#primary;
    if (this.random.chance(0.5)) await this.#endAtIo(primary, this.random.pick(['kill', 'power'] as const));
    else this.#end(primary, this.random.pick(['kill', 'power'] as const));
    await this.#pass(this.random.fraction() * 1500);
    const other = otherSide(primary);
    if (this.random.chance(0.3)) await this.#endAtIo(other, 'power');
    await this.#restart(other);
    await this.#command(other, 'pair-failover');
    await this.#pass(this.random.fraction() * 1000);
    if (this.random.chance(0.7)) await this.#restart(primary);
  }

  async #cutAndFailOver(): Promise<void> {
    const primary = this.#primary;
    this.pair.world.cut('alpha', 'beta');
    if (this.random.chance(0.4)) await this.#endAtIo(primary, this.random.pick(['kill', 'power'] as const));
    await this.#pass(this.random.fraction() * 1500);
    await this.#command(otherSide(primary), 'pair-failover');
    await this.#pass(this.random.fraction() * 500);
    if (this.random.chance(0.7)) this.pair.world.heal('alpha', 'beta');
  }

  /** The other side comes back and is brought into step, if it is left in peace. */
  async #loseSecondary(): Promise<void> {
    const primary = this.#primary;
    const other = otherSide(primary);
    this.#end(other, this.random.pick(['kill', 'power', 'power'] as const));
    await this.#pass(this.random.fraction() * 300);
    await this.#restart(other);
    if (this.random.chance(0.5))
      await this.#endAtIo(this.random.pick(sides), this.random.pick(['kill', 'power'] as const));
    await this.#pass(this.random.fraction() * 600);
    if (this.random.chance(0.3)) await this.#command(other, 'pair-failover');
  }

  async #stopAndStart(): Promise<void> {
    const first = this.random.chance(0.7) ? this.#primary : otherSide(this.#primary);
    await this.#stop(first);
    if (this.random.chance(0.7)) await this.#stop(otherSide(first));
    await this.#pass(this.random.fraction() * 300);
    await this.#restart(first);
    await this.#restart(otherSide(first));
    await this.#pass(this.random.fraction() * 600);
    if (this.random.chance(0.4)) this.#end(this.#primary, 'power');
  }

  async #switchAndLose(side: SideName): Promise<void> {
    for (let waited = 0; waited < 20 && !this.#inStep(); waited++) await this.#pass(100);
    const ending = this.random.chance(0.6) ? this.#endAtIo(side, this.random.pick(['kill', 'power'] as const)) : null;
    const asked = this.random.pick(sides);
    const daemon = this.pair.world.isAlive(asked) ? this.pair.sides.get(asked)?.daemon : undefined;
    void daemon?.execute(this.random.pick(['pair-switch', 'pair-failover'])).catch(() => undefined);
    await ending;
    await this.#pass(this.random.fraction() * 500);
    if (this.random.chance(0.3)) await this.#command(otherSide(side), 'pair-failover');
  }

  // ---- single things

  async #hang(side: SideName): Promise<void> {
    if (!this.pair.world.isAlive(side)) return;
    this.pair.world.hang(side);
    await this.#pass(this.random.fraction() * 1500);
    if (this.pair.world.isAlive(side)) this.pair.world.resume(side);
  }

  #end(side: SideName, how: 'kill' | 'power'): void {
    if (!this.pair.world.isAlive(side)) return;
    if (how === 'kill') this.pair.kill(side);
    else this.pair.powerCut(side, this.random.pick([{}, { loseUnsynced: true }]));
    this.#abandon(side);
  }

  /** The process ends in the middle of one of its next I/Os. */
  async #endAtIo(side: SideName, how: 'kill' | 'power'): Promise<void> {
    const { world } = this.pair;
    let left = 1 + this.random.below(this.random.pick([5, 40, 200]));
    world.onIo((_n, host) => {
      if (host !== side || --left > 0) return;
      world.onIo(null);
      this.#end(side, how);
    });
    await this.#pass(500);
    world.onIo(null);
  }

  async #stop(side: SideName): Promise<void> {
    const one = this.pair.sides.get(side);
    if (one === undefined || !this.pair.world.isAlive(side)) return;
    const stopped = one.daemon.stop().then(() => one.engine.close());
    await this.#settled(stopped, side);
    if (!this.pair.world.isAlive(side)) return;
    this.pair.kill(side);
    this.#abandon(side);
  }

  async #restart(side: SideName): Promise<void> {
    if (this.pair.world.isAlive(side)) return;
    this.pair.say('test', `restart ${side}`);
    await this.#settled(this.pair.begin(side), side);
  }

  async #command(side: SideName, command: string, args: Record<string, unknown> = {}): Promise<void> {
    const { pair } = this;
    const one = pair.sides.get(side);
    if (!pair.world.isAlive(side) || one === undefined) return;
    const answer = (one.daemon.execute(command, args) as Promise<{ text: string }>).then(
      ({ text }) => pair.say(side, `${command}: ${text}`),
      (error: unknown) => pair.say(side, `${command}: refused: ${String(error)}`),
    );
    await this.#settled(answer, side);
  }

  /** Waits until it has settled, or its process is gone; something that never ends is a failure. */
  async #settled(promise: Promise<unknown>, side: SideName): Promise<void> {
    let settled = false;
    promise.then(
      () => {
        settled = true;
      },
      (error: unknown) => {
        settled = true;
        if (this.pair.world.isAlive(side)) this.#fail(error);
      },
    );
    await this.#until(() => settled || !this.pair.world.isAlive(side));
  }

  // ---------------------------------------------------------------- the end

  /** Everything is repaired, people decide what only they can, and both sides come in step. */
  async #mend(): Promise<void> {
    const { pair } = this;
    pair.say('test', 'mend');
    this.#calm = true;
    pair.world.onIo(null);
    pair.world.heal('alpha', 'beta');
    for (const side of sideNames) await this.#restart(side);
    for (let attempt = 0; attempt < 30 && !this.#inStep(); attempt++) {
      for (let waited = 0; waited < 40 && !this.#inStep(); waited++) await this.#pass(100);
      if (!this.#inStep()) await this.#decide();
    }
    // A link that was cut may break some time later: in step means in step for a while.
    for (let calm = 0; calm < 20; calm++) {
      if (!this.#inStep()) calm = 0;
      await this.#until(() => this.#inStep());
      await this.#pass(200);
    }
    this.#quiet = true;
    await this.#until(() => [...this.#users].every((user) => user.idle));
    const primary = sideNames.find((side) => pair.phase(side) === 'in-step');
    assert.ok(primary !== undefined, 'still in step');
    for (const disk of pair.disks) {
      const user = await pair.connect(primary, disk);
      await pair.world.complete(user.verifyAll());
      await pair.world.complete(user.flush());
    }
    assert.equal(pair.phase(primary), 'in-step');
    pair.assertEqual();
    this.#over = true;
  }

  async #decide(): Promise<void> {
    for (const side of sideNames) {
      const status = await this.pair.status(side);
      if (status.splitBrain !== null) {
        await this.#command(side, 'pair-resolve', { keep: this.random.pick(['alpha', 'beta']) });
        return;
      }
    }
    const notices = sideNames.map((side) => this.pair.sides.get(side)?.daemon.state.refusal ?? '');
    const wanted = notices.map((text) => /`failover` on (\w+)/.exec(text)?.[1]).find((name) => name !== undefined);
    if (wanted !== undefined) await this.#command(wanted as SideName, 'pair-failover');
  }

  #inStep(): boolean {
    const phases = sideNames.map((side) => this.pair.phase(side));
    return phases.includes('in-step') && phases.includes('following');
  }

  async #pass(ms: number): Promise<void> {
    await this.pair.world.runFor(ms);
    this.#failure ??= this.pair.failure;
    if (this.#failure !== null) throw this.#failure;
  }

  async #until(condition: () => boolean): Promise<void> {
    await this.pair.until(() => condition() || this.#failure !== null);
    if (this.#failure !== null) throw this.#failure;
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
  }

  // ---------------------------------------------------------------- users

  #abandon(side: SideName): void {
    for (const user of this.#users) if (user.side === side) user.abandon();
  }

  /** One user of one disk: goes to whoever serves it, checks what it finds, then writes, flushes and reads. */
  async #useDisk(disk: string): Promise<void> {
    const { pair } = this;
    while (!this.#over) {
      await pair.sleep(20 + this.random.fraction() * (this.#calm ? 400 : 50));
      if (this.#quiet) continue;
      const serving = sideNames.filter(
        (side) => pair.world.isAlive(side) && pair.sides.get(side)?.daemon.state.serving,
      );
      if (serving.length === 0) continue;
      const side = serving[this.random.below(serving.length)] ?? 'alpha';
      let user: User;
      try {
        user = await pair.openUser(side, disk);
      } catch {
        continue;
      }
      this.#users.add(user);
      try {
        await user.unlessGone(user.verify());
        await this.#work(user);
      } catch (error) {
        if (!user.closed && !user.abandoned) throw error;
      } finally {
        user.abandon();
        this.#users.delete(user);
        void user.client.close().catch(() => undefined);
      }
    }
  }

  async #work(user: User): Promise<void> {
    const { random } = this;
    const flying = new Set<Promise<void>>();
    let failed: unknown = null;
    const begin = (promise: Promise<unknown>): void => {
      const one: Promise<void> = promise.then(
        () => void flying.delete(one),
        (error: unknown) => {
          flying.delete(one);
          failed ??= error;
        },
      );
      flying.add(one);
    };
    for (;;) {
      if (failed !== null) throw failed;
      if (user.abandoned || user.closed) return;
      if (this.#quiet || this.#over) {
        await user.unlessGone(Promise.all(flying));
        if (failed !== null) throw failed;
        return;
      }
      if (flying.size >= 4) await user.unlessGone(Promise.race(flying));
      // Some blocks are written often, most of them seldom.
      const block = Math.floor(user.blocks * random.fraction() ** 2);
      const count = block % 2 === 0 ? random.pick([1, 2]) : 1;
      const free = !user.isBusy(block) && (count === 1 || !user.isBusy(block + 1));
      const what = random.fraction();
      if (what < 0.6 && free) {
        this.writes++;
        begin(user.write(block, count));
      } else if (what < 0.6 + this.#flushShare) {
        this.flushes++;
        begin(user.flush());
      } else if (free) begin(user.verifyOne(block));
      else await this.pair.sleep(random.fraction() * 10);
      if (random.chance(this.#pauses)) await this.pair.sleep(random.fraction() * 2000);
      if (this.#calm || random.chance(0.3)) await this.pair.sleep(random.fraction() * (this.#calm ? 200 : 20));
    }
  }
}
