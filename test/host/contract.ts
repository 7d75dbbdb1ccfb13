/**
 * What every host promises, as cases that run on the real host and on the simulated one.
 * A case is a program over `Host`: it waits only for what the host gives it.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path/posix';
import type { Host, HostFile, HostStream, SocketAddress } from '../../src/host/host.ts';
import { BlockError, type BlockErrorCode } from '../../src/util/errors.ts';

/** A case: its claim, and the program that shows it in an empty folder of its own. */
export type Case = readonly [claim: string, show: (host: Host, folder: string) => Promise<void>];

export const fileCases: readonly Case[] = [
  [
    'what was written is read back, and past the end there are zeroes',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      const data = pattern(200_000, 1);
      await file.write(1000, data);
      assert.equal(file.size(), 201_000);
      assert.deepEqual(await readAll(file, 1000, 200_000), data);
      const over = await readAll(file, 200_000, 5000);
      assert.deepEqual(over.subarray(0, 1000), data.subarray(199_000));
      assert.ok(over.subarray(1000).every((byte) => byte === 0));
      assert.ok((await readAll(file, 10_000_000, 100)).every((byte) => byte === 0));
      assert.equal((await readAll(file, 0, 0)).length, 0);
      await file.write(5, new Uint8Array(0));
      await file.close();
    },
  ],
  [
    'opening says what is wrong and names the path',
    async (host, folder) => {
      const path = join(folder, 'f');
      await fails('file-not-found', path, () => host.files.open(path, { access: 'write' }));
      const file = await create(host, path);
      await fails('file-exists', path, () => host.files.open(path, { access: 'write', create: 'exclusive' }));
      await fails('invalid-option', folder, () => host.files.open(folder, { access: 'read' }));
      await fails('file-not-found', 'no-folder', () =>
        host.files.open(join(folder, 'no-folder', 'f'), { access: 'write', create: 'if-missing' }),
      );
      await file.write(0, pattern(10, 1));
      await file.close();
      const again = await host.files.open(path, { access: 'write', create: 'if-missing' });
      assert.equal(again.size(), 10);
      await again.close();
    },
  ],
  [
    'a file opened to read refuses writes, a closed one everything',
    async (host, folder) => {
      const path = join(folder, 'f');
      await (await create(host, path)).close();
      const file = await host.files.open(path, { access: 'read' });
      await fails('io-error', path, async () => file.write(0, pattern(10, 1)));
      await file.close();
      await file.close();
      await fails('io-error', path, async () => file.read(0, new Uint8Array(10)));
      await fails('io-error', path, async () => file.write(0, new Uint8Array(10)));
      await fails('io-error', path, async () => file.size());
      await fails('io-error', path, () => file.sync());
    },
  ],
  [
    'truncate cuts and extends, and what it cut does not come back',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      await file.write(0, pattern(10_000, 3));
      await file.truncate(1234);
      await file.truncate(10_000);
      assert.equal(file.size(), 10_000);
      assert.deepEqual(await readAll(file, 0, 1234), pattern(10_000, 3).subarray(0, 1234));
      assert.ok((await readAll(file, 1234, 8766)).every((byte) => byte === 0));
      await file.close();
    },
  ],
  [
    'names are made, listed, moved and removed',
    async (host, folder) => {
      const { files } = host;
      const deep = join(folder, 'a', 'b', 'c');
      assert.deepEqual(await files.list(deep), []);
      assert.equal(await files.stat(deep), null);
      await files.makeFolder(deep);
      await files.makeFolder(deep);
      assert.equal((await files.stat(deep))?.kind, 'folder');
      for (const name of ['z', 'y', 'x']) await (await create(host, join(deep, name))).close();
      assert.deepEqual(await files.list(deep), ['x', 'y', 'z']);
      await files.rename(join(deep, 'x'), join(deep, 'y'));
      await files.remove(join(deep, 'z'));
      await files.remove(join(deep, 'z'));
      await files.syncFolder(deep);
      assert.deepEqual(await files.list(deep), ['y']);
      await fails('file-not-found', 'x', () => files.rename(join(deep, 'x'), join(deep, 'w')));
      await fails('file-not-found', 'nowhere', () => files.syncFolder(join(folder, 'nowhere')));
    },
  ],
  [
    'stat tells kind, size and what is allocated',
    async (host, folder) => {
      const path = join(folder, 'f');
      const file = await create(host, path);
      await file.truncate(1 << 24);
      await file.write(65_536, pattern(65_536, 1));
      await file.sync();
      await file.close();
      const stat = await host.files.stat(path);
      assert.equal(stat?.kind, 'file');
      assert.equal(stat.size, 1 << 24);
      assert.ok(stat.allocated >= 65_536 && stat.allocated < 1 << 20, `${stat.allocated}`);
      assert.ok(Math.abs(stat.modifiedMs - host.clock.wall()) < 60_000);
    },
  ],
  [
    'sync resolves, also several at once and beside a close',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      await file.write(0, pattern(5000, 1));
      await Promise.all([file.sync(), file.sync(), file.sync()]);
      await file.close();
    },
  ],
];

