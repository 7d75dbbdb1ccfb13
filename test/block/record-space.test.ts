/** The room that a record log's file has: whoever needs more waits for that much, not for all that is made ahead. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type LogFile, LogSpace } from '../../src/block/record-space.ts';

const mebi = 1024 * 1024;

function growingFile(): LogFile & { written: number } {
  return {
    length: 0,
    written: 0,
    read: () => undefined,
    write(offset, from) {
      assert.equal(offset, this.written, 'zeroes are written one behind the other');
      this.written = offset + from.length;
      return undefined;
    },
    flush: () => undefined,
    async resize(length) {
      Object.assign(this, { length });
    },
    turn: () => new Promise((resolve) => setImmediate(resolve)),
  };
}

test('a need is met as soon as there is room for it, while the file is still being made longer', async () => {
  const file = growingFile();
  const space = new LogSpace(file, 16 * mebi, true);
  await Promise.all([space.need(4096), space.need(mebi + 1), space.need(4096)]);
  assert.ok(file.written > mebi, 'there is room for the largest');
  assert.ok(file.written < 4 * mebi, `waited for ${file.written} bytes of 16 MiB`);
  await space.stop();
});

test('needs that come together make the file longer one after the other', async () => {
  const file = growingFile();
  const space = new LogSpace(file, 65536, true);
  for (let end = 4096; end < 3 * mebi; end += 300_000) {
    await Promise.all([space.need(end), space.need(end + 200_000), space.need(end + 100_000)]);
    assert.ok(space.room >= end + 200_000 && space.room <= file.length);
  }
  await space.stop();
});

test('where nothing is synced no zeroes are written: the file is only made longer', async () => {
  const file = growingFile();
  const space = new LogSpace(file, 16 * mebi, false);
  await space.need(4096);
  assert.ok(space.room >= 4096 && space.room <= file.length);
  assert.equal(file.written, 0);
  await space.stop();
});
