import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { defineDriver, filterOver } from '../../src/block/driver.ts';
import type { BlockGraph } from '../../src/block/graph.ts';
import type { BlockParent, RootUse } from '../../src/block/graph-view.ts';
import { type Deferred, deferred } from '../../src/util/later.ts';
import { jitterDriver, parent, randomOf, reader, testGraph, writer } from './fixture.ts';

const size = 65536;

/** A parent that keeps writing and reading, and stops for a drain as an export does. */
class Load implements BlockParent {
  readonly description = 'load';
  use: RootUse | null = null;
  held = 0;
  requests = 0;
  /** the node that the last request went to */
  lastNode = '';
  inFlight = 0;
  private quiet: Deferred | null = null;
  private resumed = deferred();
  private stopped = false;
  private readonly random: () => number;
  private readonly content = new Uint8Array(size);

  constructor(seed: number) {
    this.random = randomOf(seed);
  }

  drainBegin(): Promise<void> {
    assert.equal(this.held, 0, 'a parent is told once');
    this.held += 1;
    if (this.inFlight === 0) return Promise.resolve();
    this.quiet = deferred();
    return this.quiet.promise;
  }

  drainEnd(): void {
    assert.equal(this.held, 1);
    this.held -= 1;
    this.resumed.resolve();
    this.resumed = deferred();
  }

  stop(): void {
    this.stopped = true;
    this.resumed.resolve();
  }

  /** Reads must give what was written last, on whatever node. */
  async run(): Promise<void> {
    while (!this.stopped) {
      if (this.held > 0) {
        await this.resumed.promise;
        continue;
      }
      this.inFlight += 1;
      try {
        await this.request();
      } finally {
        this.inFlight -= 1;
        if (this.inFlight === 0) this.quiet?.resolve();
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  private async request(): Promise<void> {
    const node = this.use?.node;
    assert.ok(node !== undefined);
    this.requests += 1;
    this.lastNode = this.use?.nodeName ?? '';
    const offset = Math.floor(this.random() * (size - 512));
    if (this.random() < 0.5) {
      const bytes = new Uint8Array(512).fill(this.requests);
      this.content.set(bytes, offset);
      await node.write(offset, bytes, 0);
    } else {
      const into = new Uint8Array(512);
      await node.read(offset, into);
      assert.deepEqual(into, this.content.slice(offset, offset + 512));
    }
  }
}

async function loaded(graph: BlockGraph, top: string): Promise<{ load: Load; done: Promise<void> }> {
  const load = new Load(7);
  load.use = await graph.use(top, load, writer);
  return { load, done: load.run() };
}

const jittered = (name: string) => ({
  driver: 'jitter',
  'node-name': name,
  seed: 11,
  file: { driver: 'memory', 'node-name': `${name}-memory`, size },
});

async function requestsAfter(load: Load, count: number): Promise<void> {
  for (const until = load.requests + count; load.requests < until; ) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

test('a node is replaced under a running user: no request fails, no write is lost', async () => {
  const { graph } = testGraph(undefined, [jitterDriver]);
  await graph.add(jittered('disk'));
  await graph.add({ driver: 'raw', 'node-name': 'top', file: 'disk' });
  const { load, done } = await loaded(graph, 'top');
  for (let round = 0; round < 10; round += 1) {
    await requestsAfter(load, 5);
    // A filter goes in above the disk, and out again.
    await graph.add({ driver: 'raw', 'node-name': `filter${round}`, file: 'disk' });
    await graph.replace('disk', `filter${round}`);
    assert.deepEqual(graph.find('disk').parents, [`node 'filter${round}' as 'file'`]);
    await requestsAfter(load, 5);
    await graph.replace(`filter${round}`, 'disk');
    await graph.remove(`filter${round}`);
  }
  load.stop();
  await done;
  assert.deepEqual(graph.find('disk').parents, ["node 'top' as 'file'"]);
});

test('the root of a running user is replaced: it is told, and goes on with the new node', async () => {
  const { graph } = testGraph(undefined, [jitterDriver]);
  await graph.add(jittered('disk'));
  await graph.add({ driver: 'raw', 'node-name': 'other', file: 'disk' });
  const { load, done } = await loaded(graph, 'disk');
  await requestsAfter(load, 3);
  await graph.replace('disk', 'other');
  await requestsAfter(load, 3);
  assert.equal(load.lastNode, 'other');
  load.stop();
  await done;
});

test('a replacement that somebody forbids, or that is shorter, changes nothing', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'a', size });
  await graph.add({ driver: 'memory', 'node-name': 'b', size: size * 2 });
  await graph.add({ driver: 'memory', 'node-name': 'short', size: 512 });
  const use = await graph.use('a', parent('export "x"'), writer);
  await graph.use('b', parent('vm "y"'), { needs: 1, shares: 1 });
  await assert.rejects(graph.replace('a', 'b'), { code: 'permission-conflict', message: /export "x".*vm "y"/ });
  await assert.rejects(graph.replace('a', 'short'), { message: /'short' \(512 bytes\) is shorter than 'a'/ });
  assert.equal(use.nodeName, 'a');
  assert.deepEqual(graph.find('a').parents, ['export "x"']);
  assert.deepEqual(graph.find('b').parents, ['vm "y"']);
});

test('children of a quorum come and go under a running user', async () => {
  const { graph } = testGraph(undefined, [jitterDriver]);
  await graph.add(jittered('one'));
  await graph.add(jittered('two'));
  await graph.add({
    driver: 'quorum',
    'node-name': 'q',
    children: ['one'],
    'vote-threshold': 1,
    'read-pattern': 'fifo',
  });
  const { load, done } = await loaded(graph, 'q');
  for (let round = 1; round <= 5; round += 1) {
    await requestsAfter(load, 5);
    await graph.addChild('q', 'two');
    await requestsAfter(load, 5);
    await graph.removeChild('q', `children.${round}`);
  }
  await assert.rejects(graph.removeChild('q', 'children.0'), { message: /vote-threshold is 1/ });
  await assert.rejects(graph.removeChild('q', 'children.9'), { message: /no child 'children.9'/ });
  await assert.rejects(graph.addChild('one', 'two'), { code: 'not-supported' });
  load.stop();
  await done;
});

test('drains nest and run side by side: a parent is held from the first to the last', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'm', size });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'm' });
  const log: string[] = [];
  const gate = deferred();
  const above = parent('a', {
    drainBegin: () => {
      log.push('begin');
      return gate.promise;
    },
    drainEnd: () => log.push('end'),
  });
  await graph.use('r', above, reader);
  const both = [graph.drain('m'), graph.drain('r')];
  let quiet = 0;
  for (const each of both) void each.then(() => (quiet += 1));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(quiet, 0, 'both wait for the parent to become quiet');
  gate.resolve();
  const [first, second] = await Promise.all(both);
  const third = await graph.drain('m');
  first?.end();
  first?.end();
  second?.end();
  assert.deepEqual(log, ['begin']);
  third.end();
  assert.deepEqual(log, ['begin', 'end']);
});

