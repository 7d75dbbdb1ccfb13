import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { ourServer, ourTcpServer } from './our-server.ts';

const MiB = 1024 * 1024;

requireTools('nbdinfo');

async function nbdinfo(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run('nbdinfo', args);
  assert.equal(code, 0, stderr);
  return stdout;
}

test('nbdinfo --json shows size, flags, block sizes and contexts of an export', async (t) => {
  const { uri } = await ourServer(t, { memory: 8 * MiB }, { ordered: true });
  const [shown] = JSON.parse(await nbdinfo('--json', uri)).exports;
  assert.equal(shown['export-size'], 8 * MiB);
  assert.deepEqual(shown.contexts, ['base:allocation', 'blockstep:ordered']);
  for (const can of ['can_df', 'can_fast_zero', 'can_flush', 'can_fua', 'can_multi_conn', 'can_trim', 'can_zero']) {
    assert.equal(shown[can], true, can);
  }
  assert.equal(shown.is_read_only, false);
  assert.deepEqual(
    [shown.block_size_minimum, shown.block_size_preferred, shown.block_size_maximum],
    [1, 4096, 32 * MiB],
  );
});

test('nbdinfo shows a read-only export as such, over TCP too', async (t) => {
  const { uri } = await ourServer(t, { memory: MiB }, { readOnly: true });
  assert.equal(JSON.parse(await nbdinfo('--json', uri)).exports[0].is_read_only, true);
  assert.equal((await nbdinfo('--size', await ourTcpServer(t, 3 * MiB))).trim(), String(3 * MiB));
});

test('nbdinfo --list names the exports and their descriptions', async (t) => {
  const { uriOf } = await ourServer(t, { memory: MiB });
  const listed = JSON.parse(await nbdinfo('--list', '--json', uriOf(''))).exports;
  assert.deepEqual(
    listed.map((one: Record<string, unknown>) => [one['export-name'], one.description]),
    [['disk', 'a disk for tests']],
  );
});

test('nbdinfo --map shows data and holes of a sparse file', async (t) => {
  const path = `${await temporaryFolder(t)}/disk`;
  const file = await open(path, 'w');
  await file.truncate(8 * MiB);
  await file.write(new Uint8Array(MiB).fill(1), 0, MiB, 2 * MiB);
  await file.close();
  const { uri } = await ourServer(t, { file: path });
  const map = JSON.parse(await nbdinfo('--map', '--json', uri));
  assert.deepEqual(
    map.map(({ offset, length, type }: Record<string, number>) => [offset, length, type]),
    [
      [0, 2 * MiB, 3],
      [2 * MiB, MiB, 0],
      [3 * MiB, 5 * MiB, 3],
    ],
  );
});

test('an export that is refused and one that is not there are told apart', async (t) => {
  const { uriOf } = await ourServer(t, { memory: MiB });
  const refused = await run('nbdinfo', [uriOf('refused')], { env: { LIBNBD_DEBUG: '1' } });
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /this disk is secondary; the primary is elsewhere/);
  const missing = await run('nbdinfo', [uriOf('nothing')]);
  assert.notEqual(missing.code, 0);
  assert.match(missing.stderr, /No such file or directory/);
});
