/** What a person reads: the table of `status`, the live line of the demo. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isServing, readStatus } from '../../src/cli/daemon-status.ts';
import { describeState, formatJson, formatStatus } from '../../src/cli/status.ts';
import { StatusLine } from '../../src/cli/status-line.ts';
import { BlockError } from '../../src/util/errors.ts';
import { diskStatus, statusOf } from './status-support.ts';

const place = { name: 'b', dataFolder: '/b', configFile: null, lockStep: null };

test('the table has a row a daemon, then a line for each thing to know', () => {
  const apart = {
    phase: 'copying',
    inSync: false,
    aloneSince: 0,
    syncProgress: { what: 'copy', doneBytes: 1, totalBytes: 3 },
    notice: 'do this',
    error: 'it failed',
  };
  const text = formatStatus([
    { place, status: statusOf(apart) },
    { place, error: new BlockError('connection-failed', 'b is not running') },
  ]);
  assert.equal(
    text,
    [
      'NAME  ROLE     STATE         STORE  GENERATION  CHECKPOINT  OVERLAYS  FORWARDED  LAG  PID   URI',
      'a     primary  copying 33 %  clean  3           -           -         1.50 KiB   0 B  4711  nbd://127.0.0.1:1/d',
      'b     -        no answer',
      'a: alone since 1970-01-01T00:00:00Z: what was written since may be here only',
      'a: do this',
      'a: it failed',
      'b is not running',
    ].join('\n'),
  );
});

test('the table shows the last checkpoint, its age, that it is held, what the overlays hold, and a warning of their space', () => {
  const disks = [diskStatus({ hiddenBytes: 3 * 2 ** 20 }), diskStatus({ name: 'e', activeBytes: 2 ** 20 })];
  const status = statusOf({
    role: 'secondary',
    store: 'resync',
    checkpoint: { number: 41, ageMs: 400 },
    held: { number: 41, untilMs: 3_600_000, forMs: 480_000 },
    space: { freeBytes: 1, wantedBytes: 2, warning: 'little room' },
    disks,
  });
  const [headings, row, held, remark] = formatStatus([{ place, status }]).split('\n');
  assert.match(headings ?? '', /STATE +STORE +GENERATION +CHECKPOINT +OVERLAYS /);
  assert.match(row ?? '', /^a +secondary +in sync +resync +3 +41, 400 ms ago +4 MiB /);
  const until = '1970-01-01T01:00:00Z, for 8 min more';
  assert.equal(
    held,
    `a: checkpoint 41 is held until ${until}: no other one is made (\`checkpoint --release\` ends that)`,
  );
  assert.equal(remark, 'a: little room');
});

test('a secondary that offers its last checkpoint does not serve the disk', () => {
  assert.equal(isServing(statusOf({ role: 'secondary', serving: true })), false);
  assert.equal(isServing(statusOf({ role: 'primary', serving: true })), true);
});

test('a split brain is said before anything else', () => {
  const splitBrain = { sinceMs: 0, reason: 'both went on' };
  const status = statusOf({ inSync: false, phase: 'waiting', splitBrain, notice: 'both went on' });
  assert.equal(describeState(status), 'split brain');
  assert.match(formatStatus([{ place, status }]), /\na: split brain since 1970-01-01T00:00:00Z: both went on$/);
});

test('JSON is an array: all that an answering daemon says, name and error of another', () => {
  const status = statusOf({ ofNewerVersion: 1 });
  const error = new BlockError('connection-failed', 'b is not running');
  assert.deepEqual(
    JSON.parse(
      formatJson([
        { place, status },
        { place, error },
      ]),
    ),
    [JSON.parse(JSON.stringify(status)), { name: 'b', error: 'b is not running' }],
  );
  assert.equal(status.ofNewerVersion, 1);
});

test('an answer that is no status is an error that names the member', () => {
  assert.throws(() => readStatus({ name: 'a' }), /^BlockError: pair-status\.volume: is missing$/);
});

/** A terminal, or a pipe, that keeps what it is given. */
function output(isTTY: boolean, columns?: number) {
  const written: string[] = [];
  return { isTTY, columns, written, write: (text: string) => written.push(text) };
}

test('on a terminal the live line is drawn anew in place, cut to its width', () => {
  const terminal = output(true, 10);
  const line = new StatusLine(terminal, () => 0);
  line.show('0123456789abc');
  line.say('news');
  line.clear();
  assert.deepEqual(terminal.written, ['\r\x1b[2K01234567…', '\r\x1b[2Knews\n01234567…', '\r\x1b[2K']);
});

test('elsewhere it is a line when it has changed, every few seconds at most', () => {
  const pipe = output(false);
  let now = 0;
  const line = new StatusLine(pipe, () => now);
  line.show('one');
  line.show('two');
  now = 10_000;
  line.show('one');
  line.show('two');
  now = 20_000;
  line.show('two');
  now = 30_000;
  line.show('two, checkpoint 7', 'two');
  line.show('three, checkpoint 8', 'three');
  line.clear();
  assert.deepEqual(pipe.written, ['one\n', 'two\n', 'three, checkpoint 8\n']);
});