test('who comes above a drained node is held from then on', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'm', size });
  const drained = await graph.drain('m');
  const log: string[] = [];
  const late = parent('late', {
    drainBegin: () => {
      log.push('begin');
      return undefined;
    },
    drainEnd: () => log.push('end'),
  });
  await graph.add({ driver: 'raw', 'node-name': 'r', file: 'm' });
  await graph.use('r', late, reader);
  assert.deepEqual(log, ['begin']);
  drained.end();
  assert.deepEqual(log, ['begin', 'end']);
});

test('a drain that fails lets everybody go on', async () => {
  const { graph } = testGraph();
  await graph.add({ driver: 'memory', 'node-name': 'm', size });
  let ended = 0;
  const fine = parent('fine', { drainEnd: () => (ended += 1) });
  const broken = parent('broken', {
    drainBegin: () => {
      throw new Error('cannot stop');
    },
  });
  await graph.use('m', fine, reader);
  await graph.use('m', broken, reader);
  await assert.rejects(graph.drain('m'), /cannot stop/);
  assert.equal(ended, 1);
});

test('a drain waits for what the nodes themselves have under way', async () => {
  const { graph } = testGraph(undefined, [jitterDriver]);
  await graph.add({
    driver: 'blkdebug',
    'node-name': 'slow',
    faults: [{ operation: 'write', 'delay-ms': 20 }],
    image: { driver: 'memory', 'node-name': 'm', size },
  });
  const { node } = graph.find('slow');
  let written = false;
  const writing = Promise.resolve(node.write(0, new Uint8Array(512).fill(1), 0)).then(() => {
    written = true;
  });
  const drained = await graph.drain('m');
  const into = new Uint8Array(512);
  await graph.find('m').node.read(0, into);
  assert.equal(into[0], 1);
  await writing;
  assert.ok(written);
  drained.end();
});

test('a node is drained although another one is just being opened above it', async () => {
  const opened = deferred();
  const slow = defineDriver({
    name: 'slow-open',
    summary: 'for tests',
    options: z.strictObject({ file: z.string() }),
    open: async (options, context) => {
      const child = await context.attach('file', 'filtered', options.file);
      await opened.promise;
      return filterOver(child, {});
    },
  });
  const { graph } = testGraph(undefined, [slow]);
  await graph.add({ driver: 'memory', 'node-name': 'disk', size });
  const opening = graph.add({ driver: 'slow-open', 'node-name': 'above', file: 'disk' });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(graph.find('disk').parentNodes, ['above']);
  (await graph.drain('disk')).end();
  opened.resolve();
  await opening;
});
