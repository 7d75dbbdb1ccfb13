/** Scenes in which a side is killed with -9 during a resync beside the last checkpoint (pair.md 11, 16). */
import assert from 'node:assert/strict';
import type { SideName } from './history.ts';
import type { OverlayScene } from './overlay-scene.ts';
import { checkExactly, copyState, type GroupState, stateOf } from './overlay-truth.ts';

/**
 * The secondary returns after an absence, the primary's user writing all the time, and whoever is picked is killed
 * while the resync is under way. The state that was found before the resync is then the last checkpoint, or what the
 * resync's end made one.
 */
export async function killedInResync(
  scene: OverlayScene,
  fillBytes: number,
): Promise<{ lost: string; mixture: boolean; wentBack: number }> {
  const { pair, random, truth } = scene;
  const user = await scene.user();
  user.begin();
  await scene.pass(100);
  const known = await scene.knownCheckpoint(user);
  user.begin();
  await scene.pass(100);
  const { primary, secondary } = scene;
  pair.kill(secondary);
  await user.rest();
  const [promised, mayHave] = [copyState(truth.promised), truth.snapshot()];
  await user.fill(fillBytes);
  user.begin();
  await pair.start(secondary);
  const syncing = await scene.phase(secondary, 'syncing', 'following');
  // What stood there when it came back, while that is being changed below.
  let shown: GroupState | null = null;
  if (random.chance(0.7)) {
    await scene.phase(primary, 'copying', 'settling', 'closing', 'in-step');
    shown = await scene.view(secondary);
  }
  // Mostly there is something to go back from.
  if (random.chance(0.8)) await changedBelow(scene, secondary);
  await scene.pass(random.pick([5, 50, 200]));
  const lost = random.pick(['primary', 'secondary', 'both'] as const);
  if (lost !== 'secondary') pair.kill(primary);
  if (lost !== 'primary') pair.kill(secondary);
  // One that lives on may be about to note it.
  if (lost === 'primary') await scene.phase(secondary, 'detached');
  const mixture = scene.record(secondary).store === 'resync';
  const below = lost === 'primary' ? null : scene.images(secondary);
  if (lost !== 'primary') {
    await pair.start(primary);
    // Without the other side it does not know whether that one serves.
    const status = await scene.startCutOff(secondary);
    assert.equal(status.store, 'clean', 'it went back to the checkpoint, which is no mixture');
    if (mixture) assert.equal(scene.record(secondary).rolledBack, true);
  }
  pair.kill(primary);
  await user.leave().catch(() => undefined);
  const status = await scene.phase(secondary, 'detached');
  const view = await scene.view(secondary);
  // Not only what users are shown: the disk itself went back.
  if (mixture && below !== null) checkExactly(scene.images(secondary), view, 'the disk that went back');
  if (mixture) {
    if (shown !== null) checkExactly(view, shown, 'the view of a resync, before and after');
    // Every flush of the time in step, nothing of the time alone.
    truth.checkReaches(view, promised, 'the view of a resync');
    for (const [disk, versions] of view) {
      const beyond = versions.findIndex((version, block) => version > (mayHave.get(disk)?.[block] ?? 0));
      assert.equal(beyond, -1, `${disk}, block ${beyond} has what was written after the secondary was killed`);
    }
    assert.equal(status.checkpoint?.number, known.number + 1);
  }
  if (mixture && lost === 'primary') {
    assert.equal(status.store, 'resync');
    await assert.rejects(pair.ask(secondary, 'pair-failover', { to: 'latest' }), /mixture/);
    assert.equal((await scene.told(secondary)).store, 'resync', '`blockstep status --json`');
  }
  assert.ok(['syncing', 'following'].includes(syncing.phase));
  const to = mixture && lost === 'primary' ? 'checkpoint' : random.pick(['checkpoint', 'latest'] as const);
  await scene.failover(secondary, to);
  const found = await scene.served(secondary);
  // Killed before the resync had begun it still has the checkpoint of before.
  const notBegun = !mixture && status.checkpoint?.number === known.number;
  if (mixture) checkExactly(found, view, 'a failover after a resync that did not end');
  else if (notBegun && to === 'checkpoint') checkExactly(found, known.state, 'a failover before a resync');
  else truth.checkReaches(found, promised, 'a failover after a resync that had ended');
  truth.adopt(found);
  await scene.phase(secondary, 'alone');
  await scene.endsEqual();
  return { lost, mixture, wentBack: below === null ? 0 : differing(below, view) };
}

/** The resync has begun to change the disk of this side, or has ended. */
async function changedBelow(scene: OverlayScene, side: SideName): Promise<void> {
  await scene.pair.until('the resync keeps old content', async () => {
    const status = await scene.pair.status(side);
    if (status?.store !== 'resync') return status?.phase === 'following';
    return status.disks.some(({ hiddenBytes }) => hiddenBytes > 0);
  });
}

function differing(one: GroupState, other: GroupState): number {
  let blocks = 0;
  for (const [disk, versions] of one) {
    const theirs = stateOf(other, disk);
    blocks += versions.reduce((sum, version, block) => sum + (version === theirs[block] ? 0 : 1), 0);
  }
  return blocks;
}
