/** Which daemon a person's command goes to, and what is printed: against daemons that only keep what they are told. */
import assert from 'node:assert/strict';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { controlSocket, DataFolder } from '../../src/cli/data-folder.ts';
import { createHost } from '../../src/host/index.ts';
import { QmpServer } from '../../src/qmp/server.ts';
import { BlockError } from '../../src/util/errors.ts';
import { temporaryFolder } from '../support/temp.ts';
import { blockstep } from './pair-support.ts';
import { statusOf } from './status-support.ts';

const host = createHost();

interface Heard {
  readonly command: string;
  readonly args: unknown;
}

/** Answers `pair-status` with this, everything else with the text; keeps what it heard. */
async function fakeDaemon(
  t: TestContext,
  folder: string,
  status: Readonly<Record<string, unknown>>,
  answer: unknown = { text: 'done' },
): Promise<Heard[]> {
  const { name } = statusOf(status);
  const heard: Heard[] = [];
  const dataFolder = join(folder, name);
  await mkdir(dataFolder, { recursive: true });
  const held = await DataFolder.take(host, dataFolder, { name, volume: 'v' });
  const server = new QmpServer(host, {
    execute: async (command, args) => {
      if (command === 'pair-status') return statusOf(status);
      if (command === 'qmp_capabilities') return {};
      heard.push({ command, args });
      if (answer instanceof Error) throw answer;
      return answer;
    },
    subscribe: () => () => undefined,
  });
  await server.listen(controlSocket(dataFolder));
  t.after(async () => {
    await server.close();
    await held.release();
  });
  return heard;
}

/** A folder with the configurations of `a` and `b`. */
async function pairFolder(t: TestContext): Promise<string> {
  const folder = await temporaryFolder(t);
  const config = (name: string, peer: string) => `
name: ${name}
volume: v
role: ${name === 'a' ? 'primary' : 'secondary'}
data: ./${name}
disks: [{ name: d, size: 1MiB }]
listen: { nbd: 127.0.0.1:1, supervisor: 127.0.0.1:2, replication: 127.0.0.1:3 }
peer: { name: ${peer}, supervisor: 127.0.0.1:4 }
`;
  await writeFile(join(folder, 'a.yaml'), config('a', 'b'));
  await writeFile(join(folder, 'b.yaml'), config('b', 'a'));
  return folder;
}

const secondary = { name: 'b', role: 'secondary', serving: true };

test('checkpoint goes to the primary, whatever its name, and what it says is all that is printed', async (t) => {
  const folder = await pairFolder(t);
  const asked = await fakeDaemon(t, folder, { name: 'b' }, { number: 7, text: 'checkpoint 7 is made' });
  const other = await fakeDaemon(t, folder, { ...secondary, name: 'a' });
  const result = await blockstep('checkpoint', '-d', folder);
  assert.equal(result.code, 0, result.stderr);
  assert.equal(result.stdout, 'checkpoint 7 is made\n');
  assert.deepEqual(asked, [{ command: 'pair-checkpoint', args: {} }]);
  assert.deepEqual(other, []);
});

test('checkpoint goes to the secondary if only that answers, or if it is named', async (t) => {
  const folder = await pairFolder(t);
  const refusal = new BlockError('wrong-state', 'a does not answer: no checkpoint can be made');
  const asked = await fakeDaemon(t, folder, secondary, refusal);
  const alone = await blockstep('checkpoint', '-d', folder);
  assert.equal(alone.code, 8, alone.stdout);
  assert.equal(alone.stderr, `blockstep: ${refusal.message}\n`);
  const primary = await fakeDaemon(t, folder, {});
  assert.equal((await blockstep('checkpoint', '-d', folder, '--name', 'b')).code, 8);
  assert.equal(asked.length, 2);
  assert.deepEqual(primary, []);
});

