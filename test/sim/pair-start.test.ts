/** Starts that must not begin, and what a peer that is none is told: one clear line each, and nothing lost. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PairConfig } from '../../src/pair/config.ts';
import { PairWorld, sideNames } from './pair-world.ts';

/** alpha served alone, holds data, and was killed. */
async function withData(seed: number): Promise<PairWorld> {
  const pair = new PairWorld(seed);
  await pair.start('alpha');
  await pair.command('alpha', 'pair-start', { alone: true });
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(2));
  await pair.world.complete(user.flush());
  pair.kill('alpha');
  return pair;
}

async function refuses(pair: PairWorld, says: RegExp, config: Partial<PairConfig> = {}): Promise<void> {
  await assert.rejects(pair.start('alpha', config), says);
  pair.world.kill('alpha');
}

test('a disk that the group file knows and that is missing is an error, not a new disk', async () => {
  const pair = await withData(1);
  const { files } = pair.world.restart('alpha');
  await pair.world.complete(files.rename('/data/disk0.img', '/data/kept.img'));
  pair.world.kill('alpha');
  await refuses(pair, /disk disk0: \/data\/disk0\.img is missing, but \/data\/group knows it/);
  await pair.world.complete(pair.world.restart('alpha').files.rename('/data/kept.img', '/data/disk0.img'));
  pair.world.kill('alpha');
  await pair.start('alpha');
});

test('a disk that was cut short, and one of another size than configured, name both sizes', async () => {
  const pair = await withData(2);
  const host = pair.world.restart('alpha');
  const file = await pair.world.complete(host.files.open('/data/disk0.img', { access: 'write' }));
  await pair.world.complete(file.truncate(4096));
  pair.world.kill('alpha');
  await refuses(pair, /disk disk0: \/data\/disk0\.img has 4096 bytes, the configuration says 2162688/);
});

test('a configuration that is not of this group is refused by the field that differs', async () => {
  const pair = await withData(3);
  await refuses(pair, /volume: the data folder is of "vol", not "other"/, { volume: 'other' });
  await refuses(pair, /name: the data folder is of "alpha", not "gamma"/, { name: 'gamma' });
  const disk = { name: 'disk1', file: '/data/disk1.img', size: 65536 };
  await refuses(pair, /disks: "disk1" is new to this group/, { disks: [...pair.config('alpha').disks, disk] });
  await refuses(pair, /peer.name: both sides are called "alpha"/, {
    peer: { ...pair.config('alpha').peer, name: 'alpha' },
  });
  await refuses(pair, /disks: expected at least one disk/, { disks: [] });
});

test('pair 19: replication beyond loopback needs `insecure`', async () => {
  const pair = await withData(4);
  await refuses(pair, /listen.supervisor: not a loopback address/, { insecure: false });
  const listen = {
    ...pair.config('alpha').listen,
    supervisor: { type: 'inet', host: '127.0.0.1', port: 7000 },
    replication: { type: 'inet', host: '0.0.0.0', port: 7001 },
  } as const;
  await refuses(pair, /listen.replication: not a loopback address/, { insecure: false, listen });
});

test('a disk that cannot be opened for writing is named', async () => {
  const pair = await withData(5);
  const fault = pair.world.fault('alpha', { operation: 'open', path: '/data/disk0.img', errno: 'EACCES' });
  await refuses(pair, /\/data\/disk0\.img.*EACCES/);
  fault.remove();
  await pair.start('alpha');
});

test('a port in use is named, and what had been opened is closed again', async () => {
  const pair = await withData(6);
  const host = pair.world.restart('alpha');
  const busy = await pair.world.complete(
    host.network.listen({ type: 'inet', host: 'alpha', port: 10809 }, () => undefined),
  );
  await assert.rejects(pair.start('alpha'), /10809.*in use/);
  await pair.world.complete(busy.close());
});

