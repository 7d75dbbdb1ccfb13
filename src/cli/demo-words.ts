/** What the demo says: who serves and how to use it, who is gone and what can be done, and the live line. */
import type { DaemonStatus } from './daemon-status.ts';
import type { DemoDaemon } from './demo-daemon.ts';
import { describeCheckpoint, describeState } from './status.ts';
import { formatSize } from './units.ts';

/** The disk's URI, and a line for each way to use it. */
export function describeUses(status: DaemonStatus): string {
  const { uri } = status;
  const { hostname, port, pathname } = new URL(uri);
  return `
${status.name} serves the disk:  ${uri}

  qemu        qemu-system-x86_64 -drive file=${uri},format=raw,if=virtio
  nbdcopy     nbdcopy disk.img ${uri}
  nbd-client  nbd-client -N ${pathname.slice(1)} ${hostname} ${port} /dev/nbd0

  In another shell: npx blockstep status | checkpoint | failover | switch.  Ctrl-C stops both sides; the data stay.
`;
}

/** What a secondary offers at its URI; null: nothing now. */
export function describeOffer(daemon: DemoDaemon): string | null {
  const { status, name, place } = daemon;
  if (status?.role !== 'secondary' || status.checkpoint === null) return null;
  const offer =
    place.lockStep === true
      ? 'the machine that runs beside it, writable until the next checkpoint'
      : 'the last checkpoint, read-only';
  return `${name} serves ${offer}:  ${status.uri}`;
}

/** What happened to a daemon that is gone, and what a person may do now. */
export function describeEnding(daemon: DemoDaemon, all: readonly DemoDaemon[], configFile: string): string {
  const { ending, error, name } = daemon;
  const died = ending === null ? '' : `died (${ending.signal ?? `exit code ${ending.code}`})`;
  const how = died || `does not answer: ${error?.message ?? ''}`;
  const again = died && `; npx blockstep run -c ${configFile} starts ${name} again`;
  return `${name} ${how}. ${whoCanServe(daemon, all)}${again}`;
}

function whoCanServe(gone: DemoDaemon, all: readonly DemoDaemon[]): string {
  const other = all.find((one) => one !== gone)?.status;
  if (other == null) return 'Nobody serves now';
  if (other.role !== 'secondary') return other.serving ? `${other.name} goes on serving` : `${other.name} is there`;
  const command = `npx blockstep failover makes ${other.name} serve`;
  const point = other.checkpoint === null ? null : `checkpoint ${describeCheckpoint(other.checkpoint)} ago`;
  if (other.store === 'resync' && point !== null) {
    return `${other.name}'s sync has not ended; npx blockstep failover --to checkpoint makes it serve ${point}`;
  }
  if (other.store !== 'clean') return `${other.name} cannot serve: its sync has not ended`;
  if (gone.place.lockStep === true && point !== null) return `${command} ${point}`;
  const until = other.latestAsOf === null ? '' : ` (${other.latestAsOf.text})`;
  const which = gone.last?.inSync === true ? 'with every flushed write' : `with what it has${until}`;
  return `${command}, ${which}${point === null ? '' : `; with --to checkpoint, ${point}`}`;
}

/**
 * The live line: roles, state, last checkpoint, bytes forwarded, lag.
 * @param options.checkpoint false: without what changes all the time although nothing happens
 */
export function describePair(all: readonly DemoDaemon[], options = { checkpoint: true }): string {
  const roles = all.map((one) => `${one.name} ${one.status === null ? 'gone' : one.status.role}`).join(', ');
  const known = all.flatMap((one) => one.status ?? []);
  const status = known.find(({ role }) => role === 'primary') ?? known[0];
  if (status === undefined) return roles;
  // The side that makes them knows it first.
  const { checkpoint } = known.find(({ role }) => role === 'secondary') ?? status;
  return [
    roles,
    describeState(status),
    ...(checkpoint === null || !options.checkpoint ? [] : [`checkpoint ${describeCheckpoint(checkpoint)} ago`]),
    `${formatSize(status.forwardedBytes)} forwarded`,
    `lag ${formatSize(status.lagBytes)}`,
  ].join(' · ');
}
