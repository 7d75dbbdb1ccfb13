/** Scenes in which a side of a pair with overlays is killed with -9 (record-log.md 8 to 10, pair.md 11, 14, 16, 17). */
import assert from 'node:assert/strict';
import type { PairStatus } from '../../src/qmp/schema/pair.ts';
import type { SideName } from './history.ts';
import type { KnownCheckpoint, OverlayScene } from './overlay-scene.ts';
import { checkExactly, copyState, type GroupState, sameState } from './overlay-truth.ts';
import type { OverlayUser } from './overlay-user.ts';

/** The last known checkpoint is what the secondary shows, and `checkpoint` of its status says so. */
async function showsExactly(scene: OverlayScene, status: PairStatus, known: KnownCheckpoint): Promise<void> {
  assert.equal(status.store, 'clean');
  assert.equal(status.checkpoint?.number, known.number);
  checkExactly(await scene.view(), known.state, `the view of checkpoint ${known.number} after a restart`);
}

/** The secondary becomes primary while the old one is dead; what it then serves goes on. */
async function goesOn(
  scene: OverlayScene,
  checkpoint: GroupState,
  latestAtLeast: GroupState,
): Promise<'latest' | 'checkpoint'> {
  const to = scene.random.pick(['latest', 'checkpoint'] as const);
  const promoted = scene.secondary;
  await scene.failover(promoted, to);
  const found = await scene.served(promoted);
  if (to === 'checkpoint') checkExactly(found, checkpoint, 'failover --to checkpoint');
  else scene.truth.checkReaches(found, latestAtLeast, 'failover --to latest');
  scene.truth.adopt(found);
  const user = await scene.user(promoted);
  user.begin();
  await scene.pass(200);
  await user.rest();
  await user.flush();
  await user.leave();
  await scene.phase(promoted, 'alone');
  return to;
}

/** A user writes beyond a checkpoint that is known. */
async function beyondCheckpoint(scene: OverlayScene): Promise<{ user: OverlayUser; known: KnownCheckpoint }> {
  const user = await scene.user();
  user.begin();
  await scene.pass(150);
  const known = await scene.knownCheckpoint(user);
  user.begin();
  return { user, known };
}

/** Mid-write; sometimes both die; then either the secondary goes on alone, or it gets its resync. */
export async function killedInMidWrite(scene: OverlayScene): Promise<void> {
  const { pair, random, truth } = scene;
  const { user, known } = await beyondCheckpoint(scene);
  await scene.pass(300);
  const both = random.chance(0.4);
  const { primary, secondary } = scene;
  const order = random.chance(0.5) ? [primary, secondary] : [secondary, primary];
  if (both) for (const side of order) pair.kill(side);
  else pair.kill(secondary);
  if (!both) await scene.pass(100);
  const status = await scene.startCutOff(secondary);
  await showsExactly(scene, status, known);
  if (both || random.chance(0.6)) {
    pair.kill(primary);
    await user.leave().catch(() => undefined);
    await goesOn(scene, known.state, copyState(truth.promised));
  } else {
    await user.rest();
    await user.leave();
  }
  await scene.endsEqual();
}

/** Mid-checkpoint: a command is under way. The view is the old one or the new one, and the status says which. */
export async function killedInMidCheckpoint(scene: OverlayScene): Promise<void> {
  const { pair, random, truth } = scene;
  const { user, known } = await beyondCheckpoint(scene);
  await scene.pass(60);
  const quiet = random.chance(0.5);
  if (quiet) await user.rest();
  const { secondary, primary } = scene;
  const atOrder = truth.snapshot();
  const ordered = scene.order(atOrder).then(
    ({ number }) => number,
    () => null,
  );
  await scene.pass(random.pick([1, 4, 15]));
  pair.kill(secondary);
  const told = await ordered;
  const status = await scene.startCutOff(secondary);
  const number = status.checkpoint?.number ?? assert.fail('no checkpoint');
  if (told !== null) assert.equal(number, told, 'a checkpoint that was told of is there');
  const view = await scene.view(secondary);
  if (number === known.number) checkExactly(view, known.state, 'the view of the checkpoint before');
  else if (quiet) checkExactly(view, atOrder, 'the view of the new checkpoint');
  else truth.checkReaches(view, atOrder, 'the view of the new checkpoint');
  assert.ok([known.number, known.number + 1].includes(number));
  pair.kill(primary);
  await user.leave().catch(() => undefined);
  await goesOn(scene, view, copyState(truth.promised));
  await scene.endsEqual();
}

