/**
 * docs/howto/library.md as a user follows it: the package is built and packed, unpacked into an empty project beside
 * nothing but what it depends on, and each example is compiled against its types (those are checked whole) and run.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { cp, mkdir, readdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';

const root = join(import.meta.dirname, '..', '..');
const page = readFileSync(join(root, 'docs', 'howto', 'library.md'), 'utf8');
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { dependencies: object };

const tsc = (cwd: string, ...args: string[]) =>
  run(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), ...args], { cwd, timeoutMs: 120_000 });

/** Packs what a build of the sources would publish; gives the tarball. */
async function pack(folder: string): Promise<string> {
  for (const name of ['package.json', 'bin', 'docs', 'README.md', 'LICENSE', 'CHANGELOG.md']) {
    await cp(join(root, name), join(folder, name), { recursive: true });
  }
  const built = await tsc(root, '-p', 'tsconfig.build.json', '--outDir', join(folder, 'dist'));
  assert.equal(built.code, 0, built.stdout);
  const packed = await run('npm', ['pack', '--silent', '--offline'], { cwd: folder });
  assert.equal(packed.code, 0, packed.stderr);
  return join(folder, packed.stdout.trim());
}

/** An empty project with the package and what the page says it needs. */
async function project(t: TestContext): Promise<string> {
  const folder = await temporaryFolder(t);
  await mkdir(join(folder, 'package'));
  const tarball = await pack(join(folder, 'package'));
  const modules = join(folder, 'project', 'node_modules');
  const unpacked = join(modules, 'blockstep');
  await mkdir(unpacked, { recursive: true });
  const done = await run('tar', ['xzf', tarball, '--strip-components=1', '-C', unpacked]);
  assert.equal(done.code, 0, done.stderr);
  for (const name of [...Object.keys(manifest.dependencies), '@types/node', 'undici-types']) {
    await mkdir(dirname(join(modules, name)), { recursive: true });
    await symlink(join(root, 'node_modules', name), join(modules, name));
  }
  const strict = { strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true };
  const compilerOptions = { ...strict, target: 'es2024', module: 'nodenext', noEmit: true, types: ['node'] };
  await writeFile(join(folder, 'project', 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['*.ts'] }));
  await writeFile(join(folder, 'project', 'package.json'), '{ "type": "module", "private": true }');
  return join(folder, 'project');
}

test('the packed package compiles under strict and does what the page says, each example', async (t) => {
  const examples = [...page.matchAll(/^```ts\n(.*?)^```\n\n```\n(.*?)^```\n/gms)];
  assert.equal(examples.length, 3);
  const folder = await project(t);
  for (const [index, [, code = '']] of examples.entries()) await writeFile(join(folder, `${index}.ts`), code);
  const compiled = await tsc(folder, '-p', '.');
  assert.equal(compiled.code, 0, compiled.stdout);
  for (const [index, [, code, says]] of examples.entries()) {
    const ran = await run(process.execPath, [`${index}.ts`], { cwd: folder });
    assert.deepEqual([ran.stdout, ran.stderr, ran.code], [says, '', 0], code);
  }
  assert.deepEqual(
    (await readdir(folder)).filter((name) => name.endsWith('.sock')),
    [],
  );
  const version = await run(process.execPath, ['node_modules/blockstep/bin/blockstep.cjs', '--version'], {
    cwd: folder,
  });
  assert.match(version.stdout, /^0\.\d+\.\d+/);
});
