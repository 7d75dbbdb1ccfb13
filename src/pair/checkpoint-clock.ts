/**
 * When checkpoints are made (pair.md 20): by the clock, early where the store has little space left, and on command;
 * and when a hold of one is over.
 * At most one command is under way; those that come meanwhile share the next one, which holds what was answered before
 * any of them.
 */
import type { Host, HostTimer } from '../host/host.ts';
import type { PairConfig } from './config.ts';
import type { PairOverlays } from './overlays.ts';
import type { Held } from './pair-state.ts';

/** ms between two looks at the space that is left; where it is low, a fast disk fills it in less than that */
const spaceMs = 1000;
const lowSpaceMs = 100;
/** bytes below which it is low: a checkpoint is then made early, because it gives back what the overlays hold */
const lowBytes = 256 * 2 ** 20;

export interface CheckpointHandlers {
  /** The clock of a secondary that is in step; `early`: it has little space left. */
  due(early: boolean): void;
  /** Makes one on command, and holds it for so long; resolves with what is told. */
  ask(holdMs: number | null): Promise<string>;
  /** The time of a hold has passed. */
  holdOver(): void;
  isFollowing(): boolean;
  warn(message: string): void;
}

/** The space of the overlays, bytes. */
export interface Space {
  readonly freeBytes: number;
  /** if every block is written between two checkpoints, or in one resync */
  readonly wantedBytes: number;
  readonly warning: string | null;
}

export class CheckpointClock {
  /** as last seen; null: not looked yet, or the system does not say */
  space: Space | null = null;
  readonly #host: Host;
  readonly #config: PairConfig;
  readonly #overlays: PairOverlays;
  readonly #handlers: CheckpointHandlers;
  readonly #timers = new Set<HostTimer>();
  #running: Promise<string> | null = null;
  #next: Promise<string> | null = null;
  #hold: HostTimer | null = null;
  #stopped = false;

  constructor(host: Host, config: PairConfig, overlays: PairOverlays, handlers: CheckpointHandlers) {
    this.#host = host;
    this.#config = config;
    this.#overlays = overlays;
    this.#handlers = handlers;
    if (config.store !== 'overlays') return;
    const { checkpointMs } = config;
    if (checkpointMs !== null)
      this.#every(
        () => checkpointMs,
        () => Promise.resolve(this.#due(false)),
      );
    this.#every(
      () => ((this.space?.freeBytes ?? lowBytes) < lowBytes ? lowSpaceMs : spaceMs),
      () => this.#lookAtSpace(),
    );
    void this.#lookAtSpace().catch(() => undefined);
  }

  /** A checkpoint that has everything that was answered before this call. One that is to be held is nobody else's. */
  async ask(holdMs: number | null): Promise<string> {
    if (holdMs !== null) {
      for (let before = this.#before(); before !== null; before = this.#before()) await before.catch(() => undefined);
      return this.#run(holdMs);
    }
    if (this.#running === null) return this.#run(null);
    this.#next ??= this.#running
      .catch(() => undefined)
      .then(() => {
        this.#next = null;
        return this.#run(null);
      });
    return this.#next;
  }

  /** The time of a hold runs from now on; null: none does. */
  holdIs(held: Held | null): void {
    this.#hold?.cancel();
    const { clock } = this.#host;
    this.#hold = held === null ? null : clock.after(held.untilMs - clock.wall(), () => this.#handlers.holdOver());
  }

  stop(): void {
    this.#stopped = true;
    this.#hold?.cancel();
    for (const timer of this.#timers) timer.cancel();
    this.#timers.clear();
  }

  /** The last one that was asked for and is not made yet. */
  #before(): Promise<string> | null {
    return this.#next ?? this.#running;
  }

  #run(holdMs: number | null): Promise<string> {
    const running = this.#handlers.ask(holdMs);
    this.#running = running;
    const ended = (): void => {
      if (this.#running === running) this.#running = null;
    };
    running.then(ended, ended);
    return running;
  }

  #every(ms: () => number, what: () => Promise<void>): void {
    const tick = (): void => {
      const timer = this.#host.clock.after(ms(), () => {
        this.#timers.delete(timer);
        const again = (): void => {
          if (!this.#stopped) tick();
        };
        what().then(again, again);
      });
      this.#timers.add(timer);
    };
    tick();
  }

  #due(early: boolean): void {
    if (this.#handlers.isFollowing()) this.#handlers.due(early);
  }

  /** In lock-step whoever makes checkpoints has the memory that belongs to them, and a machine runs on the last one. */
  get #mayBeEarly(): boolean {
    return this.#config.mode !== 'lock-step' || this.#config.checkpointMs !== null;
  }

  async #lookAtSpace(): Promise<void> {
    const { overlays, disks, mode } = this.#config;
    const freeBytes = await this.#host.files.freeBytes(overlays.folder);
    if (freeBytes === null || this.#stopped) return;
    const held = [...(await this.#overlays.heldBytes()).values()];
    const heldBytes = held.reduce((sum, { hidden, active }) => sum + hidden + active, 0);
    const wantedBytes = disks.reduce((sum, { size }) => sum + size, 0) * (mode === 'lock-step' ? 2 : 1);
    const warning = spaceWarning(overlays.folder, freeBytes + heldBytes, wantedBytes);
    if (warning !== null && this.space?.warning == null) this.#handlers.warn(warning);
    this.space = { freeBytes, wantedBytes, warning };
    if (freeBytes < lowBytes && heldBytes > freeBytes / 2 && this.#mayBeEarly) this.#due(true);
  }
}

function spaceWarning(folder: string, availableBytes: number, wantedBytes: number): string | null {
  if (availableBytes >= wantedBytes) return null;
  const unit = wantedBytes >= 2 ** 30 ? 'GiB' : 'MiB';
  const shown = (bytes: number): string => `${(bytes / (unit === 'GiB' ? 2 ** 30 : 2 ** 20)).toFixed(2)} ${unit}`;
  return (
    `${folder}: ${shown(availableBytes)} for the overlays, which take up to ${shown(wantedBytes)} if everything is ` +
    'written between two checkpoints or in a resync: the checkpoint is given up where it does not fit'
  );
}
