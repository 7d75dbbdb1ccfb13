/**
 * The same commands to QEMU and to blockstep: what a program that was written for QEMU relies on is the same: whether a
 * command is taken, the class of its error, the states and events of a job in their order, and the numbers in them. The
 * sentences are each one's own. (Shapes of answers, and what is not JSON: qmp-client-qemu.test.ts.)
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { connect as connectTo } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { BlockError } from '../../src/util/errors.ts';
import { until } from '../qmp/fake-target.ts';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { type Peer, peer, type Vendor } from './qmp-peers.ts';

requireTools('qemu-img', 'qemu-io');

const size = 2 ** 20;

type Row = Record<string, unknown>;

/** What a peer did with the commands of a scene, in order; a scene adds what it looked at. */
class Told {
  readonly peer: Peer;
  readonly folder: string;
  readonly lines: unknown[] = [];

  constructor(of: Peer, folder: string) {
    this.peer = of;
    this.folder = folder;
  }

  /** Gives a command; whether it was taken, or the class of the error, goes to the lines. */
  async give(command: string, args?: Row): Promise<unknown> {
    const line = `${command} ${JSON.stringify(args ?? {})}`;
    try {
      const answer = await this.peer.run(command, args);
      this.lines.push([line, 'taken']);
      return answer;
    } catch (error) {
      this.lines.push([line, (error as BlockError).qmpClass]);
      return undefined;
    }
  }

  async event(name: string, match: Row): Promise<void> {
    await until(() =>
      this.peer.events.some(
        ({ event, data }) => event === name && Object.entries(match).every(([key, value]) => data[key] === value),
      ),
    );
  }

  /**
   * All events of a job, without the rests that QEMU's drains make, and ours need not; on request without its numbers,
   * where they count something of a format's own.
   */
  eventsOf(id: string, how: { readonly numbers: boolean } = { numbers: true }): unknown[] {
    const found = this.peer.events.filter(({ data }) => data.id === id || data.device === id);
    const seen: string[] = [];
    for (const { event, data } of found) {
      if (data.status === 'paused' || data.status === 'standby') continue;
      const members = Object.entries(data).filter(([key]) => how.numbers || (key !== 'len' && key !== 'offset'));
      const line = `${event} ${JSON.stringify(Object.fromEntries(members.sort()))}`;
      if (seen.at(-1) !== line) seen.push(line);
    }
    return seen;
  }
}

/** Plays a scene with both, and finds the same told. */
async function same(t: TestContext, scene: (told: Told) => Promise<void>): Promise<void> {
  const lines: unknown[][] = [];
  for (const vendor of ['qemu', 'blockstep'] satisfies Vendor[]) {
    const folder = await temporaryFolder(t);
    for (const name of ['a', 'b', 'c']) {
      const content = Buffer.alloc(size);
      if (name === 'a') content.fill(1, 0, 4 * 65_536);
      await writeFile(join(folder, `${name}.img`), content);
    }
    const told = new Told(await peer(t, vendor, folder, vendor), folder);
    for (const name of ['a', 'b', 'c']) {
      await told.give('blockdev-add', { driver: 'file', 'node-name': name, filename: `${name}.img` });
    }
    await scene(told);
    lines.push(told.lines);
  }
  const [theirs = [], ours = []] = lines;
  for (const [index, line] of theirs.entries()) assert.deepEqual(ours[index], line, `line ${index}`);
  assert.equal(ours.length, theirs.length);
}

const jobVerbs = ['pause', 'resume', 'cancel', 'complete', 'finalize', 'dismiss'];

test('a job that is not there: an error class for the commands of jobs, another for those of block jobs', async (t) => {
  await same(t, async (told) => {
    for (const verb of jobVerbs) {
      await told.give(`job-${verb}`, { id: 'absent' });
      const key = verb === 'finalize' || verb === 'dismiss' ? 'id' : 'device';
      await told.give(`block-job-${verb}`, { [key]: 'absent' });
    }
    await told.give('block-job-set-speed', { device: 'absent', speed: 1 });
    await told.give('block-commit', { 'job-id': 'c', device: 'absent' });
  });
});

