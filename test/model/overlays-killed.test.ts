/**
 * A pair with `store: overlays` as real processes, ended in every way: scenes from a seed, an even one with three
 * disks. `REAL_SEED=n` plays those of one seed, `REAL_VERBOSE=1` aloud; `REAL_SCENES_MS` is how long another scene is
 * begun (the seed decides which is first); `npm run soak:real` goes on for long.
 */
import { after, test } from 'node:test';
import { requireTools } from '../support/tools.ts';
import { Stage, scenes } from './overlay-scenes.ts';

requireTools('qemu-img');

const seed = Number(process.env.REAL_SEED ?? Date.now() % 1_000_000);
const forMs = Number(process.env.REAL_SCENES_MS ?? 40_000);
const stage = new Stage(seed);
const end = performance.now() + forMs;
after(() => stage.close());

const first = seed % scenes.length;
for (const scene of [...scenes.slice(first), ...scenes.slice(0, first)]) {
  test(scene.claim, async (t) => {
    if (performance.now() > end) t.skip(`${forMs} ms are over: it is another run's turn`);
    else t.diagnostic(`seed ${seed}: ${await stage.play(scene)}`);
  });
}
