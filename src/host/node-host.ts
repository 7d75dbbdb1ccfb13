/** The real host: Node's files, sockets, timers and randomness, and the system calls that Node lacks. */
import { randomBytes } from 'node:crypto';
import type { Host, HostRandom } from './host.ts';
import { nodeClock } from './node-clock.ts';
import { NodeFiles } from './node-files.ts';
import { NodeNetwork } from './node-network.ts';
import { loadSystemCalls } from './system-calls.ts';

const nodeRandom: HostRandom = {
  bytes: (count) => new Uint8Array(randomBytes(count)),
  fraction: () => Math.random(),
};

/** The machine this process runs on. Several hosts of one process share nothing but the process. */
export function createHost(): Host {
  return {
    files: new NodeFiles(loadSystemCalls()),
    network: new NodeNetwork(),
    clock: nodeClock,
    random: nodeRandom,
  };
}
