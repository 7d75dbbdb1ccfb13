/** What the simulated world promises to the tests that live in it. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Host, HostFile, HostStream } from '../../src/host/host.ts';
import { BlockError } from '../../src/util/errors.ts';
import { create, Inbox, pattern, readAll, sleep, text } from '../host/tools.ts';
import { World } from './world.ts';

const firstSeed = Date.now() % 1_000_000;
const seeds = (count: number) => Array.from({ length: count }, (_, i) => firstSeed + i);
const port = 10_809;

describe(`seeds from ${firstSeed}`, () => {
  test('the same seed gives the same run, another one another', async () => {
    const first = await story(firstSeed);
    assert.deepEqual(await story(firstSeed), first);
    assert.notDeepEqual(await story(firstSeed + 1), first);
  });

  test('a kill keeps what was written, a power cut may lose it, and whoever wants can decide', async () => {
    let lost = 0;
    for (const seed of seeds(40)) {
      const world = new World(seed);
      const file = await written(world, 'a', '/f');
      await world.complete(file.sync());
      await world.complete(world.host('a').files.syncFolder('/'));
      await world.complete(Promise.resolve(file.write(0, text('B'))));
      world.kill('a');
      assert.equal(await content(world, 'a'), 'B');
      world.powerCut('a', { loseUnsynced: false });
      assert.equal(await content(world, 'a'), 'B');
      world.kill('a');
      const again = await open(world, world.restart('a'), '/f');
      await world.complete(Promise.resolve(again.write(0, text('C'))));
      world.powerCut('a');
      if ((await content(world, 'a')) === 'B') lost++;
      world.powerCut('a', { loseUnsynced: true });
      assert.notEqual(await content(world, 'a'), null);
    }
    assert.ok(lost > 3 && lost < 37, `${lost} of 40 lost`);
  });

  test('a name that no folder sync covered may be lost, one that was covered never', async () => {
    const found = new Set<string>();
    for (const seed of seeds(60)) {
      const world = new World(seed);
      const file = await written(world, 'a', '/old');
      await world.complete(file.sync());
      const { files } = world.host('a');
      await world.complete(files.syncFolder('/'));
      await world.complete(files.rename('/old', '/new'));
      world.powerCut('a');
      const names = await world.complete(world.restart('a').files.list('/'));
      assert.equal(names.length, 1);
      found.add(names[0] ?? '');
      assert.equal(await content(world, 'a', `/${names[0]}`), 'A');
    }
    assert.deepEqual(found, new Set(['new', 'old']));
  });

  test('a sync does not cover a write that was done after it began', async () => {
    for (const seed of seeds(10)) {
      const world = new World(seed, { atOnce: 1 });
      const file = await written(world, 'a', '/f');
      await world.complete(world.host('a').files.syncFolder('/'));
      const sync = file.sync();
      assert.equal(file.write(0, text('B')), undefined);
      await world.complete(sync);
      world.powerCut('a', { loseUnsynced: true });
      assert.equal(await content(world, 'a'), 'A');
    }
  });

  test('a sync that fails leaves its writes to be lost, also when the next one succeeds', async () => {
    let lost = 0;
    for (const seed of seeds(40)) {
      const world = new World(seed);
      const file = await written(world, 'a', '/f');
      await world.complete(world.host('a').files.syncFolder('/'));
      await world.complete(file.sync());
      await world.complete(Promise.resolve(file.write(0, text('B'))));
      const fault = world.fault('a', { operation: 'sync', errno: 'EIO', count: 1 });
      await assert.rejects(world.complete(file.sync()), /EIO/);
      assert.equal(fault.met, 1);
      await world.complete(file.sync());
      world.powerCut('a', { loseUnsynced: true });
      if ((await content(world, 'a')) === 'A') lost++;
    }
    assert.equal(lost, 40);
  });

  test('what a failed sync has not written is written with its page, and never comes back over what is newer', async () => {
    for (const seed of seeds(40)) {
      const world = new World(seed);
      const file = await written(world, 'a', '/f');
      await world.complete(world.host('a').files.syncFolder('/'));
      await world.complete(Promise.resolve(file.write(0, text('B'))));
      world.fault('a', { operation: 'sync', errno: 'EIO', count: 1 });
      await assert.rejects(world.complete(file.sync()), /EIO/);
      await world.complete(Promise.resolve(file.write(0, text('C'))));
      await world.complete(file.sync());
      world.powerCut('a');
      assert.equal(await content(world, 'a'), 'C');
    }
  });

  test('faults meet the operations they name, by path, range and count, and then no more', async () => {
    const world = new World(firstSeed);
    const file = await written(world, 'a', '/f');
    const other = await written(world, 'a', '/g');
    world.fault('a', {
      operation: 'write',
      path: '/f',
      range: { offset: 100, length: 50 },
      errno: 'ENOSPC',
      skip: 1,
      count: 2,
    });
    const write = async (to: HostFile, offset: number) => to.write(offset, pattern(10, 1));
    const codes: string[] = [];
    for (const offset of [100, 0, 149, 150, 90, 91, 91, 120]) {
      const code = await world.complete(
        write(file, offset).then(
          () => 'ok',
          (error: BlockError) => error.code,
        ),
      );
      codes.push(code);
      await world.complete(write(other, offset));
    }
    assert.deepEqual(codes, ['ok', 'ok', 'no-space', 'ok', 'ok', 'no-space', 'ok', 'ok']);
    const slow = world.fault('a', { operation: 'read', delayMs: 5000 });
    const begin = world.now;
    await world.complete(readAll(file, 0, 10));
    assert.ok(world.now - begin >= 5000);
    slow.remove();
    await world.complete(readAll(file, 0, 10));
    assert.ok(world.now - begin < 10_000);
  });

  test('a process can be ended at any of its I/Os, and its program does nothing any more', async () => {
    const total = await countIos();
    assert.ok(total > 20);
    for (let at = 1; at <= total; at++) {
      const world = new World(firstSeed);
      let after = 0;
      world.onIo((n, host) => {
        if (host === 'a' && !world.isAlive('a')) after++;
        if (n === at) world.powerCut('a');
      });
      const programs = twoPrograms(world);
      await world.runFor(100_000);
      assert.equal(world.isAlive('a'), false);
      assert.equal(after, 0);
      programs.dispose();
      world.onIo(null);
      const names = await world.complete(world.restart('a').files.list('/'));
      assert.ok(names.length <= 1);
    }
  });

  test('the other side of a killed process is told, clean or with an error; that of a cut power late', async () => {
    const outcomes = new Set<string>();
    for (const seed of seeds(60)) {
      const world = new World(seed);
      const { inbox } = await connected(world);
      const begin = world.now;
      if (seed % 2 === 0) world.kill('b');
      else world.powerCut('b');
      await world.run(() => inbox.ends.length > 0);
      const late = world.now - begin > 1000;
      outcomes.add(
        `${seed % 2 === 0 ? 'kill' : 'power'} ${inbox.ends[0] === null ? 'clean' : 'error'} ${late ? 'late' : 'soon'}`,
      );
      await world.runFor(200_000);
      assert.equal(inbox.ends.length, 1);
    }
    assert.deepEqual(outcomes, new Set(['kill clean soon', 'kill error soon', 'power error late']));
  });

  test('a machine that is back after a power cut resets the old connections', async () => {
    for (const seed of seeds(20)) {
      const world = new World(seed);
      const { inbox } = await connected(world);
      world.powerCut('b');
      world.restart('b');
      const begin = world.now;
      await world.run(() => inbox.ends.length > 0);
      assert.ok(inbox.ends[0] instanceof BlockError);
      assert.ok(world.now - begin < 3000);
    }
  });

  test('over a cut link nothing goes, both ways; healed in time, everything arrives in order', async () => {
    let healthy = 0;
    for (const seed of seeds(40)) {
      const world = new World(seed);
      const { client, server, inbox, atServer } = await connected(world);
      await world.complete(Promise.resolve(client.send(text('1'))));
      await world.run(() => atServer.text() === '1');
      world.cut('a', 'b');
      void client.send(text('2'));
      void server.send(text('x'));
      await world.runFor(4000);
      assert.equal(atServer.text(), '1');
      assert.equal(inbox.text(), '');
      world.heal('b', 'a');
      void client.send(text('3'));
      await world.run(() => atServer.text() === '123' && inbox.text() === 'x');
      world.cut('a', 'b');
      await world.runFor(300_000);
      if (inbox.ends.length === 0 && atServer.ends.length === 0) healthy++;
      else for (const end of [...inbox.ends, ...atServer.ends]) assert.ok(end instanceof BlockError);
      world.heal('a', 'b');
      await world.runFor(10_000);
      assert.equal(inbox.ends.length, atServer.ends.length, 'half a connection is found out when the link is back');
    }
    assert.ok(healthy > 0 && healthy < 40, `${healthy} of 40 survived a long cut`);
  });

  test('connecting: refused by a machine that runs, without an answer from one that does not or is cut off', async () => {
    const world = new World(firstSeed);
    const a = world.host('a');
    world.host('b');
    const connect = async (timeoutMs?: number) => {
      const begin = world.now;
      const promise = a.network.connect({ type: 'inet', host: 'b', port }, timeoutMs);
      const code = await world.complete(
        promise.then(
          () => 'connected',
          (error: BlockError) => error.code,
        ),
      );
      return `${code} ${world.now - begin >= (timeoutMs ?? 5000) ? 'late' : 'soon'}`;
    };
    assert.equal(await connect(), 'connection-failed soon');
    world.cut('a', 'b');
    assert.equal(await connect(), 'timed-out late');
    world.heal('a', 'b');
    world.powerCut('b');
    assert.equal(await connect(300), 'timed-out late');
    const b = world.restart('b');
    await world.complete(b.network.listen({ type: 'inet', host: '0.0.0.0', port }, () => undefined));
    assert.equal(await connect(), 'connected soon');
    world.kill('b');
    assert.equal(await connect(), 'connection-failed soon');
  });

  test('a hanging process does nothing, its system still takes bytes, and it goes on where it was', async () => {
    for (const seed of seeds(20)) {
      const world = new World(seed);
      const { client, atServer } = await connected(world);
      let ticks = 0;
      const tick = (): void => {
        ticks++;
        world.host('b').clock.after(10, tick);
      };
      world.host('b').clock.after(10, tick);
      await world.runFor(100);
      assert.ok(ticks > 5);
      world.hang('b');
      const before = ticks;
      let waits = 0;
      for (let i = 0; i < 40; i++) if (client.send(pattern(65_536, i)) !== undefined) waits++;
      await world.runFor(5000);
      assert.equal(ticks, before);
      assert.equal(atServer.length, 0);
      assert.ok(waits > 0);
      // To connect takes the system, not the process.
      await world.complete(world.host('a').network.connect({ type: 'inet', host: 'b', port }));
      world.resume('b');
      await world.run(() => atServer.length === 40 * 65_536);
      assert.ok(ticks > before);
    }
  });

  test('locks go with the process that held them', async () => {
    const world = new World(firstSeed);
    const file = await written(world, 'a', '/f');
    assert.equal(file.locks?.exclude(0), true);
    world.kill('a');
    const again = await open(world, world.restart('a'), '/f');
    assert.equal(again.locks?.exclude(0), true);
    assert.equal(file.locks?.exclude(0), false);
  });

  test('run says so when what it waits for does not come', async () => {
    const world = new World(7);
    await assert.rejects(
      world.run(() => false, 5000),
      /seed 7/,
    );
    assert.equal(world.now, 5000);
  });
});

// ---------------------------------------------------------------- programs and tools

function open(world: World, host: Host, path: string): Promise<HostFile> {
  return world.complete(host.files.open(path, { access: 'write' }));
}

/** A new file of one byte, `A`, neither it nor its name durable. */
async function written(world: World, name: string, path: string): Promise<HostFile> {
  const file = await world.complete(create(world.host(name), path));
  await world.complete(Promise.resolve(file.write(0, text('A'))));
  return file;
}

