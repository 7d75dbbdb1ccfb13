import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type RawClient, rawClient } from '../qmp/raw-client.ts';
import { type Daemon, run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nbdinfo', 'qemu-io');

const program = fileURLToPath(new URL('../../src/cli/storage-daemon.ts', import.meta.url));

/** Starts the daemon and waits until its pid file says that it serves. */
async function start(t: TestContext, folder: string, ...args: string[]): Promise<Daemon> {
  const pidfile = join(folder, 'pid');
  const daemon = await spawnDaemon(t, process.execPath, [program, ...args, '--pidfile', pidfile]);
  let over = false;
  void daemon.exited.then(() => {
    over = true;
  });
  while (!over && !(await readFile(pidfile, 'utf8').catch(() => '')).endsWith('\n')) await sleep(10);
  assert.equal(over, false, daemon.stderr());
  return daemon;
}

const monitor = (folder: string): string[] => [
  '--chardev',
  `socket,path=${folder}/qmp,server=on,wait=off,id=c0`,
  '--monitor',
  'chardev=c0',
];

async function negotiated(t: TestContext, folder: string): Promise<RawClient> {
  const client = await rawClient(t, join(folder, 'qmp'));
  await client.next();
  await client.command('qmp_capabilities');
  return client;
}

async function refuses(t: TestContext, args: string[], code: number, message: RegExp): Promise<void> {
  const folder = await temporaryFolder(t);
  const result = await run(process.execPath, [program, ...args.map((text) => text.replaceAll('@', folder))]);
  assert.equal(result.code, code, `${args.join(' ')}: ${result.stderr}`);
  assert.match(result.stderr, message);
  assert.equal(result.stderr.trim().split('\n').length, 1, result.stderr);
  assert.equal(result.stdout, '');
}

test('a graph is built in the order of the options, clients use its export, quit ends it cleanly', async (t) => {
  const folder = await temporaryFolder(t);
  await writeFile(join(folder, 'a,b'), '');
  await truncate(join(folder, 'a,b'), 1024 * 1024);
  const daemon = await start(
    t,
    folder,
    '--blockdev',
    `driver=file,node-name=f,filename=${folder}/a,,b`,
    '--blockdev',
    '{"driver":"raw","node-name":"r","file":"f","size":524288}',
    '--blockdev',
    'memory,node-name=m,size=0.5M',
    '--blockdev',
    'driver=quorum,node-name=q,read-pattern=fifo,vote-threshold=1,children.0=r,children.1=m',
    '--nbd-server',
    `addr.type=unix,addr.path=${folder}/nbd,max-connections=8`,
    '--export',
    'nbd,id=e,node-name=q,name=disk,writable=on',
    ...monitor(folder),
  );
  const uri = `nbd+unix:///disk?socket=${folder}/nbd`;
  const info = await run('nbdinfo', ['--json', uri]);
  const [exported] = (JSON.parse(info.stdout) as { exports: Record<string, unknown>[] }).exports;
  assert.deepEqual([exported?.['export-size'], exported?.is_read_only], [524288, false]);
  const io = await run('qemu-io', ['-f', 'raw', '-c', 'write -P 7 4096 8192', '-c', 'read -P 7 4096 8192', uri]);
  assert.equal(io.code, 0, io.stdout + io.stderr);
  const client = await negotiated(t, folder);
  const exports = await client.command('query-block-exports');
  assert.equal((exports.return as unknown[]).length, 1);
  assert.deepEqual(await client.command('quit'), { return: {} });
  await client.closed;
  assert.equal(await daemon.exited, 0, daemon.stderr());
  for (const name of ['nbd', 'qmp', 'pid']) assert.equal(existsSync(join(folder, name)), false, name);
  const disk = await readFile(join(folder, 'a,b'));
  assert.deepEqual([...disk.subarray(4095, 4098)], [0, 7, 7]);
  assert.equal(daemon.stdout() + daemon.stderr(), '');
});

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`${signal} hangs clients up, flushes, and removes sockets and pid file`, async (t) => {
    const folder = await temporaryFolder(t);
    const daemon = await start(
      t,
      folder,
      '--blockdev',
      'memory,node-name=m,size=64k',
      '--nbd-server',
      `addr.type=unix,addr.path=${folder}/nbd`,
      '--export',
      'type=nbd,id=e,node-name=m',
      ...monitor(folder),
    );
    const client = await negotiated(t, folder);
    daemon.kill(signal);
    const event = await client.next();
    assert.deepEqual([event.event, event.data], ['SHUTDOWN', { guest: false, reason: 'host-signal' }]);
    await client.closed;
    assert.equal(await daemon.exited, 0, daemon.stderr());
    for (const name of ['nbd', 'qmp', 'pid']) assert.equal(existsSync(join(folder, name)), false, name);
  });
}

