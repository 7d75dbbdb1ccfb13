/**
 * An export of an NBD server as a block node (QEMU: qapi/block-core.json, BlockdevOptionsNbd).
 *
 * Thin over `NbdClient`: zeroes that the server cannot write are written as data, a minimum block size is hidden
 * (`nbd-aligned.ts`), and a lost connection is told at once (`Breakable`, event NBD_CONNECTION_LOST) and made anew as
 * `reconnect-delay` says (`nbd-link.ts`). A server that agreed on `blockstep:ordered` gets everything at once.
 */
import { z } from 'zod';
import type { Breakable } from '../block/breakable.ts';
import { type DriverNode, defineDriver, type OpenContext } from '../block/driver.ts';
import { type WriteFlags, writeFlags } from '../block/node.ts';
import type { Host, SocketAddress } from '../host/host.ts';
import type { NbdBackend } from '../nbd/backend.ts';
import { NbdClient } from '../nbd/client.ts';
import {
  NBD_DEFAULT_PORT,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_META_BASE_ALLOCATION,
  NBD_META_BLOCKSTEP_ORDERED,
} from '../nbd/constants.ts';
import type { NbdExportInfo } from '../nbd/export-info.ts';
import { formatNbdUri } from '../nbd/uri.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Extent } from '../util/extents.ts';
import type { Done } from '../util/later.ts';
import { AlignedBackend } from './nbd-aligned.ts';
import { NbdLink } from './nbd-link.ts';

/** seconds; QEMU's are 32-bit numbers */
const secondsMax = 2 ** 32 - 1;
/** ms between attempts to open while `open-timeout` lasts */
const openRetryMs = 200;
/** zeroes that are written as data, bytes at once */
const zeroes = new Uint8Array(1024 * 1024);

const port = z
  .union([z.int().min(1).max(65_535), z.string().regex(/^[0-9]{1,5}$/, 'expected a port number')])
  .transform(Number);

const server = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('unix'), path: z.string().min(1) }),
  z.strictObject({ type: z.literal('inet'), host: z.string().min(1), port }),
]);

const nbdOptions = z.strictObject({
  server: server.optional().describe('where the server listens'),
  path: z.string().min(1).optional().describe('a unix socket, instead of `server`'),
  host: z.string().min(1).optional().describe('a host, instead of `server`'),
  port: port.optional().describe('with `host` (default 10809)'),
  export: z.string().default('').describe("the export's name; empty: the server's default export"),
  'reconnect-delay': z.int().min(0).max(secondsMax).default(0).describe('seconds that requests wait for a reconnect'),
  'open-timeout': z.int().min(0).max(secondsMax).default(0).describe('seconds during which opening is tried again'),
  'tls-creds': z.string().optional().describe('not supported yet'),
  'tls-hostname': z.string().optional().describe('not supported yet'),
  'x-dirty-bitmap': z.string().optional().describe('not supported'),
});

type NbdOptions = z.infer<typeof nbdOptions>;

export const nbdDriver = defineDriver({
  name: 'nbd',
  summary: 'an export of an NBD server',
  options: nbdOptions,
  async open(options, context): Promise<DriverNode & Breakable> {
    for (const name of ['tls-creds', 'tls-hostname', 'x-dirty-bitmap'] as const) {
      if (options[name] !== undefined)
        throw new BlockError('not-supported', `${name}: not supported by this driver yet`);
    }
    const where = { address: addressOf(options), exportName: options.export };
    const reconnects = options['reconnect-delay'] > 0;
    // A request that is issued again after a reconnect may not overtake a later one that overlaps it, so then the
    // client keeps the order and not the server.
    const contexts = reconnects ? [NBD_META_BASE_ALLOCATION] : [NBD_META_BASE_ALLOCATION, NBD_META_BLOCKSTEP_ORDERED];
    const connect = (): Promise<NbdClient> => NbdClient.connect(context.host, { ...where, contexts });
    const client = await connectWithin(context.host, options['open-timeout'], connect);
    try {
      checkUsable(client.info, context.readOnly, where.exportName);
    } catch (error) {
      await client.close();
      throw error;
    }
    return new NbdNode(client, connect, formatNbdUri(where), options['reconnect-delay'], context);
  },
});

