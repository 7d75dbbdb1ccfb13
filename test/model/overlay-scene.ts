/**
 * A pair of real processes with overlays, its user, and what is known of both: what scenes of kills are made of.
 *
 * A scene begins and ends with both sides in step. Checkpoints are made on command unless a scene says otherwise, so
 * that the content of each is known: the user rests, flushes, orders one, goes on.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { copyBytes, decodeCopy, type GroupRecord } from '../../src/pair/generation.ts';
import type { PairStatus } from '../../src/qmp/schema/pair.ts';
import { type Hash64, loadHash64 } from '../../src/util/xxhash.ts';
import { blockBytes } from '../sim/checker.ts';
import { SeededRandom } from '../sim/random.ts';
import type { Ending } from '../support/cleanup.ts';
import { run } from '../support/process.ts';
import { otherSide, type SideName, sideNames } from './history.ts';
import { checkExactly, copyState, type GroupState, GroupTruth, versionsOf } from './overlay-truth.ts';
import { OverlayUser, readState, type Using } from './overlay-user.ts';
import { RealPair, type RealPairOptions } from './real-pair.ts';

export interface SceneOptions extends Partial<RealPairOptions> {
  readonly seed: number;
  readonly diskCount: number;
  /** of all disks together, default 8 */
  readonly groupMiB?: number;
}

export interface KnownCheckpoint {
  readonly number: number;
  readonly state: GroupState;
}

/** A scene's failure with its seed and its story. */
export function failureOf(scene: OverlayScene, seed: number, error: unknown): Error {
  const said = error instanceof Error ? error.stack : String(error);
  return new Error(`seed ${seed}: ${said}\n${scene.pair.story()}`, { cause: error });
}

export class OverlayScene implements Using {
  readonly pair: RealPair;
  readonly random: SeededRandom;
  readonly truth: GroupTruth;
  primary: SideName = 'a';
  readonly #hash: Hash64;
  /** the generation in which both sides were in step */
  #together: string | null = null;
  #users: OverlayUser[] = [];

