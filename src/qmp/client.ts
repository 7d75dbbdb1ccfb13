/**
 * The QMP client: a `QmpTarget` at the far end of a stream, of blockstep or of a QEMU.
 *
 * Answers are matched by `id`. When the connection ends, every command under way fails with `connection-lost`, as does
 * each later one: whether such a command took effect is not known.
 */
import type { Host, HostStream, HostTimer, SocketAddress, StreamReceiver } from '../host/host.ts';
import { BlockError, type BlockErrorCode, blockErrorKinds, type QmpErrorClass } from '../util/errors.ts';
import { encodeMessage, errorCodeMember, JsonStream } from './json-stream.ts';
import type { QmpEvent, QmpTarget } from './target.ts';

export interface QmpClientOptions {
  /** milliseconds for connecting and the greeting (default 5000) */
  readonly connectMs?: number;
  /** milliseconds that a command may take (default: no limit) */
  readonly commandMs?: number;
}

/** commands under way at most */
const pendingMax = 1024;
const connectMsDefault = 5000;
const receiveBytes = 64 * 1024;

interface Pending {
  readonly command: string;
  resolve(value: unknown): void;
  reject(error: BlockError): void;
  timer: HostTimer | null;
}

export class QmpClient implements QmpTarget {
  readonly #host: Host;
  readonly #stream: HostStream;
  readonly #where: string;
  readonly #commandMs: number | undefined;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #closedListeners = new Set<(error: BlockError | null) => void>();
  readonly #greeted = Promise.withResolvers<unknown>();
  #greeting: unknown = null;
  #nextId = 1;
  #over: BlockError | null = null;
  #closing: boolean = false;

  private constructor(host: Host, stream: HostStream, where: string, options: QmpClientOptions) {
    this.#host = host;
    this.#stream = stream;
    this.#where = where;
    this.#commandMs = options.commandMs;
    // Nobody may be waiting for the greeting when the connection breaks.
    this.#greeted.promise.catch(() => undefined);
    stream.start(this.#receiver());
  }

  /** Connects, takes the greeting and ends the negotiation: commands may follow at once. */
  static async connect(host: Host, address: SocketAddress, options: QmpClientOptions = {}): Promise<QmpClient> {
    const connectMs = options.connectMs ?? connectMsDefault;
    const stream = await host.network.connect(address, connectMs);
    const where = address.type === 'unix' ? address.path : `${address.host}:${address.port}`;
    const client = new QmpClient(host, stream, where, options);
    const timer = host.clock.after(connectMs, () =>
      client.#fail(new BlockError('timed-out', `${where}: no greeting of QMP within ${connectMs} ms`)),
    );
    try {
      client.#greeting = await client.#greeted.promise;
      await client.execute('qmp_capabilities');
      return client;
    } catch (error) {
      stream.destroy();
      throw error;
    } finally {
      timer.cancel();
    }
  }

  /** What the server said of itself: `{ version, capabilities }`. */
  get greeting(): unknown {
    return this.#greeting;
  }

  /** @param timeoutMs for this command, instead of the client's `commandMs` */
  execute(command: string, args?: Readonly<Record<string, unknown>>, timeoutMs?: number): Promise<unknown> {
    if (this.#over !== null) return Promise.reject(this.#over);
    if (this.#pending.size >= pendingMax) {
      return Promise.reject(new BlockError('in-use', `${this.#where}: ${pendingMax} commands are under way`));
    }
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const pending: Pending = { command, resolve, reject, timer: null };
    this.#pending.set(id, pending);
    const limitMs = timeoutMs ?? this.#commandMs;
    if (limitMs !== undefined) {
      pending.timer = this.#host.clock.after(limitMs, () =>
        this.#take(id)?.reject(
          new BlockError('timed-out', `${this.#where}: no answer to ${command} within ${limitMs} ms`),
        ),
      );
    }
    const message = args === undefined ? { execute: command, id } : { execute: command, arguments: args, id };
    // The stream keeps the order; a broken one ends every pending command through `ended`.
    this.#stream.send(encodeMessage(message))?.catch(() => undefined);
    return promise;
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Called once, when the connection is over: null after `close`. At once if it is over already. */
  onClosed(listener: (error: BlockError | null) => void): void {
    if (this.#over === null) this.#closedListeners.add(listener);
    else listener(this.#closing ? null : this.#over);
  }

  /** Hangs up; commands under way fail. */
  close(): void {
    this.#closing = true;
    this.#fail(new BlockError('shutting-down', `${this.#where}: the QMP connection was closed`));
  }

  #receiver(): StreamReceiver {
    const room = new Uint8Array(receiveBytes);
    const json = new JsonStream({
      value: (value) => this.#arrived(value),
      error: (message) => this.#fail(new BlockError('protocol-error', `${this.#where} does not speak QMP: ${message}`)),
    });
    return {
      space: () => room,
      received: (count) => json.push(room.subarray(0, count)),
      ended: (error) =>
        this.#fail(
          new BlockError(
            'connection-lost',
            error === null
              ? `${this.#where}: the other side closed the QMP connection`
              : `${this.#where}: the QMP connection broke: ${error.message}`,
          ),
        ),
    };
  }

  #arrived(value: unknown): void {
    if (this.#over !== null) return;
    const message = asRecord(value);
    if (message === null) this.#fail(new BlockError('protocol-error', `${this.#where} sent something that is not QMP`));
    else if (typeof message.event === 'string') this.#tell(message, message.event);
    else if ('QMP' in message) this.#greeted.resolve(message.QMP);
    else if ('return' in message) this.#answered(message)?.resolve(message.return);
    else if ('error' in message) this.#answered(message)?.reject(errorFrom(message.error));
    else this.#fail(new BlockError('protocol-error', `${this.#where} sent something that is not QMP`));
  }

  /** Whose answer it is. One without an id can only be to the oldest command: a server that could not read it. */
  #answered(message: Record<string, unknown>): Pending | undefined {
    const id = 'id' in message ? message.id : this.#pending.keys().next().value;
    return typeof id === 'number' ? this.#take(id) : undefined;
  }

