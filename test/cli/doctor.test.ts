import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Finding } from '../../src/cli/doctor.ts';
import { run } from '../support/process.ts';
import { smallDisk } from '../support/small-disk.ts';
import { temporaryFolder } from '../support/temp.ts';

const program = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');

async function doctor(folder: string, nodeArgs: string[] = [], env: Record<string, string> = {}) {
  const args = [...nodeArgs, program, 'doctor', '--data', folder, '--json'];
  const result = await run(process.execPath, args, { env });
  assert.equal(result.stderr, '');
  const findings = JSON.parse(result.stdout) as Finding[];
  return { code: result.code, of: new Map(findings.map((each) => [each.check, each])) };
}

test('doctor says that a good machine is good, and leaves nothing behind', async (t) => {
  const folder = await temporaryFolder(t);
  const { code, of } = await doctor(folder);
  assert.equal(code, 0);
  for (const check of ['Node', 'system calls', 'threads', 'data folder', 'free space', 'holes', 'image locks']) {
    assert.equal(of.get(check)?.result, 'ok', check);
  }
  assert.deepEqual(readdirSync(folder), []);
});

test('doctor examines where the folder would be made, and makes none', async (t) => {
  const folder = await temporaryFolder(t);
  const { code, of } = await doctor(join(folder, 'a', 'b'));
  assert.equal(code, 0);
  assert.match(of.get('data folder')?.found ?? '', /not there yet/);
  assert.deepEqual(readdirSync(folder), []);
});

test('doctor says what is lost where the package of system calls has no binary', async (t) => {
  const folder = await temporaryFolder(t);
  const without = join(folder, 'without.cjs');
  writeFileSync(
    without,
    `const Module = require('node:module');
     const find = Module._resolveFilename;
     Module._resolveFilename = (name, ...rest) => {
       if (name === 'koffi') throw new Error('no binary');
       return find(name, ...rest);
     };`,
  );
  const { code, of } = await doctor(folder, ['--require', without]);
  assert.equal(code, 0);
  for (const check of ['system calls', 'holes', 'image locks']) assert.equal(of.get(check)?.result, 'limited', check);
  assert.match(of.get('system calls')?.found ?? '', /no image is locked/);
});

test('doctor says that four threads are few', async (t) => {
  const { code, of } = await doctor(await temporaryFolder(t), [], { UV_THREADPOOL_SIZE: '4' });
  assert.equal(code, 0);
  assert.equal(of.get('threads')?.result, 'limited');
});

test('doctor ends with 1 where nothing can be written: a full disk, a folder that is a file', async (t) => {
  const full = await doctor(await smallDisk(t, 65_536));
  assert.equal(full.code, 1);
  assert.match(full.of.get('data folder')?.found ?? '', /no space|ENOSPC/i);
  const file = join(await temporaryFolder(t), 'file');
  writeFileSync(file, '');
  const none = await doctor(file);
  assert.equal(none.code, 1);
  assert.equal(none.of.get('data folder')?.result, 'failed');
});

test('doctor for a person is a table', async (t) => {
  const result = await run(process.execPath, [program, 'doctor', '--data', await temporaryFolder(t)]);
  assert.match(result.stdout, /^CHECK +RESULT +FOUND$/m);
  assert.match(result.stdout, /^Node +ok +\d+\./m);
});
