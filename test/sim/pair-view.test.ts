/** pair 17: a secondary's URI serves the last checkpoint, whichever way it came to have one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paired, writeSome } from './pair-scenes.ts';

const overlays = { store: 'overlays', checkpointMs: null } as const;

test('pair 17: a secondary that lost its checkpoint and is joined makes a new one, and shows it', async () => {
  const pair = await paired(1, { config: { ...overlays, overlays: { folder: '/data', sync: false } } });
  await writeSome(pair, 'alpha');
  await pair.stop('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  pair.powerCut('beta');
  await pair.start('beta');
  await pair.start('alpha');
  await pair.inStep();
  await pair.until(() => pair.side('beta').daemon.state.record.checkpoint !== null);
  await pair.world.runFor(100);
  const view = await pair.connect('beta');
  assert.equal(view.client.info.readOnly, true);
});

test('pair 17: a mirror that keeps checkpoints from now on, and is joined, shows the first', async () => {
  const pair = await paired(2);
  await writeSome(pair, 'alpha');
  await pair.stop('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.stop('beta');
  await pair.start('beta', overlays);
  await pair.start('alpha', overlays);
  await pair.inStep();
  await pair.until(() => pair.side('beta').daemon.state.record.checkpoint !== null);
  await pair.world.runFor(100);
  const view = await pair.connect('beta');
  assert.equal(view.client.info.readOnly, true);
});

test('pair 21: a mirror that becomes the secondary of lock-step makes its first checkpoint of a machine that holds still', async () => {
  const pair = await paired(3);
  await writeSome(pair, 'alpha');
  await pair.stop('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  await pair.stop('beta');
  const config = { ...overlays, mode: 'lock-step', acknowledge: 'local' } as const;
  await pair.start('beta', config);
  await pair.start('alpha', config);
  await pair.inStep();
  await pair.until(() => pair.side('beta').daemon.state.record.checkpoint !== null);
  assert.ok(pair.side('alpha').daemon.state.request > 0, 'the primary was asked for it');
});

test('pair 17: a secondary whose disk failed a sync shows its checkpoint again when the disk was opened anew', async () => {
  const pair = await paired(4, { config: overlays });
  await writeSome(pair, 'alpha');
  await pair.command('alpha', 'pair-checkpoint');
  const user = await pair.connect('alpha');
  await pair.world.complete(user.write(3));
  pair.world.fault('beta', { operation: 'sync', path: '/data/disk0.img', errno: 'EIO', count: 1 });
  const flushing = user.flush();
  flushing.catch(() => undefined);
  await pair.until(() => pair.phase('beta') === 'detaching');
  pair.kill('alpha');
  await pair.until(() => pair.phase('beta') === 'detached');
  assert.notEqual(pair.side('beta').daemon.state.record.checkpoint, null);
  const view = await pair.connect('beta');
  assert.equal(view.client.info.readOnly, true);
});