test('a backup: what it takes, what is refused beside it, its states, numbers and events', async (t) => {
  await same(t, async (told) => {
    const backup = { 'job-id': 'j', device: 'a', target: 'b', sync: 'full' };
    for (const wrong of [{ target: 'a' }, { sync: 'nope' }, { 'job-id': '9' }, { device: 'absent' }, { target: 'x' }]) {
      await told.give('blockdev-backup', { ...backup, ...wrong });
    }
    const how = { 'auto-finalize': false, 'auto-dismiss': false, compress: false };
    const onError = { 'on-source-error': 'report', 'on-target-error': 'report' };
    await told.give('blockdev-backup', { ...backup, ...how, ...onError });
    await told.event('JOB_STATUS_CHANGE', { id: 'j', status: 'pending' });
    told.lines.push(await told.give('query-jobs'));
    await told.give('blockdev-backup', { ...backup, target: 'c' });
    for (const other of [{ device: 'c' }, { target: 'c' }, { device: 'b', target: 'c' }]) {
      await told.give('blockdev-backup', { ...backup, 'job-id': 'other', ...other });
    }
    await told.give('blockdev-mirror', { 'job-id': 'other', device: 'a', target: 'c', sync: 'full' });
    await told.give('blockdev-mirror', { 'job-id': 'other', device: 'c', target: 'b', sync: 'full' });
    await told.give('block_resize', { 'node-name': 'b', size: 2 * size });
    for (const name of ['a', 'b']) await told.give('blockdev-del', { 'node-name': name });
    for (const verb of ['complete', 'dismiss', 'pause', 'resume']) await told.give(`job-${verb}`, { id: 'j' });
    await told.give('block-job-set-speed', { device: 'j', speed: 5 });
    await told.give('job-finalize', { id: 'j' });
    await told.event('JOB_STATUS_CHANGE', { id: 'j', status: 'concluded' });
    told.lines.push(await told.give('query-jobs'));
    for (const verb of ['finalize', 'cancel', 'dismiss', 'dismiss']) await told.give(`job-${verb}`, { id: 'j' });
    told.lines.push(told.eventsOf('j'));
  });
});

test('a backup without a background: its numbers, a pause, and its end when cancelled', async (t) => {
  await same(t, async (told) => {
    await told.give('blockdev-backup', { 'job-id': 'n', device: 'a', target: 'b', sync: 'none' });
    told.lines.push(await told.give('query-jobs'));
    await told.give('job-pause', { id: 'n' });
    await told.event('JOB_STATUS_CHANGE', { id: 'n', status: 'paused' });
    for (const verb of ['pause', 'resume', 'resume', 'complete']) await told.give(`job-${verb}`, { id: 'n' });
    await told.give('block-job-cancel', { device: 'n' });
    await told.event('JOB_STATUS_CHANGE', { id: 'n', status: 'null' });
    told.lines.push(told.eventsOf('n'));
  });
});

test('a mirror: one that rests may be told to complete, and does so when it is resumed', async (t) => {
  await same(t, async (told) => {
    const mirror = { 'job-id': 'm', device: 'a', target: 'b', sync: 'full' };
    for (const wrong of [{ sync: 'incremental' }, { granularity: 3 }, { granularity: 100_000_000 }, { target: 'a' }]) {
      await told.give('blockdev-mirror', { ...mirror, ...wrong });
    }
    const how = { 'auto-finalize': false, 'auto-dismiss': false, 'filter-node-name': 'filter' };
    await told.give('blockdev-mirror', { ...mirror, ...how });
    await told.event('BLOCK_JOB_READY', { device: 'm' });
    told.lines.push(await told.give('query-jobs'));
    await told.give('job-finalize', { id: 'm' });
    await told.give('block-job-pause', { device: 'm' });
    await told.event('JOB_STATUS_CHANGE', { id: 'm', status: 'standby' });
    await told.give('job-complete', { id: 'm' });
    await told.give('block-job-resume', { device: 'm' });
    await told.event('JOB_STATUS_CHANGE', { id: 'm', status: 'pending' });
    await told.give('job-complete', { id: 'm' });
    await told.give('job-finalize', { id: 'm' });
    await told.event('JOB_STATUS_CHANGE', { id: 'm', status: 'concluded' });
    await told.give('job-dismiss', { id: 'm' });
    told.lines.push(told.eventsOf('m'));
  });
});

test('a mirror that is cancelled: with force it is, without it ends well', async (t) => {
  await same(t, async (told) => {
    for (const [id, command, args] of [
      ['m1', 'block-job-cancel', { device: 'm1' }],
      ['m2', 'block-job-cancel', { device: 'm2', force: true }],
      ['m3', 'job-cancel', { id: 'm3' }],
    ] as const) {
      await told.give('blockdev-mirror', { 'job-id': id, device: 'a', target: 'b', sync: 'full' });
      await told.event('BLOCK_JOB_READY', { device: id });
      await told.give(command, args);
      await told.event('JOB_STATUS_CHANGE', { id, status: 'null' });
      told.lines.push(told.eventsOf(id));
    }
  });
});

