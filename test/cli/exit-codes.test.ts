/** The table of exit codes: what programs and people rely on. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { exitCodeOf, exitCodes } from '../../src/cli/exit-codes.ts';
import { BlockError } from '../../src/util/errors.ts';

test('docs/failures.md prints the table of exit codes as it is', () => {
  const page = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'failures.md'), 'utf8');
  const printed = page.slice(page.indexOf('## Exit codes')).match(/^\| \d+ \|.*$/gm);
  assert.deepEqual(
    printed,
    Object.values(exitCodes).map(({ code, meaning }) => `| ${code} | ${meaning} |`),
  );
});

test('each code is there once, and none is one of the shell', () => {
  const codes = Object.values(exitCodes).map(({ code }) => code);
  assert.equal(new Set(codes).size, codes.length);
  assert(codes.every((code) => code < 64));
});

test('errors of the common kinds have codes of their own', () => {
  const code = (of: ConstructorParameters<typeof BlockError>[0]) => exitCodeOf(new BlockError(of, 'x'));
  assert.equal(code('locked'), 3);
  assert.equal(code('address-in-use'), 4);
  assert.equal(code('bad-image'), 5);
  assert.equal(code('no-space'), 6);
  assert.equal(code('connection-failed'), 7);
  assert.equal(code('wrong-state'), 8);
  assert.equal(exitCodeOf(new Error('x')), 1);
});
