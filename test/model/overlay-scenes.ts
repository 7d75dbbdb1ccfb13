/** The scenes of a pair with overlays, by the claim that each shows; those of the same kind stand together. */

import type { Ending } from '../support/cleanup.ts';
import { closedInCommit, closedInResync, closedInStep } from './overlay-closes.ts';
import { killedInMidCheckpoint, killedInMidCommit, killedInMidWrite, killedUnderTheClock } from './overlay-kills.ts';
import { lockStep, lockStepResync } from './overlay-lock-step.ts';
import { killedInResync } from './overlay-resyncs.ts';
import { failureOf, OverlayScene, type SceneOptions } from './overlay-scene.ts';

export interface Scene {
  readonly claim: string;
  readonly options?: Partial<SceneOptions>;
  /** on all disks together, default 24 */
  readonly fillMiB?: number;
  play(scene: OverlayScene, fillBytes: number): Promise<unknown>;
}

const mib = 2 ** 20;
/** So much that a commit lasts long enough to be met in its midst. */
const muchHeld = { options: { groupMiB: 64 }, fillMiB: 48 };
/** So slow that a resync lasts long enough to be met in its midst. */
const slowLink: Partial<SceneOptions> = { groupMiB: 32, delayMs: 3 };
const inLockStep: Partial<SceneOptions> = { ...slowLink, mode: 'lock-step' };

export const scenes: readonly Scene[] = [
  {
    claim: 'record log 9: killed in mid-write, the view is the last checkpoint, and the latest has every flushed write',
    play: killedInMidWrite,
  },
  {
    claim: 'pair 22: killed in mid-checkpoint, the view is the old one or the new one, on all disks',
    play: killedInMidCheckpoint,
  },
  {
    claim: 'pair 18: stopped by a signal while writes and checkpoints are under way, nothing is left behind',
    play: closedInStep,
  },
  {
    claim: 'pair 20, 22: killed while the clock makes checkpoints, the view is a cut of all disks',
    options: { checkpoint: '50ms' },
    play: killedUnderTheClock,
  },
  {
    claim: 'pair 14, record log 10: a promotion to the checkpoint that is killed is finished by the next start',
    ...muchHeld,
    play: killedInMidCommit,
  },
  {
    claim: 'pair 14, 18: stopped by a signal while it fails over, no half state is left',
    ...muchHeld,
    play: closedInCommit,
  },
  {
    claim: 'pair 11: a side is killed in a resync, and what was found before it is the checkpoint to go back to',
    options: slowLink,
    play: killedInResync,
  },
  {
    claim: 'pair 11, 18: stopped by a signal in a resync, the state before it can be gone back to',
    options: slowLink,
    play: closedInResync,
  },
  {
    claim: 'record log 9: two users in lock-step, and whoever is killed, one state of a machine goes on',
    options: inLockStep,
    play: lockStep,
  },
  {
    claim: 'pair 11, record log 9: in lock-step a resync that is killed leaves the checkpoint from before it',
    options: inLockStep,
    play: lockStepResync,
  },
];

/** The pair that scenes of the same kind share, one after the other: most of a scene's time is its daemons' start. */
export class Stage {
  readonly #seed: number;
  #kind = '';
  #scene: OverlayScene | null = null;
  #ends: (() => unknown)[] = [];

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** @returns what came of it. Rejects with its story; the next scene then gets a pair of its own */
  async play(one: Scene): Promise<string> {
    const options = { seed: this.#seed, diskCount: this.#seed % 2 === 0 ? 3 : 1, ...one.options };
    const kind = JSON.stringify(options);
    if (this.#scene === null || this.#kind !== kind) {
      await this.close();
      const ending = { after: (call: () => unknown) => void this.#ends.push(call) } as unknown as Ending;
      this.#scene = await OverlayScene.make(ending, options);
      this.#kind = kind;
    }
    const scene = this.#scene;
    try {
      scene.pair.say('test', `-- ${one.claim}`);
      const result = await one.play(scene, Math.floor((one.fillMiB ?? 24) / options.diskCount) * mib);
      if (scene.pair.failure !== null) throw scene.pair.failure;
      return JSON.stringify(result ?? {});
    } catch (error) {
      const failure = failureOf(scene, this.#seed, error);
      await this.close();
      throw failure;
    }
  }

  async close(): Promise<void> {
    this.#scene = null;
    for (let end = this.#ends.pop(); end !== undefined; end = this.#ends.pop()) await end();
  }
}
