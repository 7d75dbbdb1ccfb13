/**
 * Opens one side: group file, images, nodes, servers: all that stands before the first event. Every error is one line
 * that says which disk, file or field it is about; what had been opened is closed again.
 */
import type { Host, SocketAddress } from '../host/host.ts';
import type { QmpTarget } from '../qmp/target.ts';
import { BlockError } from '../util/errors.ts';
import { checkPairConfig, type PairConfig } from './config.ts';
import { PairDisks } from './disks.ts';
import { emptyRecord, GroupFile, type GroupRecord, type Proof } from './generation.ts';
import { createImages, inspectImages, settleImages } from './images.ts';
import { initialState, type PairState } from './pair-state.ts';
import { settleOverlays } from './restart.ts';
import { loadBitmaps } from './saved-bitmaps.ts';

export interface LogLine {
  readonly level: 'info' | 'warn' | 'error';
  readonly message: string;
  readonly [field: string]: unknown;
}

export interface OpenedSide {
  readonly group: GroupFile;
  readonly disks: PairDisks;
  readonly state: PairState;
  /** where users connect */
  readonly users: readonly SocketAddress[];
  readonly replication: SocketAddress;
}

export async function openSide(
  host: Host,
  engine: QmpTarget,
  config: PairConfig,
  log: (line: LogLine) => void,
): Promise<OpenedSide> {
  checkPairConfig(config);
  const group = await GroupFile.open(host, config.dataFolder);
  const disks = new PairDisks(host, engine, config);
  try {
    if (group.note !== null) log({ level: 'warn', message: group.note });
    const { record: found, blank } = await openRecord(host, config, group, disks, log);
    await disks.openDisks();
    const warn = (message: string): void => log({ level: 'warn', message });
    const record = await settleOverlays(disks, config, group, found, warn);
    const { users, replication } = await disks.startServers();
    const primary = record.role === 'primary';
    // What a promotion to the checkpoint serves stands on its overlays: it is built when it is finished.
    const built = primary && record.promoting !== 'checkpoint';
    if (built) await disks.buildPrimary();
    await disks.refuseUsers(primary ? 'is not served yet' : `is on ${config.name}, which is secondary`);
    if (record.role === 'secondary' && record.checkpoint !== null) await disks.overlays.show();
    const proof = built ? await loadProof(host, config, disks, record, log) : null;
    const self = {
      name: config.name,
      peer: config.peer.name,
      degraded: config.degraded,
      overlays: config.store === 'overlays',
      durable: config.store === 'overlays' && config.overlays.sync,
      lockStep: config.mode === 'lock-step',
      behindMs: config.mode === 'lock-step' ? config.stallMsMax : 0,
      keepCheckpoint: config.resync === 'keep-checkpoint',
    };
    const state = initialState({ self, record, sequence: group.sequence, proof, blank, built });
    return { group, disks, state, users, replication };
  } catch (error) {
    await disks.close(true);
    await group.close();
    throw error;
  }
}

/** What this side is: as its group file says; fresh where there is nothing; without a role beside data of nobody. */
async function openRecord(
  host: Host,
  config: PairConfig,
  group: GroupFile,
  disks: PairDisks,
  log: (line: LogLine) => void,
): Promise<{ record: GroupRecord; blank: boolean }> {
  const images = await inspectImages(host, config.disks);
  const sizes = Object.fromEntries(config.disks.map((disk) => [disk.name, disk.size]));
  const { found } = group;
  if (found.kind === 'read') {
    const { record } = found;
    const [gone] = images.missing;
    checkRecord(config, record);
    if (record.role !== config.role) {
      const said = `\`role: ${config.role}\` of the configuration counted at the first start only`;
      log({ level: 'info', message: `is ${record.role}: ${said}` });
    }
    // A fresh group whose images were not made yet when the power went.
    const untouched = record.generation === null && record.store === 'clean' && record.role !== 'none';
    if (gone !== undefined && !untouched) {
      throw new BlockError('file-not-found', `disk ${gone.name}: ${gone.file} is missing, but ${group.path} knows it`);
    }
    await createImages(host, images.missing);
    if (untouched) await settleImages(host, config.disks);
    return { record, blank: images.blank };
  }
  await createImages(host, images.missing);
  await settleImages(host, config.disks);
  // Overlays of a group that nothing is known of: their epochs would come again.
  if (config.store === 'overlays') await disks.overlays.setAside();
  const base = { volume: config.volume, name: config.name, disks: sizes };
  if (images.blank) {
    const record = emptyRecord({ ...base, role: config.role, store: 'clean' });
    await group.commit(record);
    return { record, blank: true };
  }
  const reason = found.kind === 'unreadable' ? found.reason : `${group.path} is missing`;
  log({ level: 'error', message: `${reason}, but the disks hold data: no role is taken` });
  return { record: emptyRecord({ ...base, role: 'none', store: 'incomplete' }), blank: false };
}

function checkRecord(config: PairConfig, record: GroupRecord): void {
  if (record.volume !== config.volume) {
    throw new BlockError('invalid-option', `volume: the data folder is of "${record.volume}", not "${config.volume}"`);
  }
  if (record.name !== config.name) {
    throw new BlockError('invalid-option', `name: the data folder is of "${record.name}", not "${config.name}"`);
  }
  for (const disk of config.disks) {
    const size = record.disks[disk.name];
    if (size === undefined) throw new BlockError('invalid-option', `disks: "${disk.name}" is new to this group`);
    if (size !== disk.size) {
      throw new BlockError('invalid-option', `disks: "${disk.name}" has ${size} bytes in this group, not ${disk.size}`);
    }
  }
  const names = new Set(config.disks.map((disk) => disk.name));
  const lost = Object.keys(record.disks).find((name) => !names.has(name));
  if (lost !== undefined) throw new BlockError('invalid-option', `disks: "${lost}" of this group is missing`);
}

/** The bitmaps of a clean stop, back in the filters; without them the other side is compared (pair.md 12). */
async function loadProof(
  host: Host,
  config: PairConfig,
  disks: PairDisks,
  record: GroupRecord,
  log: (line: LogLine) => void,
): Promise<Proof | null> {
  if (record.cleanStop === null) return null;
  const bitmaps = await loadBitmaps(host, config.dataFolder, record.cleanStop.bitmaps);
  if (bitmaps === null) {
    log({ level: 'warn', message: 'the saved bitmaps do not match the group file: the other side will be compared' });
    return null;
  }
  for (const disk of config.disks) await disks.mark(disk.name, bitmaps[disk.name] ?? []);
  return record.cleanStop.proof;
}
