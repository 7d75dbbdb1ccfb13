/** The scenes of a pair with overlays, by the claim that each shows. */
import { closedInCommit, closedInResync, closedInStep } from './overlay-closes.ts';
import { killedInMidCheckpoint, killedInMidCommit, killedInMidWrite, killedUnderTheClock } from './overlay-kills.ts';
import { lockStep, lockStepResync } from './overlay-lock-step.ts';
import { killedInResync } from './overlay-resyncs.ts';
import { type OverlayScene, type SceneOptions, withScene } from './overlay-scene.ts';

export interface Scene {
  readonly claim: string;
  readonly options?: Partial<SceneOptions>;
  /** on all disks together, default 24 */
  readonly fillMiB?: number;
  play(scene: OverlayScene, fillBytes: number): Promise<unknown>;
}

const mib = 2 ** 20;
/** So much that a commit lasts long enough to be met in its midst. */
const muchHeld = { options: { diskMiB: 64 }, fillMiB: 48 };
/** So slow that a resync lasts long enough to be met in its midst. */
const slowLink: Partial<SceneOptions> = { diskMiB: 32, delayMs: 3 };

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
    claim: 'pair 11: a side is killed in a resync, and what was found before it is the checkpoint to go back to',
    options: slowLink,
    play: killedInResync,
  },
  {
    claim: 'record log 9: two users in lock-step, and whoever is killed, one state of a machine goes on',
    options: { mode: 'lock-step' },
    play: lockStep,
  },
  {
    claim: 'pair 11, record log 9: in lock-step a resync that is killed leaves the checkpoint from before it',
    options: { ...slowLink, mode: 'lock-step' },
    play: lockStepResync,
  },
  {
    claim: 'pair 18: stopped by a signal while writes and checkpoints are under way, nothing is left behind',
    play: closedInStep,
  },
  {
    claim: 'pair 14, 18: stopped by a signal while it fails over, no half state is left',
    ...muchHeld,
    play: closedInCommit,
  },
  {
    claim: 'pair 11, 18: stopped by a signal in a resync, the state before it can be gone back to',
    options: slowLink,
    play: closedInResync,
  },
];

/** Plays a scene some times, one after the other, on one pair. Rejects with its story. @returns what came of each */
export async function playScene(one: Scene, seed: number, times: number): Promise<string[]> {
  const diskCount = seed % 2 === 0 ? 3 : 1;
  const results: string[] = [];
  await withScene({ seed, diskCount, ...one.options }, async (scene) => {
    const fillBytes = Math.floor((one.fillMiB ?? 24) / diskCount) * mib;
    for (let left = times; left > 0; left--) {
      scene.pair.say('test', `-- ${one.claim}`);
      results.push(JSON.stringify((await one.play(scene, fillBytes)) ?? {}));
    }
  });
  return results;
}
