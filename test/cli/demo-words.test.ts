/** What the demo says: what each side offers, what to do when one is gone, the live line. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DemoDaemon } from '../../src/cli/demo-daemon.ts';
import { describeEnding, describeOffer, describePair, describeUses } from '../../src/cli/demo-words.ts';
import { createHost } from '../../src/host/index.ts';
import { statusOf } from './status-support.ts';

const host = createHost();

/** A daemon that said this last; `ended`: and is gone. */
function daemon(changes: Readonly<Record<string, unknown>>, options: { ended?: boolean; lockStep?: boolean } = {}) {
  const { name } = statusOf(changes);
  const lockStep = options.lockStep ?? false;
  const one = new DemoDaemon(host, { name, dataFolder: `/${name}`, configFile: `${name}.yaml`, lockStep });
  one.last = statusOf(changes);
  if (options.ended === true) one.ending = { code: null, signal: 'SIGKILL' };
  else one.status = one.last;
  return one;
}

const secondary = { name: 'b', role: 'secondary', phase: 'following', serving: false, uri: 'nbd://127.0.0.1:2/d' };
const checkpoint = { number: 41, ageMs: 400 };

test('the primary offers the disk, the secondary its last checkpoint, read-only', () => {
  assert.match(describeUses(statusOf({})), /^\na serves the disk: {2}nbd:\/\/127\.0\.0\.1:1\/d\n/);
  assert.equal(
    describeOffer(daemon({ ...secondary, checkpoint })),
    'b serves the last checkpoint, read-only:  nbd://127.0.0.1:2/d',
  );
  assert.equal(describeOffer(daemon(secondary)), null);
  assert.equal(describeOffer(daemon({ checkpoint })), null);
});

test('pair 17: in lock-step the secondary offers a disk that can be written', () => {
  const offer = describeOffer(daemon({ ...secondary, checkpoint }, { lockStep: true }));
  assert.match(offer ?? '', /^b serves the machine that runs beside it, writable .*nbd:\/\/127\.0\.0\.1:2\/d$/);
  assert.equal(describeOffer(daemon(secondary, { lockStep: true })), null);
});

test('the live line shows roles, state, the last checkpoint and its age, bytes forwarded, lag', () => {
  const all = [daemon({ checkpoint: { number: 40, ageMs: 900 } }), daemon({ ...secondary, checkpoint })];
  const line = 'a primary, b secondary · in sync · checkpoint 41, 400 ms ago · 1.50 KiB forwarded · lag 0 B';
  assert.equal(describePair(all), line);
  assert.equal(describePair(all, { checkpoint: false }), line.replace(/checkpoint.*ago · /, ''));
  assert.equal(describePair([daemon({}, { ended: true }), daemon({}, { ended: true })]), 'a gone, a gone');
});

/** What is said when the primary was killed and the other one is like this. */
function whenGone(other: Readonly<Record<string, unknown>>, options: { lockStep?: boolean } = {}): string {
  const gone = daemon({}, { ...options, ended: true });
  return describeEnding(gone, [gone, daemon({ ...secondary, ...other }, options)], 'a.yaml');
}

test('when the primary is gone the choice is told: the latest write, or the last checkpoint', () => {
  assert.equal(
    whenGone({ checkpoint }),
    'a died (SIGKILL). npx blockstep failover makes b serve, with every flushed write; with --to checkpoint, ' +
      'checkpoint 41, 400 ms ago; npx blockstep run -c a.yaml starts a again',
  );
  assert.match(whenGone({}), /b serve, with every flushed write; npx blockstep run/);
  assert.match(whenGone({ checkpoint }, { lockStep: true }), /failover makes b serve checkpoint 41, 400 ms ago; npx/);
});

test('pair 11: during a resync only the checkpoint is offered, without one nothing', () => {
  assert.match(
    whenGone({ store: 'resync', checkpoint }),
    /b's sync has not ended; npx blockstep failover --to checkpoint makes it serve checkpoint 41, 400 ms ago/,
  );
  assert.match(whenGone({ store: 'incomplete' }), /b cannot serve: its sync has not ended/);
});
