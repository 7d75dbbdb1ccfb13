/**
 * Syncs of one file, shared by all who wait: a flush may join only a sync that has not begun, because one that runs may
 * have passed over its pages already. So at most one runs and one waits.
 *
 * A failure sticks: the system reports lost pages once, and the next sync would succeed without them.
 */
import { BlockError, toBlockError } from '../util/errors.ts';

export class SyncQueue {
  /** the failure of a sync, after which nothing that the file says is to be believed; null: none has failed */
  failed: BlockError | null = null;
  private readonly sync: () => Promise<void>;
  private running: Promise<void> | null = null;
  private waiting: Promise<void> | null = null;

  constructor(sync: () => Promise<void>) {
    this.sync = sync;
  }

  /** Ends when everything written before this call is durable. */
  run(): Promise<void> {
    if (this.waiting !== null) return this.waiting;
    if (this.running === null) return this.begin();
    this.waiting = this.beginAfter(this.running);
    return this.waiting;
  }

  private begin(): Promise<void> {
    const running = this.syncOnce();
    this.running = running;
    return running;
  }

  private async beginAfter(running: Promise<void>): Promise<void> {
    try {
      await running;
    } catch {
      // Its own callers are told; this one fails by `failed`.
    }
    this.waiting = null;
    await this.begin();
  }

  private async syncOnce(): Promise<void> {
    try {
      if (this.failed !== null) throw this.failed;
      await this.sync();
    } catch (error) {
      this.failed ??= distrust(toBlockError(error));
      throw this.failed;
    } finally {
      this.running = null;
    }
  }
}

/** What every request hears from then on: what happened, and what to do about it. */
function distrust(cause: BlockError): BlockError {
  const text = 'what was written since the last flush may be lost; EIO until it is opened anew (blockdev-reopen)';
  return new BlockError('io-error', `${cause.message}: ${text}`, { cause });
}
