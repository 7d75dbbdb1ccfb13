/** The table of a connection's requests: its order is in the model tests of the client; this is about long lines. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NBD_CMD_WRITE } from '../../src/nbd/constants.ts';
import { InFlight } from '../../src/nbd/in-flight.ts';
import { PendingRequest } from '../../src/nbd/pending.ts';

let compared = 0;

class Counted extends PendingRequest {
  override overlaps(other: PendingRequest): boolean {
    compared++;
    return super.overlaps(other);
  }
}

function write(offset: number): PendingRequest {
  const request = new Counted();
  request.begin(NBD_CMD_WRITE, 0, offset, 4096, new Uint8Array(4096));
  return request;
}

for (const ordered of [true, false])
  test(`a request costs the same however many wait before it (${ordered ? 'ordered' : 'any order'})`, () => {
    const [capacity, count] = [16, 2000];
    const table = new InFlight(capacity, ordered);
    compared = 0;
    const going: PendingRequest[] = [];
    for (let i = 0; i < count; i++) {
      const request = write(i * 4096);
      if (table.submit(request)) going.push(request);
    }
    assert.deepEqual([table.count, table.waitingCount], [capacity, count - capacity]);
    const left: number[] = [];
    for (let request = going.shift(); request !== undefined; request = going.shift()) {
      left.push(request.offset / 4096);
      table.leave(request);
      for (let next = table.next(); next !== undefined; next = table.next()) going.push(next);
    }
    assert.deepEqual(
      left,
      Array.from({ length: count }, (_, i) => i),
    );
    assert.ok(compared <= 2 * capacity * count, `${compared} comparisons`);
  });

test('one that overlaps what waits stays behind it, also when a slot is free', () => {
  const table = new InFlight(2, false);
  const first = write(0);
  assert.ok(table.submit(first));
  const second = write(0);
  assert.ok(!table.submit(second));
  assert.ok(!table.submit(write(2048)), 'behind the second, which it overlaps');
  const other = write(8192);
  assert.ok(table.submit(other), 'one that overlaps nothing goes');
  table.leave(first);
  assert.equal(table.next(), second);
  assert.equal(table.next(), undefined);
});