/** The clock makes them: what is shown is a consistent state that is not older than the last one that was known. */
export async function killedUnderTheClock(scene: OverlayScene): Promise<void> {
  const { pair, truth } = scene;
  const user = await scene.user();
  user.begin();
  await scene.pass(100);
  await user.rest();
  const known = await scene.order(truth.snapshot());
  user.begin();
  await scene.pass(400);
  const { secondary, primary } = scene;
  pair.kill(secondary);
  const status = await scene.startCutOff(secondary);
  assert.ok((status.checkpoint?.number ?? 0) >= known.number);
  const view = await scene.view(secondary);
  truth.checkReaches(view, known.state, `the view of checkpoint ${status.checkpoint?.number}`);
  assert.ok(sameState(view, await scene.view(secondary)), 'the view does not change');
  pair.kill(primary);
  await user.leave().catch(() => undefined);
  await goesOn(scene, view, copyState(truth.promised));
  await scene.endsEqual();
}

/** Killed at whatever moment of an order to go back: it is not begun, or finished by the next start. */
async function killedWhileOrdered(scene: OverlayScene, promoted: SideName): Promise<void> {
  const { pair, random } = scene;
  const ordered = pair.ask(promoted, 'pair-failover', { to: 'checkpoint' }).catch(() => undefined);
  await scene.pass(random.pick([10, 50, 300]));
  pair.kill(promoted);
  await ordered;
  await pair.start(promoted);
  scene.primary = promoted;
}

/** Mid-commit of a failover to the checkpoint, again and again, while users write. */
export async function killedInMidCommit(scene: OverlayScene, fillBytes: number): Promise<{ repeated: number }> {
  const { pair, random, truth } = scene;
  const first = await scene.user();
  first.begin();
  await scene.pass(100);
  const known = await scene.knownCheckpoint(first);
  await first.fill(fillBytes);
  await first.leave();
  const promoted = scene.secondary;
  const [held] = (await scene.status(promoted)).disks;
  assert.ok((held?.hiddenBytes ?? 0) >= fillBytes / 2, `hidden holds ${held?.hiddenBytes} bytes`);
  pair.kill(scene.primary);
  await scene.phase(promoted, 'detached');
  truth.adopt(known.state);
  if (random.chance(0.5)) await killedWhileOrdered(scene, promoted);
  let repeated = 0;
  for (let times = 1 + random.below(3); times >= 0; times--) {
    if ((await scene.status(promoted)).role === 'secondary') await scene.failover(promoted, 'checkpoint');
    await scene.servesAlone(promoted);
    const user = await scene.user(promoted);
    user.begin();
    await scene.pass(random.pick([1, 20, 80]));
    if (times === 0) {
      await user.rest();
      await user.leave();
      break;
    }
    if (scene.record(promoted).promoting !== null) repeated++;
    pair.kill(promoted);
    const answered = truth.snapshot();
    await user.leave().catch(() => undefined);
    await pair.start(promoted);
    await scene.servesAlone(promoted);
    const found = await scene.served(promoted);
    truth.checkReaches(found, answered, 'after a promotion that was killed');
    truth.adopt(found);
  }
  await scene.phase(promoted, 'alone');
  assert.equal(scene.record(promoted).promoting, null);
  checkExactly(await scene.served(promoted), truth.current, 'after the promotion');
  await scene.endsEqual();
  return { repeated };
}
