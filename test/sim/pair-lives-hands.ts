/**
 * What happens to a pair, and what people do to it: machines die and are started again, commands are given, and in the
 * end everything is mended. Nothing here waits for a process that is dead.
 */
import assert from 'node:assert/strict';
import { Onlooker } from './checkpoint-onlooker.ts';
import type { PairUsers } from './pair-lives-users.ts';
import { otherSide, type PairWorld, type SideName, sideNames } from './pair-world.ts';
import type { SeededRandom } from './random.ts';

export type Ending = 'kill' | 'power';

export class PairHands {
  readonly pair: PairWorld;
  readonly random: SeededRandom;
  readonly users: PairUsers;

  constructor(pair: PairWorld, random: SeededRandom, users: PairUsers) {
    this.pair = pair;
    this.random = random;
    this.users = users;
  }

  get keepsCheckpoints(): boolean {
    return this.pair.config('alpha').store === 'overlays';
  }

  get primary(): SideName {
    return (
      sideNames.find((side) => this.pair.world.isAlive(side) && this.pair.sides.get(side)?.daemon.state.serving) ??
      'alpha'
    );
  }

  async hang(side: SideName): Promise<void> {
    if (!this.pair.world.isAlive(side)) return;
    this.pair.world.hang(side);
    await this.pass(this.random.fraction() * 1500);
    if (this.pair.world.isAlive(side)) this.pair.world.resume(side);
  }

  end(side: SideName, how: 'kill' | 'power'): void {
    if (!this.pair.world.isAlive(side)) return;
    if (how === 'kill') this.pair.kill(side);
    else this.pair.powerCut(side, this.random.pick([{}, { loseUnsynced: true }]));
    this.users.abandon(side);
  }

  /** The process ends in the middle of one of its next I/Os. */
  async endAtIo(side: SideName, how: 'kill' | 'power'): Promise<void> {
    const { world } = this.pair;
    let left = 1 + this.random.below(this.random.pick([5, 40, 200]));
    world.onIo((_n, host) => {
      if (host !== side || --left > 0) return;
      world.onIo(null);
      this.end(side, how);
    });
    await this.pass(500);
    world.onIo(null);
  }

  async stop(side: SideName): Promise<void> {
    const one = this.pair.sides.get(side);
    if (one === undefined || !this.pair.world.isAlive(side)) return;
    const stopped = one.daemon.stop().then(() => one.engine.close());
    // One whose disk failed says so at its end.
    const told = stopped.catch((error: unknown) => this.#unlessFailed(side, error));
    await this.settled(told, side);
    if (!this.pair.world.isAlive(side)) return;
    this.pair.kill(side);
    this.users.abandon(side);
  }

  async restart(side: SideName): Promise<void> {
    if (this.pair.world.isAlive(side)) return;
    this.pair.say('test', `restart ${side}`);
    let refused = false;
    const begun = this.pair.begin(side).catch((error: unknown) => {
      this.#unlessFailed(side, error);
      this.pair.say(side, `does not start: ${String(error)}`);
      refused = true;
    });
    await this.settled(begun, side);
    if (refused && this.pair.world.isAlive(side)) this.pair.kill(side);
  }

  /** @throws the error, if no call of that side has met a fault */
  #unlessFailed(side: SideName, error: unknown): void {
    if (!this.pair.hasFailed(side)) throw error;
  }

  async command(side: SideName, command: string, args: Record<string, unknown> = {}): Promise<void> {
    const { pair } = this;
    const one = pair.sides.get(side);
    if (!pair.world.isAlive(side) || one === undefined) return;
    const answer = (one.daemon.execute(command, args) as Promise<{ text: string }>).then(
      ({ text }) => pair.say(side, `${command}: ${text}`),
      (error: unknown) => pair.say(side, `${command}: refused: ${String(error)}`),
    );
    await this.settled(answer, side);
  }

  failOver(side: SideName): Promise<void> {
    const to = this.random.pick([undefined, undefined, 'latest', 'checkpoint']);
    const known = to !== undefined && this.keepsCheckpoints;
    return this.command(side, 'pair-failover', known ? { to } : {});
  }

  /** One by command has what was answered before it, and is shown; now and then one is held for a while. */
  async checkpoint(side: SideName): Promise<void> {
    const { pair } = this;
    const primary = this.primary;
    const daemon = pair.world.isAlive(side) ? pair.sides.get(side)?.daemon : undefined;
    if (daemon === undefined) return;
    const answered = pair.checkpoints.answered(primary);
    const holds = pair.config(side).mode === 'standby' && this.random.below(4) === 0;
    const args = holds ? { holdMs: 100 + this.random.below(2000) } : {};
    const asked = daemon.execute('pair-checkpoint', args) as Promise<{ number: number; text: string }>;
    const looked = asked.then(
      ({ number, text }) => {
        pair.say(side, `pair-checkpoint: ${text}`);
        pair.check(() => pair.checkpoints.checkContains(otherSide(primary), number, answered));
      },
      (error: unknown) => pair.say(side, `pair-checkpoint: refused: ${String(error)}`),
    );
    await this.settled(looked, side);
  }

  /** Waits until it has settled, or its process is gone; something that never ends is a failure. */
  async settled(promise: Promise<unknown>, side: SideName): Promise<void> {
    let settled = false;
    promise.then(
      () => {
        settled = true;
      },
      (error: unknown) => {
        settled = true;
        if (this.pair.world.isAlive(side)) this.fail(error);
      },
    );
    await this.until(() => settled || !this.pair.world.isAlive(side));
  }

