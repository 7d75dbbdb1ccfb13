/**
 * One short run of a pair with checkpoints, whose machines lose their power at a chosen I/O: write, checkpoint, write,
 * a resync, a failover to the checkpoint, and the return of the old primary. Whatever the I/O was, both sides come in
 * step afterwards, and no promise is broken.
 */
import assert from 'node:assert/strict';
import { Onlooker } from './checkpoint-onlooker.ts';
import { PairHands } from './pair-lives-hands.ts';
import { PairUsers } from './pair-lives-users.ts';
import { PairWorld, type SideName, type User } from './pair-world.ts';
import { SeededRandom } from './random.ts';

export const cutSides = { alpha: ['alpha'], beta: ['beta'], both: ['alpha', 'beta'] } as const;

/** Where the power is cut. */
export interface Cut {
  /** counts from 1 */
  readonly io: number;
  readonly who: keyof typeof cutSides;
  /** afterwards the secondary goes back to its checkpoint before the primary is started again */
  readonly failsOver: boolean;
}

export interface CutOptions {
  readonly seed: number;
  readonly mode: 'standby' | 'lock-step';
  readonly sync: boolean;
  readonly cut: Cut | null;
  readonly verbose?: boolean;
}

/** Lives the run. @returns how many I/Os it had; with a cut, up to its end */
export async function runWithCut(options: CutOptions): Promise<number> {
  const run = new CutRun(options);
  try {
    return await run.live();
  } catch (error) {
    const lines = run.pair.log.slice(-60).join('\n');
    throw new Error(`${JSON.stringify(options)}: ${error instanceof Error ? error.stack : String(error)}\n${lines}`);
  }
}

/** All places where the power can be cut, in each mode, on each side and on both, and what is done then. */
export async function allCuts(seed: number): Promise<CutOptions[]> {
  const cuts: CutOptions[] = [];
  for (const mode of ['standby', 'lock-step'] as const) {
    for (const sync of [true, false]) {
      const ios = await runWithCut({ seed, mode, sync, cut: null });
      for (let io = 1; io <= ios; io++) {
        for (const who of ['alpha', 'beta', 'both'] as const) {
          for (const failsOver of [false, true]) cuts.push({ seed, mode, sync, cut: { io, who, failsOver } });
        }
      }
    }
  }
  return cuts;
}

class PowerIsOff extends Error {}

class CutRun {
  readonly pair: PairWorld;
  readonly #hands: PairHands;
  readonly #cut: Cut | null;
  readonly #users = new Set<User>();
  #isOff = false;

  constructor({ seed, mode, sync, cut, verbose }: CutOptions) {
    this.#cut = cut;
    this.pair = new PairWorld(seed, {
      disks: ['disk0', 'disk1'],
      blocks: 8,
      sound: true,
      ...(verbose === undefined ? {} : { verbose }),
      config: {
        store: 'overlays',
        mode,
        acknowledge: mode === 'lock-step' ? 'local' : 'flush',
        checkpointMs: null,
        overlays: { folder: '/data', sync },
        heartbeatMs: 100,
        peerTimeoutMs: 500,
        stallMsMax: 400,
        windowBytes: 65_536,
      },
    });
    const random = new SeededRandom(seed);
    this.#hands = new PairHands(this.pair, random, new PairUsers(this.pair, random));
  }

