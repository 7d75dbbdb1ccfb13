/** What every host promises of streams: cases for the real host and the simulated one. */
import assert from 'node:assert/strict';
import { join } from 'node:path/posix';
import type { Host, HostStream, SocketAddress } from '../../src/host/host.ts';
import { type Case, fails, Inbox, pattern, sleep, text, until } from './tools.ts';

export const networkCases: readonly Case[] = [
  [
    'bytes go both ways over unix and TCP, with the port that the system chose',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        if (pair.address.type === 'inet') assert.ok(pair.address.port > 0);
        await pair.client.send(text('ping'));
        await until(host, () => pair.atServer.text() === 'ping');
        await pair.server.send(text('pong'));
        await until(host, () => pair.atClient.text() === 'pong');
        assert.match(pair.client.peer, pair.address.type === 'unix' ? /^unix$/ : /:\d+$/);
        assert.match(pair.server.peer, pair.address.type === 'unix' ? /^unix$/ : /:\d+$/);
      }),
  ],
  [
    'a slow reader holds the sender back, and every byte arrives in order',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        const piece = pattern(90_001, 9);
        pair.server.pause();
        let sent = 0;
        let waited = 0;
        // As much as the system takes (some megabytes for TCP), and then some.
        const sending = (async () => {
          while (sent < 100_000_000 && waited < 5) {
            const done = pair.client.send(piece.subarray(sent % 1000));
            if (done !== undefined) waited++;
            sent += piece.length - (sent % 1000);
            await done;
          }
        })();
        await sleep(host, 20);
        assert.ok(waited > 0);
        while (pair.atServer.length < sent) {
          pair.server.resume();
          await sleep(host, 1);
          pair.server.pause();
        }
        await sending;
        assert.equal(pair.atServer.length, sent);
        const arrived = pair.atServer.bytes();
        for (let at = 0; at < sent; ) {
          const expected = piece.subarray(at % 1000);
          assert.deepEqual(arrived.subarray(at, at + expected.length), expected);
          at += expected.length;
        }
      }),
  ],
  [
    'what is sent without waiting for the one before keeps its order',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        const data = pattern(2_000_000, 4);
        const sends = [];
        for (let at = 0; at < data.length; at += 50_000) sends.push(pair.client.send(data.subarray(at, at + 50_000)));
        await Promise.all(sends);
        await until(host, () => pair.atServer.length === data.length);
        assert.deepEqual(pair.atServer.bytes(), data);
      }),
  ],
  [
    'a receiver with little room, and one that pauses in the middle, get every byte',
    (host, folder) =>
      overEach(
        host,
        folder,
        async (pair) => {
          const data = pattern(20_000, 6);
          pair.atServer.onReceived = (count) => {
            if (count % 3 !== 0) return;
            pair.server.pause();
            host.clock.endOfTurn(() => pair.server.resume());
          };
          await pair.client.send(data);
          pair.client.end();
          await until(host, () => pair.atServer.ends.length > 0);
          assert.deepEqual(pair.atServer.bytes(), data);
        },
        7,
      ),
  ],
  [
    'a paused stream delivers at most once more, and goes on after resume',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        pair.server.pause();
        for (let i = 0; i < 5; i++) {
          await pair.client.send(text('x'));
          await sleep(host, 2);
        }
        assert.ok(pair.atServer.deliveries <= 1);
        pair.server.resume();
        await until(host, () => pair.atServer.text() === 'xxxxx');
      }),
  ],
  [
    'end sends what is pending, and both sides are told once',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        const data = pattern(1_000_000, 2);
        const sent = pair.client.send(data);
        pair.client.end();
        pair.client.end();
        assert.equal(pair.client.send(text('dropped')), undefined);
        await sent;
        await until(host, () => pair.atServer.ends.length > 0 && pair.atClient.ends.length > 0);
        pair.client.destroy();
        await sleep(host, 20);
        assert.deepEqual(pair.atServer.bytes(), data);
        assert.deepEqual(pair.atServer.ends, [null]);
        assert.deepEqual(pair.atClient.ends, [null]);
      }),
  ],
  [
    'destroy ends both sides, once, and later sends are dropped without a throw',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        pair.client.destroy();
        assert.equal(pair.client.send(text('x')), undefined);
        await until(host, () => pair.atClient.ends.length > 0 && pair.atServer.ends.length > 0);
        for (let i = 0; i < 20; i++) {
          await pair.server.send(pattern(100_000, 1));
          await sleep(host, 1);
        }
        pair.server.destroy();
        await sleep(host, 10);
        assert.deepEqual(pair.atClient.ends, [null]);
        assert.equal(pair.atServer.ends.length, 1);
      }),
  ],
  [
    'a send that waits resolves when the stream breaks',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        pair.server.pause();
        const sends: unknown[] = [];
        for (let i = 0; i < 100; i++) sends.push(pair.client.send(pattern(100_000, 1)));
        assert.ok(sends.some((done) => done !== undefined));
        pair.server.destroy();
        await Promise.all(sends);
        await until(host, () => pair.atClient.ends.length > 0);
      }),
  ],
  [
    'what came before start is delivered first, also when the other side has closed since',
    async (host, folder) => {
      for (const asked of addresses(folder)) {
        let server: HostStream | undefined;
        const listener = await host.network.listen(asked, (stream) => {
          server = stream;
        });
        const client = await host.network.connect(listener.address);
        await client.send(text('early'));
        client.end();
        await sleep(host, 30);
        await until(host, () => server !== undefined);
        const inbox = new Inbox();
        server?.start(inbox);
        await until(host, () => inbox.ends.length > 0);
        assert.equal(inbox.text(), 'early');
        assert.deepEqual(inbox.ends, [null]);
        await listener.close();
      }
    },
  ],
  [
    'a stream that was destroyed before start tells its receiver so',
    (host, folder) =>
      withListener(host, folder, async (listener) => {
        const client = await host.network.connect(listener.address);
        client.destroy();
        await sleep(host, 10);
        const inbox = new Inbox();
        client.start(inbox);
        await until(host, () => inbox.ends.length === 1);
      }),
  ],
  [
    'what is sent in ended, after the other side has closed its half, does not throw',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        pair.atServer.onEnded = () => void pair.server.send(text('goodbye'));
        pair.client.end();
        await until(host, () => pair.atServer.ends.length > 0 && pair.atClient.ends.length > 0);
      }),
  ],
  [
    'nobody there is connection-failed, an address in use is address-in-use',
    async (host, folder) => {
      for (const asked of addresses(folder)) {
        const listener = await host.network.listen(asked, () => undefined);
        const at = listener.address.type === 'unix' ? listener.address.path : String(listener.address.port);
        await fails('address-in-use', at, () => host.network.listen(listener.address, () => undefined));
        await (await host.network.connect(listener.address)).destroy();
        await listener.close();
        await listener.close();
        await fails('connection-failed', at, () => host.network.connect(listener.address));
        const again = await host.network.listen(listener.address, () => undefined);
        await again.close();
      }
      const long = `/${'x'.repeat(120)}`;
      await fails('invalid-option', long, () => host.network.listen({ type: 'unix', path: long }, () => undefined));
      await fails('invalid-option', long, () => host.network.connect({ type: 'unix', path: long }));
      await fails('invalid-option', '65536', () =>
        host.network.connect({ type: 'inet', host: '127.0.0.1', port: 65_536 }),
      );
    },
  ],
  [
    'streams live on when their listener closes, and it does not wait for them',
    (host, folder) =>
      overEach(host, folder, async (pair) => {
        await pair.closeListener();
        await pair.client.send(text('still'));
        await until(host, () => pair.atServer.text() === 'still');
      }),
  ],
];

