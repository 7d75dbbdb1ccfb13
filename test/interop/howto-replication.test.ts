/**
 * docs/howto/replication-by-hand.md, run as it is written: every shell block, one after the other in one shell, in an
 * empty folder; what the page says a block answers is what it answers. The shell has its own network and its own
 * processes, so that the page's ports are free, and nothing that it started outlives it.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nc.openbsd', 'qemu-io', 'unshare', 'ip');

const root = join(import.meta.dirname, '..', '..');
const page = readFileSync(join(root, 'docs', 'howto', 'replication-by-hand.md'), 'utf8');

interface Step {
  readonly script: string;
  /** what it prints, as the page says; empty: nothing */
  readonly says: string;
}

function steps(text: string): Step[] {
  const found = text.matchAll(/^```sh\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?/gms);
  return [...found].map(([, script = '', says = '']) => ({ script, says }));
}

test('a graph of the specification, built from a shell with netcat: checkpoint and failover, as the page says', async (t) => {
  const folder = await temporaryFolder(t);
  const bin = join(folder, 'bin');
  await mkdir(bin);
  await mkdir(join(folder, 'empty'));
  const program = `#!/bin/sh\nexec '${process.execPath}' '${join(root, 'src', 'cli', 'main.ts')}' "$@"\n`;
  await writeFile(join(bin, 'blockstep'), program);
  await chmod(join(bin, 'blockstep'), 0o755);
  const all = steps(page);
  assert(all.length > 8);
  const mark = (index: number): string => `--- block ${index + 1} ended`;
  const script = all.map((step, index) => `${step.script}echo '${mark(index)}'\n`).join('');
  await writeFile(join(folder, 'script'), `set -e\nip link set lo up\n${script}`);
  const result = await run(
    'unshare',
    ['--net', '--pid', '--fork', '--kill-child', '--mount-proc', 'sh', join(folder, 'script')],
    { cwd: join(folder, 'empty'), env: { PATH: `${bin}:${process.env.PATH}` }, timeoutMs: 60_000 },
  );
  let rest = result.stdout.replace(/^.* ops; .*\n/gm, '').replaceAll('\r', '');
  for (const [index, step] of all.entries()) {
    const end = rest.indexOf(`${mark(index)}\n`);
    assert(end >= 0, `block ${index + 1} failed:\n${step.script}${rest}${result.stderr}`);
    assert.equal(rest.slice(0, end), step.says, `block ${index + 1}:\n${step.script}`);
    rest = rest.slice(end + mark(index).length + 1);
  }
  assert.deepEqual([result.code, result.stderr], [0, '']);
});
