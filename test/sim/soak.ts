/**
 * `node test/sim/soak.ts [LIVES] [FIRST-SEED] [KIND]`: thousands of random lives of a pair (pair-lives.ts). It prints
 * the seeds that failed; `PAIR_SEED=n node --test test/sim/pair-lives.test.ts` lives one again, aloud.
 */
import { type LifeKind, live } from './pair-lives.ts';

const lives = Number(process.argv[2] ?? 5000);
const first = Number(process.argv[3] ?? Date.now() % 1_000_000_000);

const kind = process.argv[4] as LifeKind | undefined;

let [writes, flushes, failures] = [0, 0, 0];
const seen = { made: 0, viewed: 0, promotions: 0 };
const started = performance.now();
for (let seed = first; seed < first + lives; seed++) {
  try {
    const result = await live(seed, kind === undefined ? {} : { kind });
    for (const what of ['made', 'viewed', 'promotions'] as const) seen[what] += result.checkpoints[what];
    writes += result.writes;
    flushes += result.flushes;
  } catch (error) {
    failures++;
    console.error(error instanceof Error ? error.message : error);
  }
  const done = seed - first + 1;
  if (done % 100 === 0 || done === lives) {
    const seconds = Math.round((performance.now() - started) / 1000);
    console.log(
      `${done} lives from seed ${first}: ${writes} writes, ${flushes} flushes, ${seen.made} checkpoints, ` +
        `${seen.viewed} blocks of their views, ${seen.promotions} promotions, ${failures} failed, ${seconds} s`,
    );
  }
}
process.exitCode = failures === 0 ? 0 : 1;
