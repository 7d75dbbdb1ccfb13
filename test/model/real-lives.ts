/**
 * Random lives of a pair of real processes: users write, flush and read while daemons are killed with SIGKILL, stopped
 * with SIGSTOP, started again, while their link is held or cut, and while people give commands. In the end everything
 * is mended, both come in step, hold the same bytes, and no promise is broken. The seed decides what is tried; what
 * comes of it depends on the machine, so a failure prints the whole story.
 */
import assert from 'node:assert/strict';
import { blockBytes, diskBytesFor, offsetOf } from '../sim/checker.ts';
import { SeededRandom } from '../sim/random.ts';
import type { Ending } from '../support/cleanup.ts';
import { run } from '../support/process.ts';
import { History, otherSide, type SideName, sideNames } from './history.ts';
import { RealPair } from './real-pair.ts';
import { type Life, RealUser } from './real-user.ts';

/** 8 MiB */
const blocks = 254;

export interface LifeResult {
  readonly seed: number;
  readonly writes: number;
  readonly flushes: number;
  readonly promotions: number;
  readonly longestMs: number;
  readonly troubles: readonly string[];
}

/** Lives one life and leaves nothing of it behind. Rejects with its story if a promise is broken. */
export async function live(seed: number, options: { verbose?: boolean } = {}): Promise<LifeResult> {
  const ends: (() => unknown)[] = [];
  const ending = { after: (call: () => unknown) => void ends.push(call) } as unknown as Ending;
  const life = new RealLife(seed, options.verbose === true);
  try {
    await life.run(ending);
    const { writes, flushes, history, longestMs, troubles } = life;
    return { seed, writes, flushes, promotions: history.promotions, longestMs: Math.round(longestMs), troubles };
  } catch (error) {
    throw new Error(`seed ${seed}: ${error instanceof Error ? error.stack : error}\n${life.story()}`, { cause: error });
  } finally {
    life.over = true;
    for (const end of ends) await end();
  }
}

const troubleKinds = [
  'lose the primary',
  'lose the primary',
  'lose the primary',
  'lose the secondary',
  'lose the secondary',
  'hang the primary',
  'hang the primary',
  'hang the secondary',
  'hang the secondary',
  'lose both',
  'lose both',
  'break the link',
  'break the link',
  'break the link and fail over',
  'stop and start',
  'stop and start',
  'switch',
  'switch and lose somebody',
  'switch and lose somebody',
] as const;

class RealLife implements Life {
  readonly random: SeededRandom;
  readonly blocks = blocks;
  readonly troubles: string[] = [];
  readonly #verbose: boolean;
  readonly #users: RealUser[] = [];
  #made: { readonly pair: RealPair; readonly history: History } | null = null;
  rolesChange = true;
  quiet = false;
  over = false;
  lateMs = 0;
  writes = 0;
  flushes = 0;
  longestMs = 0;
  /** commands under way that change roles */
  #commands = 0;

  readonly #store: 'mirror' | 'overlays';

  constructor(seed: number, verbose: boolean) {
    this.#store = seed % 2 === 0 ? 'overlays' : 'mirror';
    this.random = new SeededRandom(seed * 7919 + 17);
    this.#verbose = verbose;
  }

  get pair(): RealPair {
    return this.#made?.pair ?? assert.fail('not begun');
  }

  get history(): History {
    return this.#made?.history ?? assert.fail('not begun');
  }

  story(): string {
    return this.#made?.pair.story() ?? '';
  }

