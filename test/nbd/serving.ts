/** A server over a fake host with one export, and a raw client of it: what most tests of sessions begin with. */
import assert from 'node:assert/strict';
import type { NbdBackend, NbdServerExport } from '../../src/nbd/backend.ts';
import * as nbd from '../../src/nbd/constants.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { FakeHost, type FakeStream, settle } from './fake-host.ts';
import { MemoryBackend } from './memory-backend.ts';
import {
  type Answer,
  answers,
  bytes,
  clientFlags,
  contextData,
  infoData,
  option,
  type RequestFields,
  request,
} from './wire.ts';

export interface Serving {
  readonly host: FakeHost;
  readonly server: NbdServer;
  readonly exported: NbdServerExport;
}

export async function serving(
  more: Partial<NbdServerExport> & { backend?: NbdBackend } = {},
  connectionsMax?: number,
): Promise<Serving> {
  const host = new FakeHost();
  const exported: NbdServerExport = {
    name: 'disk',
    description: '',
    backend: new MemoryBackend(1024 * 1024),
    readOnly: false,
    multiConn: true,
    ordered: false,
    blockSizes: [1, 4096, nbd.NBD_PAYLOAD_BYTES_MAX],
    ...more,
  };
  const directory = {
    list: () => [exported],
    find: (name: string) => (name === exported.name ? exported : null),
  };
  const server = new NbdServer(host, directory, connectionsMax === undefined ? {} : { connectionsMax });
  await server.listen({ type: 'unix', path: '/fake' });
  return { host, server, exported };
}

export interface ClientOptions {
  readonly structured?: boolean;
  readonly contexts?: readonly string[];
}

/** A client that has negotiated; what it sends is written by hand. */
export class TestClient {
  readonly stream: FakeStream;
  /** bytes of output that belong to the handshake */
  readonly #handshakeBytes: number;
  /** lengths of the reads whose reply is simple */
  readonly #reads = new Map<bigint, number>();
  readonly #structured: boolean;

  constructor(host: FakeHost, options: ClientOptions = {}) {
    this.stream = host.connect();
    const structured = options.structured ?? true;
    this.#structured = structured;
    const contexts = options.contexts ?? [];
    this.stream.arrive(
      bytes(
        clientFlags(),
        structured ? option(nbd.NBD_OPT_STRUCTURED_REPLY) : [],
        contexts.length > 0 ? option(nbd.NBD_OPT_SET_META_CONTEXT, contextData('disk', contexts)) : [],
        option(nbd.NBD_OPT_GO, infoData('disk')),
      ),
    );
    this.#handshakeBytes = this.stream.output().length;
    assert.ok(this.#handshakeBytes > 18, 'the handshake was answered');
  }

  send(...requests: RequestFields[]): void {
    for (const fields of this.#structured ? [] : requests) {
      if (fields.type === nbd.NBD_CMD_READ) this.#reads.set(BigInt(fields.cookie ?? 0), fields.length ?? 0);
    }
    this.stream.arrive(bytes(...requests.map(request)));
  }

  /** All answers so far, in the order in which they came. */
  answers(): Answer[] {
    return answers(this.stream.output().subarray(this.#handshakeBytes), this.#reads);
  }

  /** Sends one request, lets it be worked off, and gives its answer. */
  async ask(fields: RequestFields): Promise<Answer> {
    const cookie = BigInt(fields.cookie ?? 0);
    const before = this.answers().length;
    this.send(fields);
    await settle();
    const answer = this.answers()
      .slice(before)
      .find((one) => one.cookie === cookie);
    assert.ok(answer !== undefined, 'the request was answered');
    return answer;
  }
}
