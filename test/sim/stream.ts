/**
 * A simulated connection: two streams, each with a wire to the other.
 *
 * ```
 *  send -> [waiting: no room] -> wire (in flight, and what the system keeps for sending again) -> inbox -> receiver
 *            promise pending      held while the link is cut                                       of the other side
 * ```
 * Bytes keep their order and are cut into pieces anew at each step. What has been sent and what has been received of
 * it may differ at any break; a break is told to a side late, or never.
 */
import type { HostStream, SocketAddress, StreamReceiver } from '../../src/host/host.ts';
import { BlockError } from '../../src/util/errors.ts';
import type { Done } from '../../src/util/later.ts';
import type { SimProcess } from './host.ts';

/** After `end`, how long the other side may take to close. */
const lingerMs = 1000;
/** When a system gives up on a peer that answers nothing. */
const patienceMs = { least: 5000, most: 120_000 };
/** What may be under way in one direction, bytes; the smallest ones make slow readers felt. */
const capacities = [4096, 65_536, 262_144, 1 << 20] as const;

type State =
  | 'open'
  /** `end` was called or the other side has ended: what is pending still goes out, what comes in is dropped */
  | 'closing'
  | 'closed';

interface PendingSend {
  readonly bytes: Uint8Array;
  readonly resolve: () => void;
}

export class Connection {
  readonly ends: readonly [client: SimStream, server: SimStream];

  constructor(client: SimProcess, server: SimProcess, address: SocketAddress) {
    const clientPort = 32_768 + client.random.below(28_000);
    const unix = address.type === 'unix';
    const a = new SimStream(client, unix ? 'unix' : `${server.machine.name}:${address.port}`);
    const b = new SimStream(server, unix ? 'unix' : `${client.machine.name}:${clientPort}`);
    a.join(b, this);
    b.join(a, this);
    this.ends = [a, b];
    client.world.connections.add(this);
  }

  joins(a: string, b: string): boolean {
    const [one, other] = this.ends.map((end) => end.process.machine.name);
    return (one === a && other === b) || (one === b && other === a);
  }

  /** Neither side is told; each may run out of patience. */
  linkCut(): void {
    for (const end of this.ends) if (end.process.random.chance(0.5)) end.losePatience();
  }

  linkHealed(): void {
    for (const end of this.ends) end.linkHealed();
  }

  /** A machine is back that lost its power: it knows nothing of old connections. */
  machineBack(name: string): void {
    for (const end of this.ends) if (end.process.machine.name === name) end.other.resetSoon(2000);
  }

  forgetIfOver(): void {
    if (this.ends.every((end) => end.isOver)) this.ends[0].process.world.connections.delete(this);
  }
}

export class SimStream implements HostStream {
  readonly peer: string;
  readonly process: SimProcess;
  readonly #capacity: number;
  #other: SimStream | undefined;
  #connection: Connection | undefined;
  #state: State = 'open';
  // out
  readonly #pending: PendingSend[] = [];
  /** in flight; null: the end of the stream */
  #wire: (Uint8Array | null)[] = [];
  #wireBytes = 0;
  #arriving = false;
  #endSent = false;
  /** how often the link has been healed */
  #heals = 0;
  // in
  #receiver: StreamReceiver | undefined;
  #inbox: Uint8Array[] = [];
  #inboxBytes = 0;
  #endArrived = false;
  #paused = false;
  #delivering = false;
  /** how it ended, and whether the receiver has been told */
  #outcome: Error | null | undefined;
  #told = false;

  constructor(process: SimProcess, peer: string) {
    this.process = process;
    this.peer = peer;
    this.#capacity = process.random.pick(capacities);
    process.streams.add(this);
  }

  join(other: SimStream, connection: Connection): void {
    this.#other = other;
    this.#connection = connection;
  }

