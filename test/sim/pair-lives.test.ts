/**
 * pair.md 1 to 16 by chance: random lives, each from a seed, for as long as the time given. `PAIR_SEED=n` lives one of
 * them, with all that the daemons say; `PAIR_LIVES_MS` changes the time.
 */
import { test } from 'node:test';
import { live } from './pair-lives.ts';

const onlySeed = process.env.PAIR_SEED;
const forMs = Number(process.env.PAIR_LIVES_MS ?? 30_000);
const firstSeed = Number(process.env.PAIR_FIRST_SEED ?? Date.now() % 1_000_000);

test('pair: no life of a pair loses a flushed write, and both sides are equal in the end', async (t) => {
  if (onlySeed !== undefined) {
    const result = await live(Number(onlySeed), { verbose: true });
    t.diagnostic(JSON.stringify(result));
    return;
  }
  const end = performance.now() + forMs;
  let seed = firstSeed;
  let [writes, flushes] = [0, 0];
  for (; performance.now() < end; seed++) {
    const result = await live(seed);
    writes += result.writes;
    flushes += result.flushes;
  }
  t.diagnostic(`seeds ${firstSeed} to ${seed - 1}: ${writes} writes, ${flushes} flushes`);
});