export interface ConnectedPair {
  readonly address: SocketAddress;
  readonly client: HostStream;
  readonly server: HostStream;
  readonly atClient: Inbox;
  readonly atServer: Inbox;
  closeListener(): Promise<void>;
}

function addresses(folder: string): SocketAddress[] {
  return [
    { type: 'unix', path: join(folder, 's') },
    { type: 'inet', host: '127.0.0.1', port: 0 },
  ];
}

/** Shows something on a connected pair over unix and over TCP. */
async function overEach(
  host: Host,
  folder: string,
  show: (pair: ConnectedPair) => Promise<void>,
  roomLength?: number,
): Promise<void> {
  for (const asked of addresses(folder)) {
    const pair = await connectedPair(host, asked, roomLength);
    await show(pair);
    pair.client.destroy();
    pair.server.destroy();
    await pair.closeListener();
  }
}

export async function connectedPair(host: Host, asked: SocketAddress, roomLength?: number): Promise<ConnectedPair> {
  let server: HostStream | undefined;
  const atServer = new Inbox(roomLength);
  const atClient = new Inbox(roomLength);
  const listener = await host.network.listen(asked, (stream) => {
    server = stream;
    stream.start(atServer);
  });
  const client = await host.network.connect(listener.address);
  client.start(atClient);
  await until(host, () => server !== undefined);
  assert.ok(server !== undefined);
  return { address: listener.address, client, server, atClient, atServer, closeListener: () => listener.close() };
}

async function withListener(
  host: Host,
  folder: string,
  show: (listener: { readonly address: SocketAddress }) => Promise<void>,
): Promise<void> {
  for (const asked of addresses(folder)) {
    const listener = await host.network.listen(asked, () => undefined);
    await show(listener);
    await listener.close();
  }
}
