/**
 * pair.md 1 to 16 on real processes that are killed: random lives, each from a seed, for as long as the time given.
 * `REAL_SEED=n` lives one of them aloud; `REAL_LIVES_MS` changes the time; `npm run soak:real` goes on for long.
 */
import { test } from 'node:test';
import { requireTools } from '../support/tools.ts';
import { live } from './real-lives.ts';

requireTools('nbdcopy');

const onlySeed = process.env.REAL_SEED;
const forMs = Number(process.env.REAL_LIVES_MS ?? 40_000);
const firstSeed = Number(process.env.REAL_FIRST_SEED ?? Date.now() % 1_000_000);

test('pair 1 to 16: no kill -9 loses a flushed write, and both sides are equal in the end', async (t) => {
  if (onlySeed !== undefined) {
    t.diagnostic(JSON.stringify(await live(Number(onlySeed), { verbose: true })));
    return;
  }
  const end = performance.now() + forMs;
  for (let seed = firstSeed; performance.now() < end; seed++) t.diagnostic(JSON.stringify(await live(seed)));
});
