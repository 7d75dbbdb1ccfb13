/**
 * A pair with `store: overlays` as real processes, ended in every way: scenes from a seed, an even one with three
 * disks. `REAL_SEED=n` plays those of one seed, `REAL_VERBOSE=1` aloud; `npm run soak:real` goes on for long.
 */
import { after, test } from 'node:test';
import { requireTools } from '../support/tools.ts';
import { Stage, scenes } from './overlay-scenes.ts';

requireTools('qemu-img');

const seed = Number(process.env.REAL_SEED ?? Date.now() % 1_000_000);
const stage = new Stage(seed);
after(() => stage.close());

for (const scene of scenes) {
  test(scene.claim, async (t) => {
    t.diagnostic(`seed ${seed}: ${await stage.play(scene)}`);
  });
}