function addressOf(options: NbdOptions): SocketAddress {
  const given = [options.server, options.path, options.host].filter((value) => value !== undefined).length;
  if (given !== 1) throw new BlockError('invalid-option', 'exactly one of "server", "path" and "host" must be given');
  if (options.port !== undefined && options.host === undefined) {
    throw new BlockError('invalid-option', 'port: makes sense only with "host"');
  }
  if (options.server !== undefined) return options.server;
  if (options.path !== undefined) return { type: 'unix', path: options.path };
  return { type: 'inet', host: options.host ?? '', port: options.port ?? NBD_DEFAULT_PORT };
}

/** Connects; while `open-timeout` lasts, again and again, for a server that is not there yet. */
async function connectWithin(host: Host, seconds: number, connect: () => Promise<NbdClient>): Promise<NbdClient> {
  const until = host.clock.now() + seconds * 1000;
  for (;;) {
    try {
      return await connect();
    } catch (error) {
      if (host.clock.now() + openRetryMs > until) throw toBlockError(error);
    }
    await new Promise<void>((resolve) => {
      host.clock.after(openRetryMs, resolve);
    });
  }
}

function checkUsable(info: NbdExportInfo, readOnly: boolean, exportName: string): void {
  if (info.readOnly && !readOnly) {
    throw new BlockError('read-only', `export "${exportName}" is read-only: it needs "read-only": true here`);
  }
  const { minimum } = info.blockSizes;
  if (info.size % minimum !== 0) {
    throw new BlockError(
      'not-supported',
      `export "${exportName}" has ${info.size} bytes, no multiple of its minimum block size ${minimum}`,
    );
  }
}

class NbdNode implements DriverNode, Breakable {
  readonly length: number;
  readonly #link: NbdLink;
  readonly #uri: string;
  readonly #context: OpenContext;
  readonly #below: NbdBackend;
  readonly #listeners = new Set<(error: BlockError) => void>();
  #info: NbdExportInfo;

