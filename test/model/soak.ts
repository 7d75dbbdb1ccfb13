/**
 * `npm run soak:real [LIVES] [FIRST-SEED]`: random lives of real processes (real-lives.ts), one after the other. It
 * prints the story of each that fails; `REAL_SEED=n node --test test/model/real-lives.test.ts` tries that one again,
 * aloud.
 */
import { live } from './real-lives.ts';

const lives = Number(process.argv[2] ?? 100);
const first = Number(process.argv[3] ?? Date.now() % 1_000_000_000);

let failures = 0;
for (let seed = first; seed < first + lives; seed++) {
  try {
    console.log(JSON.stringify(await live(seed)));
  } catch (error) {
    failures++;
    console.error(error instanceof Error ? error.message : error);
  }
}
console.log(`${lives} lives from seed ${first}, ${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
