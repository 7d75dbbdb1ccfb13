import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { emptyFile, ourServer } from './our-server.ts';

const MiB = 1024 * 1024;
const size = 24 * MiB;

requireTools('nbdcopy');

/** A file with data, holes and zeroes in it. */
async function motley(path: string): Promise<void> {
  const file = await open(path, 'w');
  await file.truncate(size);
  for (let at = 0; at < size; at += 3 * MiB) await file.write(randomBytes(MiB), 0, MiB, at);
  await file.write(new Uint8Array(MiB), 0, MiB, 2 * MiB);
  await file.close();
}

async function nbdcopy(...args: string[]): Promise<void> {
  const { code, stderr } = await run('nbdcopy', args);
  assert.equal(code, 0, stderr);
}

for (const requestSize of [256 * 1024, 4096, 8 * MiB]) {
  test(`nbdcopy with 4 connections and requests of ${requestSize} bytes copies to us and back`, async (t) => {
    const folder = await temporaryFolder(t);
    await motley(`${folder}/source`);
    await emptyFile(`${folder}/disk`, size);
    const { uri } = await ourServer(t, { file: `${folder}/disk` });
    const how = ['--connections=4', '--requests=16', `--request-size=${requestSize}`, '--flush'];
    await nbdcopy(...how, `${folder}/source`, uri);
    const source = await readFile(`${folder}/source`);
    assert.ok(source.equals(await readFile(`${folder}/disk`)), 'what was sent is on the disk');
    await nbdcopy(...how, uri, `${folder}/back`);
    assert.ok(source.equals(await readFile(`${folder}/back`)), 'what was fetched is what was sent');
  });
}

test('nbdcopy copies from one of our servers to another', async (t) => {
  const folder = await temporaryFolder(t);
  await motley(`${folder}/source`);
  await emptyFile(`${folder}/target`, size);
  const from = await ourServer(t, { file: `${folder}/source` }, { readOnly: true });
  const to = await ourServer(t, { file: `${folder}/target` });
  await nbdcopy('--connections=4', from.uri, to.uri);
  assert.ok((await readFile(`${folder}/source`)).equals(await readFile(`${folder}/target`)));
});