test('pair 13: another volume, other disks: both sides say why they do not pair', async () => {
  const pair = await withData(7);
  await pair.start('alpha');
  await pair.start('beta', { volume: 'other' });
  await pair.until(() => sideNames.every((side) => pair.side(side).daemon.state.refusal?.includes('volume') === true));
  assert.match((await pair.status('beta')).notice ?? '', /alpha replicates volume "vol", beta volume "other"/);
  assert.equal((await pair.status('alpha')).serving, false);
});

test('the log says what keeps the two apart, once, and a secondary that nobody calls says for whom it waits', async () => {
  const pair = new PairWorld(12);
  await pair.start('beta');
  await pair.world.runFor(5000);
  assert.equal((await pair.status('beta')).notice, 'waits for alpha');
  assert.equal(pair.log.filter((line) => line.endsWith('beta: waits for alpha')).length, 1);
  pair.kill('beta');
  await pair.start('alpha');
  await pair.world.runFor(20_000);
  const said = pair.log.filter((line) => /alpha: beta does not answer: .*start --alone/.test(line));
  assert.equal(said.length, 1, said.join('\n'));
  pair.log.length = 0;
  await pair.stop('alpha');
  assert.ok(!pair.log.some((line) => line.includes('does not answer')), 'a stop is no news of the other side');
  await pair.start('alpha');
  await pair.start('beta');
  await pair.inStep();
  pair.kill('beta');
  await pair.until(() => pair.phase('alpha') === 'alone');
  pair.log.length = 0;
  await pair.until(() => pair.log.some((line) => /alpha: beta does not answer/.test(line)));
});

test('a role that was edited in the configuration changes nothing, and the log says so', async () => {
  const pair = await withData(13);
  await pair.start('alpha', { role: 'secondary' });
  assert.equal((await pair.status('alpha')).role, 'primary');
  assert.ok(pair.log.some((line) => /alpha: is primary: .role: secondary. .* first start only/.test(line)));
});

test('a peer that is not blockstep is called that', async () => {
  const pair = await withData(8);
  const stranger = pair.world.host('beta');
  await pair.world.complete(
    stranger.network.listen({ type: 'inet', host: 'beta', port: 7000 }, (stream) => {
      stream.start({ space: () => new Uint8Array(512), received: () => undefined, ended: () => undefined });
      void stream.send(new TextEncoder().encode('220 mail ready\r\n'));
    }),
  );
  await pair.start('alpha');
  await pair.until(() => pair.side('alpha').daemon.state.refusal?.includes('not a blockstep') === true);
  assert.match((await pair.status('alpha')).notice ?? '', /not a blockstep supervisor.*start --alone/);
});

test('pair 10: two sides that both hold data are not paired without `overwrite`', async () => {
  const pair = await withData(9);
  const beta = pair.world.host('beta');
  await pair.world.complete(beta.files.makeFolder('/data'));
  const file = await pair.world.complete(beta.files.open('/data/disk0.img', { access: 'write', create: 'exclusive' }));
  await pair.world.complete(file.truncate(pair.layout('disk0').length));
  await pair.world.complete(Promise.resolve(file.write(4096, new Uint8Array(512).fill(7))));
  await pair.world.complete(file.close());
  pair.world.kill('beta');
  await pair.start('alpha');
  await pair.start('beta');
  await pair.until(() => pair.side('alpha').daemon.state.refusal?.includes('overwrite') === true);
  const lost = await pair.status('beta');
  assert.equal(lost.role, 'none');
  await pair.stop('alpha');
  await pair.start('alpha', { overwrite: 'beta' });
  await pair.inStep();
  pair.assertEqual();
});

test('a failover to a checkpoint is refused: a mirror has none', async () => {
  const pair = await withData(10);
  await pair.start('alpha');
  await assert.rejects(pair.command('alpha', 'pair-failover', { to: 'checkpoint' }), /a mirror has no checkpoints/);
  await assert.rejects(pair.command('alpha', 'pair-failover', { too: 1 }), /arguments\.too: is unexpected/);
});