  constructor(
    client: NbdClient,
    connect: () => Promise<NbdClient>,
    uri: string,
    reconnectDelayS: number,
    context: OpenContext,
  ) {
    this.length = client.info.size;
    this.#info = client.info;
    this.#uri = uri;
    this.#context = context;
    this.#link = new NbdLink(client, {
      host: context.host,
      connect: async () => this.#checkSame(await connect()),
      reconnectDelayS,
      lost: (error) => this.#lost(error),
      restored: () => context.emit('NBD_CONNECTION_RESTORED', { 'node-name': context.nodeName }),
    });
    const bare: NbdBackend =
      reconnectDelayS > 0 ? new PatientBackend(this.#link, this.length) : new DirectBackend(this.#link, this.length);
    const { minimum } = client.info.blockSizes;
    this.#below = minimum === 1 ? bare : new AlignedBackend(bare, minimum);
  }

  /** Not with a reconnect-delay: then requests may reach the server in another order. */
  get ordered(): boolean {
    return this.#info.ordered;
  }

  /** Not with parts of blocks: what is read first is sent only afterwards. */
  get flushesInOrder(): boolean {
    return this.#info.ordered && this.#info.blockSizes.minimum === 1;
  }

  read(offset: number, into: Uint8Array): Done {
    return this.#below.read(offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    return this.#below.write(offset, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    const wanted = (flags & writeFlags.fastZero) === 0 ? NBD_FLAG_SEND_WRITE_ZEROES : NBD_FLAG_SEND_FAST_ZERO;
    if ((this.#info.flags & wanted) !== 0) return this.#below.writeZeroes(offset, length, flags);
    if ((flags & writeFlags.fastZero) !== 0) {
      throw new BlockError('not-supported', `${this.#uri}: the server cannot write zeroes faster than data`);
    }
    return this.#writeZeroData(offset, length, flags & writeFlags.fua);
  }

  discard(offset: number, length: number): Done {
    return this.#below.discard(offset, length);
  }

  flush(): Done {
    return this.#below.flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.#below.blockStatus(offset, length);
  }

  close(): Promise<void> {
    return this.#link.close();
  }

  onBroken(listener: (error: BlockError) => void): () => void {
    this.#listeners.add(listener);
    const { error } = this.#link;
    if (error !== null) queueMicrotask(() => listener(error));
    return () => this.#listeners.delete(listener);
  }

  breakConnection(reason: string): void {
    const { connected } = this.#link;
    this.#link.cut(reason);
    if (connected && this.#link.error !== null) this.#lost(this.#link.error);
  }

  info(): Record<string, unknown> {
    return {
      uri: this.#uri,
      connected: this.#link.connected,
      error: this.#link.error?.message ?? null,
      ordered: this.ordered,
      'structured-replies': this.#info.structured,
      'block-status': this.#info.contexts.has(NBD_META_BASE_ALLOCATION),
      // Without it nothing proves that what the server answered is durable.
      flush: (this.#info.flags & NBD_FLAG_SEND_FLUSH) !== 0,
      'minimum-block-size': this.#info.blockSizes.minimum,
    };
  }

  /** All pieces are issued in this call, so that they keep their place among other requests. */
  async #writeZeroData(offset: number, length: number, flags: WriteFlags): Promise<void> {
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < length; at += zeroes.length) {
      const piece = zeroes.subarray(0, Math.min(zeroes.length, length - at));
      pieces.push(Promise.resolve(this.#below.write(offset + at, piece, flags)));
    }
    for (const result of await Promise.allSettled(pieces)) if (result.status === 'rejected') throw result.reason;
  }

  /** After a reconnect: the same disk, as far as can be seen. */
  #checkSame(client: NbdClient): NbdClient {
    const { size, readOnly, ordered, blockSizes } = client.info;
    const before = this.#info;
    const changed =
      size !== this.length || blockSizes.minimum > before.blockSizes.minimum || (before.ordered && !ordered);
    if (changed || (readOnly && !this.#context.readOnly)) {
      client.destroy('the export is another one');
      throw new BlockError('connection-lost', `${this.#uri}: after a reconnect the export is another one`);
    }
    this.#info = client.info;
    return client;
  }

  #lost(error: BlockError): void {
    for (const listener of this.#listeners) listener(error);
    const { nodeName } = this.#context;
    this.#context.emit('NBD_CONNECTION_LOST', { 'node-name': nodeName, reason: error.message });
  }
}

/** Requests fail at once while there is no connection. */
class DirectBackend implements NbdBackend {
  readonly length: number;
  readonly #link: NbdLink;

  constructor(link: NbdLink, length: number) {
    this.#link = link;
    this.length = length;
  }

  read(offset: number, into: Uint8Array): Done {
    return this.#link.client().read(offset, into);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    return this.#link.client().write(offset, from, flags);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    return this.#link.client().writeZeroes(offset, length, flags);
  }

  discard(offset: number, length: number): Done {
    return this.#link.client().discard(offset, length);
  }

  flush(): Done {
    return this.#link.client().flush();
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.#link.client().blockStatus(offset, length);
  }
}

/** Requests wait for a connection as long as `reconnect-delay` says. */
class PatientBackend implements NbdBackend {
  readonly length: number;
  readonly #link: NbdLink;

  constructor(link: NbdLink, length: number) {
    this.#link = link;
    this.length = length;
  }

  read(offset: number, into: Uint8Array): Done {
    return this.#link.run((client) => client.read(offset, into) as Promise<void>);
  }

  write(offset: number, from: Uint8Array, flags: WriteFlags): Done {
    return this.#link.run((client) => client.write(offset, from, flags) as Promise<void>);
  }

  writeZeroes(offset: number, length: number, flags: WriteFlags): Done {
    return this.#link.run((client) => client.writeZeroes(offset, length, flags) as Promise<void>);
  }

  discard(offset: number, length: number): Done {
    return this.#link.run((client) => client.discard(offset, length) as Promise<void>);
  }

  flush(): Done {
    return this.#link.run((client) => client.flush() as Promise<void>);
  }

  blockStatus(offset: number, length: number): Extent[] | Promise<Extent[]> {
    return this.#link.run((client) => client.blockStatus(offset, length));
  }
}
