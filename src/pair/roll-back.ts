/**
 * Going back, of one disk: what hidden keeps goes into the disk, durably, by a commit job. Hidden has it still, so that
 * it can be repeated.
 */
import type { QmpTarget } from '../qmp/target.ts';
import { BlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';

export async function rollBackDisk(engine: QmpTarget, name: string): Promise<void> {
  const id = `roll-back-${name}`;
  const ended = deferred();
  ended.promise.catch(() => undefined);
  const unsubscribe = engine.subscribe(({ event, data }) => {
    if (data.device !== id) return;
    if (event === 'BLOCK_JOB_READY') engine.execute('job-complete', { id }).catch(ended.reject);
    if (event === 'BLOCK_JOB_CANCELLED') ended.reject(new BlockError('cancelled', `${id} was cancelled`));
    if (event !== 'BLOCK_JOB_COMPLETED') return;
    if (typeof data.error === 'string') ended.reject(new BlockError('io-error', `disk ${name}: ${data.error}`));
    else ended.resolve();
  });
  try {
    const nodes = { device: `${name}-hidden`, 'base-node': `${name}-local` };
    await engine.execute('block-commit', { 'job-id': id, ...nodes });
    await ended.promise;
  } finally {
    unsubscribe();
  }
}