test('checkpoint with nobody there says how to start each: exit code 7', async (t) => {
  const folder = await pairFolder(t);
  const result = await blockstep('checkpoint', '-d', folder);
  assert.equal(result.code, 7);
  assert.match(result.stderr, /^blockstep: no daemon answers: a is not running; start it: .*; b is not running; /);
});

test('several configuration files of one daemon are one daemon: a row of status, and the one that a command is for', async (t) => {
  const folder = await pairFolder(t);
  const asked = await fakeDaemon(t, folder, secondary);
  await symlink(folder, join(folder, 'same'));
  const text = await readFile(join(folder, 'b.yaml'), 'utf8');
  await writeFile(join(folder, 'b-lock-step.yaml'), text);
  await writeFile(join(folder, 'c.yaml'), text.replace('./b', './same/b'));
  const { stdout } = await blockstep('status', '--json', '-d', folder);
  assert.deepEqual(
    (JSON.parse(stdout) as { name: string }[]).map(({ name }) => name),
    ['a', 'b'],
  );
  for (const more of [[], ['--name', 'b']]) {
    const result = await blockstep('switch', '-d', folder, ...more);
    assert.equal(result.code, 0, result.stderr);
  }
  assert.equal(asked.length, 2);
});

test('a command for the secondary that finds the primary alone says where to give it', async (t) => {
  const folder = await pairFolder(t);
  await fakeDaemon(t, folder, {});
  for (const command of [['failover'], ['switch'], ['checkpoint', '--hold', '1m']]) {
    const result = await blockstep(...command, '-c', join(folder, 'a.yaml'));
    assert.equal(result.code, 8, result.stderr);
    const said = 'blockstep: no daemon answers that is secondary: a is primary; the other side is b: say it there\n';
    assert.equal(result.stderr, said);
  }
});

test('a checkpoint is held and released on the secondary, which says where it is read', async (t) => {
  const folder = await pairFolder(t);
  const primary = await fakeDaemon(t, folder, {});
  const asked = await fakeDaemon(t, folder, secondary, { number: 7, text: 'checkpoint 7' });
  const held = await blockstep('checkpoint', '-d', folder, '--hold', '10m');
  assert.equal(held.code, 0, held.stderr);
  assert.equal(held.stdout, 'checkpoint 7, held for 10 min\nb shows it read-only: nbd://127.0.0.1:1/d\n');
  assert.equal((await blockstep('checkpoint', '-d', folder, '--release')).code, 0);
  assert.deepEqual(
    asked.map(({ args }) => args),
    [{ holdMs: 600_000 }, { release: true }],
  );
  assert.deepEqual(primary, []);
});

test('a hold without a time, too long, or together with a release is a usage error that says what was expected', async () => {
  for (const time of ['10', '25h', 'forever', '0s']) {
    const result = await blockstep('checkpoint', '--hold', time);
    assert.equal(result.code, 2, time);
    assert.match(result.stderr, /^blockstep: .*Expected a time such as 10m or 2h, 24h at most\.\n/, time);
  }
  const both = await blockstep('checkpoint', '--hold', '1m', '--release');
  assert.equal(both.code, 2);
  assert.match(both.stderr, /'--hold <time>' cannot be used with option '--release'/);
});

test('failover goes to the secondary with the state that was asked for', async (t) => {
  const folder = await pairFolder(t);
  await fakeDaemon(t, folder, {});
  const asked = await fakeDaemon(t, folder, secondary);
  for (const to of [[], ['--to', 'latest'], ['--to', 'checkpoint']]) {
    const result = await blockstep('failover', '-d', folder, ...to);
    assert.equal(result.code, 0, result.stderr);
    // It still says that it is secondary: what it offers there is not the disk of the pair.
    assert.equal(result.stdout, 'done\n');
  }
  assert.deepEqual(
    asked.map(({ args }) => args),
    [{ force: false }, { to: 'latest', force: false }, { to: 'checkpoint', force: false }],
  );
});
