import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { type DriverNode, defineDriver } from '../../src/block/driver.ts';
import { writeFlags } from '../../src/block/node.ts';
import { BlockError } from '../../src/util/errors.ts';
import type { Done } from '../../src/util/later.ts';
import { testGraph } from '../block/fixture.ts';

const size = 65536;

/** A child that writes down what it is given and answers as the test says. */
class Scripted implements DriverNode {
  length = size;
  readonly log: string[] = [];
  answer: (operation: string) => Done = () => undefined;
  fill = 0;

  read(_offset: number, into: Uint8Array): Done {
    into.fill(this.fill);
    return this.did('read');
  }

  write(offset: number, from: Uint8Array): Done {
    return this.did(`write ${offset}+${from.length}`);
  }

  writeZeroes(offset: number, length: number): Done {
    return this.did(`zero ${offset}+${length}`);
  }

  discard(): Done {
    return this.did('discard');
  }

  flush(): Done {
    return this.did('flush');
  }

  blockStatus(_offset: number, length: number) {
    return [{ length, zero: this.fill === 0, allocated: true }];
  }

  siblingFailed(offset: number, length: number): void {
    this.log.push(`sibling ${offset}+${length}`);
  }

  private did(operation: string): Done {
    this.log.push(operation);
    return this.answer(operation);
  }
}

async function quorumOf(count: number, options: Record<string, unknown>) {
  const children = Array.from({ length: count }, () => new Scripted());
  const scripted = defineDriver({
    name: 'scripted',
    summary: 'as told',
    options: z.strictObject({ index: z.int() }),
    open: async ({ index }) => children[index] ?? assert.fail(),
  });
  const { graph, events } = testGraph(undefined, [scripted]);
  await graph.add({
    driver: 'quorum',
    'node-name': 'q',
    children: children.map((_, index) => ({ driver: 'scripted', index, 'node-name': `c${index}`, discard: 'unmap' })),
    discard: 'unmap',
    ...options,
  });
  const [first, second] = children;
  if (first === undefined || second === undefined) assert.fail('a quorum of two at least');
  return { graph, events, children, first, second, node: graph.find('q').node };
}

const fifo = { 'read-pattern': 'fifo', 'vote-threshold': 1 };
const bytes = new Uint8Array(512);
const failing = (): never => {
  throw new BlockError('io-error', 'bad disk');
};
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('pair 8: in fifo the error of the first child is the request’s, although the others succeeded', async () => {
  const { first, second, node, events } = await quorumOf(2, fifo);
  first.answer = failing;
  await assert.rejects(async () => await node.write(512, bytes, 0), { message: 'bad disk' });
  await assert.rejects(async () => await node.flush(), { message: 'bad disk' });
  await assert.rejects(async () => await node.writeZeroes(0, 4096, 0), { message: 'bad disk' });
  // Of what was written since the last flush it is open what the first child has.
  const expected = ['write 512+512', 'sibling 512+512', 'flush', `sibling 0+${size}`, 'zero 0+4096', 'sibling 0+4096'];
  assert.deepEqual(second.log, expected);
  assert.deepEqual(
    events.map(({ event, data }) => `${event} ${data.type} ${data['node-name']} ${data['sector-num']}`),
    ['QUORUM_REPORT_BAD write c0 1', 'QUORUM_REPORT_BAD flush c0 0', 'QUORUM_REPORT_BAD write c0 0'],
  );
});

test('pair 8: a write with FUA that the first child fails is a flush that failed: it may have lost what came before', async () => {
  const { first, second, node } = await quorumOf(2, fifo);
  first.answer = failing;
  await assert.rejects(async () => await node.write(512, bytes, writeFlags.fua), { message: 'bad disk' });
  await assert.rejects(async () => await node.writeZeroes(0, 4096, writeFlags.fua | writeFlags.fastZero));
  const siblings = (): string[] => second.log.filter((line) => line.startsWith('sibling'));
  assert.deepEqual(siblings(), [`sibling 0+${size}`, `sibling 0+${size}`]);
  // What finds no room was not even written.
  first.answer = () => {
    throw new BlockError('no-space', 'full');
  };
  await assert.rejects(async () => await node.write(512, bytes, writeFlags.fua), { message: 'full' });
  assert.deepEqual(siblings().at(-1), 'sibling 512+512');
});

test('pair 8: a write that the first child fails later is told to the others at once, though they still wait', async () => {
  const { first, second, node } = await quorumOf(2, fifo);
  const [one, other] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  first.answer = () => one.promise;
  second.answer = () => other.promise;
  const writing = node.write(0, bytes, 0);
  one.reject(new BlockError('io-error', 'bad disk'));
  await turn();
  assert.deepEqual(second.log, ['write 0+512', 'sibling 0+512']);
  other.resolve();
  await assert.rejects(async () => await writing, { message: 'bad disk' });
});

test('in fifo the error of another child is not the request’s, unless the threshold asks for it', async () => {
  for (const threshold of [1, 2]) {
    const { second, first, node, events } = await quorumOf(2, { ...fifo, 'vote-threshold': threshold });
    second.answer = failing;
    const write = async (): Promise<void> => await node.write(0, bytes, 0);
    if (threshold === 1) await write();
    else await assert.rejects(write, { message: 'bad disk' });
    assert.deepEqual(first.log, ['write 0+512']);
    assert.equal(events.filter(({ event }) => event === 'QUORUM_FAILURE').length, threshold - 1);
  }
});

