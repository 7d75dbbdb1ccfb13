/**
 * The network of one simulated process: listeners, and connecting to those of the others.
 *
 * A machine's name is its host name; `127.0.0.1`, `::1` and `localhost` are the machine itself. Unix sockets reach only
 * the own machine. A machine without power, or behind a cut link, answers nothing at all.
 */
import { addressText, checkAddress } from '../../src/host/address.ts';
import type { HostListener, HostNetwork, HostStream, SocketAddress } from '../../src/host/host.ts';
import { BlockError } from '../../src/util/errors.ts';
import type { SimProcess } from './host.ts';
import { Connection, type SimStream } from './stream.ts';

const connectTimeoutMs = 5000;
const ownNames = new Set(['127.0.0.1', '::1', 'localhost', '0.0.0.0', '::']);

class SimListener implements HostListener {
  readonly address: SocketAddress;
  readonly #process: SimProcess;
  readonly #accepted: (stream: HostStream) => void;
  readonly #closed: () => void;
  #open = true;

  constructor(process: SimProcess, address: SocketAddress, accepted: (stream: HostStream) => void, closed: () => void) {
    this.#process = process;
    this.address = address;
    this.#accepted = accepted;
    this.#closed = closed;
  }

  accept(stream: SimStream): void {
    if (this.#open) this.#accepted(stream);
    else stream.destroy();
  }

  close(): Promise<void> {
    if (this.#open && this.#process.alive) this.#closed();
    this.#open = false;
    return new Promise((resolve) => this.#process.after(0, resolve));
  }
}

export class SimNetwork implements HostNetwork {
  readonly #process: SimProcess;
  /** by unix path or port number */
  readonly #listeners = new Map<string | number, SimListener>();

  constructor(process: SimProcess) {
    this.#process = process;
  }

  listen(asked: SocketAddress, accepted: (stream: HostStream) => void): Promise<HostListener> {
    return new Promise((resolve, reject) => {
      checkAddress(asked);
      const process = this.#process;
      if (!process.alive) return;
      process.world.countIo(process, 'listen');
      process.after(process.random.delay(0, 1), () => {
        const address = this.#withPort(asked);
        const key = keyOf(address);
        if (this.#listeners.has(key)) {
          reject(new BlockError('address-in-use', `listen on ${addressText(address)}: the address is in use`));
          return;
        }
        const listener = new SimListener(process, address, accepted, () => this.#listeners.delete(key));
        this.#listeners.set(key, listener);
        resolve(listener);
      });
    });
  }

  connect(address: SocketAddress, timeoutMs: number = connectTimeoutMs): Promise<HostStream> {
    return new Promise((resolve, reject) => {
      checkAddress(address);
      const process = this.#process;
      if (!process.alive) return;
      process.world.countIo(process, 'connect');
      const where = `connect to ${addressText(address)}`;
      let stream: SimStream | undefined;
      const timer = process.after(timeoutMs, () => {
        stream?.vanish();
        reject(new BlockError('timed-out', `${where}: no answer within ${timeoutMs} ms`));
        stopped = true;
      });
      let stopped = false;
      const answer = (target: string, call: () => void) => {
        process.after(process.latencyTo(target), () => {
          if (stopped || process.world.isCut(process.machine.name, target)) return; // the answer is lost
          timer.call = null;
          call();
        });
      };
      const target = address.type === 'unix' || ownNames.has(address.host) ? process.machine.name : address.host;
      process.world.timeline.after(process.latencyTo(target), null, () => {
        const machine = process.world.machine(target);
        if (!process.alive || process.world.isCut(process.machine.name, target) || machine?.powered === false) return;
        const server = machine?.process;
        const listener = server?.alive ? server.network.#listeners.get(keyOf(address)) : undefined;
        if (server === undefined || listener === undefined) {
          answer(target, () => reject(new BlockError('connection-failed', `${where}: ECONNREFUSED (simulated)`)));
          return;
        }
        const { ends } = new Connection(process, server, address);
        stream = ends[0];
        server.after(0, () => listener.accept(ends[1]));
        answer(target, () => resolve(ends[0]));
      });
    });
  }

  /** The process was killed: its system closes what was open, and tells the others some time. */
  killed(): void {
    this.#listeners.clear();
    for (const stream of [...this.#process.streams]) stream.killed();
  }

  /** The machine lost its power: nobody is told. */
  wentSilent(): void {
    this.#listeners.clear();
    for (const stream of [...this.#process.streams]) stream.vanish();
  }

  #withPort(asked: SocketAddress): SocketAddress {
    if (asked.type === 'unix' || asked.port !== 0) return asked;
    let port: number;
    do port = 32_768 + this.#process.random.below(28_000);
    while (this.#listeners.has(port));
    return { ...asked, port };
  }
}

function keyOf(address: SocketAddress): string | number {
  return address.type === 'unix' ? address.path : address.port;
}
