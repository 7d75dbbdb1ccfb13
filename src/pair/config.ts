/**
 * What one daemon of a pair is told: its name, its disks, where it listens and where the other side is.
 * The command line reads it from YAML; here are the type, the defaults, and the rules that no single field shows.
 */
import type { SocketAddress } from '../host/host.ts';
import { bitmapBitsMax } from '../util/bitmap.ts';
import { BlockError } from '../util/errors.ts';

export type Role = 'primary' | 'secondary';

export interface DiskConfig {
  /** a node name of QMP: a letter, then letters, digits, `-`, `.`, `_` */
  readonly name: string;
  /** path of the image */
  readonly file: string;
  /** bytes */
  readonly size: number;
}

export interface PairConfig {
  /** what people and the other side call this side */
  readonly name: string;
  /** what is replicated; both sides say the same */
  readonly volume: string;
  /** what this side begins as when there is nothing yet; afterwards the group file decides */
  readonly role: Role;
  /** holds the group file and the saved bitmaps */
  readonly dataFolder: string;
  readonly disks: readonly DiskConfig[];
  readonly listen: {
    readonly supervisor: SocketAddress;
    readonly replication: SocketAddress;
    readonly nbd: readonly SocketAddress[];
  };
  readonly peer: { readonly name: string; readonly supervisor: SocketAddress };
  /** where the other side reaches us, if `listen` is a wildcard */
  readonly advertise?: { readonly replication?: SocketAddress };
  /** `overlays`: the secondary keeps checkpoints; `mirror`: the plain disk, only the latest write */
  readonly store: 'mirror' | 'overlays';
  /** `lock-step`: a machine's state is checkpointed together with its disks, on both sides (COLO) */
  readonly mode: 'standby' | 'lock-step';
  /** `local` exactly in lock-step */
  readonly acknowledge: 'remote' | 'flush' | 'local';
  /** ms between two checkpoints; null: only on command */
  readonly checkpointMs: number | null;
  readonly overlays: {
    /** where the overlays are kept, a file for each disk and kind */
    readonly folder: string;
    /** false: a checkpoint does not outlive the loss of power (for tmpfs and tests); the latest write always does */
    readonly sync: boolean;
  };
  /** what becomes of the last checkpoint when a resync does not fit beside it */
  readonly resync: 'give-up-checkpoint' | 'keep-checkpoint';
  /** `stop`: writes and flushes fail until both are in sync */
  readonly degraded: 'continue' | 'stop';
  readonly stallMsMax: number;
  readonly heartbeatMs: number;
  readonly peerTimeoutMs: number;
  /** bytes of the forwarding window of a disk */
  readonly windowBytes: number;
  /** the side whose data may be overwritten though it has no common history with ours */
  readonly overwrite: string | null;
  /** replication and supervisor may listen on other addresses than loopback (pair.md 19) */
  readonly insecure?: boolean;
}

export const pairDefaults = {
  store: 'overlays',
  mode: 'standby',
  acknowledge: 'flush',
  checkpointMs: 1000,
  resync: 'give-up-checkpoint',
  degraded: 'continue',
  stallMsMax: 2000,
  heartbeatMs: 500,
  peerTimeoutMs: 2500,
  windowBytes: 16 * 2 ** 20,
  overwrite: null,
} as const;

/** Disks of a group: their names and sizes stand in one block of the group file. */
export const disksMax = 64;
const diskNamePattern = /^[A-Za-z][A-Za-z0-9._-]{0,18}$/;

/** What is told apart in blocks of 4 KiB, for checkpoints and their commit. */
const diskBytesMax = bitmapBitsMax * 4096;

/** @throws BlockError invalid-option, naming the field */
export function checkPairConfig(config: PairConfig): void {
  const refuse = (field: string, why: string): never => {
    throw new BlockError('invalid-option', `${field}: ${why}`);
  };
  if (config.name === config.peer.name) refuse('peer.name', `both sides are called "${config.name}"`);
  if (config.disks.length === 0) refuse('disks', 'expected at least one disk');
  if (config.disks.length > disksMax) refuse('disks', `at most ${disksMax} disks make a group`);
  const names = new Set<string>();
  for (const [index, disk] of config.disks.entries()) {
    if (!diskNamePattern.test(disk.name)) refuse(`disks.${index}.name`, `"${disk.name}" cannot be a disk's name`);
    if (names.has(disk.name)) refuse(`disks.${index}.name`, `"${disk.name}" is there twice`);
    names.add(disk.name);
    if (!Number.isSafeInteger(disk.size) || disk.size <= 0) refuse(`disks.${index}.size`, 'expected bytes above 0');
    if (disk.size > diskBytesMax)
      refuse(`disks.${index}.size`, `at most ${diskBytesMax / 2 ** 40} TiB; make two of it`);
  }
  const lockStep = config.mode === 'lock-step';
  if (lockStep && config.store !== 'overlays')
    refuse('mode', 'lock-step needs `store: overlays`: a mirror has no checkpoints');
  if (lockStep !== (config.acknowledge === 'local')) {
    refuse('acknowledge', lockStep ? 'is `local` in lock-step' : '`local` is for `mode: lock-step` only');
  }
  if (config.insecure === true) return;
  for (const field of ['supervisor', 'replication'] as const) {
    const address = config.listen[field];
    if (!isLoopback(address))
      refuse(`listen.${field}`, 'not a loopback address, and there is no TLS: say `insecure` to allow it (pair.md 19)');
  }
}

export function isLoopback(address: SocketAddress): boolean {
  if (address.type === 'unix') return true;
  return address.host === 'localhost' || address.host === '::1' || address.host.startsWith('127.');
}

/** Addresses that mean "every interface": nobody can be told to connect there. */
export function isWildcard(address: SocketAddress): boolean {
  return address.type === 'inet' && (address.host === '0.0.0.0' || address.host === '::' || address.host === '');
}
