/**
 * What a start makes of the overlays that it finds (record-log.md 8, 9): nothing is rolled back by itself unless the
 * disk is a mixture, or belongs to no state of a machine; a checkpoint that is lost is never passed off as one.
 */
import type { PairConfig } from './config.ts';
import type { PairDisks } from './disks.ts';
import type { GroupFile, GroupRecord } from './generation.ts';

/**
 * - `keep`: the overlays lead back to the last checkpoint; both it and the latest write are offered
 * - `roll-back`: the disks become the last checkpoint
 * - `give-up`: there is none that can be told
 * - `none`: there is nothing to look at
 */
export type Restart = 'keep' | 'roll-back' | 'give-up' | 'none';

type Mode = Pick<PairConfig, 'mode'>;

export function restartOf(record: GroupRecord, config: Pick<PairConfig, 'store'> & Mode): Restart {
  if (record.role === 'primary') return record.promoting === 'checkpoint' ? 'keep' : 'none';
  if (record.checkpoint === null) return record.store === 'resync' ? 'give-up' : 'none';
  // What is a mirror from now on has no overlays that anybody would look after.
  if (config.store === 'mirror') return 'give-up';
  if (record.store === 'resync') return 'roll-back';
  return receivedInLockStep(record, config) && record.store === 'clean' ? 'roll-back' : 'keep';
}

/** What counts is how the disk got what it holds, not how it will be used from now on. */
function receivedInLockStep({ lockStep }: GroupRecord, { mode }: Mode): boolean {
  return lockStep ?? mode === 'lock-step';
}

/** The record without its checkpoint: the latest write stays, if the disk is not a mixture without the overlays. */
export function givenUp(record: GroupRecord, config: Mode): Partial<GroupRecord> {
  const without = { checkpoint: null, epoch: record.epoch + 1, rolledBack: false };
  if (record.promoting === 'checkpoint') {
    // The way back had begun: neither state is there any more, and the new generation stands for nothing.
    return { ...without, role: 'secondary', promoting: null, store: 'incomplete', generation: null, ancestors: [] };
  }
  const mixture = record.store === 'resync' || (receivedInLockStep(record, config) && record.store === 'clean');
  return mixture ? { ...without, store: 'incomplete' } : without;
}

/** @returns the record as it is durable afterwards */
export async function settleOverlays(
  disks: PairDisks,
  config: PairConfig,
  group: GroupFile,
  record: GroupRecord,
  warn: (message: string) => void,
): Promise<GroupRecord> {
  const { overlays } = disks;
  const commit = async (change: Partial<GroupRecord>): Promise<GroupRecord> => {
    const next = { ...record, ...change };
    await group.commit(next);
    return next;
  };
  const giveUp = async (why: string): Promise<GroupRecord> => {
    warn(`the last checkpoint is lost: ${why}`);
    const next = await commit(givenUp(record, config));
    await overlays.close();
    await overlays.remove();
    return next;
  };
  /**
   * From now on it is in lock-step: a failover and the next start go to the checkpoint. What a standby holds is
   * consistent, and has every flushed write: that is the one.
   */
  const checkpointFound = async (): Promise<GroupRecord> => {
    await disks.flushOwn();
    const number = record.checkpoints + 1;
    const atMs = record.latest?.asOfMs ?? record.inStepMs ?? record.checkpoint?.atMs ?? 0;
    const change = { checkpoint: { number, atMs }, checkpoints: number, lockStep: true };
    const next = await commit({ ...change, epoch: record.epoch + 1 });
    warn(`is in lock-step from now on: what was found is checkpoint ${number}`);
    await overlays.close();
    await overlays.open(next.epoch, true);
    return next;
  };
  switch (restartOf(record, config)) {
    case 'none':
      return record;
    case 'give-up':
      return giveUp('the store is a mirror now');
    case 'keep': {
      // What a view's user wrote beside the checkpoint died with that user; a promotion to the checkpoint serves it.
      if (record.role === 'secondary') await overlays.dropActive();
      const lost = await overlays.open(record.epoch, true);
      if (lost !== null) return giveUp(lost);
      const wasStandby = record.role === 'secondary' && record.lockStep === false;
      return config.mode === 'lock-step' && wasStandby && !record.rolledBack ? checkpointFound() : record;
    }
    case 'roll-back': {
      const lost = await overlays.rollBack(record.epoch);
      if (lost !== null) return giveUp(lost);
      const { checkpoint } = record;
      warn(`went back to checkpoint ${checkpoint?.number}: ${rolledBackWhy(record)}`);
      const latest = checkpoint === null ? null : { asOfMs: checkpoint.atMs, goodbye: false };
      const next = await commit({ store: 'clean', rolledBack: true, epoch: record.epoch + 1, latest });
      await overlays.open(next.epoch, true);
      return next;
    }
  }
}

function rolledBackWhy({ store }: GroupRecord): string {
  return store === 'resync' ? 'a resync had not ended' : 'in lock-step later writes belong to no state of a machine';
}
