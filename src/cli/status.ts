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

const headings = ['NAME', 'ROLE', 'STATE', 'GENERATION', 'FORWARDED', 'LAG', 'CHECKPOINT', 'URI'];

export function formatStatus(all: readonly Answer[]): string {
  const rows = all.map((one) => ('status' in one ? rowOf(one.status) : [one.place.name, '-', 'no answer']));
  const remarks = all.flatMap((one) => ('status' in one ? remarksOn(one.status) : [one.error.message]));
  return [formatTable([headings, ...rows]), ...remarks].join('\n');
}

function rowOf(one: DaemonStatus): string[] {
  return [
    one.name,
    one.role ?? 'none',
    describeState(one),
    describeGeneration(one.generation),
    formatSize(one.forwardedBytes),
    formatSize(one.lagBytes),
    one.checkpoint === null ? '-' : `${one.checkpoint.number}, ${formatDuration(one.checkpoint.ageMs)} old`,
    (one.disks ?? [])
      .map((disk) => disk.uri)
      .filter(Boolean)
      .join(' ') ||
      (one.uri ?? '-'),
  ];
}

/** In one phrase how it stands with the other side. */
export function describeState(one: DaemonStatus): string {
  const link = one.inSync ? 'in sync' : one.connected ? 'connected' : 'not connected';
  return one.state === undefined ? link : one.inSync ? link : `${one.state}, ${link}`;
}

function describeGeneration(generation: unknown): string {
  if (typeof generation === 'object' && generation !== null && 'counter' in generation)
    return String(generation.counter);
  return generation === null || generation === undefined ? '-' : String(generation);
}

function remarksOn(one: DaemonStatus): string[] {
  const remarks: string[] = [];
  if (one.aloneSince !== null) {
    const since = typeof one.aloneSince === 'number' ? formatMoment(one.aloneSince) : one.aloneSince;
    remarks.push(`${one.name} goes on alone since ${since}: what was written since is here only`);
  }
  if (one.error !== null) remarks.push(`${one.name}: ${one.error}`);
  return remarks;
}