  #take(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    pending?.timer?.cancel();
    return pending;
  }

  #tell(message: Record<string, unknown>, name: string): void {
    const timestamp = asRecord(message.timestamp);
    const event: QmpEvent = {
      event: name,
      data: asRecord(message.data) ?? {},
      timestamp: { seconds: numberOf(timestamp?.seconds), microseconds: numberOf(timestamp?.microseconds) },
    };
    for (const listener of [...this.#listeners]) listener(event);
  }

  #fail(error: BlockError): void {
    if (this.#over !== null) return;
    this.#over = error;
    this.#stream.destroy();
    this.#greeted.reject(error);
    for (const id of [...this.#pending.keys()]) this.#take(id)?.reject(error);
    for (const listener of this.#closedListeners) listener(this.#closing ? null : error);
    this.#closedListeners.clear();
    this.#listeners.clear();
  }
}

/** QMP: both members of a timestamp are -1 where the server had no time. */
function numberOf(value: unknown): number {
  return typeof value === 'number' ? value : -1;
}

function asRecord(value: unknown): Record<string, unknown> | null {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : null;
}

const codeOfClass: Record<QmpErrorClass, BlockErrorCode> = {
  GenericError: 'command-failed',
  CommandNotFound: 'command-not-found',
  DeviceNotFound: 'device-not-found',
  DeviceNotActive: 'job-not-active',
  KVMMissingCap: 'not-supported',
};

function errorFrom(value: unknown): BlockError {
  const error = asRecord(value) ?? {};
  const text = typeof error.desc === 'string' ? error.desc : 'the command failed without a word';
  const code = error[errorCodeMember];
  if (typeof code === 'string' && Object.hasOwn(blockErrorKinds, code)) {
    return new BlockError(code as BlockErrorCode, text);
  }
  const qmpClass = typeof error.class === 'string' ? error.class : 'GenericError';
  return new BlockError(
    Object.hasOwn(codeOfClass, qmpClass) ? codeOfClass[qmpClass as QmpErrorClass] : 'command-failed',
    text,
  );
}