  async run(ending: Ending): Promise<void> {
    const { random } = this;
    const disks = ['disk0', 'disk1', 'disk2'].slice(0, random.pick([1, 1, 3]));
    const pair = await RealPair.make(ending, {
      disks,
      diskBytes: diskBytesFor(blocks),
      stallMsMax: 1000,
      heartbeatMs: 150,
      peerTimeoutMs: 1000,
      windowBytes: random.pick([16_384, 65_536, 1 << 20]),
      delayMs: random.pick([0, 2, 5, 20]),
      store: this.#store,
      verbose: this.#verbose,
    });
    const history = await History.open(pair.data, disks, blocks, (side, text) => pair.say(side, text));
    this.#made = { pair, history };
    const watch = this.#watch();
    ending.after(() => clearInterval(watch));
    await Promise.all(sideNames.map((side) => pair.start(side)));
    for (const side of sideNames) for (const disk of disks) this.#users.push(new RealUser(this, side, disk));
    const using = this.#users.map((user) => user.use().catch((error: unknown) => pair.fail(error)));
    if (random.chance(0.8)) await this.#inStep();
    for (let left = 2 + random.below(4); left > 0; left--) {
      await pair.pass(random.fraction() * random.pick([50, 300, 1500]));
      await this.#trouble();
    }
    await this.#mend();
    this.over = true;
    await Promise.all(using);
    if (pair.failure !== null) throw pair.failure;
  }

