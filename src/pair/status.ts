/**
 * What `status` tells (pair.md 18): the state of the decisions and the engine's numbers, side by side.
 */
import type { HostClock, SocketAddress } from '../host/host.ts';
import type { PairStatus } from '../qmp/schema/pair.ts';
import type { QmpTarget } from '../qmp/target.ts';
import type { Space } from './checkpoint-clock.ts';
import { isWildcard, type PairConfig } from './config.ts';
import { diskUri } from './disks.ts';
import type { PairOverlays } from './overlays.ts';
import { type FailoverTo, type PairState, phases } from './pair-state.ts';
import type { SyncProgress } from './resync.ts';

/** A row of `query-replication`, as far as it is shown. */
interface FilterRow {
  readonly node: string;
  readonly error?: string | null;
  readonly 'window-bytes'?: number;
  readonly 'forwarded-bytes'?: number;
  readonly 'missing-bytes'?: number;
  readonly 'may-differ-bytes'?: number;
  readonly diverged?: readonly (readonly [number, number])[];
}

/** What the driver of a disk's image says of the device below it. */
interface DeviceInfo {
  /** `async`: its calls are slow and are made on threads */
  readonly io?: 'sync' | 'async';
  /** a sync failed: why nothing of it is believed until it is opened anew */
  readonly failed?: string;
  /** how long its oldest call has been under way */
  readonly 'stalled-ms'?: number;
}

export interface StatusParts {
  readonly state: PairState;
  readonly config: PairConfig;
  readonly engine: QmpTarget;
  readonly clock: HostClock;
  readonly users: readonly SocketAddress[];
  readonly overlays: PairOverlays;
  readonly space: Space | null;
  readonly progress: () => Promise<SyncProgress | null>;
}

/** ms that a status waits for the engine: a disk that hangs may hold it up (pair.md 18) */
const engineMsMax = 1000;
/** ms without an answer after which a device is named (pair.md 18) */
const stalledMsMin = 1000;

export async function pairStatus(parts: StatusParts): Promise<PairStatus> {
  const { state, config, engine, clock, users } = parts;
  const { record } = state;
  const checkpoint = checkpointOf(state, clock.wall());
  const [answered, progress, held] = await Promise.all([
    inTime(
      clock,
      Promise.all([
        filterRows(engine).catch(() => new Map<string, FilterRow>()),
        devices(engine).catch(() => new Map<string, DeviceInfo>()),
      ]),
    ),
    inTime(clock, parts.progress()),
    config.store === 'overlays' ? inTime(clock, parts.overlays.heldBytes()) : null,
  ]);
  const [rows, images] = answered ?? [new Map<string, FilterRow>(), new Map<string, DeviceInfo>()];
  const stalled = answered === null ? `the engine gives no answer within ${engineMsMax} ms: a disk may hang` : null;
  const inSync = isInSync(state);
  const store = storeOf(state);
  const disks = config.disks.map((disk) => {
    const row = rows.get(`${disk.name}-replication`);
    const image = images.get(`${disk.name}-file`);
    const stalledMs = image?.['stalled-ms'] ?? 0;
    return {
      name: disk.name,
      file: disk.file,
      size: disk.size,
      uri: uriOf(users, disk.name),
      role: record.role,
      generation: record.generation,
      connected: state.connected,
      inSync,
      forwardedBytes: row?.['forwarded-bytes'] ?? 0,
      lagBytes: (inSync ? row?.['window-bytes'] : row?.['may-differ-bytes']) ?? 0,
      missingBytes: row?.['missing-bytes'] ?? 0,
      checkpoint,
      hiddenBytes: held?.get(disk.name)?.hidden ?? 0,
      activeBytes: held?.get(disk.name)?.active ?? 0,
      aloneSince: record.aloneSince,
      store,
      io: image?.io ?? null,
      stalledMs,
      error: stalledMs >= stalledMsMin ? notAnswering(disk.file, stalledMs) : (image?.failed ?? row?.error ?? null),
      diverged: (row?.diverged ?? []).map(([offset, length]): [number, number] => [offset, length]),
    };
  });
  const failedDisk = config.disks.find(({ name }) => images.get(`${name}-file`)?.failed !== undefined);
  const sum = (of: (disk: (typeof disks)[number]) => number): number => disks.reduce((all, disk) => all + of(disk), 0);
  return {
    name: config.name,
    volume: config.volume,
    role: record.role,
    phase: state.phase,
    state: phases[state.phase],
    serving: state.serving,
    uri: disks[0]?.uri ?? '',
    uris: disks.map((disk) => disk.uri),
    connected: state.connected,
    inSync,
    generation: record.generation,
    forwardedBytes: sum((disk) => disk.forwardedBytes),
    lagBytes: sum((disk) => disk.lagBytes),
    checkpoint,
    held: heldOf(state, clock.wall()),
    space: record.role === 'secondary' && config.store === 'overlays' ? parts.space : null,
    aloneSince: record.role === 'primary' ? record.aloneSince : null,
    store,
    syncProgress: progress,
    splitBrain:
      record.splitBrain === null
        ? null
        : { sinceMs: record.splitBrain.sinceMs, reason: state.refusal ?? 'both sides went on by themselves' },
    latestAsOf: latestAsOf(state),
    peer: {
      name: config.peer.name,
      role: state.peer?.role ?? null,
      generation: state.peer?.generation ?? record.peer?.generation ?? null,
      uris: state.peer?.uris ?? [],
    },
    disks,
    notice: noticeOf(state) ?? disbelieved(state, failedDisk?.name),
    error: stalled ?? state.error,
  };
}

