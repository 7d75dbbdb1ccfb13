/**
 * A world of simulated machines: everything that happens in it follows from one seed.
 *
 * A test boots machines (`host`), starts programs on them, and lets time pass (`run`), while it cuts power, kills,
 * hangs, cuts links and sets faults. Between any two events all that the programs had to do at once has been done.
 */
import type { Host } from '../../src/host/host.ts';
import { loadXxhash } from '../../src/util/xxhash.ts';
import { Timeline } from './clock.ts';
import type { CutStyle } from './disk.ts';
import type { ActiveFault, FileFault, FileOperation } from './files.ts';
import { Machine, SimProcess } from './host.ts';
import { SeededRandom } from './random.ts';
import type { Connection } from './stream.ts';

// Compiled before simulated time begins: how long that takes would be of no seed.
await loadXxhash();

/** An I/O of a simulated process: a file operation, or one of the network's. */
export type IoOperation = FileOperation | 'listen' | 'connect' | 'send';

/** How a world differs from what its seed would make of it. */
export interface WorldOptions {
  /** with what probability a read or write answers at once; else the seed chooses one for the whole run */
  readonly atOnce?: number;
}

export class World {
  readonly seed: number;
  readonly random: SeededRandom;
  readonly timeline = new Timeline();
  /** the probability that a file's read or write answers at once */
  readonly atOnce: number;
  /** connections that may still carry something */
  readonly connections = new Set<Connection>();
  /** how many I/Os there have been */
  ioCount = 0;
  readonly #machines = new Map<string, Machine>();
  readonly #cutLinks = new Set<string>();
  readonly #failures = new Map<string, number>();
  readonly #faults: { readonly machine: string; readonly fault: ActiveFault }[] = [];
  #ioListener: ((n: number, host: string, operation: IoOperation) => void) | undefined;

  constructor(seed: number, options: WorldOptions = {}) {
    this.seed = seed;
    this.random = new SeededRandom(seed);
    this.atOnce = options.atOnce ?? this.random.pick([0.05, 0.5, 0.5, 0.95, 1]);
  }

  /** Simulated milliseconds since the world began. */
  get now(): number {
    return this.timeline.now;
  }

  /** The living process of a machine, which is booted if it is new. A dead one must be restarted. */
  host(name: string): Host {
    return this.#alive(this.#machines.get(name) ?? this.#boot(name));
  }

  /** The process dies (kill -9): no call of it answers any more; what it wrote stays in the page cache. */
  kill(name: string): void {
    const { process } = this.#machine(name);
    if (!process.alive) return;
    process.end();
    process.network.killed();
  }

  /**
   * The machine loses its power. `loseUnsynced`: true, all that was not synced is lost; false, all is kept; left out,
   * chance decides what is left of it. The others see silence until it is back or their patience ends.
   */
  powerCut(name: string, how: { readonly loseUnsynced?: boolean } = {}): void {
    const machine = this.#machine(name);
    const chosen = this.random.pick<CutStyle>(['nothing', 'everything', 'prefix', 'some changes', 'some sectors']);
    const style = how.loseUnsynced === undefined ? chosen : how.loseUnsynced ? 'nothing' : 'everything';
    machine.powered = false;
    if (machine.process.alive) machine.process.end();
    machine.process.network.wentSilent();
    machine.disk.powerCut(style, this.random);
  }

  /** A new process on a machine whose last one is gone; after a power cut this is the boot. */
  restart(name: string): Host {
    const machine = this.#machine(name);
    if (machine.process.alive) throw new Error(`${name} is alive: kill it first`);
    for (const connection of this.connections) connection.machineBack(name);
    if (!machine.powered) machine.bootCount += 1;
    machine.powered = true;
    machine.process = new SimProcess(this, machine);
    return machine.process;
  }

  isAlive(name: string): boolean {
    return this.#machines.get(name)?.process.alive ?? false;
  }

  /** Stops the process (SIGSTOP): its system still takes what is sent to it, while there is room. */
  hang(name: string): void {
    this.#alive(this.#machine(name)).hung = true;
  }

  /** Lets a hanging process go on. */
  resume(name: string): void {
    const { process } = this.#machine(name);
    if (process.hung) this.timeline.goOn(process);
  }

  /** Nothing gets from one machine to the other, either way, and neither is told. Connections may break some time. */
  cut(a: string, b: string): void {
    this.#cutLinks.add(linkName(a, b));
    for (const connection of this.connections) if (connection.joins(a, b)) connection.linkCut();
  }

