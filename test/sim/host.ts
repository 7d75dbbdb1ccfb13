/**
 * One process of a simulated machine, as the `Host` that its program sees. Once it is dead it does nothing any more,
 * whatever its old program still calls: no call answers, no timer fires, nothing reaches a disk or a wire.
 */
import type { Host } from '../../src/host/host.ts';
import { type Life, SimClock, type SimEvent } from './clock.ts';
import { SimDisk } from './disk.ts';
import { type ActiveFault, type FileOperation, type SimFile, SimFiles, type WriteInFlight } from './files.ts';
import { SimNetwork } from './network.ts';
import type { SeededRandom } from './random.ts';
import type { SimStream } from './stream.ts';
import type { World } from './world.ts';

/** The wall clock at the world's begin. */
const wallStartMs = Date.UTC(2026, 0, 1);

/** A machine: its disk outlives its processes. */
export class Machine {
  readonly name: string;
  readonly disk = new SimDisk();
  powered = true;
  /** boots so far: a restart after a kill is none */
  bootCount = 1;
  process: SimProcess;

  constructor(world: World, name: string) {
    this.name = name;
    this.process = new SimProcess(world, this);
  }
}

export class SimProcess implements Host, Life {
  readonly files: SimFiles;
  readonly network: SimNetwork;
  readonly clock: SimClock;
  readonly random: SeededRandom;
  readonly machine: Machine;
  readonly world: World;
  alive = true;
  hung = false;
  waiting: SimEvent[] = [];
  readonly openFiles = new Set<SimFile>();
  readonly writesInFlight = new Set<WriteInFlight>();
  readonly streams = new Set<SimStream>();

  constructor(world: World, machine: Machine) {
    this.world = world;
    this.machine = machine;
    this.random = world.random;
    this.files = new SimFiles(this);
    this.network = new SimNetwork(this);
    const skewMs = world.random.fraction() * 2000 - 1000;
    this.clock = new SimClock(world.timeline, this, world.random.below(1e6), wallStartMs + skewMs);
  }

  get bootId(): string {
    return `${this.machine.name}, boot ${this.machine.bootCount}`;
  }

  get disk(): SimDisk {
    return this.machine.disk;
  }

  /** Later, if this process still lives then. */
  after(ms: number, call: () => void): SimEvent {
    return this.world.timeline.after(ms, this, call);
  }

  /** Counts an I/O, which may be the moment at which the test ends this process, and finds the fault that it meets. */
  begin(operation: FileOperation, path: string, offset = 0, length = 0): ActiveFault | undefined {
    if (!this.alive) return undefined;
    this.world.countIo(this, operation);
    return this.alive ? this.world.faultFor(this.machine.name, operation, path, offset, length) : undefined;
  }

  answersAtOnce(): boolean {
    return this.random.chance(this.world.atOnce);
  }

  /** One way to a machine, milliseconds. */
  latencyTo(machine: string): number {
    return machine === this.machine.name ? this.random.delay(0.01, 1) : this.random.delay(0.05, 20);
  }

  fileDelay(): number {
    return this.random.delay(0.01, 10);
  }

  syncDelay(): number {
    return this.random.delay(0.1, 60);
  }

  /** The process is gone. What was being written may have got as far as the page cache. */
  end(): void {
    this.alive = false;
    this.waiting = [];
    for (const { inode, offset, from } of this.writesInFlight) {
      const count = this.random.pick([0, from.length, this.random.below(from.length + 1)]);
      inode.write(offset, from.subarray(0, count));
    }
    this.writesInFlight.clear();
    for (const file of [...this.openFiles]) file.release();
  }
}
