/** The real host: Node's files, sockets, timers and randomness, and the system calls that Node lacks. */
import { randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
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
    bootId: readBootId(),
  };
}

/** Where the system tells none, each process is a boot of its own: that errs towards "may be gone". */
function readBootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
  } catch {
    return randomUUID();
  }
}
