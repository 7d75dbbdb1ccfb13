/**
 * A pair with `store: overlays` as real processes, ended in every way: scenes from a seed. `REAL_SEED=n` plays those of
 * one seed, `REAL_VERBOSE=1` aloud; `REAL_SCENES=n` more of each; `npm run soak:real` goes on for long.
 */
import { test } from 'node:test';
import { requireTools } from '../support/tools.ts';
import { playScene, scenes } from './overlay-scenes.ts';

requireTools('qemu-img');

const seed = Number(process.env.REAL_SEED ?? Date.now() % 1_000_000);
const times = Number(process.env.REAL_SCENES ?? 1);

for (const [index, scene] of scenes.entries()) {
  test(scene.claim, async (t) => {
    // One disk and three in turn.
    const results = await playScene(scene, seed + index, times);
    t.diagnostic(`seed ${seed}, scene ${index}: ${results.join(' ')}`);
  });
}
