/**
 * docs/howto/two-hosts.md, run as it is written: a folder is a host, and a block runs in that of the host that the page
 * names before it. The addresses of the example are the machine's own here, in a network and with processes apart, so
 * that its ports are free and nothing outlives it. Only the port for users has to be another one on the second host.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { chmod, cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('qemu-io', 'unshare', 'ip');

const root = join(import.meta.dirname, '..', '..');
const page = readFileSync(join(root, 'docs', 'howto', 'two-hosts.md'), 'utf8');

interface Step {
  readonly host: string;
  readonly script: string;
  readonly says: string;
}

const ownPort = (host: string, text: string): string => (host === 'south' ? text.replaceAll(':10809', ':10819') : text);

function steps(text: string): Step[] {
  const found = text.matchAll(/^On `(north|south)`[^\n]*:\n\n```sh\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?/gms);
  return [...found].map(([, host = '', script = '', says = '']) => ({
    host,
    script: ownPort(host, script),
    says: ownPort(host, says),
  }));
}

/** Without what differs from time to time. */
const steady = (text: string): string =>
  text.replace(/^.* ops; .*\n/gm, '').replaceAll(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, 'THEN');

test('two hosts from nothing: in sync, a host lost, a failover, the host back, the roles changed back, as the page says', async (t) => {
  const folder = await temporaryFolder(t);
  const bin = join(folder, 'bin');
  for (const name of ['bin', 'north', 'south']) await mkdir(join(folder, name));
  const program = `#!/bin/sh\nexec '${process.execPath}' '${join(root, 'src', 'cli', 'main.ts')}' "$@"\n`;
  await writeFile(join(bin, 'blockstep'), program);
  await chmod(join(bin, 'blockstep'), 0o755);
  const example = join(root, 'examples', 'blockstep.yaml');
  await cp(example, join(folder, 'north', 'blockstep.yaml'));
  await writeFile(join(folder, 'south', 'north.yaml'), ownPort('south', readFileSync(example, 'utf8')));
  const all = steps(page);
  assert.equal(all.length, page.match(/^```sh$/gm)?.length, 'each block says on which host');
  const mark = (index: number): string => `--- block ${index + 1} ended`;
  const blocks = all.map(({ host, script }, index) => `cd '${join(folder, host)}'\n${script}echo '${mark(index)}'\n`);
  const network = 'ip link set lo up\nip address add 192.168.7.1 dev lo\nip address add 192.168.7.2 dev lo\n';
  await writeFile(join(folder, 'script'), `set -e\n${network}${blocks.join('')}`);
  const result = await run(
    'unshare',
    ['--net', '--pid', '--fork', '--kill-child', '--mount-proc', 'sh', join(folder, 'script')],
    { env: { PATH: `${bin}:${process.env.PATH}` }, timeoutMs: 120_000 },
  );
  let rest = steady(result.stdout.replaceAll('\r', ''));
  for (const [index, step] of all.entries()) {
    const end = rest.indexOf(`${mark(index)}\n`);
    assert(end >= 0, `block ${index + 1} failed:\n${step.script}${rest}${result.stderr}`);
    assert.equal(rest.slice(0, end), steady(step.says), `block ${index + 1}:\n${step.script}`);
    rest = rest.slice(end + mark(index).length + 1);
  }
  assert.equal(result.code, 0, result.stderr);
});
