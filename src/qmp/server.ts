/**
 * The QMP server: listens, and lets each client talk to one `QmpTarget` (QEMU's docs/interop/qmp-spec).
 *
 * A client is greeted, negotiates (only `qmp_capabilities` is taken before), then gives commands; its commands are run
 * one after the other and answered in order, those of different clients side by side. Events go to every client that
 * has negotiated. A client that sends faster than its commands run is not read; one that does not read what waits for
 * it is hung up: nothing grows without bound.
 */
import type { Host, HostListener, HostStream, SocketAddress, StreamReceiver } from '../host/host.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { deferred } from '../util/later.ts';
import { encodeMessage, errorCodeMember, JsonStream } from './json-stream.ts';
import { negotiate } from './negotiation.ts';
import type { QmpEvent, QmpTarget } from './target.ts';
import { version } from './version.ts';

export const qmpServerLimits = {
  /** clients at once; one more is hung up */
  clientsMax: 64,
  /** commands of one client that wait before it is not read any more */
  queuedMax: 8,
  /** bytes that may wait for a client that does not read */
  unsentBytesMax: 64 * 1024 * 1024,
  /** milliseconds that a client may take to read its last answers when the server closes */
  closeMsMax: 1000,
} as const;

const receiveBytes = 16 * 1024;

export class QmpServer {
  readonly #host: Host;
  readonly #target: QmpTarget;
  readonly #listeners: HostListener[] = [];
  readonly #sessions = new Set<QmpSession>();
  #closed: boolean = false;

  constructor(host: Host, target: QmpTarget) {
    this.#host = host;
    this.#target = target;
  }

  /** Listens on one more address; gives it with the port that the system chose. */
  async listen(address: SocketAddress): Promise<SocketAddress> {
    const listener = await this.#host.network.listen(address, (stream) => this.#accepted(stream));
    if (this.#closed) {
      await listener.close();
      throw new BlockError('shutting-down', 'the QMP server is closed');
    }
    this.#listeners.push(listener);
    return listener.address;
  }

  get clients(): number {
    return this.#sessions.size;
  }

  /**
   * Stops listening and hangs up every client: the command that runs is still answered, those behind it are not. Done
   * when the clients are gone; one that does not read is hung up after `closeMsMax`.
   */
  async close(): Promise<void> {
    this.#closed = true;
    const sessions = [...this.#sessions];
    const timer = this.#host.clock.after(qmpServerLimits.closeMsMax, () => {
      for (const session of sessions) session.hangUp();
    });
    const gone = sessions.map((session) => session.close());
    await Promise.all([...gone, ...this.#listeners.splice(0).map((listener) => listener.close())]);
    timer.cancel();
  }

  #accepted(stream: HostStream): void {
    if (this.#closed || this.#sessions.size >= qmpServerLimits.clientsMax) {
      stream.destroy();
      return;
    }
    const session = new QmpSession(stream, this.#target, () => this.#sessions.delete(session));
    this.#sessions.add(session);
    session.start();
  }
}

/** What arrived: a message, or the sentence about one that was not JSON. */
type Input = { readonly value: unknown } | { readonly fault: string };

interface Request {
  readonly command: string;
  readonly args: Readonly<Record<string, unknown>>;
}

/** One client. */
class QmpSession implements StreamReceiver {
  readonly #stream: HostStream;
  readonly #target: QmpTarget;
  readonly #gone: () => void;
  readonly #json: JsonStream;
  readonly #room = new Uint8Array(receiveBytes);
  readonly #queue: Input[] = [];
  #running: boolean = false;
  #paused: boolean = false;
  #over: boolean = false;
  /** the client sends no more: what it asked for is still answered */
  #inputEnded: boolean = false;
  #unsentBytes = 0;
  #unsubscribe: (() => void) | null = null;
  readonly #finished = deferred();