  static async make(ending: Ending, options: SceneOptions): Promise<OverlayScene> {
    const disks = ['disk0', 'disk1', 'disk2'].slice(0, options.diskCount);
    const diskBytes = Math.floor((options.groupMiB ?? 8) / options.diskCount) * 2 ** 20;
    const pair = await RealPair.make(ending, {
      disks,
      diskBytes,
      stallMsMax: 2000,
      heartbeatMs: 150,
      peerTimeoutMs: 2000,
      windowBytes: 1 << 20,
      delayMs: 0,
      store: 'overlays',
      checkpoint: 'off',
      verbose: process.env.REAL_VERBOSE === '1',
      ...options,
    });
    const truth = new GroupTruth(disks, diskBytes / blockBytes);
    const scene = new OverlayScene(pair, truth, new SeededRandom(options.seed * 7919 + 17), await loadHash64());
    // Before the processes are killed: no user complains of that.
    ending.after(() => Promise.all(scene.#users.map((user) => user.leave().catch(() => undefined))));
    await Promise.all(sideNames.map((side) => pair.start(side)));
    await scene.inStep();
    return scene;
  }

  private constructor(pair: RealPair, truth: GroupTruth, random: SeededRandom, hash: Hash64) {
    this.pair = pair;
    this.truth = truth;
    this.random = random;
    this.#hash = hash;
  }

  get secondary(): SideName {
    return otherSide(this.primary);
  }

  // ---------------------------------------------------------------- looking

  /** As the side's group file says at this moment. */
  record(side: SideName): GroupRecord {
    const bytes = readFileSync(join(this.pair.data, side, 'group'));
    const copies = [0, copyBytes].map((at) => decodeCopy(bytes.subarray(at, at + copyBytes), this.#hash));
    const valid = copies.filter((copy) => copy.kind === 'valid').sort((a, b) => b.sequence - a.sequence);
    return valid[0]?.record ?? assert.fail(`${side}: no valid copy of the group file`);
  }

  isOnBoth(): boolean {
    // A primary that goes alone says so durably before its first answer (pair.md 7).
    return this.#together !== null && this.record(this.primary).generation?.id === this.#together;
  }

  async status(side: SideName): Promise<PairStatus> {
    return (await this.pair.ask(side, 'pair-status')) as PairStatus;
  }

  /** What `blockstep status --json` prints of the side. */
  async told(side: SideName): Promise<PairStatus> {
    const program = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');
    const args = [program, 'status', '--json', '-d', join(this.pair.data, side)];
    const { stdout, stderr } = await run(process.execPath, args);
    const [status] = JSON.parse(stdout || '[]') as PairStatus[];
    return status ?? assert.fail(`status of ${side}: ${stderr}`);
  }

  /** What users of a secondary are shown; in lock-step they may write beside it (pair.md 17). */
  view(side: SideName = this.secondary): Promise<GroupState> {
    return readState(this.pair, side, this.truth.disks, this.pair.options.mode === 'lock-step');
  }

  /** What users of a side that serves are shown. */
  served(side: SideName = this.primary): Promise<GroupState> {
    return readState(this.pair, side, this.truth.disks, true);
  }

  /** What stands in the images. */
  images(side: SideName): GroupState {
    return new Map(
      this.truth.disks.map((disk) => [disk, versionsOf(this.pair.imageBytes(side, disk), `${side} ${disk}.img`)]),
    );
  }

  async phase(side: SideName, ...wanted: readonly string[]): Promise<PairStatus> {
    let status: PairStatus | null = null;
    await this.pair.until(`${side} is ${wanted.join(' or ')}`, async () => {
      status = await this.pair.status(side);
      return status !== null && wanted.includes(status.phase);
    });
    return status ?? assert.fail();
  }

  // ---------------------------------------------------------------- doing

  async user(side: SideName = this.primary): Promise<OverlayUser> {
    const user = await OverlayUser.connect(this, side);
    this.#users.push(user);
    return user;
  }

  /** The user rests; afterwards a checkpoint of just this is the last one, and is what the secondary shows. */
  async knownCheckpoint(user: OverlayUser): Promise<KnownCheckpoint> {
    await user.rest();
    const known = await this.order(this.truth.snapshot());
    checkExactly(await this.view(), known.state, `the view of checkpoint ${known.number}`);
    return known;
  }

  /** @param state what the order finds */
  async order(state: GroupState): Promise<KnownCheckpoint> {
    const side = this.random.pick(['a', 'b'] as const);
    const { number } = (await this.pair.ask(side, 'pair-checkpoint')) as { number: number };
    this.pair.say('test', `checkpoint ${number} ordered on ${side}`);
    return { number, state: copyState(state) };
  }

  async pass(msMax: number): Promise<void> {
    await sleep(this.random.fraction() * msMax);
    if (this.pair.failure !== null) throw this.pair.failure;
  }

  /** The side starts and cannot reach the other one: what it shows is what it found. */
  async startCutOff(side: SideName): Promise<PairStatus> {
    this.pair.cut('cut');
    await this.pair.start(side);
    return this.phase(side, 'detached', 'waiting', 'alone', 'promoting');
  }

  /** A person promotes the side whose primary is gone; a session that is still being closed is waited for. */
  async failover(side: SideName, to: 'latest' | 'checkpoint'): Promise<void> {
    await this.phase(side, 'detached', 'alone', 'promoting');
    const { text } = (await this.pair.ask(side, 'pair-failover', { to })) as { text: string };
    this.pair.say(side, `failover: ${text}`);
    this.primary = side;
    this.#together = null;
  }

  /** The side serves; one whose promotion was finished before it started waits for a person. */
  async servesAlone(side: SideName): Promise<void> {
    let told = false;
    await this.pair.until(`${side} serves`, async () => {
      const status = await this.pair.status(side);
      if (status?.phase === 'waiting' && !told) told = await this.pair.command(side, 'pair-start', { alone: true });
      return status?.serving === true;
    });
  }

  // ---------------------------------------------------------------- the end of a scene

  /** Everything runs; a split brain is decided for the side that serves. */
  async inStep(): Promise<void> {
    const { pair } = this;
    pair.mendLink(false);
    for (const side of sideNames) await pair.start(side);
    let asked = performance.now();
    await pair.until('both are in step', async () => {
      const serving = await pair.inStep();
      if (serving !== null) this.primary = serving;
      else if (performance.now() > asked + 2000) {
        await this.#decide();
        asked = performance.now();
      }
      return serving !== null;
    });
    const { generation } = this.record(this.primary);
    this.#together = generation?.id ?? null;
    // From now on the other side has what was answered before a flush.
  }

  async #decide(): Promise<void> {
    const status = await this.pair.status(this.primary);
    if (status === null) return;
    if (status.splitBrain !== null) await this.pair.command(this.primary, 'pair-resolve', { keep: this.primary });
  }

  /** In step again: the view is a new checkpoint, and both images are equal byte for byte. */
  async endsEqual(): Promise<void> {
    await this.inStep();
    checkExactly(await this.served(), this.truth.current, 'served in the end');
    const user = await this.user();
    await this.knownCheckpoint(user);
    await user.leave();
    for (const disk of this.truth.disks) {
      const files = sideNames.map((side) => join(this.pair.data, side, `${disk}.img`));
      const { code, stdout, stderr } = await run('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'raw', ...files]);
      assert.equal(code, 0, `${disk}: ${stdout}${stderr}`);
    }
  }
}