  /** Looks at the group files, at those who wait, and at how late this process itself is. */
  #watch(): NodeJS.Timeout {
    const everyMs = 20;
    let last = performance.now();
    return setInterval(() => {
      const now = performance.now();
      this.lateMs += Math.max(0, now - last - 2 * everyMs);
      last = now;
      if (this.over) return;
      try {
        this.history.observe();
      } catch (error) {
        this.pair.fail(error);
      }
      if (this.rolesChange) return;
      const overdue = this.#users.map((user) => user.overdue()).find((text) => text !== null);
      if (overdue !== undefined) this.pair.fail(new Error(overdue ?? ''));
    }, everyMs);
  }

  // ---------------------------------------------------------------- troubles

  get #primary(): SideName {
    const [a, b] = [this.history.record('a'), this.history.record('b')];
    if (a?.role !== 'primary') return b?.role === 'primary' ? 'b' : 'a';
    return b?.role === 'primary' && (b.generation?.number ?? 0) > (a.generation?.number ?? 0) ? 'b' : 'a';
  }

  #trouble(): Promise<void> {
    const kind = this.random.pick(troubleKinds);
    this.troubles.push(kind);
    this.pair.say('test', `-- ${kind}`);
    switch (kind) {
      case 'lose the primary':
        return this.#losePrimary();
      case 'lose the secondary':
        return this.#loseSecondary();
      case 'hang the primary':
        return this.#hangPrimary();
      case 'hang the secondary':
        return this.#hangSecondary();
      case 'lose both':
        return this.#loseBoth();
      case 'break the link':
        return this.#breakLink();
      case 'break the link and fail over':
        return this.#breakLinkAndFailOver();
      case 'stop and start':
        return this.#stopAndStart();
      case 'switch':
        return this.#switch();
      case 'switch and lose somebody':
        return this.#switchAndLose();
    }
  }

  async #losePrimary(): Promise<void> {
    const { pair, random } = this;
    const primary = this.#primary;
    const silent = random.chance(0.4);
    if (silent) {
      // What it forwards from now on is lost with it.
      pair.cut('held');
      await this.#pass(600);
    }
    pair.kill(primary);
    if (silent) pair.mendLink(true);
    await this.#pass(1200);
    if (random.chance(0.2)) {
      pair.kill(otherSide(primary));
      await pair.start(otherSide(primary));
    }
    if (random.chance(0.8)) await this.#command(otherSide(primary), 'pair-failover');
    await this.#pass(1500);
    if (random.chance(0.2)) await this.#killWhileItStarts(primary);
    if (random.chance(0.8)) await pair.start(primary);
    await this.#pass(1500);
  }

  async #killWhileItStarts(side: SideName): Promise<void> {
    const starting = this.pair.start(side);
    await this.#pass(4000);
    this.pair.kill(side);
    await starting;
  }

  /** The primary's users notice nothing but that it is slower. */
  async #loseSecondary(): Promise<void> {
    const { pair, random } = this;
    const secondary = otherSide(this.#primary);
    for (let times = random.pick([1, 1, 2]); times > 0; times--) {
      pair.kill(secondary);
      await this.#pass(2000);
      if (random.chance(0.2)) await this.#killWhileItStarts(secondary);
      await pair.start(secondary);
      await this.#pass(random.pick([300, 2000]));
    }
    if (random.chance(0.2)) pair.kill(this.#primary);
  }

  async #hangPrimary(): Promise<void> {
    const { pair, random } = this;
    const primary = this.#primary;
    pair.hang(primary);
    await this.#pass(random.pick([500, 4000]));
    if (random.chance(0.5)) {
      // It may be asked before it has noticed, and refuse.
      const promoting = this.#command(otherSide(primary), 'pair-failover');
      if (random.chance(0.7)) await promoting;
      await this.#pass(500);
      pair.resume(primary);
      await promoting;
    }
    pair.resume(primary);
    await this.#pass(1500);
  }

  async #hangSecondary(): Promise<void> {
    const { pair, random } = this;
    const secondary = otherSide(this.#primary);
    pair.hang(secondary);
    await this.#pass(random.pick([700, 4000]));
    if (random.chance(0.2)) pair.kill(secondary);
    else pair.resume(secondary);
    await this.#pass(1500);
    await pair.start(secondary);
  }

  async #loseBoth(): Promise<void> {
    const { pair, random } = this;
    const first = random.pick(['a', 'b'] as const);
    pair.kill(first);
    if (random.chance(0.7)) await this.#pass(random.pick([20, 1500]));
    pair.kill(otherSide(first));
    await this.#pass(300);
    const back = random.pick(['a', 'b'] as const);
    await pair.start(back);
    if (random.chance(0.4)) {
      await this.#command(back, random.chance(0.7) ? 'pair-start' : 'pair-failover');
      await this.#pass(1500);
    }
    await pair.start(otherSide(back));
    await this.#pass(1500);
  }

  async #breakLink(): Promise<void> {
    const { pair, random } = this;
    if (random.chance(0.3)) return pair.resetLinks();
    for (let times = random.pick([1, 1, 3]); times > 0; times--) {
      pair.cut(random.pick(['held', 'cut'] as const));
      await this.#pass(random.pick([300, 3000]));
      pair.mendLink(random.chance(0.5));
      await this.#pass(random.pick([100, 1500]));
    }
  }

  /** Both may serve afterwards: each holds what its own users were promised, and a person decides. */
  async #breakLinkAndFailOver(): Promise<void> {
    const { pair, random } = this;
    const secondary = otherSide(this.#primary);
    pair.cut(random.pick(['held', 'cut'] as const));
    await this.#pass(random.pick([200, 2500]));
    await this.#command(secondary, 'pair-failover');
    await this.#pass(1000);
    if (random.chance(0.3)) pair.kill(this.random.pick(['a', 'b'] as const));
    pair.mendLink(random.chance(0.5));
    await this.#pass(1000);
  }

  async #stopAndStart(): Promise<void> {
    const { pair, random } = this;
    const first = random.chance(0.7) ? this.#primary : otherSide(this.#primary);
    this.rolesChange = true;
    await pair.stop(first);
    if (random.chance(0.7)) await pair.stop(otherSide(first));
    await this.#pass(300);
    if (random.chance(0.3) && pair.isAlive(otherSide(first))) await this.#command(otherSide(first), 'pair-failover');
    const order = random.chance(0.5) ? sideNames : sideNames.toReversed();
    for (const side of order) {
      await pair.start(side);
      if (random.chance(0.2)) await this.#command(side, 'pair-start');
      await this.#pass(700);
    }
    if (random.chance(0.3)) pair.kill(this.#primary);
  }

  async #switch(): Promise<void> {
    await this.#inStep();
    const side = this.random.pick(['a', 'b'] as const);
    const asFailover = side !== this.#primary && this.random.chance(0.5);
    await this.#command(side, asFailover ? 'pair-failover' : 'pair-switch');
    await this.#pass(1000);
  }

  async #switchAndLose(): Promise<void> {
    const { pair, random } = this;
    await this.#inStep();
    const switching = this.#command(random.pick(['a', 'b'] as const), 'pair-switch');
    await this.#pass(random.pick([5, 40, 150]));
    const lost = random.pick(['a', 'b'] as const);
    if (random.chance(0.3)) pair.hang(lost);
    else pair.kill(lost);
    await this.#pass(random.pick([100, 2500]));
    pair.resume(lost);
    await switching;
    if (random.chance(0.4)) await this.#command(otherSide(lost), 'pair-failover');
  }

  async #pass(msMax: number): Promise<void> {
    await this.pair.pass(this.random.fraction() * msMax);
  }

  /** A command that may end connections, whatever comes of it. */
  async #command(side: SideName, command: string, args: Record<string, unknown> = {}): Promise<void> {
    this.rolesChange = true;
    this.#commands++;
    try {
      await this.pair.command(side, command, command === 'pair-start' ? { alone: true } : args);
    } finally {
      this.#commands--;
    }
  }

  // ---------------------------------------------------------------- the end

  /** Everything runs, and people decide what only they can, until both sides are in step. */
  async #inStep(): Promise<SideName> {
    const { pair } = this;
    for (const side of sideNames) pair.resume(side);
    pair.mendLink(false);
    for (const side of sideNames) await pair.start(side);
    let [serving, asked] = [null as SideName | null, performance.now()];
    await pair.until('both are in step', async () => {
      serving = await pair.inStep();
      if (serving === null && performance.now() > asked + 2500) {
        await this.#decide();
        asked = performance.now();
      }
      return serving !== null;
    });
    if (this.#commands === 0) this.rolesChange = false;
    return serving ?? assert.fail('in step');
  }

  async #decide(): Promise<void> {
    for (const side of sideNames) {
      const status = await this.pair.status(side);
      if (status === null) continue;
      if (status.splitBrain !== null) {
        await this.#command(side, 'pair-resolve', { keep: this.random.pick(['a', 'b'] as const) });
        return;
      }
      const wanted = /`failover` on (\w+)/.exec(status.notice ?? '')?.[1];
      if (wanted === 'a' || wanted === 'b') {
        await this.#command(wanted, 'pair-failover');
        return;
      }
    }
  }

  /** Both are whole and still; what was promised is there, twice. */
  async #mend(): Promise<void> {
    const { pair, random } = this;
    pair.say('test', '-- mend');
    let serving = await this.#inStep();
    if (random.chance(0.5)) {
      await pair.pass(1500);
      serving = await this.#inStep();
    }
    this.quiet = true;
    await pair.until('users are idle', () => this.#users.every((user) => user.idle));
    for (const user of this.#users) {
      if (user.side !== serving) continue;
      const session = (await user.connect()) ?? assert.fail(`${serving} does not serve ${user.disk}`);
      await session.verify();
      await session.flush();
      await session.client.close();
    }
    assert.equal(await pair.inStep(), serving, 'still in step');
    if (random.chance(0.3)) await this.#secondOpinion(serving);
    this.#compare();
    if (random.chance(0.5)) {
      await pair.stop(serving);
      await pair.stop(otherSide(serving));
      this.#compare();
    }
  }

  /** Both images hold the same bytes, and nothing where nobody wrote. */
  #compare(): void {
    for (const disk of this.pair.options.disks) {
      const [mine, theirs] = [this.pair.imageBytes('a', disk), this.pair.imageBytes('b', disk)];
      for (let at = 0; at < mine.length; at += blockBytes) {
        const [one, other] = [mine.subarray(at, at + blockBytes), theirs.subarray(at, at + blockBytes)];
        assert.ok(one.equals(other), `${disk}: the images differ at ${at}`);
      }
      assert.equal(mine.length, theirs.length);
      for (let block = 0; block < blocks; block++) mine.fill(0, offsetOf(block), offsetOf(block) + blockBytes);
      assert.ok(!mine.some((byte) => byte !== 0), `${disk}: bytes where nobody wrote`);
    }
  }

  /** libnbd reads from the serving side what stands in its image. */
  async #secondOpinion(serving: SideName): Promise<void> {
    for (const disk of this.pair.options.disks) {
      const copy = `${this.pair.data}/${disk}.copy`;
      const uri = `nbd+unix:///${disk}?socket=${this.pair.userSocket(serving)}`;
      const done = await run('nbdcopy', [uri, copy]);
      assert.equal(done.code, 0, done.stderr);
      const compared = await run('cmp', [copy, `${this.pair.data}/${serving}/${disk}.img`]);
      assert.equal(compared.code, 0, compared.stdout + compared.stderr);
    }
  }
}