  heal(a: string, b: string): void {
    if (!this.#cutLinks.delete(linkName(a, b))) return;
    for (const connection of this.connections) if (connection.joins(a, b)) connection.linkHealed();
  }

  isCut(a: string, b: string): boolean {
    return this.#cutLinks.has(linkName(a, b));
  }

  /** Makes file operations of a machine fail or slow until `remove` is called. The latest fault that fits is met. */
  fault(name: string, fault: FileFault): { remove(): void; readonly met: number } {
    const entry = { machine: name, fault: { ...fault, skipped: 0, met: 0 } };
    this.#faults.unshift(entry);
    return {
      remove: () => {
        const index = this.#faults.indexOf(entry);
        if (index >= 0) this.#faults.splice(index, 1);
      },
      get met() {
        return entry.fault.met;
      },
    };
  }

  /** No fault is in force any more. */
  mend(): void {
    this.#faults.length = 0;
  }

  /** How many calls of a machine a fault has made fail. */
  failuresOf(machine: string): number {
    return this.#failures.get(machine) ?? 0;
  }

  /**
   * Calls before each I/O takes effect, with its number from 1: a kill or power cut in the call catches it in flight.
   * There is one listener; null takes it away.
   */
  onIo(listener: ((n: number, host: string, operation: IoOperation) => void) | null): void {
    this.#ioListener = listener ?? undefined;
  }

  /**
   * Lets time pass: to a moment of simulated time, or until something is true, which is looked at after every event.
   * Rejects if that has not come within `limitMs` simulated milliseconds (default 10 minutes).
   */
  async run(until: number | (() => boolean), limitMs = 600_000): Promise<void> {
    const end = typeof until === 'number' ? until : this.now + limitMs;
    const reached = typeof until === 'number' ? () => false : until;
    let steps = 0;
    await turn();
    while (!reached()) {
      const next = this.timeline.nextTime() ?? (await this.#nextAfterWaiting(reached, until));
      if (next === null && reached()) return;
      if (next === null || next > end) {
        this.timeline.now = Math.max(this.now, end);
        if (typeof until === 'number') return;
        throw new Error(`seed ${this.seed}: still not so after ${limitMs} simulated ms (${until})`);
      }
      this.timeline.step();
      await turn();
      // Now and then the real event loop has its turn, so that the test runner's own timers are not starved.
      if (++steps % 1024 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Lets this much time pass. */
  runFor(ms: number): Promise<void> {
    return this.run(this.now + ms);
  }

  /** Lets time pass until the promise has settled, and returns what it came to. */
  async complete<T>(promise: Promise<T>, limitMs?: number): Promise<T> {
    let settled = false;
    const settle = () => {
      settled = true;
    };
    promise.then(settle, settle);
    await this.run(() => settled, limitMs);
    return promise;
  }

  // What follows is for the parts of the simulation.

  machine(name: string): Machine | undefined {
    return this.#machines.get(name);
  }

  countIo(process: SimProcess, operation: IoOperation): void {
    this.ioCount++;
    this.#ioListener?.(this.ioCount, process.machine.name, operation);
  }

  faultFor(machine: string, operation: FileOperation, path: string, offset: number, length: number) {
    for (const { machine: of, fault } of this.#faults) {
      if (of !== machine || !fits(fault, operation, path, offset, length)) continue;
      if (fault.skipped < (fault.skip ?? 0)) {
        fault.skipped++;
        continue;
      }
      if (fault.met >= (fault.count ?? Number.POSITIVE_INFINITY)) continue;
      fault.met++;
      if (fault.errno !== undefined) this.#failures.set(machine, this.failuresOf(machine) + 1);
      return fault;
    }
    return undefined;
  }

  /** Nothing is to come of ourselves: perhaps something real (a module that loads) is under way. */
  async #nextAfterWaiting(reached: () => boolean, until: number | (() => boolean)): Promise<number | null> {
    const isIdle = () => this.timeline.nextTime() === null && !reached();
    for (let i = 0; i < 100 && isIdle(); i++) await new Promise((resolve) => setImmediate(resolve));
    // Something must come: a machine that is busy needs longer for it.
    for (let i = 0; typeof until !== 'number' && i < 500 && isIdle(); i++)
      await new Promise((resolve) => setTimeout(resolve, 10));
    return this.timeline.nextTime();
  }

  #boot(name: string): Machine {
    const machine = new Machine(this, name);
    this.#machines.set(name, machine);
    return machine;
  }

  #machine(name: string): Machine {
    const machine = this.#machines.get(name);
    if (machine === undefined) throw new Error(`there is no machine ${name}`);
    return machine;
  }

  #alive(machine: Machine): SimProcess {
    if (!machine.process.alive) throw new Error(`${machine.name} is not running: restart it`);
    return machine.process;
  }
}

function fits(fault: ActiveFault, operation: FileOperation, path: string, offset: number, length: number): boolean {
  if (fault.operation !== 'any' && fault.operation !== operation) return false;
  if (typeof fault.path === 'string' && fault.path !== path) return false;
  if (fault.path instanceof RegExp && !fault.path.test(path)) return false;
  const { range } = fault;
  return range === undefined || (offset < range.offset + range.length && range.offset < offset + length);
}

function linkName(a: string, b: string): string {
  return a < b ? `${a} - ${b}` : `${b} - ${a}`;
}

/** Resolves when all microtasks there are, and all that come of them, have run: Node takes its next tick only then. */
function turn(): Promise<void> {
  return new Promise((resolve) => process.nextTick(resolve));
}
