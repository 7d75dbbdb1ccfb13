/** What a daemon says of itself, for tests of what people are shown: well and in step, with what is changed. */
import { type DaemonStatus, readStatus } from '../../src/cli/daemon-status.ts';

const uri = 'nbd://127.0.0.1:1/d';
const ofBoth = {
  role: 'primary',
  generation: { id: '00', number: 3 },
  connected: true,
  inSync: true,
  forwardedBytes: 1536,
  lagBytes: 0,
  checkpoint: null,
  aloneSince: null,
  store: 'clean',
  error: null,
};

export function statusOf(changes: Readonly<Record<string, unknown>>): DaemonStatus {
  return readStatus({
    ...ofBoth,
    name: 'a',
    volume: 'v',
    phase: 'in-step',
    state: 'primary: in step',
    serving: true,
    uri,
    uris: [uri],
    held: null,
    space: null,
    syncProgress: null,
    splitBrain: null,
    latestAsOf: null,
    peer: { name: 'b', role: 'secondary', generation: null, uris: [] },
    disks: [],
    notice: null,
    pid: 4711,
    ...changes,
  });
}

/** One of `disks` of a status. */
export function diskStatus(changes: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return {
    ...ofBoth,
    name: 'd',
    file: '/d.img',
    size: 2 ** 30,
    uri,
    missingBytes: 0,
    hiddenBytes: 0,
    activeBytes: 0,
    io: 'sync',
    stalledMs: 0,
    diverged: [],
    ...changes,
  };
}
