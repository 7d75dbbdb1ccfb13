/** The launcher and the bootstrap: what a person meets first, on whatever Node the machine has. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const root = join(import.meta.dirname, '..', '..');

/** A checkout with the launcher, and with a program that answers in place of the real one if `built`. */
async function checkout(t: TestContext, built: boolean): Promise<string> {
  const folder = await temporaryFolder(t);
  await mkdir(join(folder, 'bin'));
  await copyFile(join(root, 'bin', 'blockstep.cjs'), join(folder, 'bin', 'blockstep.cjs'));
  await writeFile(
    join(folder, 'old.cjs'),
    `Object.defineProperty(process, 'version', { value: 'v8.17.0' });
    Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '8.17.0' } });`,
  );
  if (!built) return folder;
  await mkdir(join(folder, 'dist', 'cli'), { recursive: true });
  await writeFile(join(folder, 'dist', 'package.json'), '{"type": "module"}');
  // It listens to signals before it says that it is there.
  const program = `process.on('SIGTERM', () => process.exit(7));
    console.log(JSON.stringify(process.argv.slice(2)), process.argv[1].endsWith('main.js'));
    if (process.argv[2] === 'wait') setInterval(() => undefined, 1000);
    else process.exit(5);`;
  await writeFile(join(folder, 'dist', 'cli', 'main.js'), program);
  return folder;
}

/** The environment in which Node calls itself 8.17. */
const old = (folder: string) => ({ NODE_OPTIONS: `--require ${join(folder, 'old.cjs')}` });

async function addPackagedNode(folder: string): Promise<void> {
  const place = join(folder, 'node_modules', `node-linux-${process.arch}`);
  await mkdir(join(place, 'bin'), { recursive: true });
  await writeFile(join(place, 'package.json'), '{}');
  await symlink(process.execPath, join(place, 'bin', 'node'));
}

const launch = (folder: string, args: string[], env: Record<string, string> = {}) =>
  run(process.execPath, [join(folder, 'bin', 'blockstep.cjs'), ...args], { env });

test('before the build the launcher says in one line what to run', async (t) => {
  const folder = await checkout(t, false);
  const result = await launch(folder, ['status'], old(folder));
  assert.equal(result.stderr, `blockstep: not built yet; run \`npm run build\` in ${folder}\n`);
  assert.equal(result.code, 1);
});

test('an old Node with no newer one beside it is told in one line', async (t) => {
  const folder = await checkout(t, true);
  const result = await launch(folder, ['status'], old(folder));
  assert.equal(result.stderr, 'blockstep: needs Node 24 or later, this is v8.17.0\n');
  assert.equal(result.code, 1);
});

test('an old Node hands over to the packaged one, with arguments, exit code and signals', async (t) => {
  const folder = await checkout(t, true);
  await addPackagedNode(folder);
  const result = await launch(folder, ['a', '--b'], old(folder));
  assert.deepEqual([result.stdout, result.stderr, result.code], ['["a","--b"] true\n', '', 5]);
  const waiting = await spawnDaemon(t, process.execPath, [join(folder, 'bin', 'blockstep.cjs'), 'wait'], {
    env: old(folder),
    ready: /wait/,
  });
  waiting.kill('SIGTERM');
  assert.equal(await waiting.exited, 7);
});

test('a new Node runs the program itself', async (t) => {
  const folder = await checkout(t, true);
  const result = await launch(folder, ['a']);
  assert.deepEqual([result.stdout, result.stderr, result.code], ['["a"] true\n', '', 5]);
});

test('the launcher is written so that any Node can parse it', async () => {
  const text = await readFile(join(root, 'bin', 'blockstep.cjs'), 'utf8');
  const code = text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/'[^'\n]*'/g, "''");
  assert.doesNotMatch(code, /\b(?:const|let|class|async|await|import)\b|=>|`|\?\?|\?\.|\.\.\./);
});

const bootstrap = join(root, 'scripts', 'bootstrap.cjs');

test('the bootstrap hands over exit code and signals, and waits for a clean end', async (t) => {
  const result = await run(process.execPath, [bootstrap, 'run', 'node', '-e', 'process.exit(5)']);
  assert.equal(result.code, 5);
  const slow = `process.on('SIGINT', () => setTimeout(() => process.exit(6), 300)); setInterval(() => {}, 1000);
    console.log('ready')`;
  const waiting = await spawnDaemon(t, process.execPath, [bootstrap, 'run', 'node', '-e', slow], { ready: /ready/ });
  waiting.kill('SIGINT');
  waiting.kill('SIGINT');
  assert.equal(await waiting.exited, 6);
});

test('what the bootstrap runs, runs on the packaged Node', async () => {
  const result = await run(process.execPath, [bootstrap, 'run', 'node', '-p', 'process.execPath']);
  assert.equal(result.stdout, `${join(root, 'node_modules', `node-linux-${process.arch}`, 'bin', 'node')}\n`);
});

test('the bootstrap says how it is used', async () => {
  const result = await run(process.execPath, [bootstrap, 'nonsense']);
  assert.match(result.stderr, /^blockstep: usage: /);
  assert.equal(result.code, 1);
});
