/** A disk of 20 TiB: it has more blocks than 32 bits can count. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { writeFlags } from '../../src/block/node.ts';
import { PairWorld, type SideName } from './pair-world.ts';

const size = 20 * 2 ** 40;
const block = 4096;
/** first, around 16 TiB, last */
const offsets = [0, 2 ** 44 - block, 2 ** 44, 2 ** 44 + block, size - block];

const found = async (pair: PairWorld, side: SideName): Promise<number[]> => {
  const { client } = await pair.connect(side);
  const bytes = new Uint8Array(block);
  const values: number[] = [];
  for (const offset of offsets) {
    await pair.world.complete(Promise.resolve(client.read(offset, bytes)));
    assert.ok(bytes.every((byte) => byte === bytes[0]));
    values.push(bytes[0] ?? -1);
  }
  await pair.world.complete(client.close());
  return values;
};

async function fill(pair: PairWorld, side: SideName, value: number): Promise<void> {
  const { client } = await pair.connect(side);
  for (const [index, offset] of offsets.entries()) {
    await pair.world.complete(
      Promise.resolve(client.write(offset, new Uint8Array(block).fill(value + index), writeFlags.none)),
    );
  }
  await pair.world.complete(Promise.resolve(client.flush()));
  await pair.world.complete(client.close());
}

const from = (value: number): number[] => offsets.map((_, index) => value + index);

for (const mode of ['standby', 'lock-step'] as const) {
  test(`a pair of 20 TiB disks: first sync, checkpoint, resync, failover to the checkpoint (${mode})`, async () => {
    const pair = new PairWorld(1, {
      config: {
        store: 'overlays',
        mode,
        acknowledge: mode === 'lock-step' ? 'local' : 'flush',
        checkpointMs: null,
        disks: [{ name: 'disk0', file: '/data/disk0.img', size }],
      },
    });
    await pair.start('alpha');
    await pair.start('beta');
    await pair.inStep();
    await fill(pair, 'alpha', 10);
    await pair.command('alpha', 'pair-checkpoint');
    await fill(pair, 'alpha', 20);
    assert.deepEqual(await found(pair, 'beta'), from(10));
    // What is missed meanwhile comes with a resync.
    pair.world.cut('alpha', 'beta');
    await pair.until(() => pair.phase('beta') === 'detached' && pair.phase('alpha') === 'alone');
    await fill(pair, 'alpha', 30);
    pair.world.heal('alpha', 'beta');
    await pair.inStep();
    assert.deepEqual(await found(pair, 'beta'), from(30));
    await fill(pair, 'alpha', 40);
    pair.kill('alpha');
    await pair.until(() => pair.phase('beta') === 'detached');
    await pair.command('beta', 'pair-failover', { to: 'checkpoint' });
    assert.deepEqual(await found(pair, 'beta'), from(30));
    await pair.until(() => pair.phase('beta') === 'alone');
    assert.deepEqual(await found(pair, 'beta'), from(30));
  });
}
