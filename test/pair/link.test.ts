/** The connection of two supervisors, on simulated machines and against strangers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Host, HostStream, SocketAddress } from '../../src/host/host.ts';
import { PeerLink } from '../../src/pair/link.ts';
import { encodeMessage, type Hello } from '../../src/pair/messages.ts';
import { World } from '../sim/world.ts';
import { helloOf } from './machine.ts';

const address = (host: string): SocketAddress => ({ type: 'inet', host, port: 7 });

const greeting = (name: string): Hello => helloOf(name, { role: 'none', blank: true, replication: address(name) });

class Seen {
  readonly link: PeerLink;
  readonly events: string[] = [];
  up = false;

  constructor(host: Host, name: string, peerName: string) {
    this.link = new PeerLink(
      host,
      { name, peerName, listen: address(name), peer: address(peerName), heartbeatMs: 100, peerTimeoutMs: 500 },
      {
        hello: () => ({ hello: greeting(name), sequence: 1 }),
        inSync: () => false,
        onHello: (_mine, _sequence, theirs) => {
          this.up = true;
          this.events.push(`hello ${theirs.name}`);
        },
        onMessage: (message) => {
          if (message.type !== 'heartbeat') this.events.push(message.type);
        },
        onLost: (reason) => {
          this.up = false;
          this.events.push(`lost: ${reason}`);
        },
        onRefused: (reason) => this.events.push(`refused: ${reason}`),
      },
    );
  }
}

async function pairUp(seed: number): Promise<{ world: World; a: Seen; b: Seen }> {
  const world = new World(seed);
  const [a, b] = [new Seen(world.host('a'), 'a', 'b'), new Seen(world.host('b'), 'b', 'a')];
  await world.complete(b.link.start());
  await world.complete(a.link.start());
  await world.run(() => a.up && b.up);
  return { world, a, b };
}

test('the side with the smaller name dials, and messages arrive in order', async () => {
  const { world, a, b } = await pairUp(1);
  assert.deepEqual([a.link.dials, b.link.dials], [true, false]);
  a.link.send({ type: 'flush' });
  a.link.send({ type: 'in-step' });
  await world.runFor(2000);
  assert.deepEqual(b.events, ['hello a', 'flush', 'in-step']);
});

test('a side that is silent for peerTimeoutMs is gone, and is dialled again', async () => {
  const { world, a, b } = await pairUp(2);
  world.cut('a', 'b');
  await world.run(() => !a.up && !b.up, 5000);
  world.heal('a', 'b');
  await world.run(() => a.up && b.up, 20_000);
});

test('a connection that was dropped is made anew', async () => {
  const { world, a, b } = await pairUp(3);
  b.link.drop('changed');
  await world.run(() => b.events.filter((event) => event === 'hello a').length === 2, 20_000);
  assert.ok(a.up);
});

async function say(world: World, bytes: Uint8Array | string): Promise<HostStream> {
  const stream = await world.complete(world.host('c').network.connect(address('b')));
  const space = new Uint8Array(4096);
  stream.start({ space: () => space, received: () => undefined, ended: () => undefined });
  void stream.send(typeof bytes === 'string' ? new TextEncoder().encode(bytes) : bytes);
  return stream;
}

test('strangers on the port are named and disturb nothing', async () => {
  const { world, b } = await pairUp(4);
  await say(world, 'NBDMAGICIHAVEOPT');
  await say(world, 'GET / HTTP/1.1\r\n\r\n');
  await say(world, encodeMessage(greeting('x')));
  await say(world, '{"type":"hello","program":"other"}\n');
  await say(world, `{${'x'.repeat(100_000)}`);
  await say(world, Uint8Array.of(0x7b, 0xff, 0xfe, 10));
  await say(world, '');
  await world.runFor(2000);
  const refused = b.events.filter((event) => event.startsWith('refused'));
  assert.equal(refused.length, 7, refused.join('\n'));
  const all = refused.join('\n');
  for (const words of [
    /it said "NB?D?/,
    /GET \//,
    /called "x", expected "a"/,
    /more than 65536 bytes/,
    /no text/,
    /did not say hello/,
  ]) {
    assert.match(all, words);
  }
  assert.ok(b.up);
  assert.ok(!b.events.some((event) => event.startsWith('lost')));
});

test('a newer connection of the peer takes the place of the older one', async () => {
  const { world, b } = await pairUp(5);
  await say(world, encodeMessage(greeting('a')));
  await world.runFor(50);
  assert.ok(b.events.includes('lost: the other side connected anew'));
});

test('a message that is none ends the connection with a sentence', async () => {
  const world = new World(6);
  const b = new Seen(world.host('b'), 'b', 'a');
  await world.complete(b.link.start());
  const stream = await say(world, encodeMessage(greeting('a')));
  await world.run(() => b.up, 5000);
  void stream.send(new TextEncoder().encode('{"type":"dance"}\n'));
  await world.run(() => !b.up, 5000);
  assert.match(b.events.join('\n'), /lost: the peer sent .*dance/);
});

test('a stranger that never ends its hello gives its place back', async () => {
  const world = new World(31);
  const beta = new Seen(world.host('beta'), 'beta', 'alpha');
  await world.complete(beta.link.start());
  const strange = world.host('strange');
  const ended: number[] = [];
  for (let one = 0; one < 8; one++) {
    const stream = await world.complete(strange.network.connect(address('beta'), 1000));
    stream.start({ space: () => new Uint8Array(4096), received: () => undefined, ended: () => ended.push(one) });
    const trickle = (): void => {
      if (ended.includes(one)) return;
      void stream.send(new TextEncoder().encode('{'));
      strange.clock.after(100, trickle);
    };
    trickle();
  }
  await world.run(() => ended.length === 8, 5000);
});
