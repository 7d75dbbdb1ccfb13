/**
 * Scenes of a pair in lock-step: each side has a user of its own. The secondary's reads the last checkpoint and what it
 * wrote beside it since; a checkpoint makes both see the primary's state; whoever is lost, what goes on is one state of
 * a machine (replication-filter.md, record-log.md 9, pair.md 17 and 21).
 */
import assert from 'node:assert/strict';
import type { OverlayScene } from './overlay-scene.ts';
import { checkExactly, type GroupTruth } from './overlay-truth.ts';
import { OverlayUser, type Using } from './overlay-user.ts';

/** What the secondary's user must read. Its versions are not the primary's: each state tells who wrote it. */
function besideCheckpoint(scene: OverlayScene): Using & { readonly truth: GroupTruth } {
  const { pair, random, truth } = scene;
  return { pair, random, truth: truth.beside(), isOnBoth: () => false };
}

/** Checkpoints between two writers; then one of them is killed. */
export async function lockStep(scene: OverlayScene): Promise<{ lost: string; rounds: number }> {
  const { pair, random, truth } = scene;
  const user = await scene.user();
  const rounds = 1 + random.below(3);
  const { primary, secondary } = scene;
  let known = await scene.order(truth.snapshot());
  let beside = besideCheckpoint(scene);
  let other = await OverlayUser.connect(beside, secondary);
  for (let round = 0; round < rounds; round++) {
    user.begin();
    other.begin();
    await scene.pass(200);
    await other.rest();
    checkExactly(await other.state(), beside.truth.current, 'what the secondary’s user reads beside the checkpoint');
    await user.rest();
    checkExactly(await user.state(), truth.current, 'what the primary’s user reads');
    if (random.chance(0.3)) user.begin();
    const before = truth.snapshot();
    known = await scene.order(before);
    await user.rest();
    const view = await other.state();
    truth.checkReaches(view, before, 'a checkpoint in lock-step');
    known = { number: known.number, state: view };
    await other.leave();
    beside = besideCheckpoint(scene);
    beside.truth.adopt(view);
    other = await OverlayUser.connect(beside, secondary);
  }
  user.begin();
  other.begin();
  await scene.pass(200);
  const lost = random.pick(['primary', 'secondary', 'both'] as const);
  if (lost !== 'secondary') pair.kill(primary);
  if (lost !== 'primary') pair.kill(secondary);
  if (lost === 'primary') {
    // Its machine runs on: it had the checkpoint, and what it wrote itself.
    await scene.phase(secondary, 'detached');
    await other.rest();
    const wanted = beside.truth.snapshot();
    await other.leave();
    await user.leave().catch(() => undefined);
    await scene.failover(secondary, 'checkpoint');
    checkExactly(await scene.served(secondary), wanted, 'the secondary goes on where its own user is');
    truth.adopt(wanted);
  } else {
    await other.leave().catch(() => undefined);
    const status = await scene.startCutOff(secondary);
    assert.equal(status.store, 'clean');
    assert.equal(status.checkpoint?.number, known.number);
    checkExactly(await scene.view(secondary), known.state, 'a restart in lock-step goes back to the checkpoint');
    if (lost === 'secondary' && random.chance(0.5)) {
      await user.rest();
      await user.leave();
      await scene.endsEqual();
      return { lost, rounds };
    }
    pair.kill(primary);
    await user.leave().catch(() => undefined);
    await scene.failover(secondary, random.pick(['checkpoint', 'latest'] as const));
    checkExactly(await scene.served(secondary), known.state, 'a failover after a restart in lock-step');
    truth.adopt(known.state);
  }
  await scene.phase(secondary, 'alone');
  const next = await scene.user(secondary);
  next.begin();
  await scene.pass(150);
  await next.rest();
  await next.leave();
  await scene.endsEqual();
  return { lost, rounds };
}

/** The resync of a restarted secondary does not reach its end: its last checkpoint is the one from before. */
export async function lockStepResync(scene: OverlayScene, fillBytes: number): Promise<{ mixture: boolean }> {
  const { pair, random, truth } = scene;
  const user = await scene.user();
  user.begin();
  await scene.pass(100);
  const known = await scene.knownCheckpoint(user);
  const { primary, secondary } = scene;
  pair.kill(secondary);
  await user.fill(fillBytes);
  user.begin();
  await pair.start(secondary);
  await scene.phase(secondary, 'syncing', 'following');
  await scene.pass(random.pick([5, 50, 200]));
  if (random.chance(0.5)) pair.kill(primary);
  pair.kill(secondary);
  const { store, checkpoint } = scene.record(secondary);
  const mixture = store === 'resync';
  const status = await scene.startCutOff(secondary);
  assert.equal(status.store, 'clean');
  assert.equal(status.checkpoint?.number, checkpoint?.number);
  const view = await scene.view(secondary);
  if (mixture) checkExactly(view, known.state, 'a resync in lock-step that did not end');
  else truth.checkReaches(view, known.state, 'a resync in lock-step that ended');
  pair.kill(primary);
  await user.leave().catch(() => undefined);
  await scene.failover(secondary, random.pick(['checkpoint', 'latest'] as const));
  checkExactly(await scene.served(secondary), view, 'a failover after a resync in lock-step');
  truth.adopt(view);
  await scene.phase(secondary, 'alone');
  await scene.endsEqual();
  return { mixture };
}
