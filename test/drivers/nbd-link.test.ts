/** The link of an nbd node with a reconnect-delay: what is issued again, when, and in which order. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NbdLink } from '../../src/drivers/nbd-link.ts';
import type { NbdClient } from '../../src/nbd/client.ts';
import { BlockError } from '../../src/util/errors.ts';
import { type Deferred, deferred } from '../../src/util/later.ts';
import { FakeHost, settle } from '../nbd/fake-host.ts';

const lost = new BlockError('connection-lost', 'the cable is out');

/** As much of a client as a link sees. */
class FakeClient {
  error: BlockError | null = null;
  #closed: (error: BlockError | null) => void = () => undefined;

  onClosed(listener: (error: BlockError | null) => void): void {
    this.#closed = listener;
  }

  lose(): void {
    this.error = lost;
    this.#closed(lost);
  }

  get asClient(): NbdClient {
    return this as unknown as NbdClient;
  }
}

test('what a lost connection had is issued again in the order it came, once all of it is back', async () => {
  const [first, second] = [new FakeClient(), new FakeClient()];
  const link = new NbdLink(first.asClient, {
    host: new FakeHost(),
    connect: async () => second.asClient,
    reconnectDelayS: 10,
    lost: () => undefined,
    restored: () => undefined,
  });
  const answers = new Map<string, Deferred>();
  const again: string[] = [];
  const run = (name: string) =>
    link.run((client) => {
      if (client !== first.asClient) {
        again.push(name);
        return undefined;
      }
      const answer = deferred();
      answers.set(name, answer);
      return answer.promise;
    });
  const all = [run('first'), run('second')];
  first.lose();
  all.push(run('third'));
  await settle();
  assert.ok(link.connected);
  // The payload of the first is still with the stream that broke.
  answers.get('second')?.reject(lost);
  await settle();
  assert.deepEqual(again, []);
  all.push(run('fourth'));
  answers.get('first')?.reject(lost);
  await Promise.all(all);
  assert.deepEqual(again, ['first', 'second', 'third', 'fourth']);
});