test('a mirror whose source cannot be read: the error, the stop and the resume are told alike', async (t) => {
  await same(t, async (told) => {
    const always = [{ event: 'none', iotype: 'read', errno: 5, once: false }];
    await told.give('blockdev-add', { driver: 'blkdebug', 'node-name': 'bad', image: 'a', 'inject-error': always });
    const mirror = { device: 'bad', target: 'b', sync: 'full', 'auto-dismiss': false };
    await told.give('blockdev-mirror', { ...mirror, 'job-id': 'e1' });
    await told.event('JOB_STATUS_CHANGE', { id: 'e1', status: 'concluded' });
    await told.give('job-dismiss', { id: 'e1' });
    await told.give('blockdev-mirror', { ...mirror, 'job-id': 'e2', 'on-source-error': 'stop' });
    await told.event('JOB_STATUS_CHANGE', { id: 'e2', status: 'paused' });
    const [info] = (await told.give('query-block-jobs')) as Row[];
    told.lines.push([info?.status, info?.paused, info?.['io-status']]);
    await told.give('block-job-cancel', { device: 'e2', force: true });
    await told.event('JOB_STATUS_CHANGE', { id: 'e2', status: 'concluded' });
    for (const id of ['e1', 'e2']) {
      const names = told.peer.events.filter(({ data }) => data.id === id || data.device === id);
      const states = names.filter(({ event }) => event === 'JOB_STATUS_CHANGE').map(({ data }) => data.status);
      told.lines.push([id, states, names.find(({ event }) => event === 'BLOCK_JOB_ERROR')?.data.action]);
    }
  });
});

test('a commit: below the active layer it ends by itself, of the active layer when told; the export follows', async (t) => {
  await same(t, async (told) => {
    const { vendor, run: give, uri } = told.peer;
    for (const [name, backing] of [
      ['middle', 'a'],
      ['top', 'middle'],
    ] as const) {
      const image = join(told.folder, name);
      if (vendor === 'blockstep') await writeFile(image, '');
      else assert.equal((await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(size)])).code, 0);
      const driver = vendor === 'blockstep' ? 'shadow' : 'qcow2';
      await give('blockdev-add', { driver, 'node-name': name, file: { driver: 'file', filename: image }, backing });
    }
    await told.peer.startServer();
    await told.give('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'top', writable: true });
    const write = async (command: string): Promise<void> => {
      assert.equal((await run('qemu-io', ['-f', 'raw', '-c', command, uri('top')])).code, 0);
    };
    await write('write -P 7 0 128k');
    const commit = { 'job-id': 'c', device: 'top', 'base-node': 'a' };
    for (const wrong of [{ 'base-node': 'absent' }, { 'base-node': 'top' }, { device: 'a' }, { 'top-node': 'a' }]) {
      await told.give('block-commit', { ...commit, ...wrong });
    }
    await told.give('block-commit', { ...commit, 'job-id': 'c1', 'top-node': 'middle', 'backing-file': 'x' });
    await told.event('JOB_STATUS_CHANGE', { id: 'c1', status: 'null' });
    await told.give('block-commit', { ...commit, 'job-id': 'c2', 'auto-dismiss': false });
    await told.event('BLOCK_JOB_READY', { device: 'c2' });
    told.lines.push(await told.give('query-jobs'));
    await told.give('block-commit', { ...commit, 'job-id': 'c3' });
    for (const name of ['a', 'top']) await told.give('blockdev-del', { 'node-name': name });
    await write('write -P 8 256k 64k');
    await told.give('job-complete', { id: 'c2' });
    await told.event('JOB_STATUS_CHANGE', { id: 'c2', status: 'concluded' });
    await told.give('job-dismiss', { id: 'c2' });
    for (const id of ['c1', 'c2']) told.lines.push(told.eventsOf(id, { numbers: false }));
    const exports = (await told.give('query-block-exports')) as Row[];
    told.lines.push(exports.map((row) => row['node-name']));
    for (const name of ['top', 'middle', 'a']) await told.give('blockdev-del', { 'node-name': name });
    const image = await readFile(join(told.folder, 'a.img'));
    told.lines.push([0, 100_000, 200_000, 300_000, 400_000].map((at) => image[at]));
  });
});