  async live(): Promise<number> {
    const { pair } = this;
    pair.world.onIo((io) => {
      if (io === this.#cut?.io) this.#cutPower(this.#cut.who);
    });
    try {
      await this.#script();
    } catch (error) {
      if (!(error instanceof PowerIsOff)) throw error;
    }
    pair.world.onIo(null);
    const ios = pair.world.ioCount;
    if (this.#isOff) await this.#comeBack();
    await this.#hands.mend(2);
    return ios;
  }

  #cutPower(who: Cut['who']): void {
    for (const side of cutSides[who]) {
      if (this.pair.world.isAlive(side)) this.pair.powerCut(side);
      for (const user of this.#users) if (user.side === side) user.abandon();
    }
    this.#isOff = true;
  }

  async #comeBack(): Promise<void> {
    const { pair } = this;
    pair.world.heal('alpha', 'beta');
    if (this.#cut?.failsOver !== true) return;
    if (pair.world.isAlive('alpha')) this.#hands.end('alpha', 'kill');
    await this.#hands.restart('beta');
    await pair.until(() => ['detached', 'alone', 'waiting', 'promoting', 'no-role'].includes(pair.phase('beta')));
    await this.#hands.command('beta', 'pair-failover', { to: 'checkpoint' });
    if (!pair.side('beta').daemon.state.serving) return;
    // A user of the side that stayed may have been writing: whoever looks now would find the one or the other.
    await pair.until(() => [...this.#users].every((user) => user.abandoned || user.idle));
    for (const disk of pair.disks) await pair.world.complete((await pair.connect('beta', disk)).verify());
  }

  // ---------------------------------------------------------------- the run

  async #script(): Promise<void> {
    const { pair } = this;
    await this.#do(pair.begin('alpha'));
    await this.#do(pair.begin('beta'));
    await this.#reach('in step', () => pair.phase('alpha') === 'in-step' && pair.phase('beta') === 'following');
    await this.#use('alpha', [0, 1, 2, 3, 4, 5]);
    await this.#checkpoint();
    await this.#use('alpha', [2, 3, 4]);
    await this.#look('beta');

    pair.world.cut('alpha', 'beta');
    await this.#reach('alone', () => pair.phase('alpha') === 'alone' && pair.phase('beta') === 'detached');
    await this.#use('alpha', [3, 4, 5]);
    pair.world.heal('alpha', 'beta');
    await this.#reach('in step again', () => pair.phase('alpha') === 'in-step' && pair.phase('beta') === 'following');
    await this.#checkpoint();
    await this.#use('alpha', [0, 4, 5, 6]);

    pair.powerCut('alpha');
    for (const user of this.#users) user.abandon();
    await this.#reach('detached', () => pair.phase('beta') === 'detached');
    await this.#do(pair.side('beta').daemon.execute('pair-failover', { to: 'checkpoint' }));
    await this.#use('beta', [1, 5]);
    await this.#do(pair.begin('alpha'));
    await this.#reach('the old primary', () => pair.phase('beta') === 'in-step' && pair.phase('alpha') === 'following');
    pair.assertEqual();
    await this.#look('alpha');
  }

  /** Each user finds what it must, writes, flushes; then all write once more, and only the first flushes. */
  async #use(side: SideName, blocks: readonly number[]): Promise<void> {
    const users: User[] = [];
    for (const disk of this.pair.disks) {
      const user = await this.#do(this.pair.openUser(side, disk));
      this.#users.add(user);
      users.push(user);
      await this.#do(user.verify());
    }
    for (const user of users) {
      await this.#do(Promise.all(blocks.map((block) => user.write(block))));
      await this.#do(user.flush());
    }
    await this.#do(Promise.all(users.map((user) => user.write(blocks[0] ?? 0))));
    await this.#do(users[0]?.flush() ?? Promise.resolve());
    for (const user of users) await this.#do(user.client.close());
  }

  async #checkpoint(): Promise<void> {
    const { checkpoints } = this.pair;
    const answered = checkpoints.answered('alpha');
    const asked = this.pair.side('alpha').daemon.execute('pair-checkpoint') as Promise<{ number: number }>;
    const { number } = await this.#do(asked);
    checkpoints.checkContains('beta', number, answered);
  }

  async #look(side: SideName): Promise<void> {
    for (const disk of this.pair.disks) {
      const onlooker = await this.#do(Onlooker.connect(this.pair, side, disk));
      await this.#do(onlooker.lookWell());
      onlooker.close();
    }
  }

  /** Waits for it, or for the cut. */
  async #do<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    promise.then(
      () => {
        settled = true;
      },
      () => {
        settled = true;
      },
    );
    await this.pair.until(() => settled || this.#isOff);
    if (this.#isOff) throw new PowerIsOff();
    return promise;
  }

  async #reach(what: string, condition: () => boolean): Promise<void> {
    await this.pair.until(() => condition() || this.#isOff);
    if (this.#isOff) throw new PowerIsOff();
    assert.ok(condition(), what);
  }
}
