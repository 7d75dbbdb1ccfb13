/** A record log whose records or syncs fail it: what is missing is said, and nothing is durable that may not be. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { recordKinds } from '../../src/block/record-format.ts';
import { BlockError } from '../../src/util/errors.ts';
import { attempt, deferred } from '../../src/util/later.ts';
import { CrashFile, open } from './crash-file.ts';

const full = (value: number, length = 4096): Uint8Array => new Uint8Array(length).fill(value);
const turns = () => new Promise<void>((resolve) => setTimeout(resolve, 5));

test('record-log 2: a record that is missing in a life that has ended is damage, whatever the lives after it hold', async () => {
  for (const broken of [0, 1]) {
    let file = new CrashFile(() => 0.9);
    const places: number[] = [];
    for (let life = 0; life < 2; life++) {
      const { log } = await open(file);
      for (let i = 0; i < 2; i++) {
        await log.append(recordKinds.data, 1, i * 4096, 4096, new Uint8Array(4096).fill(life));
        if (life === 0) places.push(log.appendedAt);
      }
      await log.sync();
      file = file.kill();
    }
    const at = (places[broken] ?? 0) + 100;
    file.bytes[at] = 99;
    const { log, records } = await open(file);
    assert.equal(log.lost, `damaged: record ${broken + 1} does not hold, though records up to 2 were durable`);
    assert.equal(records.length, broken);
  }
});

test('record-log 4: a sync that waits for one that fails does so too, and neither makes anything durable', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 4, full(1, 4));
  await turns();
  const first = deferred();
  const flush = file.flush.bind(file);
  file.flush = () => {
    file.flush = flush;
    return first.promise;
  };
  const running = attempt(() => log.sync());
  const waiting = attempt(() => log.sync());
  first.reject(new BlockError('io-error', 'the disk failed'));
  await assert.rejects(running ?? assert.fail(), /the disk failed.*reopened/);
  await assert.rejects(waiting ?? assert.fail(), /the disk failed.*reopened/);
});

test('record-log 4: a sync does not succeed when an append that it waits for fails', async () => {
  const file = new CrashFile(() => 0.9);
  const { log } = await open(file);
  await log.append(recordKinds.data, 1, 0, 4, full(1, 4));
  await turns();
  const written = deferred();
  const write = file.write.bind(file);
  file.write = () => {
    file.write = write;
    return written.promise;
  };
  const append = attempt(() => log.append(recordKinds.data, 1, 0, 4, full(2, 4)));
  const sync = attempt(() => log.sync());
  written.reject(new BlockError('no-space', 'the disk is full'));
  await assert.rejects(append ?? assert.fail(), /the disk is full.*reopened/);
  await assert.rejects(sync ?? assert.fail(), /the disk is full.*reopened/);
});

test('record-log 8: what was lost with its boot and emptied is whole from then on, in a log that syncs', async () => {
  const file = new CrashFile(() => 0.9);
  const first = await open(file, { durable: false, bootId: 'first' });
  await first.log.append(recordKinds.data, 1, 0, 4, full(1, 4));
  await turns();
  const second = await open(file.kill(), { bootId: 'second' });
  assert.match(second.log.lost ?? '', /the machine went down/);
  const again = file.kill();
  const { log } = await open(again, { bootId: 'second' });
  await log.dropAll({});
  await log.append(recordKinds.data, 2, 0, 4, full(2, 4));
  await log.sync();
  const third = await open(again.kill(), { bootId: 'third' });
  assert.deepEqual([third.log.lost, third.records.map(({ header }) => header.epoch)], [null, [2]]);
});