  get other(): SimStream {
    if (this.#other === undefined) throw new Error('a stream without its other end');
    return this.#other;
  }

  /** Nothing more will come of it. */
  get isOver(): boolean {
    return this.#state === 'closed' && this.#wire.length === 0;
  }

  // ------------------------------------------------------------ what a program calls

  start(receiver: StreamReceiver): void {
    this.#receiver = receiver;
    this.#tell();
    this.#deliverSoon();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#deliverSoon();
  }

  send(bytes: Uint8Array): Done {
    const { process } = this;
    if (this.#state !== 'open' || !process.alive) return undefined;
    process.world.countIo(process, 'send');
    if (!process.alive) return new Promise(() => undefined); // this very call was its last
    const taken = this.#pending.length === 0 ? this.#take(bytes) : 0;
    if (taken === bytes.length) return undefined;
    return new Promise((resolve) => {
      this.#pending.push({ bytes: bytes.subarray(taken), resolve });
    });
  }

  end(): void {
    if (this.#state !== 'open' || !this.process.alive) return;
    this.#state = 'closing';
    this.#dropInbox();
    this.#sendEnd();
  }

  destroy(): void {
    if (this.#state === 'closed' || !this.process.alive) return;
    const unread = this.#inboxBytes > 0;
    this.#close(null);
    if (unread) this.other.resetSoon(20);
    else this.#putOnWire(null);
  }

  // ------------------------------------------------------------ what happens to it

  /** Its process was killed: the system closes the connection, politely or not. */
  killed(): void {
    if (this.#state === 'closed') return;
    const unread = this.#inboxBytes > 0;
    this.#close(null);
    const { timeline } = this.process.world;
    const politely = !unread && this.process.random.chance(0.5);
    if (!politely && this.process.random.chance(0.5)) this.#wire = [];
    timeline.after(this.process.random.delay(0, 50), null, () => {
      if (politely) this.#putOnWire(null);
      else this.other.resetSoon(1);
    });
  }

  /** It is gone without a word to the other side. */
  vanish(): void {
    if (this.#state === 'closed') return;
    this.#close(null);
    if (this.process.random.chance(0.5)) this.#wire = [];
    this.other.losePatience();
  }

  /** The system gives the connection up after some time, if nothing has been heard by then. */
  losePatience(): void {
    const { random, world } = this.process;
    const heals = this.#heals;
    world.timeline.after(patienceMs.least + random.below(patienceMs.most - patienceMs.least), null, () => {
      if (this.#heals === heals || this.other.#state === 'closed') this.#break('ETIMEDOUT');
    });
  }

  /** The other side's system says that there is no such connection. */
  resetSoon(msMax: number): void {
    this.process.world.timeline.after(this.process.random.delay(0, msMax), null, () => {
      if (this.#isReachable()) this.#break('ECONNRESET');
      else this.losePatience();
    });
  }

  linkHealed(): void {
    this.#heals++;
    this.#arriveSoon();
    if (this.other.#state === 'closed' && !this.other.#endSent) this.resetSoon(2000);
  }

  #break(errno: 'ECONNRESET' | 'ETIMEDOUT'): void {
    if (this.#state === 'closed') return;
    this.#wire = [];
    this.#close(new BlockError('connection-lost', `connection to ${this.peer}: ${errno} (simulated)`, { errno }));
  }

  // ------------------------------------------------------------ out

  #take(bytes: Uint8Array): number {
    const room = this.#capacity - this.#wireBytes - this.other.#inboxBytes;
    const count = Math.min(bytes.length, Math.max(0, room));
    if (count > 0) this.#putOnWire(bytes.slice(0, count));
    return count;
  }

  #putOnWire(piece: Uint8Array | null): void {
    if (this.#endSent) return;
    if (piece === null) this.#endSent = true;
    else this.#wireBytes += piece.length;
    this.#wire.push(piece);
    this.#arriveSoon();
  }

  #arriveSoon(): void {
    if (this.#arriving || this.#wire.length === 0 || !this.#isReachable()) return;
    this.#arriving = true;
    const latency = this.process.latencyTo(this.other.process.machine.name);
    this.process.world.timeline.after(latency, null, () => this.#arrive());
  }

  #arrive(): void {
    this.#arriving = false;
    if (!this.#isReachable()) return; // sent again when the link is healed
    const { other } = this;
    const count = this.process.random.chance(0.8) ? this.#wire.length : 1;
    for (const piece of this.#wire.splice(0, count)) {
      this.#wireBytes -= piece?.length ?? 0;
      other.#arrived(piece);
    }
    this.#arriveSoon();
    this.#connection?.forgetIfOver();
  }

  /** The other side has taken bytes out of its inbox. */
  #roomMade(): void {
    if (this.#pending.length === 0) return;
    this.process.world.timeline.after(this.process.latencyTo(this.other.process.machine.name), null, () => {
      if (this.#isReachable()) this.#takePending();
    });
  }

  #takePending(): void {
    for (let first = this.#pending.shift(); first !== undefined; first = this.#pending.shift()) {
      const { bytes, resolve } = first;
      const taken = this.#take(bytes);
      if (taken < bytes.length) {
        this.#pending.unshift({ bytes: bytes.subarray(taken), resolve });
        return;
      }
      this.process.after(0, resolve);
    }
    if (this.#state === 'closing') this.#sendEnd();
  }

  #sendEnd(): void {
    if (this.#pending.length > 0) return;
    this.#putOnWire(null);
    const wait = this.#endArrived ? 0 : lingerMs;
    this.process.after(wait, () => this.#close(null));
  }

  // ------------------------------------------------------------ in

  #arrived(piece: Uint8Array | null): void {
    if (this.#state === 'closed') {
      if (piece !== null) this.other.resetSoon(1);
      return;
    }
    if (piece === null) {
      this.#endArrived = true;
      if (this.#state === 'closing' && this.#endSent) this.#close(null);
    } else if (this.#state === 'open') {
      this.#inbox.push(piece);
      this.#inboxBytes += piece.length;
    } else this.other.#roomMade();
    this.#deliverSoon();
  }

  #deliverSoon(): void {
    if (this.#delivering || this.#paused || this.#receiver === undefined || this.#state !== 'open') return;
    if (this.#inboxBytes === 0 && !this.#endArrived) return;
    this.#delivering = true;
    const { random } = this.process;
    this.process.after(random.chance(0.5) ? 0 : random.delay(0, 0.5), () => this.#deliver());
  }

  #deliver(): void {
    this.#delivering = false;
    // A receiver that has just paused may get bytes once more: the contract says so, so it happens.
    if (this.#receiver === undefined || this.#state !== 'open' || (this.#paused && this.process.random.chance(0.5)))
      return;
    if (this.#inboxBytes > 0) {
      const space = this.#receiver.space();
      if (space.length === 0) throw new Error('the receiver of a stream gave no room');
      const count = this.#piece(Math.min(space.length, this.#inboxBytes));
      this.#moveTo(space.subarray(0, count));
      this.other.#roomMade();
      this.#receiver.received(count);
    } else if (this.#endArrived && !this.#paused) {
      this.#outcome = null;
      this.#told = true;
      this.#receiver.ended(null);
      if (this.#state === 'open') {
        this.#state = 'closing';
        this.#sendEnd();
      }
      return;
    }
    this.#deliverSoon();
  }

  /** How much of what is there comes now: mostly all, now and then a part, or single bytes. */
  #piece(most: number): number {
    const { random } = this.process;
    const what = random.fraction();
    if (what < 0.75) return most;
    return Math.min(most, 1 + random.below(what < 0.9 ? most : 8));
  }

  #moveTo(space: Uint8Array): void {
    let done = 0;
    while (done < space.length) {
      const first = this.#inbox[0];
      if (first === undefined) return;
      const count = Math.min(first.length, space.length - done);
      space.set(first.subarray(0, count), done);
      done += count;
      if (count === first.length) this.#inbox.shift();
      else this.#inbox[0] = first.subarray(count);
    }
    this.#inboxBytes -= done;
  }

  #dropInbox(): void {
    this.#inbox = [];
    this.#inboxBytes = 0;
    this.other.#roomMade();
  }

  // ------------------------------------------------------------ the end

  #isReachable(): boolean {
    const [own, others] = [this.process.machine, this.other.process.machine];
    return own.powered && others.powered && !this.process.world.isCut(own.name, others.name);
  }

  #close(outcome: Error | null): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#outcome ??= outcome;
    this.#dropInbox();
    for (const { resolve } of this.#pending.splice(0)) this.process.after(0, resolve);
    this.process.streams.delete(this);
    this.process.after(0, () => this.#tell());
    this.#connection?.forgetIfOver();
  }

  #tell(): void {
    if (this.#told || this.#state !== 'closed' || this.#receiver === undefined || this.#outcome === undefined) return;
    const [receiver, outcome] = [this.#receiver, this.#outcome];
    this.#told = true;
    this.process.after(0, () => receiver.ended(outcome));
  }
}
