/** The engine in its own thread: commands, errors and events cross as they are, and every command gets an answer. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { EngineProxy } from '../../src/cli/engine-proxy.ts';
import type { QmpEvent } from '../../src/qmp/target.ts';
import { BlockError } from '../../src/util/errors.ts';
import { temporaryFolder } from '../support/temp.ts';

const failsWith = (code: string) => (error: unknown) => error instanceof BlockError && error.code === code;

test('commands, their errors with code and class, and events cross the threads', async () => {
  const engine = await EngineProxy.start({ name: 'test' });
  const events: QmpEvent[] = [];
  const unsubscribe = engine.subscribe((event) => events.push(event));
  await engine.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 4096 });
  const nodes = (await engine.execute('query-named-block-nodes')) as { 'node-name': string }[];
  assert.deepEqual(
    nodes.map((node) => node['node-name']),
    ['n'],
  );
  await assert.rejects(engine.execute('no-such-command'), (error) => {
    assert(error instanceof BlockError);
    assert.equal(error.code, 'command-not-found');
    assert.equal(error.qmpClass, 'CommandNotFound');
    return true;
  });
  await engine.execute('quit');
  assert.deepEqual(
    events.map(({ event }) => event),
    ['SHUTDOWN'],
  );
  unsubscribe();
  await engine.close();
  assert.equal(await engine.ended, null);
  await assert.rejects(engine.execute('query-version'), failsWith('shutting-down'));
  await engine.close();
});

test('a thread that dies answers every command that waits, and says why', async (t) => {
  const file = join(await temporaryFolder(t), 'worker.mjs');
  const worker = `import { parentPort } from 'node:worker_threads';
    parentPort.postMessage({ kind: 'ready' });
    parentPort.on('message', ({ command }) => {
      if (command === 'die') throw new Error('struck by lightning');
    });`;
  await writeFile(file, worker);
  const engine = await EngineProxy.start({ name: 'test' }, pathToFileURL(file));
  const waiting = engine.execute('wait');
  const dying = engine.execute('die');
  await Promise.all([waiting, dying].map((one) => assert.rejects(one, /struck by lightning/)));
  assert.match((await engine.ended)?.message ?? '', /struck by lightning/);
  await assert.rejects(engine.execute('later'), /struck by lightning/);
  await assert.rejects(engine.close(), /struck by lightning/);
});

test('a thread that ends before it is ready fails the start', async (t) => {
  const file = join(await temporaryFolder(t), 'worker.mjs');
  await writeFile(file, 'process.exit(3);');
  await assert.rejects(EngineProxy.start({ name: 'test' }, pathToFileURL(file)), failsWith('shutting-down'));
});