/** Cases for files that know holes and locks. */
export const holeAndLockCases: readonly Case[] = [
  [
    'data and holes are found, also beyond 4 GiB',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      const far = 5 * 2 ** 30;
      await file.truncate(6 * 2 ** 30);
      assert.equal(file.seekData(0), 6 * 2 ** 30);
      await file.write(65_536, pattern(65_536, 1));
      await file.write(far, pattern(4096, 2));
      await file.sync();
      assert.equal(file.seekData(0), 65_536);
      assert.equal(file.seekHole(65_536), 131_072);
      assert.equal(file.seekHole(0), 0);
      assert.equal(file.seekData(131_072), far);
      assert.equal(file.seekHole(far), far + 4096);
      assert.equal(file.seekData(far + 4096), 6 * 2 ** 30);
      assert.equal(file.seekData(6 * 2 ** 30), 6 * 2 ** 30);
      assert.equal(file.seekHole(6 * 2 ** 30 + 5), 6 * 2 ** 30);
      await file.close();
    },
  ],
  [
    'a punched range is a hole, a zeroed one is not, both read as zeroes and change nothing else',
    async (host, folder) => {
      const file = await create(host, join(folder, 'f'));
      const model = pattern(1 << 20, 5);
      await file.write(0, model);
      assert.ok(file.punchHole(262_144, 131_072));
      assert.ok(file.punchHole(1000, 100));
      model.fill(0, 262_144, 393_216).fill(0, 1000, 1100);
      if (file.zeroRange(524_288, 65_536)) model.fill(0, 524_288, 589_824);
      assert.ok(file.punchHole(5, 0));
      await file.sync();
      assert.deepEqual(await readAll(file, 0, 1 << 20), model);
      assert.equal(file.seekHole(0), 262_144);
      assert.equal(file.seekData(262_144), 393_216);
      file.punchHole(1 << 20, 4096);
      assert.equal(file.size(), 1 << 20);
      await file.close();
    },
  ],
  [
    'byte locks are shared or exclusive between open files, and go with the close',
    async (host, folder) => {
      const path = join(folder, 'f');
      const one = await create(host, path);
      const two = await host.files.open(path, { access: 'write' });
      assert.ok(one.locks !== null && two.locks !== null);
      assert.equal(one.locks.share(100), true);
      assert.equal(two.locks.share(100), true);
      assert.equal(two.locks.exclude(100), false);
      assert.equal(one.locks.heldByOther(100), true);
      assert.equal(one.locks.heldByOther(101), false);
      two.locks.release(100);
      assert.equal(one.locks.heldByOther(100), false);
      assert.equal(one.locks.exclude(100), true);
      assert.equal(one.locks.heldByOther(100), false);
      assert.equal(two.locks.share(100), false);
      assert.equal(one.locks.share(100), true);
      assert.equal(two.locks.share(100), true);
      assert.equal(two.locks.exclude(2 ** 40), true);
      assert.equal(one.locks.exclude(2 ** 40), false);
      await two.close();
      assert.equal(one.locks.exclude(100), true);
      assert.equal(one.locks.exclude(2 ** 40), true);
      await one.close();
    },
  ],
];

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

