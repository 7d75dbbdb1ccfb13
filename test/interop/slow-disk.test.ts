/** One slow disk of a daemon, and its clients, beside a quick one, as programs of others see it. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { QmpClient } from '../../src/qmp/client.ts';
import { cleanup } from '../support/cleanup.ts';
import { fuseFile } from '../support/fuse-file.ts';
import { run, spawnDaemon } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nbdcopy', 'qemu-io');
const mib = 2 ** 20;

test('while a client waits for a slow disk, those of another disk are served, and the daemon says which is slow', async (t) => {
  const slow = await fuseFile(t, ['--filter=delay', 'memory', '64M', 'rdelay=500ms', 'wdelay=500ms']);
  const folder = await temporaryFolder(t);
  const fast = join(folder, 'fast.img');
  writeFileSync(fast, new Uint8Array(8 * mib).fill(3));
  const [nbd, qmpSocket] = [join(folder, 'nbd'), join(folder, 'qmp')];
  const daemon = await spawnDaemon(t, process.execPath, [
    join(import.meta.dirname, '../../src/cli/storage-daemon.ts'),
    ...['--blockdev', `driver=file,node-name=slow,filename=${slow}`],
    ...['--blockdev', `driver=file,node-name=fast,filename=${fast}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
    ...['--export', 'type=nbd,id=s,node-name=slow,name=slow,writable=on'],
    ...['--export', 'type=nbd,id=f,node-name=fast,name=fast,writable=on'],
    ...['--chardev', `socket,path=${qmpSocket},server=on,wait=off,id=c`, '--monitor', 'chardev=c'],
  ]);
  while (!existsSync(qmpSocket)) await new Promise((resolve) => setTimeout(resolve, 20));
  const uri = (name: string) => `nbd+unix:///${name}?socket=${nbd}`;
  const qmp = await QmpClient.connect(createHost(), { type: 'unix', path: qmpSocket });
  cleanup(t, () => qmp.close());
  const infoOf = async (name: string): Promise<Record<string, unknown>> => {
    const nodes = (await qmp.execute('query-named-block-nodes')) as { 'node-name': string; info: object }[];
    return { ...nodes.find((node) => node['node-name'] === name)?.info };
  };

  // All of it, in many requests at once: on 48 threads it takes ten seconds.
  const copy = await spawnDaemon(t, 'nbdcopy', ['--connections=1', '--request-size=65536', uri('slow'), 'null:']);
  let copying = true;
  void copy.exited.then(() => {
    copying = false;
  });
  while ((await infoOf('slow')).io !== 'async') await new Promise((resolve) => setTimeout(resolve, 20));
  for (let i = 0; i < 3; i += 1) {
    const io = await run('qemu-io', [
      '-f',
      'raw',
      '-c',
      `write -P ${i} 0 1M`,
      '-c',
      'flush',
      '-c',
      `read -P ${i} 0 1M`,
      uri('fast'),
    ]);
    assert.equal(io.code, 0, io.stderr);
  }
  const whole = await run('nbdcopy', [uri('fast'), 'null:']);
  assert.equal(whole.code, 0, whole.stderr);
  assert.ok(readdirSync(`/proc/${daemon.pid}/task`).length > 64, 'there are threads for several slow disks');
  const info = await infoOf('slow');
  assert.equal(copying, true, 'the slow disk was being read all the time');
  assert.equal(info.io, 'async');
  assert.ok(Number(info['stalled-ms']) > 0);
  assert.equal((await infoOf('fast')).io, 'sync');
});