  /** Everything is repaired, people decide what only they can, and both sides come in step. */
  async mend(calmRounds = 20): Promise<void> {
    const { pair } = this;
    pair.say('test', 'mend');
    this.users.calm = true;
    pair.world.onIo(null);
    pair.world.heal('alpha', 'beta');
    this.pair.mendDisks();
    for (const side of sideNames) await this.restart(side);
    await this.comeInStep();
    // A link that was cut, or a sync that was under way, may break some time later: in step means so for a while.
    for (let calm = 0; calm < calmRounds; calm++) {
      if (!this.inStep()) calm = 0;
      await this.until(() => this.inStep());
      await this.pass(200);
      if ((await this.failedPrimary()) === null) continue;
      calm = 0;
      await this.comeInStep();
    }
    this.users.quiet = true;
    await this.until(() => this.users.idle);
    const primary = sideNames.find((side) => pair.phase(side) === 'in-step');
    assert.ok(primary !== undefined, 'still in step');
    for (const disk of pair.disks) {
      const user = await pair.connect(primary, disk);
      await pair.world.complete(user.verifyAll());
      await pair.world.complete(user.flush());
    }
    // In lock-step a flush says nothing of the other side, and a torn block was written anew just now.
    while ((await pair.status(primary)).lagBytes > 0) await this.pass(20);
    assert.equal(pair.phase(primary), 'in-step');
    pair.assertEqual();
    if (this.keepsCheckpoints) await this.lookAtLast(otherSide(primary));
    this.users.over = true;
  }

  private async comeInStep(): Promise<void> {
    for (let attempt = 0; attempt < 30; attempt++) {
      for (let waited = 0; waited < 40 && !this.inStep(); waited++) await this.pass(100);
      const failed = await this.failedPrimary();
      if (failed !== null) await this.replaceDisk(failed);
      else if (this.inStep()) return;
      else await this.decide();
    }
  }

  /** The view shows the last checkpoint; a new one is what both disks hold. */
  async lookAtLast(side: SideName): Promise<void> {
    const { pair } = this;
    for (const again of [false, true]) {
      if (again) await this.checkpoint(side);
      for (const disk of pair.disks) {
        const onlooker = await pair.world.complete(Onlooker.connect(pair, side, disk));
        await pair.world.complete(onlooker.lookWell());
        onlooker.close();
      }
      if (this.users.failure !== null || pair.failure !== null) throw this.users.failure ?? pair.failure;
    }
    const { record } = pair.side(side).daemon.state;
    pair.checkpoints.checkImages('in the end', side, record.checkpoint?.number ?? 0);
  }

  async decide(): Promise<void> {
    for (const side of sideNames) {
      const status = await this.pair.status(side);
      if (status.splitBrain !== null) {
        await this.command(side, 'pair-resolve', { keep: this.random.pick(['alpha', 'beta']) });
        return;
      }
    }
    for (const side of sideNames) {
      if (!/start this side again/.test((await this.pair.status(side)).error ?? '')) continue;
      this.end(side, this.random.pick(['kill', 'power'] as const));
      return await this.restart(side);
    }
    const notices = sideNames.map((side) => this.pair.sides.get(side)?.daemon.state.refusal ?? '');
    const wanted = notices.map((text) => /`failover` on (\w+)/.exec(text)?.[1]).find((name) => name !== undefined);
    if (wanted !== undefined) await this.failOver(wanted as SideName);
  }

  /** The primary whose disk is not to be believed until somebody does something. */
  async failedPrimary(): Promise<SideName | null> {
    for (const side of sideNames) {
      if (!this.pair.world.isAlive(side) || !this.pair.hasFailed(side)) continue;
      const { role, disks } = await this.pair.status(side);
      if (role === 'primary' && disks.some(({ error }) => error !== null)) return side;
    }
    return null;
  }

  /** What can be done about it when the device works again. */
  async replaceDisk(side: SideName): Promise<void> {
    const way = this.random.pick(['failover', 'reopen', 'stop', 'kill', 'power'] as const);
    this.pair.say('test', `disk of ${side} failed: ${way}`);
    if (way === 'failover') return this.command(otherSide(side), 'pair-failover');
    if (way === 'reopen') {
      for (const disk of this.pair.disks) {
        const filename = `/data/${disk}.img`;
        const options = [{ driver: 'file', 'node-name': `${disk}-file`, filename, exclusive: true }];
        await this.command(side, 'blockdev-reopen', { options });
      }
      return;
    }
    if (way === 'stop') await this.stop(side);
    else this.end(side, way);
    await this.restart(side);
  }

  inStep(): boolean {
    const phases = sideNames.map((side) => this.pair.phase(side));
    return phases.includes('in-step') && phases.includes('following');
  }

  async pass(ms: number): Promise<void> {
    await this.pair.world.runFor(ms);
    this.users.failure ??= this.pair.failure;
    if (this.users.failure !== null) throw this.users.failure;
  }

  async until(condition: () => boolean): Promise<void> {
    await this.pair.until(() => condition() || this.users.failure !== null);
    if (this.users.failure !== null) throw this.users.failure;
  }

  fail(error: unknown): void {
    this.users.failure ??= error;
  }
}