/** Both sides say it of themselves: the primary in step, the secondary that was told so. */
export function isInSync(state: PairState): boolean {
  return state.phase === 'in-step' || state.phase === 'following';
}

/** What a person should know, and what can be done about it. */
export function noticeOf(state: PairState): string | null {
  const { name, peer } = state.self;
  if (state.phase === 'no-role') {
    return (
      `the group file is missing or unreadable, but the disks hold data: \`resolve --keep ${name}\` adopts them; ` +
      `\`resolve --keep ${peer}\` gives them up${state.refusal === null ? '' : `; ${state.refusal}`}`
    );
  }
  if (state.refusal !== null && state.session === null) {
    const alone = state.phase === 'waiting' ? '; `start --alone` serves without it' : '';
    return `${state.refusal}${alone}`;
  }
  if (state.phase === 'following' && state.pending !== null && !state.forced) {
    return `waits for ${peer} to hand over; \`failover --force\` stops it, for a disk there that hangs`;
  }
  if (state.phase === 'waiting' || state.phase === 'joining')
    return `waits for ${peer}; \`start --alone\` serves without it`;
  if (state.phase === 'handing-over') {
    return `was handing over to ${peer} and waits for it; \`start --alone\` takes it back`;
  }
  const latest = latestAsOf(state)?.text ?? null;
  if (latest === null) return state.phase === 'detached' ? `waits for ${peer}` : null;
  const { checkpoint } = state.record;
  if (!state.self.lockStep || checkpoint === null) return latest;
  return `${latest}; \`failover\` goes back to checkpoint ${checkpoint.number}, \`--to latest\` does not`;
}

/** A disk that is not believed any more: users get errors, and nothing ends that by itself. */
function disbelieved({ phase, record, self }: PairState, failed: string | undefined): string | null {
  if (failed === undefined || record.role !== 'primary') return null;
  const other = phase === 'in-step' ? `\`failover\` on ${self.peer} serves all that was flushed; or ` : '';
  return `disk ${failed} has failed and is not believed any more: ${other}mend the device and start ${self.name} again`;
}

function latestAsOf(state: PairState): PairStatus['latestAsOf'] {
  const { latest, role, store } = state.record;
  if (role !== 'secondary' || latest === null || store !== 'clean') return null;
  const when = new Date(latest.asOfMs).toISOString();
  const text = latest.goodbye
    ? `latest as of ${when}, when the primary stopped: nothing is missing`
    : `latest as of ${when}; the primary may have gone on`;
  return { ms: latest.asOfMs, goodbye: latest.goodbye, text };
}

/** The last checkpoint: of this side, or of the other one as it told. */
function checkpointOf({ record, checkpoint }: PairState, wallMs: number): PairStatus['checkpoint'] {
  if (checkpoint === null || (record.role !== 'primary' && record.checkpoint === null)) return null;
  return { number: checkpoint.number, ageMs: Math.max(0, wallMs - checkpoint.atMs) };
}

/** The one that is held: of this side, or of the other one as it told. */
function heldOf({ held, heldThere }: PairState, wallMs: number): PairStatus['held'] {
  const one = held ?? heldThere;
  return one === null ? null : { ...one, forMs: Math.max(0, one.untilMs - wallMs) };
}

/** For messages of a failover: how far back the state goes that is served. `state`: before it. */
export function reach(state: PairState, to: FailoverTo, wallMs: number): string {
  if (to === 'latest') return latestAsOf(state)?.text ?? '';
  const checkpoint = checkpointOf(state, wallMs);
  if (checkpoint === null) return '';
  return `back at checkpoint ${checkpoint.number}, ${(checkpoint.ageMs / 1000).toFixed(1)} s old when it was ordered`;
}

function storeOf(state: PairState): PairStatus['store'] {
  return state.record.promoting === null ? state.record.store : 'promoting';
}

export function uriOf(users: readonly SocketAddress[], disk: string): string {
  const [first] = users;
  if (first === undefined) return '';
  const shown: SocketAddress = first.type === 'inet' && isWildcard(first) ? { ...first, host: 'localhost' } : first;
  return diskUri(shown, disk);
}

async function filterRows(engine: QmpTarget): Promise<Map<string, FilterRow>> {
  const rows = (await engine.execute('query-replication')) as FilterRow[];
  return new Map(rows.map((row) => [row.node, row]));
}

async function devices(engine: QmpTarget): Promise<Map<string, DeviceInfo>> {
  const nodes = (await engine.execute('query-named-block-nodes')) as { 'node-name': string; info?: DeviceInfo }[];
  return new Map(nodes.map((node) => [node['node-name'], node.info ?? {}]));
}

function notAnswering(file: string, ms: number): string {
  return `the device of ${file} has not answered for ${Math.round(ms / 1000)} s`;
}

/** The answer, or null if the engine gives none in time: a status is told all the same. */
function inTime<T>(clock: HostClock, question: Promise<T>): Promise<T | null> {
  return new Promise((resolve) => {
    const timer = clock.after(engineMsMax, () => resolve(null));
    const end = (answer: T | null): void => {
      timer.cancel();
      resolve(answer);
    };
    question.then(end, () => end(null));
  });
}
