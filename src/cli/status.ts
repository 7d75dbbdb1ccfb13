/** `blockstep status`: what each daemon says of itself, as a table or as JSON. */
import type { Host } from '../host/host.ts';
import type { DaemonStatus } from './daemon-status.ts';
import { type AnsweringDaemon, askAll, findDaemons, type SilentDaemon, type Which } from './daemons.ts';
import { exitCodes } from './exit-codes.ts';
import { formatTable } from './table.ts';
import { formatDuration, formatMoment, formatSize } from './units.ts';

/** @returns the exit code: `notReached` if no daemon answered */
export async function status(host: Host, which: Which, options: { json: boolean }): Promise<number> {
  const all = await askAll(host, await findDaemons(which));
  process.stdout.write(`${options.json ? formatJson(all) : formatStatus(all)}\n`);
  return all.some((one) => 'status' in one) ? exitCodes.ok.code : exitCodes.notReached.code;
}

type Answer = AnsweringDaemon | SilentDaemon;

/** An array: what each daemon that answers said; of one that does not, `name` and `error`. */
export function formatJson(all: readonly Answer[]): string {
  const entries = all.map((one) => ('status' in one ? one.status : { name: one.place.name, error: one.error.message }));
  return JSON.stringify(entries, null, 2);
}

const headings = [
  'NAME',
  'ROLE',
  'STATE',
  'STORE',
  'GENERATION',
  'CHECKPOINT',
  'OVERLAYS',
  'FORWARDED',
  'LAG',
  'PID',
  'URI',
];

/** A row a daemon, then a line for each thing that a person should know. */
export function formatStatus(all: readonly Answer[]): string {
  const rows = all.map((one) => ('status' in one ? rowOf(one.status) : [one.place.name, '-', 'no answer']));
  const remarks = all.flatMap((one) => ('status' in one ? remarksOn(one.status) : [one.error.message]));
  return [formatTable([headings, ...rows]), ...remarks].join('\n');
}

function rowOf(one: DaemonStatus): string[] {
  return [
    one.name,
    one.role,
    describeState(one),
    one.store,
    one.generation === null ? '-' : String(one.generation.number),
    one.checkpoint === null ? '-' : `${describeCheckpoint(one.checkpoint)} ago`,
    one.space === null ? '-' : formatSize(overlayBytes(one)),
    formatSize(one.forwardedBytes),
    formatSize(one.lagBytes),
    String(one.pid),
    one.uris.join(' '),
  ];
}

/** In a word or two how it stands with the other side; during a sync, how far that is. */
export function describeState(one: DaemonStatus): string {
  if (one.inSync) return 'in sync';
  if (one.splitBrain !== null) return 'split brain';
  const { syncProgress } = one;
  const phase = one.phase.replaceAll('-', ' ');
  if (syncProgress === null || syncProgress.totalBytes === 0) return phase;
  return `${phase} ${Math.floor((100 * syncProgress.doneBytes) / syncProgress.totalBytes)} %`;
}

/** Its number and age: `41, 400 ms`. */
export function describeCheckpoint(one: NonNullable<DaemonStatus['checkpoint']>): string {
  return `${one.number}, ${formatDuration(one.ageMs)}`;
}

/** What a secondary keeps beside its disks so that it can go back to the last checkpoint. */
function overlayBytes(one: DaemonStatus): number {
  return one.disks.reduce((all, { hiddenBytes, activeBytes }) => all + hiddenBytes + activeBytes, 0);
}

function remarksOn(one: DaemonStatus): string[] {
  const remarks: string[] = [];
  if (one.aloneSince !== null) {
    remarks.push(`alone since ${formatMoment(one.aloneSince)}: what was written since may be here only`);
  }
  if (one.splitBrain !== null) {
    remarks.push(`split brain since ${formatMoment(one.splitBrain.sinceMs)}: ${one.splitBrain.reason}`);
  }
  if (one.notice !== null && one.splitBrain === null) remarks.push(one.notice);
  if (one.held !== null) {
    const { number, untilMs, forMs } = one.held;
    const there = one.role === 'primary' ? ` on ${one.peer.name}` : '';
    const until = `until ${formatMoment(untilMs)}, for ${formatDuration(forMs)} more`;
    const end = `\`checkpoint --release\`${there} ends that`;
    remarks.push(`checkpoint ${number} is held${there} ${until}: no other one is made (${end})`);
  }
  if (one.space?.warning != null) remarks.push(one.space.warning);
  if (one.error !== null) remarks.push(one.error);
  for (const disk of one.disks) if (disk.error !== null) remarks.push(`${disk.name}: ${disk.error}`);
  return remarks.map((remark) => `${one.name}: ${remark}`);
}