test('exports: members that have their default are taken, what cannot be had is refused', async (t) => {
  await same(t, async (told) => {
    await told.peer.startServer();
    const nbd = { type: 'nbd', 'node-name': 'a' };
    await told.give('block-export-add', { ...nbd, id: 'e1', 'fixed-iothread': false, 'allocation-depth': false });
    await told.give('block-export-add', { ...nbd, id: 'e2', name: 'e2', bitmaps: [] });
    await told.give('block-export-add', { ...nbd, id: 'e3', name: 'e3', bitmaps: ['absent'] });
    await told.give('block-export-add', { ...nbd, id: 'e4', name: 'e4', iothread: 'absent' });
    await told.give('block-export-add', { ...nbd, id: 'e5', name: 'x'.repeat(5000) });
    await told.give('block-export-add', { ...nbd, id: 'e6', type: 'fuse', mountpoint: '/absent' });
    await told.give('nbd-server-add', { device: 'a', name: 'y', bitmap: 'absent' });
    await told.give('nbd-server-add', { device: 'b' });
    await told.give('nbd-server-add', { device: 'b' });
    await told.give('block-export-del', { id: 'e1', mode: 'soft' });
    await told.give('block-export-del', { id: 'e1' });
    await told.event('BLOCK_EXPORT_DELETED', { id: 'e1' });
    await told.give('nbd-server-stop');
    await told.event('BLOCK_EXPORT_DELETED', { id: 'b' });
    told.lines.push(await told.give('query-block-exports'));
  });
});

test('replication at the wrong moment, or with the wrong words, is refused alike; the status says so', async (t) => {
  await same(t, async (told) => {
    const set = 'xen-set-replication';
    const status = async (): Promise<void> => {
      const answer = (await told.give('query-xen-replication-status')) as Row;
      told.lines.push([answer.error, typeof answer.desc]);
      await told.give('xen-colo-do-checkpoint');
    };
    await told.give(set, { enable: true, primary: true, failover: true });
    await told.give(set, { enable: true });
    await told.give(set, { enable: true, primary: true });
    await told.give(set, { enable: false, primary: false, failover: true });
    await status();
    const filter = { driver: 'replication', 'node-name': 'r', file: 'a' };
    for (const wrong of [{}, { mode: 'nope' }, { mode: 'secondary' }, { mode: 'primary', 'top-id': 'x' }]) {
      await told.give('blockdev-add', { ...filter, ...wrong });
    }
    await told.give('blockdev-add', { ...filter, mode: 'primary' });
    await status();
    await told.give(set, { enable: false, primary: true });
    await told.give(set, { enable: true, primary: false });
    await told.give(set, { enable: true, primary: true });
    await told.give(set, { enable: true, primary: true });
    await status();
    await told.give('blockdev-del', { 'node-name': 'a' });
    await told.give(set, { enable: false, primary: true });
    await told.give(set, { enable: true, primary: true });
    await told.give('blockdev-del', { 'node-name': 'r' });
    await status();
  });
});

test('an id comes back as it was: of every type of JSON, and numbers that a double cannot say', async (t) => {
  const ids = ['0', '-7', '1.5', 'null', 'true', '"a\\u0000b"', '[1,{"a":[]}]', '{}', '9007199254740993'];
  ids.push('-9223372036854775808', '18446744073709551615');
  await same(t, async ({ peer: { qmpSocket, qmp }, lines }) => {
    // QEMU has one client at a time.
    qmp.close();
    const socket = connectTo(qmpSocket);
    t.after(() => socket.destroy());
    let text = '';
    socket.setEncoding('utf8').on('data', (more: string) => {
      text += more;
    });
    const commands = ids.map((id) => `{"execute":"query-version","arguments":{},"id":${id}}`);
    // Without a newline, and in pieces that end anywhere.
    const given = ['{"execute":"qmp_capabilities"}', ...commands].join('');
    for (let at = 0; at < given.length; at += 7) {
      socket.write(given.slice(at, at + 7));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => text.split('\n').length === ids.length + 3);
    for (const line of text.split('\n').slice(2, -1)) {
      const id = /"id": ?(.*?)(?:, "return".*|)\}\r?$/.exec(line)?.[1];
      lines.push(id?.replaceAll(', ', ',').replaceAll(': ', ':'));
    }
  });
});

test('quit is answered, then SHUTDOWN is told, then the connection ends', async (t) => {
  await same(t, async ({ peer: { qmp, run, events, daemon }, lines }) => {
    const closed = new Promise((resolve) => qmp.onClosed(resolve));
    await run('quit');
    await closed;
    lines.push(events.map(({ event, data }) => [event, data]));
    lines.push(await daemon.exited);
  });
});