test('every child is called in the same tick, the first one first, before any result is looked at', async () => {
  const { children, node } = await quorumOf(3, { 'vote-threshold': 2 });
  const order: number[] = [];
  for (const [index, child] of children.entries()) {
    child.answer = () => {
      order.push(index);
      if (index === 0) throw new BlockError('io-error', 'bad disk');
      return index === 1 ? Promise.resolve() : undefined;
    };
  }
  const writing = node.write(0, bytes, 0);
  assert.deepEqual(order, [0, 1, 2]);
  await writing;
  const flushing = node.flush();
  assert.deepEqual(order, [0, 1, 2, 0, 1, 2]);
  await flushing;
});

test('pair 3: overlapping writes are never in flight together while a child takes its time', async () => {
  const { first, second, node } = await quorumOf(2, fifo);
  const gate = Promise.withResolvers<void>();
  second.answer = (operation) => (operation === 'write 0+512' ? gate.promise : undefined);
  const writing = [node.write(0, bytes, 0), node.writeZeroes(256, 4096, 0), node.write(8192, bytes, 0)];
  assert.deepEqual(first.log, ['write 0+512', 'write 8192+512']);
  gate.resolve();
  await Promise.all(writing);
  assert.deepEqual(first.log, ['write 0+512', 'write 8192+512', 'zero 256+4096']);
  assert.deepEqual(second.log, first.log);
});

test('a quorum is as long as its shortest child: what another has beyond could not be given to all', async () => {
  const { first, second, node } = await quorumOf(2, fifo);
  first.length = 2 * size;
  assert.equal(node.length, size);
  second.length = 512;
  assert.equal(node.length, 512);
});

test('requests that all children answer at once are answered at once', async () => {
  const { node } = await quorumOf(2, fifo);
  assert.equal(node.write(0, bytes, 0), undefined);
  assert.equal(node.flush(), undefined);
  assert.equal(node.read(0, new Uint8Array(512)), undefined);
  const voted = await quorumOf(3, { 'vote-threshold': 2 });
  assert.equal(voted.node.read(0, new Uint8Array(512)), undefined);
});

test('pair 9: a discard is zeroes for all children where the first has them cheap, and nothing where not', async () => {
  const { first, second, node } = await quorumOf(2, fifo);
  await node.discard(0, 4096);
  assert.deepEqual([first.log, second.log], [['zero 0+4096'], ['zero 0+4096']]);
  first.answer = () => {
    throw new BlockError('not-supported', 'slow');
  };
  await node.discard(8192, 4096);
  assert.deepEqual(second.log, ['zero 0+4096']);
});

test('a fifo read goes to the next child when one fails, and fails with the first one’s error', async () => {
  const { first, second, node, events } = await quorumOf(2, fifo);
  const into = new Uint8Array(512);
  second.fill = 5;
  first.answer = () => Promise.reject(new BlockError('io-error', 'first'));
  await node.read(0, into);
  assert.equal(into[511], 5);
  second.answer = () => {
    throw new BlockError('io-error', 'second');
  };
  await assert.rejects(async () => await node.read(0, into), { message: 'first' });
  assert.equal(events.at(-1)?.event, 'QUORUM_FAILURE');
});

test('a vote gives what most children have, reports the others, and rewrites them if asked to', async () => {
  const { children, node, events } = await quorumOf(3, { 'vote-threshold': 2, 'rewrite-corrupted': true });
  for (const [index, child] of children.entries()) child.fill = index === 0 ? 9 : 4;
  const into = new Uint8Array(512);
  await node.read(1024, into);
  assert.equal(into[0], 4);
  assert.deepEqual(children[0]?.log, ['read', 'write 1024+512']);
  assert.deepEqual(events, [
    {
      event: 'QUORUM_REPORT_BAD',
      data: { type: 'read', 'node-name': 'c0', 'sector-num': 2, 'sectors-count': 1 },
    },
  ]);
  for (const [index, child] of children.entries()) child.fill = index;
  await assert.rejects(async () => await node.read(0, into), { message: /children differ at 0: only 1 of 3 agree/ });
  assert.equal(events.at(-1)?.event, 'QUORUM_FAILURE');
});

test('what cannot work is refused when the quorum is made', async () => {
  const { graph } = testGraph();
  const children = [1, 2].map(() => ({ driver: 'memory', size }));
  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ children, 'vote-threshold': 3 }, /vote-threshold: there are only 2 children/],
    [{ children: [], 'vote-threshold': 1 }, /children: must be at least 1/],
    [{ children, 'vote-threshold': 1, blkverify: true }, /blkverify/],
    [{ children, ...fifo, 'rewrite-corrupted': true }, /rewrite-corrupted/],
  ];
  for (const [options, message] of wrong) {
    await assert.rejects(graph.add({ driver: 'quorum', 'node-name': 'q', ...options }), { message });
  }
});
