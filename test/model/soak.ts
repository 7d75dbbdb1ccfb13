/**
 * `npm run soak:real [LIVES] [FIRST-SEED]`: random lives of real processes (real-lives.ts), one after the other, and
 * after each a scene of a pair with overlays (overlay-scenes.ts). It prints the story of each that fails;
 * `REAL_SEED=n node --test test/model/real-lives.test.ts` tries that life again, aloud.
 */
import { Stage, scenes } from './overlay-scenes.ts';
import { live } from './real-lives.ts';

const lives = Number(process.argv[2] ?? 100);
const first = Number(process.argv[3] ?? Date.now() % 1_000_000_000);

let failures = 0;
const timesOfScene = 3;

async function attempt(what: () => Promise<unknown>): Promise<void> {
  try {
    console.log(JSON.stringify(await what()));
  } catch (error) {
    failures++;
    console.error(error instanceof Error ? error.message : error);
  }
}

for (let seed = first; seed < first + lives; seed++) {
  await attempt(() => live(seed));
  const scene = scenes[Math.floor(seed / 2) % scenes.length];
  if (scene === undefined) throw new TypeError('there are scenes');
  const stage = new Stage(seed);
  for (let times = timesOfScene; times > 0; times--) {
    await attempt(async () => ({ seed, claim: scene.claim, result: await stage.play(scene) }));
  }
  await stage.close();
}
console.log(`${lives} lives from seed ${first}, ${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
