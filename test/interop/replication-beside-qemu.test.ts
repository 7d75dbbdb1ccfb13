/**
 * COLO's block replication between two vendors, as QEMU's docs/block-replication.txt and our
 * docs/howto/replication-by-hand.md build it: the same scene, in the same commands, with QEMU on one side and blockstep
 * on the other, and with QEMU on both, which shows that the scene asks for what QEMU does.
 *
 *     user -> quorum "disk" -> primary.img                            view -> replication "top" -> active -> hidden
 *                           \-> replication "forward" -> NBD -> export "incoming" -> secondary.img <----------/
 */
import assert from 'node:assert/strict';
import { randomBytes, randomInt } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../qmp/fake-target.ts';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { type Peer, peer, type Vendor } from './qmp-peers.ts';

requireTools('qemu-io', 'qemu-img', 'nbdcopy', 'python3');

const MiB = 2 ** 20;
const size = 4 * MiB;
const randomWriter = join(import.meta.dirname, 'libnbd-writes-at-random.py');

async function good(command: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(command, args, { timeoutMs: 60_000 });
  assert.equal(code, 0, `${command} ${args.join(' ')}: ${stdout}${stderr}`);
  assert.doesNotMatch(stdout, /fail/i);
  return stdout;
}

const qemuIo = (uri: string, ...commands: string[]): Promise<string> =>
  good('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri);

const file = (filename: string) => ({ driver: 'file', filename });

/**
 * A secondary on the disk NAME.img, not started yet. Its top is a quorum, so that it can replicate on after a failover.
 */
async function prepareSecondary(side: Peer, folder: string, name: string): Promise<void> {
  const { run: give, vendor } = side;
  const disk = name === badDisk ? { driver: 'blkdebug', 'inject-error': [badSector] } : { driver: 'raw' };
  const child = { [name === badDisk ? 'image' : 'file']: file(`${name}.img`) };
  await give('blockdev-add', { ...disk, ...child, 'node-name': 'secondary' });
  for (const [node, backing] of [
    ['hidden', 'secondary'],
    ['active', 'hidden'],
  ] as const) {
    const image = join(folder, `${name}-${node}.overlay`);
    if (vendor === 'blockstep') await writeFile(image, '');
    else await good('qemu-img', 'create', '-q', '-f', 'qcow2', image, String(size));
    const driver = vendor === 'blockstep' ? 'shadow' : 'qcow2';
    await give('blockdev-add', { driver, 'node-name': node, file: file(image), backing });
  }
  const mode = { mode: 'secondary', 'top-id': 'disk' };
  await give('blockdev-add', { driver: 'replication', 'node-name': 'top', file: 'active', ...mode });
  await give('blockdev-add', { ...quorum, 'node-name': 'disk', children: ['top'] });
  await side.startServer();
  const writable = { type: 'nbd', writable: true };
  await give('block-export-add', { ...writable, id: 'incoming', 'node-name': 'secondary', name: 'incoming' });
  await give('block-export-add', { ...writable, id: 'view', 'node-name': 'disk', name: 'view' });
}

/** A disk of this name cannot be written in the sector at 1 MiB. */
const badDisk = 'bad';
const badSector = { event: 'none', iotype: 'write', sector: 2048, errno: 5, once: false };

/** Gives a side's quorum one more child, which replicates to another side, as a manager of COLO does it. */
async function forward(from: Peer, to: Peer, name: string): Promise<void> {
  const filter = { driver: 'replication', 'node-name': name, mode: 'primary', file: incomingOf(to) };
  await from.run('blockdev-add', filter);
  await from.run('x-blockdev-change', { parent: 'disk', node: name });
}

const quorum = { driver: 'quorum', 'read-pattern': 'fifo', 'vote-threshold': 1 };

const incomingOf = ({ nbdSocket: path }: Peer) => ({
  driver: 'nbd',
  export: 'incoming',
  server: { type: 'unix', path },
});

class Scene {
  readonly folder: string;
  readonly primary: Peer;
  readonly secondary: Peer;
  #copies = 0;

  private constructor(folder: string, primary: Peer, secondary: Peer) {
    this.folder = folder;
    this.primary = primary;
    this.secondary = secondary;
  }

  /** Two disks of the same random bytes, and replication running. */
  static async start(
    t: TestContext,
    primaryVendor: Vendor,
    secondaryVendor: Vendor,
    disk = 'secondary',
  ): Promise<Scene> {
    const folder = await temporaryFolder(t);
    const content = randomBytes(size);
    content.fill(0, MiB, 2 * MiB);
    await writeFile(join(folder, 'primary.img'), content);
    await writeFile(join(folder, `${disk}.img`), content);
    const [primary, secondary] = await Promise.all([
      peer(t, primaryVendor, folder, 'p'),
      peer(t, secondaryVendor, folder, 's'),
    ]);
    const scene = new Scene(folder, primary, secondary);
    await scene.#startSecondary(disk);
    await scene.#startPrimary();
    return scene;
  }

  async #startSecondary(disk: string): Promise<void> {
    await prepareSecondary(this.secondary, this.folder, disk);
    await this.secondary.run('xen-set-replication', { enable: true, primary: false });
  }

  async #startPrimary(): Promise<void> {
    const { run: give, startServer } = this.primary;
    await give('blockdev-add', { driver: 'raw', 'node-name': 'local', file: file('primary.img') });
    await give('blockdev-add', { ...quorum, 'node-name': 'disk', children: ['local'] });
    await forward(this.primary, this.secondary, 'forward');
    await startServer();
    await give('block-export-add', { type: 'nbd', id: 'disk', 'node-name': 'disk', name: 'disk', writable: true });
    await give('xen-set-replication', { enable: true, primary: true });
  }

  get disk(): string {
    return this.primary.uri('disk');
  }

  get incoming(): string {
    return this.secondary.uri('incoming');
  }

  get view(): string {
    return this.secondary.uri('view');
  }

  async bytesOf(uri: string): Promise<Buffer> {
    this.#copies += 1;
    const copy = join(this.folder, `copy${this.#copies}`);
    await good('nbdcopy', uri, copy);
    return await readFile(copy);
  }

  async checkpoint(): Promise<void> {
    for (const side of [this.primary, this.secondary]) {
      assert.deepEqual(await side.run('query-xen-replication-status'), { error: false });
      await side.run('xen-colo-do-checkpoint');
    }
  }

  /** The export that the primary writes to is taken away, then the secondary fails over. */
  async failOver(): Promise<void> {
    await this.secondary.run('block-export-del', { id: 'incoming', mode: 'hard' });
    await this.secondary.run('xen-set-replication', { enable: false, primary: false, failover: true });
  }

  /** Without failover. QEMU stops, too, but then takes the end of its own job for a failure (replication-filter). */
  async stopSecondary(): Promise<void> {
    const { vendor, run: give } = this.secondary;
    const stop = give('xen-set-replication', { enable: false, primary: false });
    if (vendor === 'qemu') await assert.rejects(stop, /cancelled unexpectedly/);
    else await stop;
  }

  /** Waits until the overlays are in the secondary disk: the top then stands on it alone. */
  async untilMerged(): Promise<void> {
    for (let tries = 0; tries < 500; tries += 1) {
      if (await this.#isMerged()) return;
      await sleep(20);
    }
    assert.fail('the failover did not end');
  }

  async #isMerged(): Promise<boolean> {
    if (this.secondary.vendor === 'blockstep') {
      const [row] = (await this.secondary.run('query-replication')) as { stage: string }[];
      return row?.stage === 'done';
    }
    const graph = (await this.secondary.run('x-debug-query-block-graph')) as BlockGraph;
    const idOf = (name: string) => graph.nodes.find((node) => node.name === name)?.id;
    return graph.edges.some(({ parent, child }) => parent === idOf('top') && child === idOf('secondary'));
  }
}