  constructor(stream: HostStream, target: QmpTarget, gone: () => void) {
    this.#stream = stream;
    this.#target = target;
    this.#gone = gone;
    this.#json = new JsonStream({
      value: (value) => this.#queue.push({ value }),
      error: (fault) => this.#queue.push({ fault }),
    });
  }

  start(): void {
    this.#post({ QMP: { version, capabilities: [] } });
    this.#stream.start(this);
  }

  /** No more commands are taken; hangs up when the one that runs is answered. Done when the connection is gone. */
  close(): Promise<void> {
    this.#queue.length = 0;
    this.#inputEnded = true;
    if (!this.#running) this.#end();
    return this.#finished.promise;
  }

  hangUp(): void {
    this.#leave();
    this.#stream.destroy();
  }

  space(): Uint8Array {
    return this.#room;
  }

  received(count: number): void {
    if (this.#inputEnded) return;
    this.#json.push(this.#room.subarray(0, count));
    if (this.#queue.length > qmpServerLimits.queuedMax && !this.#paused) {
      this.#paused = true;
      this.#stream.pause();
    }
    this.#work();
  }

  inputEnded(): void {
    this.#inputEnded = true;
    if (!this.#running) this.#end();
  }

  ended(error: Error | null): void {
    this.#finished.resolve();
    if (error !== null) this.#leave();
    else this.inputEnded();
  }

  /** Runs what is queued, one command after the other. */
  #work(): void {
    if (this.#running || this.#over || this.#queue.length === 0) return;
    this.#running = true;
    this.#drainQueue().then(
      () => {
        this.#running = false;
        if (this.#inputEnded) this.#end();
      },
      () => this.hangUp(),
    );
  }

  async #drainQueue(): Promise<void> {
    for (let input = this.#queue.shift(); input !== undefined && !this.#over; input = this.#queue.shift()) {
      const sent = this.#send(await this.#answer(input));
      if (sent !== undefined) await sent;
      if (this.#paused && this.#queue.length <= qmpServerLimits.queuedMax) {
        this.#paused = false;
        this.#stream.resume();
      }
    }
  }

  async #answer(input: Input): Promise<object> {
    if ('fault' in input) return { error: { class: 'GenericError', desc: input.fault } };
    const id = idOf(input.value);
    try {
      const request = parseRequest(input.value);
      return { return: await this.#execute(request), ...id };
    } catch (thrown) {
      return { error: describeError(thrown), ...id };
    }
  }

  async #execute(request: Request): Promise<unknown> {
    const negotiated = this.#unsubscribe !== null;
    if (request.command !== 'qmp_capabilities') {
      if (negotiated) return (await this.#target.execute(request.command, request.args)) ?? {};
      throw new BlockError(
        'command-not-found',
        'the session begins with qmp_capabilities; nothing else is taken before',
      );
    }
    if (negotiated) {
      throw new BlockError('command-not-found', 'qmp_capabilities was given already; the session is in command mode');
    }
    negotiate(request.args);
    if (!this.#over) this.#unsubscribe = this.#target.subscribe((event) => this.#tell(event));
    return {};
  }

  #tell(event: QmpEvent): void {
    this.#post({ timestamp: event.timestamp, event: event.event, data: event.data });
  }

  /** Sends what nobody waits for; `#unsentBytes` counts it. */
  #post(message: object): void {
    this.#send(message)?.catch(() => undefined);
  }

  #send(message: object): Promise<void> | undefined {
    if (this.#over) return undefined;
    if (this.#unsentBytes > qmpServerLimits.unsentBytesMax) {
      this.hangUp();
      return undefined;
    }
    const bytes = encodeMessage(message);
    const done = this.#stream.send(bytes);
    if (done === undefined) return undefined;
    this.#unsentBytes += bytes.length;
    return done.then(() => {
      this.#unsentBytes -= bytes.length;
    });
  }

  /** Hangs up once everything is sent. */
  #end(): void {
    if (this.#over) return;
    this.#leave();
    this.#stream.end();
  }

  #leave(): void {
    if (this.#over) return;
    this.#over = true;
    this.#queue.length = 0;
    this.#unsubscribe?.();
    this.#unsubscribe = null;
    this.#gone();
  }
}

/** The `id` of a request, to be echoed; a member of an object to spread. */
function idOf(value: unknown): { id?: unknown } {
  return isObject(value) && Object.hasOwn(value, 'id') ? { id: value.id } : {};
}

function parseRequest(value: unknown): Request {
  if (!isObject(value)) throw new BlockError('invalid-request', 'a command must be a JSON object');
  for (const member of Object.keys(value)) {
    if (member !== 'execute' && member !== 'arguments' && member !== 'id') {
      throw new BlockError('invalid-request', `member "${member}" of a command is unexpected`);
    }
  }
  const { execute, arguments: args = {} } = value;
  if (execute === undefined) throw new BlockError('invalid-request', 'a command needs the member "execute"');
  if (typeof execute !== 'string') throw new BlockError('invalid-request', 'member "execute" must be a string');
  if (!isObject(args)) throw new BlockError('invalid-request', 'member "arguments" must be an object');
  return { command: execute, args };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * An error as the client sees it. The code of our own table goes along under a downstream name ("Downstream extension
 * of QMP"), so that a `QmpClient` at the other end has it again; other clients ignore it.
 */
function describeError(thrown: unknown): object {
  const error = toBlockError(thrown);
  return { class: error.qmpClass, desc: error.message, [errorCodeMember]: error.code };
}
