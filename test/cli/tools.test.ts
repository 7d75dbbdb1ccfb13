/** How `npm test` gets the programs that the tests talk to, on a machine that has none of them. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { chmod, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const root = join(import.meta.dirname, '..', '..');
const bootstrap = join(root, 'scripts', 'bootstrap.cjs');

/** The only folder of PATH: without an apt-get, or with one that writes down what it is asked. */
async function machine(t: TestContext, apt: { failures: number } | null): Promise<{ path: string; log: string }> {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'bin');
  await mkdir(path);
  for (const name of ['env', 'sh', 'cat', 'wc']) await symlink(`/usr/bin/${name}`, join(path, name));
  const log = join(folder, 'log');
  if (apt !== null) {
    const script = `#!/bin/sh\necho "$@" >> ${log}\n[ $(cat ${log} | wc -l) -gt ${apt.failures} ]\n`;
    await writeFile(join(path, 'apt-get'), script);
    await chmod(join(path, 'apt-get'), 0o755);
  }
  return { path, log };
}

const getTools = (path: string, uid: number) => {
  const script = `process.getuid = () => ${uid}; process.argv[2] = 'tools'; require(${JSON.stringify(bootstrap)})`;
  return run(process.execPath, ['-e', script, 'bootstrap', 'tools'], { env: { PATH: path } });
};

test('root gets what is missing from apt-get, without a question', async (t) => {
  const { path, log } = await machine(t, { failures: 0 });
  const result = await getTools(path, 0);
  assert.equal(result.code, 0, result.stderr);
  assert.match(result.stderr, /^blockstep: installing qemu-utils .*fio .*\(apt-get\)$/m);
  const asked = (await readFile(log, 'utf8')).trimEnd().split('\n');
  assert.equal(asked.length, 1);
  assert.match(asked[0] ?? '', /-y .*install .*qemu-utils .*nbdkit/);
});

test('an install that fails is tried again with new package lists', async (t) => {
  const { path, log } = await machine(t, { failures: 1 });
  const result = await getTools(path, 0);
  assert.equal(result.code, 0, result.stderr);
  const asked = (await readFile(log, 'utf8')).trimEnd().split('\n');
  assert.equal(asked.length, 3);
  assert.match(asked[1] ?? '', / update$/);
});

test('who may not install is told in one line what to install', async (t) => {
  const plain = await getTools((await machine(t, { failures: 0 })).path, 1000);
  assert.equal(plain.code, 1);
  assert.match(plain.stderr, /^blockstep: .*please install: apt-get install qemu-utils .*fio .*\n$/);
  const other = await getTools((await machine(t, null)).path, 0);
  assert.equal(other.code, 1);
  assert.match(other.stderr, /^blockstep: .*please install: /);
});

test('every program that a test asks for is among those that `npm test` gets', () => {
  const known = readFileSync(join(root, 'scripts', 'debian-tools.cjs'), 'utf8');
  const asked = new Set<string>();
  for (const entry of readdirSync(join(root, 'test'), { withFileTypes: true, recursive: true })) {
    if (!entry.name.endsWith('.ts')) continue;
    const text = readFileSync(join(entry.parentPath, entry.name), 'utf8');
    for (const [, names] of text.matchAll(/requireTools\(([^)]*)\)/g)) {
      for (const [, name] of (names ?? '').matchAll(/'([^']+)'/g)) asked.add(name ?? '');
    }
  }
  assert(asked.size > 5);
  assert.deepEqual(
    [...asked].filter((name) => !known.includes(`'${name}'`)),
    [],
  );
});
