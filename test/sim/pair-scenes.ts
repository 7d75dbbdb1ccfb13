/** What the scenes of a pair begin with, and what they look at in the end. */
import { PairWorld, type PairWorldOptions, type SideName } from './pair-world.ts';

/** Two sides in step, alpha primary. */
export async function paired(seed: number, options: PairWorldOptions = {}): Promise<PairWorld> {
  const pair = new PairWorld(seed, options);
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  return pair;
}

/** Writes block 0 to 7 and flushes. */
export async function writeSome(pair: PairWorld, side: SideName, disk?: string): Promise<void> {
  const user = await pair.connect(side, disk);
  await pair.world.complete(user.verify());
  for (let block = 0; block < 8; block++) await pair.world.complete(user.write(block));
  await pair.world.complete(user.flush());
  await pair.world.complete(user.client.close());
}

export async function verify(pair: PairWorld, side: SideName): Promise<void> {
  for (const disk of pair.disks) {
    const user = await pair.connect(side, disk);
    await pair.world.complete(user.verify());
    await pair.world.complete(user.client.close());
  }
}

/** The primary is lost behind a checkpoint, and the way of beta back to it has durably begun. */
export async function wayBackBegun(pair: PairWorld): Promise<void> {
  await writeSome(pair, 'alpha');
  await pair.command('alpha', 'pair-checkpoint');
  await writeSome(pair, 'alpha');
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  const failover = pair.side('beta').daemon.execute('pair-failover', { to: 'checkpoint' });
  failover.catch(() => undefined);
  await pair.until(() => pair.side('beta').daemon.state.record.promoting !== null);
}