/** Restarts a machine and reads a file's only byte. */
async function content(world: World, name: string, path = '/f'): Promise<string> {
  const file = await open(world, world.isAlive(name) ? world.host(name) : world.restart(name), path);
  const byte = Buffer.from(await world.complete(readAll(file, 0, 1))).toString();
  world.kill(name);
  return byte;
}

interface Connected {
  readonly client: HostStream;
  readonly server: HostStream;
  readonly inbox: Inbox;
  readonly atServer: Inbox;
}

/** A client on `a`, a server on `b`. */
async function connected(world: World): Promise<Connected> {
  const [a, b] = [world.host('a'), world.host('b')];
  const [inbox, atServer] = [new Inbox(), new Inbox()];
  let server: HostStream | undefined;
  const accepted = (stream: HostStream) => {
    server ??= stream;
    stream.start(stream === server ? atServer : new Inbox());
  };
  await world.complete(b.network.listen({ type: 'inet', host: 'b', port }, accepted));
  const client = await world.complete(a.network.connect({ type: 'inet', host: 'b', port }));
  client.start(inbox);
  await world.run(() => server !== undefined);
  assert.ok(server !== undefined);
  return { client, server, inbox, atServer };
}

/** A program on `a` that writes, syncs and talks to an echo on `b`. */
function twoPrograms(world: World): { readonly log: string[]; dispose(): void } {
  const log: string[] = [];
  const [a, b] = [world.host('a'), world.host('b')];
  let running = true;
  const note = (line: string) => {
    if (running) log.push(`${world.now.toFixed(6)} ${line}`);
  };
  const serve = async () => {
    await b.network.listen({ type: 'inet', host: 'b', port }, (stream) => {
      const room = new Uint8Array(100);
      stream.start({
        space: () => room,
        received: (count) => void stream.send(room.slice(0, count)),
        ended: (error) => note(`b ended ${error}`),
      });
    });
  };
  const work = async () => {
    await sleep(a, 20);
    const file = await create(a, '/f');
    const stream = await a.network.connect({ type: 'inet', host: 'b', port });
    const inbox = new Inbox();
    inbox.onReceived = (count) => note(`a received ${count}`);
    stream.start(inbox);
    for (let i = 0; i < 10; i++) {
      await file.write(i * 1000, pattern(1000, i));
      note(`a wrote ${i}`);
      await stream.send(pattern(200, i));
      if (i % 3 === 0) await file.sync();
      await sleep(a, a.random.fraction() * 10);
    }
    stream.end();
    await file.close();
    note('a done');
  };
  const failed = (error: unknown) => note(`failed ${error}`);
  serve().catch(failed);
  work().catch(failed);
  return {
    log,
    dispose() {
      running = false;
    },
  };
}

async function story(seed: number): Promise<string[]> {
  const world = new World(seed);
  const { log } = twoPrograms(world);
  await world.runFor(60_000);
  assert.ok(
    log.some((line) => line.endsWith('a done')),
    log.join('\n'),
  );
  return log;
}

async function countIos(): Promise<number> {
  const world = new World(firstSeed);
  twoPrograms(world);
  await world.runFor(60_000);
  return world.ioCount;
}
