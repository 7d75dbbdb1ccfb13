/** What the demo says: who serves and how to use it, who is gone and what can be done, and the live line. */
import type { DaemonStatus } from './daemon-status.ts';
import type { DemoDaemon } from './demo-daemon.ts';
import { describeState } from './status.ts';
import { formatSize } from './units.ts';

/** True if users get the disk there now. */
export function isServing(status: DaemonStatus): boolean {
  return status.serving;
}

/** The disk's URI, and a line for each way to use it. */
export function describeUses(status: DaemonStatus): string {
  const { uri } = status;
  const { hostname, port, pathname } = new URL(uri);
  return `
${status.name} serves the disk:  ${uri}

  qemu        qemu-system-x86_64 -drive file=${uri},format=raw,if=virtio
  nbdcopy     nbdcopy disk.img ${uri}
  nbd-client  nbd-client -N ${pathname.slice(1)} ${hostname} ${port} /dev/nbd0

  In another shell: npx blockstep status | failover | switch.  Ctrl-C stops both sides; the data stay.
`;
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
  if (other.store !== 'clean') return `${other.name} cannot serve: its sync has not ended`;
  const until = other.latestAsOf === null ? '' : ` (${other.latestAsOf.text})`;
  const which = gone.last?.inSync === true ? 'with every flushed write' : `with what it has${until}`;
  return `npx blockstep failover makes ${other.name} serve, ${which}`;
}

/** The live line: roles, state, bytes forwarded, lag. */
export function describePair(all: readonly DemoDaemon[]): string {
  const roles = all.map((one) => `${one.name} ${one.status === null ? 'gone' : one.status.role}`);
  const shown = all.find((one) => one.status?.role === 'primary') ?? all.find((one) => one.status !== null);
  if (shown?.status == null) return roles.join(', ');
  const { status } = shown;
  const forwarded = `${formatSize(status.forwardedBytes)} forwarded`;
  return [roles.join(', '), describeState(status), forwarded, `lag ${formatSize(status.lagBytes)}`].join(' · ');
}
