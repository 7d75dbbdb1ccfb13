import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StoppingBackend } from '../../src/engine/stopping-backend.ts';
import { BlockError } from '../../src/util/errors.ts';
import type { Done } from '../../src/util/later.ts';

/** A backend that does what it is told: `at once`, `later`, or fails with a code. */
class Below {
  readonly length = 4096;
  readonly written: number[] = [];
  answer: 'at once' | 'later' | 'no-space' | 'read-only' = 'at once';
  readonly waiting: (() => void)[] = [];

  write(offset: number): Done {
    if (this.answer === 'no-space' || this.answer === 'read-only') throw new BlockError(this.answer, this.answer);
    this.written.push(offset);
    if (this.answer === 'at once') return undefined;
    return new Promise((resolve) => this.waiting.push(resolve));
  }
  writeZeroes(offset: number): Done {
    return this.write(offset);
  }
  discard(offset: number): Done {
    return this.write(offset);
  }
  read(): Done {
    return undefined;
  }
  flush(): Done {
    return undefined;
  }
  blockStatus() {
    return [];
  }
}

const byte = new Uint8Array(1);
const turn = () => new Promise((resolve) => setImmediate(resolve));

function stopping() {
  const below = new Below();
  const told: string[] = [];
  const backend = new StoppingBackend(below, (error) => told.push(error.code));
  return { below, told, backend };
}

test('while nothing fails, what is answered at once is answered at once', () => {
  const { backend, below } = stopping();
  assert.equal(backend.write(1, byte, 0), undefined);
  assert.equal(backend.read(0, byte), undefined);
  assert.deepEqual(below.written, [1]);
  assert.equal(backend.stop, null);
});

test('after a failure changes wait in order, reads and flushes go on, and a resume does them in that order', async () => {
  const { backend, below, told } = stopping();
  below.answer = 'no-space';
  const first = backend.write(1, byte, 0);
  below.answer = 'at once';
  const others = [backend.writeZeroes(2, 1, 0), backend.discard(3, 1), backend.write(4, byte, 0)];
  assert.equal(backend.flush(), undefined);
  assert.equal(backend.read(0, byte), undefined);
  assert.deepEqual(below.written, []);
  assert.equal(backend.stop?.waiting, 4);
  backend.resume();
  await Promise.all([first, ...others]);
  assert.deepEqual(below.written, [1, 2, 3, 4]);
  await turn();
  assert.equal(backend.stop, null);
  assert.deepEqual(told, ['no-space']);
  assert.equal(backend.write(5, byte, 0), undefined);
});

test('a resume that fails again stops it again, and says so', async () => {
  const { backend, below, told } = stopping();
  below.answer = 'no-space';
  const write = backend.write(1, byte, 0);
  backend.resume();
  await turn();
  assert.deepEqual(told, ['no-space', 'no-space']);
  assert.equal(backend.stop?.waiting, 1);
  below.answer = 'at once';
  backend.resume();
  await write;
  assert.deepEqual(below.written, [1]);
});

test('an error that nobody can mend is reported, at first and at a resume', async () => {
  const { backend, below, told } = stopping();
  below.answer = 'read-only';
  assert.throws(() => backend.write(1, byte, 0), { code: 'read-only' });
  below.answer = 'no-space';
  const write = backend.write(1, byte, 0);
  below.answer = 'read-only';
  backend.resume();
  await assert.rejects(async () => await write, { code: 'read-only' });
  assert.deepEqual(told, ['no-space']);
  await turn();
  assert.equal(backend.stop, null);
});

test('a drain waits for what is in flight and not for what waits, and a resume meanwhile is done after it', async () => {
  const { backend, below } = stopping();
  below.answer = 'later';
  const slow = backend.write(1, byte, 0);
  below.answer = 'no-space';
  const held = backend.write(2, byte, 0);
  below.answer = 'at once';
  let quiet = false;
  const drained = Promise.resolve(backend.drainBegin()).then(() => {
    quiet = true;
  });
  backend.resume();
  await turn();
  assert.equal(quiet, false);
  below.waiting[0]?.();
  await slow;
  await drained;
  assert.deepEqual(below.written, [1]);
  backend.drainEnd();
  await held;
  assert.deepEqual(below.written, [1, 2]);
});

test('when the export goes, what waits fails with the error that stopped it, and nothing waits any more', async () => {
  const { backend, below } = stopping();
  below.answer = 'no-space';
  const held = [backend.write(1, byte, 0), backend.write(2, byte, 0)];
  const failures = held.map((done) => assert.rejects(async () => await done, { code: 'no-space' }));
  backend.giveUp();
  await Promise.all(failures);
  assert.throws(() => backend.write(3, byte, 0), { code: 'no-space' });
  assert.equal(backend.stop, null);
});

test('when the export goes while a write is tried again, its bytes are borrowed until that has ended', async () => {
  const { backend, below } = stopping();
  below.answer = 'no-space';
  const tried = backend.write(1, byte, 0);
  const behind = backend.write(2, byte, 0);
  below.answer = 'later';
  backend.resume();
  let answered = false;
  void Promise.resolve(tried).then(() => {
    answered = true;
  });
  backend.giveUp();
  await assert.rejects(async () => await behind, { code: 'no-space' });
  await turn();
  assert.equal(answered, false, 'the node still reads the bytes of the write');
  below.waiting[0]?.();
  await tried;
  assert.deepEqual(below.written, [1]);
});