test('a TCP port chosen by the system is told by query-nbd-server', async (t) => {
  const folder = await temporaryFolder(t);
  await start(
    t,
    folder,
    '--blockdev',
    'null-co,node-name=n,size=1M',
    '--nbd-server',
    'addr.type=inet,addr.host=127.0.0.1,addr.port=0',
    '--export',
    'nbd,id=e,node-name=n',
    ...monitor(folder),
  );
  const client = await negotiated(t, folder);
  const { return: servers } = (await client.command('query-nbd-server')) as {
    return: { addrs: { data: { port: string } }[] }[];
  };
  const port = servers[0]?.addrs[0]?.data.port;
  const info = await run('nbdinfo', ['--size', `nbd://127.0.0.1:${port}/n`]);
  assert.equal(info.stdout.trim(), '1048576', info.stderr);
});

test('two monitors serve the same engine', async (t) => {
  const folder = await temporaryFolder(t);
  await start(
    t,
    folder,
    ...monitor(folder),
    '--chardev',
    `socket,path=${folder}/qmp2,server=on,wait=off,id=c1`,
    '--monitor',
    'c1,mode=control',
  );
  const first = await negotiated(t, folder);
  const second = await rawClient(t, join(folder, 'qmp2'));
  await second.next();
  await second.command('qmp_capabilities');
  await first.command('blockdev-add', { driver: 'memory', 'node-name': 'm', size: 512 });
  const { return: nodes } = await second.command('query-named-block-nodes');
  assert.equal((nodes as unknown[]).length, 1);
});

test('--daemonize returns when everything serves, and the daemon goes on', async (t) => {
  const folder = await temporaryFolder(t);
  const pidfile = join(folder, 'pid');
  const args = ['--daemonize', '--blockdev', 'memory,node-name=m,size=1M', '--pidfile', pidfile, ...monitor(folder)];
  const started = await run(process.execPath, [program, ...args]);
  assert.deepEqual([started.code, started.stdout, started.stderr], [0, '', '']);
  const pid = Number(await readFile(pidfile, 'utf8'));
  t.after(() => {
    if (existsSync(pidfile)) process.kill(pid, 'SIGKILL');
  });
  const again = await run(process.execPath, [program, '--pidfile', pidfile]);
  assert.deepEqual([again.code, /another process holds it/.test(again.stderr)], [3, true]);
  const client = await negotiated(t, folder);
  assert.deepEqual(await client.command('quit'), { return: {} });
  await client.closed;
  for (let turn = 0; turn < 1000 && existsSync(pidfile); turn += 1) await sleep(10);
  assert.equal(existsSync(pidfile), false);
});

test('--daemonize gives the error of a daemon that cannot start', async (t) => {
  await refuses(
    t,
    ['--daemonize', '--blockdev', 'memory,node-name=m,sizes=1M'],
    2,
    /--blockdev .*sizes: is unexpected/,
  );
});

test('a wrong option is one line that names it, and exit code 2', async (t) => {
  await refuses(t, ['--frobnicate'], 2, /--frobnicate.*--help/);
  await refuses(t, ['--blockdev', 'memory,size=1M'], 2, /node-name: is missing/);
  const twice = ['--blockdev', 'memory,node-name=m,size=512'];
  await refuses(t, [...twice, ...twice], 2, /already a node 'm'/);
});

test('a file that is missing, and an address in use, have their exit codes', async (t) => {
  await refuses(t, ['--blockdev', 'file,node-name=f,filename=@/absent'], 5, /--blockdev .*absent/);
  const folder = await temporaryFolder(t);
  await start(t, folder, '--nbd-server', `addr.type=unix,addr.path=${folder}/nbd`);
  await refuses(t, ['--nbd-server', `addr.type=unix,addr.path=${folder}/nbd`], 4, /--nbd-server .*in use/);
});

test('an export without its server, or of a node that is not there, ends the start', async (t) => {
  await refuses(t, ['--blockdev', 'memory,node-name=m,size=1M', '--export', 'nbd,id=e,node-name=m'], 8, /not running/);
  await refuses(
    t,
    ['--nbd-server', 'addr.type=unix,addr.path=@/nbd', '--export', 'nbd,id=e,node-name=m'],
    1,
    /no node 'm'/,
  );
});

test('--help and --version answer and exit 0', async () => {
  const help = await run(process.execPath, [program, '--help']);
  assert.equal(help.code, 0);
  for (const option of ['--blockdev', '--nbd-server', '--export', '--chardev', '--monitor', '--pidfile']) {
    assert.ok(help.stdout.includes(option), option);
  }
  const version = await run(process.execPath, [program, '-V']);
  assert.match(version.stdout, /^blockstep storage-daemon \d+\.\d+\.\d+\n$/);
});