export const clockCases: readonly Case[] = [
  [
    'timers come in their order, a cancelled one never',
    async (host) => {
      const seen: number[] = [];
      const begin = host.clock.now();
      for (const ms of [30, 5, 60]) host.clock.after(ms, () => seen.push(ms));
      const cancelled = host.clock.after(20, () => seen.push(20));
      host.clock.after(10, () => cancelled.cancel());
      await until(host, () => seen.length === 3);
      assert.deepEqual(seen, [5, 30, 60]);
      assert.ok(host.clock.now() - begin >= 59);
      cancelled.cancel();
      host.clock.after(1e12, () => seen.push(0)).cancel();
    },
  ],
  [
    'the end of the turn comes after all microtasks and before the time goes on',
    async (host) => {
      const seen: string[] = [];
      host.clock.after(1, () => seen.push('timer'));
      host.clock.endOfTurn(() => seen.push('end'));
      await Promise.resolve().then(() => Promise.resolve());
      queueMicrotask(() => queueMicrotask(() => seen.push('microtask')));
      await until(host, () => seen.length === 3);
      assert.deepEqual(seen, ['microtask', 'end', 'timer']);
    },
  ],
  [
    'random bytes differ and fractions lie in [0, 1)',
    async (host) => {
      assert.equal(host.random.bytes(16).length, 16);
      assert.notDeepEqual(host.random.bytes(16), host.random.bytes(16));
      for (let i = 0; i < 100; i++) {
        const x = host.random.fraction();
        assert.ok(x >= 0 && x < 1);
      }
    },
  ],
];

// ---------------------------------------------------------------- tools of the cases

/** Collects what a stream delivers. */
export class Inbox {
  readonly ends: (Error | null)[] = [];
  deliveries = 0;
  length = 0;
  onReceived: ((count: number) => void) | undefined;
  onEnded: (() => void) | undefined;
  readonly #room: Uint8Array;
  readonly #pieces: Uint8Array[] = [];
  #receiving = false;

  constructor(roomLength = 65_536) {
    this.#room = new Uint8Array(roomLength);
  }

  space(): Uint8Array {
    assert.equal(this.#receiving, false);
    return this.#room;
  }

  received(count: number): void {
    assert.ok(count > 0 && count <= this.#room.length);
    assert.equal(this.ends.length, 0, 'received after ended');
    assert.equal(this.#receiving, false, 'received within received');
    this.#receiving = true;
    this.deliveries++;
    this.length += count;
    this.#pieces.push(this.#room.slice(0, count));
    this.onReceived?.(count);
    this.#receiving = false;
  }

  ended(error: Error | null): void {
    this.ends.push(error);
    this.onEnded?.();
  }

  bytes(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.#pieces));
  }

  text(): string {
    return Buffer.concat(this.#pieces).toString();
  }
}

export function sleep(host: Host, ms: number): Promise<void> {
  return new Promise((resolve) => host.clock.after(ms, resolve));
}

export async function until(host: Host, reached: () => boolean): Promise<void> {
  const begin = host.clock.now();
  while (!reached()) {
    if (host.clock.now() - begin > 20_000) throw new Error(`not so after 20 s: ${reached}`);
    await sleep(host, 1);
  }
}

export function pattern(length: number, salt: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + (i >> 8) * 7 + salt) & 0xff;
  return bytes;
}

export function text(of: string): Uint8Array {
  return new TextEncoder().encode(of);
}

export function create(host: Host, path: string): Promise<HostFile> {
  return host.files.open(path, { access: 'write', create: 'exclusive' });
}

export async function readAll(file: HostFile, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await file.read(offset, into);
  return into;
}

export async function fails(
  code: BlockErrorCode,
  named: string,
  call: () => Promise<unknown> | undefined,
): Promise<void> {
  await assert.rejects(
    async () => call(),
    (error) => {
      assert.ok(error instanceof BlockError, String(error));
      assert.equal(error.code, code, error.message);
      assert.ok(error.message.includes(named), error.message);
      return true;
    },
  );
}

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
