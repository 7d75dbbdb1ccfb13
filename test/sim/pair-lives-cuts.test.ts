/**
 * The power is cut at every I/O of one run of a pair with checkpoints (pair-lives-cuts.ts): here at some of them, for
 * as long as the time given; `PAIR_CUTS=all` takes every one (hours), `PAIR_CUTS='{"seed":1,...}'` one, aloud.
 */
import { test } from 'node:test';
import { allCuts, type CutOptions, runWithCut } from './pair-lives-cuts.ts';

const asked = process.env.PAIR_CUTS;
const forMs = Number(process.env.PAIR_CUTS_MS ?? 12_000);

test('pair 14, 22, record log 8, 9: whichever I/O loses the power, a checkpoint is whole or was not made', async (t) => {
  if (asked?.startsWith('{')) {
    await runWithCut({ ...(JSON.parse(asked) as CutOptions), verbose: true });
    return;
  }
  const seed = Date.now() % 1_000_000;
  const end = performance.now() + forMs;
  const cuts = await allCuts(seed);
  let done = 0;
  // Steps without a common divisor reach every cut, and each stretch of the run early.
  const step = asked === 'all' ? 1 : 1 + 2 * Math.floor(cuts.length / 5);
  for (let at = 0; done < cuts.length && (asked === 'all' || performance.now() < end); at += step, done++) {
    const cut = cuts[at % cuts.length];
    if (cut !== undefined) await runWithCut(cut);
  }
  t.diagnostic(`seed ${seed}: ${done} of ${cuts.length} cuts`);
});
