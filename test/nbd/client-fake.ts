/** A client over a stream of memory, for tests that look at when and how it sends. */
import type { Host } from '../../src/host/host.ts';
import { NbdClient, type NbdConnectOptions } from '../../src/nbd/client.ts';
import * as nbd from '../../src/nbd/constants.ts';
import {
  greeting,
  infoBlockSize,
  infoExport,
  type Offer,
  optionReply,
  parseRequest,
  type SeenRequest,
} from './client-wire.ts';
import { FakeHost, FakeStream, settle } from './fake-host.ts';
import { bytes, u32 } from './wire.ts';

/** The server's end: what was sent since the handshake, send by send. */
export class FakePeer {
  readonly stream: FakeStream;
  readonly host: FakeHost;
  client: NbdClient;
  #seen = 0;

  constructor(host: FakeHost, stream: FakeStream, client: NbdClient) {
    this.host = host;
    this.stream = stream;
    this.client = client;
    this.#seen = stream.sent.length;
  }

  /** Lets the turn end, and gives the requests that were sent since the last call. */
  async requests(): Promise<SeenRequest[]> {
    await settle();
    let left: Buffer = Buffer.concat(this.stream.sent.slice(this.#seen));
    this.#seen = this.stream.sent.length;
    const all: SeenRequest[] = [];
    for (let parsed = parseRequest(left); parsed !== null; parsed = parseRequest(left)) {
      all.push(parsed.request);
      left = left.subarray(parsed.bytes);
    }
    return all;
  }

  /** sends since the handshake or the last `requests` */
  get sends(): number {
    return this.stream.sent.length - this.#seen;
  }
}

export async function fakePeer(offer: Offer = {}, more: Partial<NbdConnectOptions> = {}): Promise<FakePeer> {
  const fake = new FakeHost();
  const stream = new FakeStream();
  const host: Host = { ...fake, clock: fake.clock, network: { ...fake.network, connect: async () => stream } };
  const structured = offer.structured ?? true;
  const contexts = Object.entries(offer.contexts ?? {}).map(([name, id]) =>
    optionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_META_CONTEXT, bytes(u32(id), name)),
  );
  stream.arrive(
    bytes(
      greeting(),
      optionReply(nbd.NBD_OPT_STRUCTURED_REPLY, structured ? nbd.NBD_REP_ACK : nbd.NBD_REP_ERR_UNSUP),
      ...(structured ? [...contexts, optionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_ACK)] : []),
      offer.blockSizes === undefined
        ? []
        : optionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_INFO, infoBlockSize(...offer.blockSizes)),
      optionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_INFO, infoExport(offer.size ?? 1024 * 1024, offer.flags)),
      optionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_ACK),
    ),
  );
  const client = await NbdClient.connect(host, {
    address: { type: 'unix', path: '/fake' },
    exportName: 'disk',
    ...more,
  });
  return new FakePeer(fake, stream, client);
}
