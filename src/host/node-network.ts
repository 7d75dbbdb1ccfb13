/**
 * Unix and TCP streams of the machine.
 *
 * The data path is its own (measured: several times the throughput of 'data' events and `socket.write`):
 * - In: Node reads straight into the receiver's memory (`onread`); no Buffer is made, nothing is joined.
 * - Out: while nothing is pending, a send is one write on the socket's descriptor in the caller's turn; what the system
 *   does not take at once goes through `socket.write`, and so does all that follows until that has drained.
 * Both need the socket's handle, which Node does not document; `takeHandle` is the one place that takes it, and where
 * it finds none the stream works on events alone.
 */
import * as fs from 'node:fs';
import * as net from 'node:net';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Done } from '../util/later.ts';
import { addressText, checkAddress, hostAndPort } from './address.ts';
import type { HostListener, HostNetwork, HostStream, SocketAddress, StreamReceiver } from './host.ts';

/** `connect` gives up after this, if its caller does not say otherwise. */
const connectTimeoutMs = 5000;
/** After `end`, how long the other side may take to close before the socket is destroyed. */
const lingerMs = 1000;
/** After the other side's end, how long it may take to read what is pending: nobody else looks after it then. */
const lastReadMs = 30_000;
/** A TCP peer that vanished without a word is probed after this long without traffic. */
const keepAliveMs = 30_000;
/**
 * Where bytes land that arrive when the receiver may not be asked: the first of a stream, and the first after a pause.
 */
const landingLength = 16_384;

/** Whether streams work on their socket's handle, or on Node's documented events alone: slower, and the fallback. */
export type StreamWay = 'handle' | 'events';

export class NodeNetwork implements HostNetwork {
  readonly #way: StreamWay;

  constructor(way: StreamWay = 'handle') {
    this.#way = way;
  }

  async listen(address: SocketAddress, accepted: (stream: HostStream) => void): Promise<HostListener> {
    checkAddress(address);
    const server = net.createServer({ pauseOnConnect: true, noDelay: true, allowHalfOpen: true }, (socket) => {
      accepted(new NodeStream(socket, address, this.#way));
    });
    try {
      await listening(server, address);
    } catch (error) {
      const taken = isCode(error, 'EADDRINUSE');
      if (!taken || address.type !== 'unix' || !(await isStale(address.path))) throw listenError(address, error);
      await fs.promises.rm(address.path, { force: true });
      await listening(server, address).catch((again: unknown) => {
        throw listenError(address, again);
      });
    }
    // An accept that failed (no descriptors left) is that connection's loss, not the listener's end.
    server.on('error', () => undefined);
    return new NodeListener(server, address);
  }

  connect(address: SocketAddress, timeoutMs: number = connectTimeoutMs): Promise<HostStream> {
    return new Promise((resolve, reject) => {
      checkAddress(address);
      const socket = new net.Socket({ allowHalfOpen: true });
      socket.pause(); // so that not a byte is read before the stream has its receiver
      const timer = setTimeout(() => {
        socket.destroy();
        const text = `connect to ${addressText(address)}: no answer within ${timeoutMs} ms`;
        reject(new BlockError('timed-out', text));
      }, timeoutMs);
      const failed = (error: Error) => {
        clearTimeout(timer);
        reject(connectError(address, error));
      };
      socket.once('error', failed);
      socket.once('connect', () => {
        clearTimeout(timer);
        socket.off('error', failed);
        resolve(new NodeStream(socket, address, this.#way));
      });
      if (address.type === 'unix') socket.connect({ path: address.path });
      else socket.connect({ host: address.host, port: address.port }).setNoDelay(true);
    });
  }
}

class NodeListener implements HostListener {
  readonly address: SocketAddress;
  readonly #server: net.Server;
  #closed: Promise<void> | undefined;

  constructor(server: net.Server, asked: SocketAddress) {
    this.#server = server;
    const bound = server.address();
    this.address =
      asked.type === 'inet' && bound !== null && typeof bound === 'object' ? { ...asked, port: bound.port } : asked;
  }

  close(): Promise<void> {
    // The call itself stops listening and removes a unix socket's file; its callback would wait for streams that live
    // on.
    this.#closed ??= new Promise((resolve) => {
      this.#server.close();
      setImmediate(resolve);
    });
    return this.#closed;
  }
}

/** What the read side of a stream is doing. */
type Reading = 'waiting' | 'delivering' | 'paused' | 'discarding' | 'over';

class NodeStream implements HostStream {
  readonly peer: string;
  readonly #socket: net.Socket;
  /** -1: there is no descriptor to write on, all goes through `socket.write`. */
  readonly #fd: number;
  #receiver: StreamReceiver | undefined;
  #reading: Reading = 'waiting';
  /** Bytes go straight into `receiver.space()`; false: they land in `#landing` and are copied. */
  #direct: boolean = false;
  #landing: Uint8Array | undefined;
  /** What landed and has not been handed over, because the receiver paused in the middle of it. */
  #held: Uint8Array | undefined;
  #pendingSends = 0;
  #ending: boolean = false;
  /** How the stream ended, once it has: null for a close, or the error. */
  #outcome: Error | null | undefined;

  constructor(socket: net.Socket, address: SocketAddress, way: StreamWay) {
    this.peer = address.type === 'unix' ? 'unix' : hostAndPort(socket.remoteAddress ?? '?', socket.remotePort ?? 0);
    const handle = way === 'handle' ? takeHandle(socket) : null;
    this.#fd = handle?.fd ?? -1;
    if (handle === null) this.#socket = socket.on('data', (bytes: Uint8Array) => this.#handOver(bytes));
    else {
      const onread = {
        buffer: () => this.#space(),
        callback: (count: number) => this.#arrived(count),
      };
      this.#socket = new net.Socket({ handle, onread, allowHalfOpen: true } as unknown as net.SocketConstructorOpts);
    }
    this.#socket.setKeepAlive(true, keepAliveMs);
    this.#socket.on('error', (error) => {
      this.#outcome ??= toBlockError(error, `connection to ${this.peer}`);
    });
    this.#socket.on('end', () => this.#otherSideEnded());
    this.#socket.on('close', () => this.#over(this.#outcome ?? null));
    this.#socket.pause();
  }

