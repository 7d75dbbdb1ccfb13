import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { z } from 'zod';
import { check } from '../../src/qmp/check.ts';
import type { CommandDefinition } from '../../src/qmp/command.ts';
import { engineFamilies } from '../../src/qmp/schema.ts';
import { programVersion } from '../../src/qmp/version.ts';

const commands = new Map<string, CommandDefinition>(
  engineFamilies.flatMap((family) => family.commands.map((command) => [command.name, command])),
);

function messageOf(name: string, args: unknown): string {
  const command = commands.get(name);
  assert.ok(command !== undefined);
  try {
    check(command.arguments, args, 'arguments');
  } catch (error) {
    assert.equal((error as { code?: string }).code, 'invalid-option');
    return (error as Error).message;
  }
  return 'fits';
}

test('a wrong argument is named by its path, with what was expected and what came', () => {
  const start = 'nbd-server-start';
  for (const [name, args, message] of [
    [start, {}, 'arguments.addr: is missing'],
    [start, { addr: 'x' }, 'arguments.addr: expected an object, got "x"'],
    [
      start,
      { addr: { type: 'inet', data: { host: 'a', port: 10809 } } },
      'arguments.addr.data.port: expected a string, got 10809',
    ],
    [start, { addr: { type: 'unix', path: '/a' } }, 'arguments.addr.path: is unexpected'],
    [start, { addr: { type: 'vsock', data: {} } }, 'arguments.addr.type: expected one of unix, inet, got "vsock"'],
    [
      start,
      { addr: { type: 'unix', data: { path: 'x'.repeat(108) } } },
      'arguments.addr.data.path: must be at most 107 characters long',
    ],
    ['block-export-add', { type: 'nbd', id: '9', 'node-name': 'a' }, /^arguments\.id: must begin with a letter/],
    [
      'block-export-add',
      { type: 'nbd', id: 'a', 'node-name': 'a', writable: 'on' },
      'arguments.writable: expected true or false, got "on"',
    ],
    ['block-export-add', { type: 'nbd', id: 'a', nodename: 'a' }, 'arguments.nodename: is unexpected'],
    ['block-export-add', { id: 'a' }, /^arguments\.type: /],
    ['block_resize', { 'node-name': 'a', size: -1 }, 'arguments.size: must be at least 0'],
    ['block_resize', { 'node-name': 'a', size: 1.5 }, 'arguments.size: expected an integer, got 1.5'],
    ['block_resize', { 'node-name': 'a', size: 2 ** 60 }, /^arguments\.size: /],
    [
      'blockdev-mirror',
      { device: 'a', target: 'b', sync: 'all' },
      'arguments.sync: expected one of full, top, none, got "all"',
    ],
    ['query-jobs', { x: 1 }, 'arguments.x: is unexpected'],
    ['blockdev-add', { driver: 7 }, 'arguments.driver: expected a string, got 7'],
    ['job-pause', { id: null }, 'arguments.id: expected a string, got null'],
    ['job-pause', { id: [] }, 'arguments.id: expected a string, got a list'],
  ] as const) {
    const got = messageOf(name, args);
    if (typeof message === 'string') assert.equal(got, message);
    else assert.match(got, message);
  }
});

test('of a union the branch is told that the value came closest to', () => {
  const reference = z.union([z.string(), z.strictObject({ driver: z.string(), size: z.int() })]);
  const fails = (value: unknown): string => {
    try {
      check(z.strictObject({ file: reference }), value, '');
    } catch (error) {
      return (error as Error).message;
    }
    return 'fits';
  };
  assert.equal(fails({ file: { driver: 'a', size: 'x' } }), 'file.size: expected a number, got "x"');
  assert.equal(fails({ file: { driver: 'a', size: 1, more: 2 } }), 'file.more: is unexpected');
  assert.equal(fails({ fil: 'a' }), 'fil: is unexpected');
  assert.equal(fails(5), 'options: expected an object, got 5');
});

test('every command has a name of its own, a summary, and an object for its arguments', () => {
  const all = engineFamilies.flatMap((family) => family.commands);
  assert.equal(new Set(all.map(({ name }) => name)).size, all.length);
  for (const command of all) {
    assert.match(command.summary, /\.$/, command.name);
    assert.ok(!command.arguments.safeParse(5).success, command.name);
    if (command.name !== 'blockdev-add' && command.name !== 'block-export-add') {
      assert.match(messageOf(command.name, { 'no-such-member': 1 }), /no-such-member: is unexpected/);
    }
  }
});

test('the version that QMP tells is that of the package', async () => {
  const text = await readFile(new URL('../../package.json', import.meta.url), 'utf8');
  assert.equal((JSON.parse(text) as { version: string }).version, programVersion);
});