/** What QEMU tells of its graph. */
interface BlockGraph {
  readonly nodes: readonly { readonly id: number; readonly name: string }[];
  readonly edges: readonly { readonly parent: number; readonly child: number }[];
}

function assertEqualBytes(actual: Buffer, expected: Buffer, what: string): void {
  if (actual.equals(expected)) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  assert.fail(`${what}: differs at ${at}: ${actual[at]} instead of ${expected[at]} (${actual.length} bytes)`);
}

const pairs: readonly (readonly [Vendor, Vendor])[] = [
  ['qemu', 'qemu'],
  ['qemu', 'blockstep'],
  ['blockstep', 'qemu'],
];

for (const [primary, secondary] of pairs) {
  const words = `${primary} replicates to ${secondary}`;

  test(`${words}: every kind of request reaches it; its view is the last checkpoint, then with its own writes`, async (t) => {
    const scene = await Scene.start(t, primary, secondary);
    const first = await scene.bytesOf(scene.disk);
    await qemuIo(
      scene.disk,
      ...['write -P 0xa5 0 64k', 'write -P 0x5a 100k 512', 'write -f -P 0x11 3M 512', 'write -z 64k 64k'],
      ...['write -z -u 256k 64k', 'discard 512k 64k', 'write -P 0x22 1500k 1k', 'flush'],
    );
    const seed = randomInt(2 ** 31);
    // QEMU's filter reads where a write is not of whole sectors, and may not read: the secondary does not get it.
    const unit = primary === 'qemu' ? '512' : '1';
    assert.match(await good('/usr/bin/python3', randomWriter, scene.disk, String(seed), '150', unit), /good/);
    const second = await scene.bytesOf(scene.disk);
    assertEqualBytes(await scene.bytesOf(scene.incoming), second, `seed ${seed}: the secondary disk`);
    assertEqualBytes(await scene.bytesOf(scene.view), first, `seed ${seed}: the view before a checkpoint`);
    await scene.checkpoint();
    assertEqualBytes(await scene.bytesOf(scene.view), second, `seed ${seed}: the view after a checkpoint`);
    // What its own user writes is on top of it, until the next checkpoint.
    await qemuIo(scene.view, 'write -P 0x77 2M 100k', 'write -z 10k 10k');
    await qemuIo(scene.disk, 'write -P 0x33 2M 64k', 'write -P 0x34 0 64k');
    const own = Buffer.from(second);
    own.fill(0x77, 2 * MiB, 2 * MiB + 100 * 1024).fill(0, 10 * 1024, 20 * 1024);
    assertEqualBytes(await scene.bytesOf(scene.view), own, 'the view with its own writes');
    const third = await scene.bytesOf(scene.disk);
    assertEqualBytes(await scene.bytesOf(scene.incoming), third, 'the secondary disk beside own writes');
    await scene.checkpoint();
    assertEqualBytes(await scene.bytesOf(scene.view), third, 'the view, whose own writes a checkpoint drops');
  });

  test(`${words}: a failover serves the checkpoint and its own writes, while and after they become the disk`, async (t) => {
    const scene = await Scene.start(t, primary, secondary);
    await qemuIo(scene.disk, 'write -P 1 0 1M', 'write -z 2M 64k');
    await scene.checkpoint();
    const expected = await scene.bytesOf(scene.disk);
    await qemuIo(scene.disk, 'write -P 2 0 512k', 'write -P 3 3M 1M');
    await qemuIo(scene.view, 'write -P 4 256k 512k', 'write -z 3000k 3000');
    expected.fill(4, 256 * 1024, 768 * 1024).fill(0, 3000 * 1024, 3000 * 1024 + 3000);
    scene.primary.daemon.kill('SIGKILL');
    await scene.failOver();
    assertEqualBytes(await scene.bytesOf(scene.view), expected, 'the view while it fails over');
    await qemuIo(scene.view, 'write -P 5 1M 4k', 'flush');
    expected.fill(5, MiB, MiB + 4096);
    await scene.untilMerged();
    assertEqualBytes(await scene.bytesOf(scene.view), expected, 'the view after it');
    await qemuIo(scene.view, 'write -P 6 1200k 4k', 'flush');
    expected.fill(6, 1200 * 1024, 1204 * 1024);
    await scene.secondary.run('quit');
    assert.equal(await scene.secondary.daemon.exited, 0);
    assertEqualBytes(await readFile(join(scene.folder, 'secondary.img')), expected, 'the image');
  });

  test(`${words}: after a failover it is mirrored to a new secondary, and replicates to that one`, async (t) => {
    const scene = await Scene.start(t, primary, secondary);
    await qemuIo(scene.disk, 'write -P 1 0 1M');
    await scene.checkpoint();
    scene.primary.daemon.kill('SIGKILL');
    await scene.failOver();
    await scene.untilMerged();
    const promoted = scene.secondary;
    const third = await peer(t, primary, scene.folder, 't');
    await writeFile(join(scene.folder, 'third.img'), Buffer.alloc(size, 0xee));
    await prepareSecondary(third, scene.folder, 'third');
    await promoted.run('blockdev-add', { ...incomingOf(third), 'node-name': 'sync' });
    await promoted.run('blockdev-mirror', { 'job-id': 'sync', device: 'disk', target: 'sync', sync: 'full' });
    await qemuIo(scene.view, 'write -P 2 512k 64k', 'write -z 2M 64k');
    await until(() => promoted.events.some(({ event }) => event === 'BLOCK_JOB_READY'));
    await qemuIo(scene.view, 'write -P 3 600k 64k');
    await promoted.run('block-job-cancel', { device: 'sync' });
    await until(() => promoted.events.some(({ event }) => event === 'BLOCK_JOB_COMPLETED'));
    await promoted.run('blockdev-del', { 'node-name': 'sync' });
    await third.run('xen-set-replication', { enable: true, primary: false });
    await forward(promoted, third, 'forward2');
    await promoted.run('xen-set-replication', { enable: true, primary: true });
    const before = await scene.bytesOf(scene.view);
    await qemuIo(scene.view, 'write -P 4 3M 64k', 'write -z 0 64k', 'flush');
    const after = await scene.bytesOf(scene.view);
    assertEqualBytes(await scene.bytesOf(third.uri('incoming')), after, 'the new secondary disk');
    assertEqualBytes(await scene.bytesOf(third.uri('view')), before, 'its view before a checkpoint');
    for (const side of [promoted, third]) await side.run('xen-colo-do-checkpoint');
    assertEqualBytes(await scene.bytesOf(third.uri('view')), after, 'its view after a checkpoint');
    for (const side of [promoted, third]) {
      await side.run('quit');
      assert.equal(await side.daemon.exited, 0);
    }
  });

  test(`${words}: the loss of the secondary is told to the manager, not to the user, who goes on`, async (t) => {
    const scene = await Scene.start(t, primary, secondary);
    await qemuIo(scene.disk, 'write -P 1 0 64k');
    scene.secondary.daemon.kill('SIGKILL');
    await scene.secondary.daemon.exited;
    await qemuIo(scene.disk, 'write -P 2 0 64k', 'read -P 2 0 64k');
    const status = (await scene.primary.run('query-xen-replication-status')) as { error: boolean; desc?: string };
    assert.equal(status.error, true);
    assert.equal(typeof status.desc, 'string');
    await scene.primary.run('xen-set-replication', { enable: false, primary: true });
    await scene.primary.run('x-blockdev-change', { parent: 'disk', child: 'children.1' });
    await scene.primary.run('blockdev-del', { 'node-name': 'forward' });
    await qemuIo(scene.disk, 'write -P 3 0 64k', 'flush', 'read -P 3 0 64k');
    await scene.primary.run('quit');
    assert.equal(await scene.primary.daemon.exited, 0);
  });

  test(`${words}: a write that the secondary’s disk fails is told to the manager; later ones arrive`, async (t) => {
    const scene = await Scene.start(t, primary, secondary, badDisk);
    const first = await scene.bytesOf(scene.view);
    await qemuIo(scene.disk, 'write -P 1 1M 4k');
    const { error } = (await scene.primary.run('query-xen-replication-status')) as { error: boolean };
    assert.equal(error, true);
    assert.deepEqual(await scene.secondary.run('query-xen-replication-status'), { error: false });
    await qemuIo(scene.disk, 'write -P 2 3M 4k');
    const expected = Buffer.from(first);
    expected.fill(2, 3 * MiB, 3 * MiB + 4096);
    assertEqualBytes(await scene.bytesOf(scene.incoming), expected, 'the secondary disk');
    assertEqualBytes(await scene.bytesOf(scene.view), first, 'the view');
  });

  test(`${words}: a stop leaves disk and view as they are; a process that ends while it runs ends well`, async (t) => {
    const scene = await Scene.start(t, primary, secondary);
    await qemuIo(scene.disk, 'write -P 1 0 64k');
    await scene.checkpoint();
    const view = await scene.bytesOf(scene.view);
    await qemuIo(scene.disk, 'write -P 2 0 64k', 'write -P 2 3M 64k');
    await scene.stopSecondary();
    assertEqualBytes(await scene.bytesOf(scene.view), view, 'the view after a stop');
    const latest = await scene.bytesOf(scene.disk);
    await scene.primary.run('quit');
    assert.equal(await scene.primary.daemon.exited, 0);
    await scene.secondary.run('quit');
    assert.equal(await scene.secondary.daemon.exited, 0);
    for (const name of ['primary.img', 'secondary.img']) {
      assertEqualBytes(await readFile(join(scene.folder, name)), latest, name);
    }
  });
}