  start(receiver: StreamReceiver): void {
    if (this.#receiver !== undefined) throw new Error('start of a stream is called once');
    this.#receiver = receiver;
    if (this.#reading === 'over') {
      const outcome = this.#outcome ?? null;
      queueMicrotask(() => receiver.ended(outcome));
      return;
    }
    if (this.#reading !== 'waiting') return; // it is closing: `ended` will come
    this.#reading = 'delivering';
    this.#socket.resume();
  }

  pause(): void {
    if (this.#reading !== 'delivering') return;
    this.#reading = 'paused';
    this.#socket.pause();
  }

  resume(): void {
    if (this.#reading !== 'paused') return;
    this.#reading = 'delivering';
    if (this.#held === undefined) this.#socket.resume();
    else queueMicrotask(() => this.#handOverHeld());
  }

  send(bytes: Uint8Array): Done {
    const socket = this.#socket;
    if (this.#ending || socket.destroyed) return undefined;
    let sent = 0;
    if (this.#pendingSends === 0 && this.#fd >= 0) {
      try {
        sent = fs.writeSync(this.#fd, bytes, 0, bytes.length);
        if (sent === bytes.length) return undefined;
      } catch (error) {
        if (!isCode(error, 'EAGAIN')) {
          socket.destroy(error instanceof Error ? error : undefined);
          return undefined;
        }
      }
    }
    return this.#sendLater(sent === 0 ? bytes : bytes.subarray(sent));
  }

  end(): void {
    if (this.#ending || this.#reading === 'over') return;
    this.#ending = true;
    this.#discard();
    // The linger counts from the end of what is pending, however slowly the other side takes that.
    this.#socket.end(() => this.#destroyAfter(lingerMs));
  }

  destroy(): void {
    this.#ending = true;
    if (this.#reading !== 'over') this.#reading = 'discarding';
    this.#socket.destroy();
  }

  #sendLater(bytes: Uint8Array): Promise<void> {
    this.#pendingSends++;
    return new Promise((resolve) => {
      // Called with an error too, when the connection broke: `ended` tells the receiver.
      this.#socket.write(bytes, () => {
        this.#pendingSends--;
        resolve();
      });
    });
  }

  /** Where the next bytes land; asked by Node after every arrival, before it reads on. */
  #space(): Uint8Array {
    this.#direct = this.#reading === 'delivering' && this.#receiver !== undefined && this.#held === undefined;
    if (this.#direct && this.#receiver !== undefined) return this.#receiver.space();
    // A receiver that has paused may need its memory for something else until it is asked again.
    this.#landing ??= new Uint8Array(landingLength);
    return this.#landing;
  }

  /** Returns true: Node goes on reading. */
  #arrived(count: number): true {
    if (this.#direct) {
      if (this.#reading === 'delivering' || this.#reading === 'paused') this.#receiver?.received(count);
    } else if (this.#landing !== undefined) this.#handOver(this.#landing.subarray(0, count));
    return true;
  }

  /** Copies bytes that landed elsewhere into the receiver's space, as much as that takes at a time. */
  #handOver(bytes: Uint8Array): void {
    let rest = bytes;
    while (rest.length > 0) {
      if (this.#receiver === undefined || this.#reading === 'paused') {
        this.#held = rest;
        return;
      }
      if (this.#reading !== 'delivering') return;
      const space = this.#receiver.space();
      if (space.length === 0) throw new Error('the receiver of a stream gave no room');
      const count = Math.min(space.length, rest.length);
      space.set(rest.subarray(0, count));
      rest = rest.subarray(count);
      this.#receiver.received(count);
    }
  }

  #handOverHeld(): void {
    const held = this.#held;
    if (held === undefined || this.#reading !== 'delivering') return;
    this.#held = undefined;
    this.#handOver(held);
    if (this.#held === undefined && this.#reading === 'delivering') this.#socket.resume();
  }

  /** From here on what arrives is dropped: it is read all the same, so that the close is no reset. */
  #discard(): void {
    if (this.#reading === 'over') return;
    this.#reading = 'discarding';
    this.#held = undefined;
    this.#socket.resume();
  }

  /** The other side will send no more. What is pending, and what the receiver sends in its `ended`, still goes out. */
  #otherSideEnded(): void {
    if (this.#receiver?.inputEnded !== undefined && !this.#ending && this.#reading !== 'over') {
      this.#receiver.inputEnded();
      return;
    }
    this.#over(null);
    this.#ending = true;
    this.#destroyAfter(lastReadMs);
    this.#socket.end(() => this.#socket.destroy());
  }

  #destroyAfter(ms: number): void {
    const timer = setTimeout(() => this.#socket.destroy(), ms).unref();
    this.#socket.once('close', () => clearTimeout(timer));
  }

  #over(outcome: Error | null): void {
    if (this.#reading === 'over') return;
    this.#reading = 'over';
    this.#held = undefined;
    this.#outcome = outcome;
    this.#receiver?.ended(outcome);
  }
}

/** The part of a socket's handle that is used here; Node does not document it. */
interface Handle {
  readonly fd: number;
  useUserBuffer(buffer: Uint8Array): void;
}

/**
 * Takes the handle out of a connected, paused socket, for a new one that reads where we say: only a socket's
 * constructor takes `onread`, and an accepted socket has been constructed already. Null: this Node has no such handle.
 */
function takeHandle(socket: net.Socket): Handle | null {
  const shell = socket as unknown as { _handle?: Handle | null };
  const handle = shell._handle;
  if (!handle || !(handle.fd >= 0) || typeof handle.useUserBuffer !== 'function') return null;
  shell._handle = null;
  socket.destroy(); // an empty shell now: its server no longer counts it
  return handle;
}

function listening(server: net.Server, address: SocketAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(address.type === 'unix' ? { path: address.path } : { host: address.host, port: address.port }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** True if the path is a socket that nobody listens on any more. */
async function isStale(path: string): Promise<boolean> {
  const stat = await fs.promises.lstat(path).catch(() => null);
  if (stat === null || !stat.isSocket()) return false;
  return new Promise((resolve) => {
    const socket = net.connect({ path });
    socket.once('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.once('error', (error) => resolve(isCode(error, 'ECONNREFUSED')));
  });
}

function listenError(address: SocketAddress, error: unknown): BlockError {
  const where = `listen on ${addressText(address)}`;
  if (isCode(error, 'EADDRINUSE'))
    return new BlockError('address-in-use', `${where}: the address is in use`, { cause: error });
  if (isCode(error, 'EADDRNOTAVAIL') || isCode(error, 'ENOTFOUND'))
    return new BlockError('invalid-option', `${where}: this machine has no such address`, { cause: error });
  return toBlockError(error, where);
}

/** What a person makes of the system's word. */
const unreachable: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nothing listens there',
  ENOENT: 'there is no such socket',
  EHOSTUNREACH: 'that host cannot be reached',
  ENETUNREACH: 'there is no way to that network',
  ENOTFOUND: 'there is no host of that name',
  EAI_AGAIN: 'the name cannot be looked up now',
};

function connectError(address: SocketAddress, error: Error): BlockError {
  const where = `connect to ${addressText(address)}`;
  if (isCode(error, 'ETIMEDOUT')) return new BlockError('timed-out', `${where}: no answer`, { cause: error });
  // Several addresses of one name failed: the sentence of the first says as much as any.
  const first: unknown = error instanceof AggregateError ? error.errors[0] : error;
  const { errno } = toBlockError(first);
  const code = first instanceof Error && 'code' in first ? String(first.code) : '';
  const known = unreachable[code];
  const text = known !== undefined ? `${known} (${code})` : first instanceof Error ? first.message : String(first);
  return new BlockError('connection-failed', `${where}: ${text}`, { errno, cause: error });
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
