/** Scenes in which a side is asked to end, by a signal, while much is under way. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { folderIsHeld } from '../../src/cli/data-folder.ts';
import type { SideName } from './history.ts';
import type { OverlayScene } from './overlay-scene.ts';
import { checkExactly, copyState } from './overlay-truth.ts';

/** It ends with code 0, by itself; no socket and no lock is left. */
async function ends(scene: OverlayScene, side: SideName): Promise<void> {
  const { pair, random } = scene;
  await pair.stop(side, random.pick(['SIGINT', 'SIGTERM'] as const));
  const folder = join(pair.data, side);
  const sockets = readdirSync(folder).filter((name) => name.endsWith('.sock'));
  assert.deepEqual(sockets, [], `${side} left sockets behind`);
  assert.ok(existsSync(join(folder, 'group')));
  assert.equal(await folderIsHeld(pair.host, folder), false, `${side} left its lock behind`);
}

/** Checkpoints are ordered one after the other until one is refused. */
async function orderOnAndOn(scene: OverlayScene): Promise<number> {
  for (let made = 0; ; made++) {
    const number = await scene.order(scene.truth.snapshot()).catch(() => null);
    if (number === null) return made;
  }
}

/** While writes and checkpoints are under way. */
export async function closedInStep(scene: OverlayScene): Promise<{ ended: string }> {
  const { random, truth } = scene;
  const user = await scene.user();
  user.begin();
  await scene.pass(100);
  const known = await scene.knownCheckpoint(user);
  user.begin();
  const ordering = orderOnAndOn(scene);
  await scene.pass(300);
  const { primary, secondary } = scene;
  const ended = random.pick(['primary', 'secondary'] as const);
  await ends(scene, ended === 'primary' ? primary : secondary);
  await ordering;
  if (ended === 'secondary') {
    await user.rest();
    const status = await scene.startCutOff(secondary);
    assert.equal(status.store, 'clean');
    assert.ok((status.checkpoint?.number ?? 0) >= known.number);
    truth.checkReaches(await scene.view(secondary), known.state, 'the view after a clean stop');
    await user.leave();
  } else {
    await user.leave().catch(() => undefined);
    const status = await scene.phase(secondary, 'detached');
    assert.equal(status.latestAsOf?.goodbye, true, 'nothing is missing');
    const found = await checkAgainstImages(scene, secondary);
    truth.adopt(found);
  }
  await scene.endsEqual();
  return { ended };
}

/** A primary that stopped cleanly has everything that was answered; so has the other side. */
async function checkAgainstImages(scene: OverlayScene, secondary: SideName): Promise<ReadonlyMap<string, Uint32Array>> {
  const { truth } = scene;
  const all = copyState(truth.current);
  const found = scene.images(secondary);
  truth.checkReaches(found, all, 'the disk of the secondary after a clean stop of the primary');
  checkExactly(scene.images(scene.primary), found, 'both disks after a clean stop of the primary');
  return found;
}

/** While the state of the checkpoint is on its way into the disks, and users write. */
export async function closedInCommit(scene: OverlayScene, fillBytes: number): Promise<{ unfinished: boolean }> {
  const { pair, random, truth } = scene;
  const first = await scene.user();
  first.begin();
  await scene.pass(100);
  const known = await scene.knownCheckpoint(first);
  await first.fill(fillBytes);
  await first.leave();
  const promoted = scene.secondary;
  pair.kill(scene.primary);
  await scene.phase(promoted, 'detached');
  await scene.failover(promoted, 'checkpoint');
  truth.adopt(known.state);
  const user = await scene.user(promoted);
  user.begin();
  await scene.pass(random.pick([1, 20, 80]));
  const unfinished = scene.record(promoted).promoting !== null;
  await ends(scene, promoted);
  const answered = truth.snapshot();
  await user.leave().catch(() => undefined);
  pair.cut('cut');
  await pair.start(promoted);
  await scene.phase(promoted, 'waiting', 'alone');
  assert.equal(scene.record(promoted).promoting, null);
  const found = scene.images(promoted);
  truth.checkReaches(found, answered, 'the disk after a stop in a promotion');
  truth.adopt(found);
  await scene.endsEqual();
  return { unfinished };
}

/** While what the secondary missed is on its way to it. */
export async function closedInResync(scene: OverlayScene, fillBytes: number): Promise<{ ended: string }> {
  const { pair, random, truth } = scene;
  const user = await scene.user();
  user.begin();
  await scene.pass(100);
  await scene.knownCheckpoint(user);
  const { primary, secondary } = scene;
  pair.kill(secondary);
  await user.fill(fillBytes);
  user.begin();
  await pair.start(secondary);
  await scene.phase(secondary, 'syncing', 'following');
  await scene.pass(random.pick([5, 50, 200]));
  const ended = random.pick(['primary', 'secondary'] as const);
  await ends(scene, ended === 'primary' ? primary : secondary);
  if (ended === 'primary') await user.leave().catch(() => undefined);
  else {
    await user.rest();
    await user.leave();
  }
  await scene.inStep();
  const found = await scene.served();
  truth.checkReaches(found, truth.current, 'served after a stop in a resync');
  truth.adopt(found);
  await scene.endsEqual();
  return { ended };
}
