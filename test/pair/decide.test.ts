/** The decisions by themselves: which plan follows, and what in it is durable before what (pair.md 5 to 15). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { GroupRecord } from '../../src/pair/generation.ts';
import type { Hello, Message } from '../../src/pair/messages.ts';
import { decide, transitionTable } from '../../src/pair/pair.ts';
import { type Decision, type PairEvent, type PairState, type Phase, phases } from '../../src/pair/pair-state.ts';
import { agreed, asked, asMirror, committed, given, idOf, on, stateIn, steps, theirs } from './machine.ts';

let ids = 100;

test('the table has a row for each phase, and every phase that it names exists', () => {
  const table = transitionTable();
  for (const phase of Object.keys(phases))
    assert.ok(
      table.some((row) => row.phase === phase),
      phase,
    );
  for (const { to } of table) {
    for (const phase of to.split(' | ')) assert.ok(phase === 'the same' || phase in phases, to);
  }
  assert.ok(table.length > 200, `${table.length} rows`);
});

test('every phase answers every command, or stops', () => {
  const commands = [
    { name: 'failover', force: false, to: null },
    { name: 'switch' },
    { name: 'resolve', keep: 'alpha' },
    { name: 'start-alone' },
    { name: 'checkpoint', holdMs: 1000 },
    { name: 'release' },
  ] as const;
  for (const phase of Object.keys(phases) as Phase[]) {
    for (const command of commands) {
      const decision = on(stateIn(phase), { type: 'command', command });
      const answered = decision.now?.some((step) => step.do === 'answer') === true;
      const waits = decision.state.pending === command.name || decision.state.asked === 'waiting';
      assert.ok(answered || waits, `${phase}: ${command.name}`);
    }
    const stop = on(stateIn(phase), { type: 'command', command: { name: 'stop' } });
    assert.ok(['stopping', 'stopped'].includes(stop.state.phase) || stop.state.stopWanted, phase);
  }
});

test('pair 5, 7: in step, a lost link holds users, makes a new generation durable, and only then answers', () => {
  for (const event of [
    { type: 'link-lost', reason: 'x' },
    { type: 'replication-down', reason: 'x' },
  ] as const) {
    for (const phase of ['in-step', 'closing'] as const) {
      const decision = on(stateIn(phase, { session: agreed, serving: true }), event);
      assert.deepEqual(steps(decision).slice(0, 3), ['mode held', 'commit', 'mode alone']);
      const [change] = committed(decision);
      assert.equal(change?.generation?.id, idOf(99));
      assert.deepEqual(change?.ancestors, [idOf(1)]);
      assert.equal(change?.aloneSince, 1000);
      assert.equal(change?.cleanStop, null);
      assert.equal(decision.state.session, null);
    }
  }
});

test('pair 7, 13: before the other side was offered the generation a lost link needs no new one', () => {
  for (const phase of ['comparing', 'attaching', 'copying', 'settling'] as const) {
    const decision = on(stateIn(phase, { serving: true, session: agreed }, { aloneSince: 5 }), {
      type: 'link-lost',
      reason: 'x',
    });
    assert.equal(decision.state.phase, 'alone');
    assert.equal(steps(decision)[0], 'mode alone');
    assert.deepEqual(committed(decision), []);
  }
});

test('pair 13: a primary that starts serves only after the other side agreed, in a new generation without proof', () => {
  const waiting = stateIn('waiting', { session: asked });
  const decision = on(waiting, { type: 'message', message: { type: 'target', differs: null } });
  assert.equal(decision.state.phase, 'going-alone');
  assert.deepEqual(steps(decision), ['commit', 'build-primary', 'mode alone', 'open-exports']);
  assert.equal(committed(decision)[0]?.generation?.id, idOf(99));
  assert.equal(on(stateIn('waiting'), { type: 'message', message: { type: 'target', differs: null } }).plan, undefined);
});

test('pair 12: with the proof of a clean stop it connects, lifts the mark durably, and then opens its exports', () => {
  const proof = { peers: [idOf(1)], instance: 'i0', checkpoint: null };
  const cleanStop = { proof, bitmaps: '', equal: false, atMs: 0 };
  const waiting = stateIn('waiting', { session: asked, proof }, { cleanStop });
  const asks = on(waiting, { type: 'message', message: { type: 'target', differs: null } });
  assert.equal(asks.state.phase, 'joining');
  const decision = on(asks.state, {
    type: 'message',
    message: { type: 'attached', exports: { d: 'x' }, checkpoint: null, fresh: false },
  });
  assert.deepEqual(steps(decision), ['mark', 'attach', 'commit', 'mode in-sync', 'open-exports', 'send in-step']);
  assert.equal(committed(decision)[0]?.cleanStop, null);
});

test('pair 12: no proof, no shortcut: what makes a compare necessary', () => {
  const proof = { peers: [idOf(1)], instance: 'i1', checkpoint: null };
  const begin = (more: Partial<PairState>, other: Partial<Hello> = {}): Decision =>
    on(
      stateIn(
        'alone',
        { serving: true, session: { ...asked, theirs: { ...theirs, ...other } }, ...more },
        { aloneSince: 5 },
      ),
      {
        type: 'message',
        message: { type: 'target', differs: null },
      },
    );
  assert.equal(begin({ proof: null }).state.phase, 'comparing');
  assert.equal(begin({ proof }, { generation: { id: idOf(7), number: 2 } }).state.phase, 'comparing');
  assert.equal(
    begin({ proof: { peers: [null], instance: 'other', checkpoint: null } }, { generation: null }).state.phase,
    'comparing',
  );
  assert.deepEqual(steps(begin({ proof })), ['flush-own', 'ask-to-attach']);
  // Another life of the other side: all that is not proven is sent again (pair.md 4).
  assert.deepEqual(steps(begin({ proof }, { instance: 'i2', checkpoint: null })), [
    'mark',
    'flush-own',
    'ask-to-attach',
  ]);
  // A blank target gets everything, unless mayDiffer has counted from blank disks of our own.
  assert.deepEqual(steps(begin({ proof: null }, { generation: null, blank: true })), [
    'mark',
    'flush-own',
    'ask-to-attach',
  ]);
  assert.deepEqual(steps(begin({ proof: null, zeroBase: true }, { generation: null, blank: true })), [
    'flush-own',
    'ask-to-attach',
  ]);
});

test('pair 13: the end of a sync: flushes wait for both, one flush proves, then the id is offered; both in that order', () => {
  const closing = on(stateIn('settling', { session: agreed }, { aloneSince: 5 }), {
    type: 'message',
    message: { type: 'flushed' },
  });
  assert.deepEqual(steps(closing), ['mode in-sync', 'flush-remote', 'send sync-end']);
  assert.equal(closing.state.offered, idOf(1));
  const secondary = stateIn(
    'syncing',
    { session: agreed },
    { role: 'secondary', store: 'incomplete', generation: null },
  );
  const take = on(secondary, {
    type: 'message',
    message: { type: 'sync-end', generation: { id: idOf(2), number: 2 }, ancestors: [idOf(1)] },
  });
  assert.deepEqual(steps(take), ['flush-own', 'commit', 'send took']);
  const [change] = committed(take);
  assert.deepEqual([change?.store, change?.generation?.id], ['clean', idOf(2)]);
  const took = on(closing.state, { type: 'message', message: { type: 'took', id: idOf(1), checkpoint: null } });
  assert.deepEqual(steps(took), ['commit', 'send in-step']);
  assert.equal(took.state.phase, 'closing', 'in step only once it is durable');
});

test('pair 7: degraded=stop: users are served only when the other side has durably taken the generation', () => {
  const self = {
    name: 'alpha',
    peer: 'beta',
    degraded: 'stop',
    ...asMirror,
  } as const;
  const settling = stateIn('settling', { session: agreed, self }, { aloneSince: 5 });
  const closing = on(settling, { type: 'message', message: { type: 'flushed' } });
  assert.deepEqual(steps(closing), ['flush-remote', 'send sync-end']);
  const took = on(closing.state, { type: 'message', message: { type: 'took', id: idOf(1), checkpoint: null } });
  assert.deepEqual(steps(took), ['commit', 'mode in-sync', 'send in-step']);
});

test('pair 10, 11: a target is durably incomplete before its exports open', () => {
  const target = stateIn('target', { session: agreed }, { role: 'secondary' });
  const decision = on(target, { type: 'message', message: { type: 'attach', how: 'sync', bytes: 0 } });
  assert.deepEqual(steps(decision), ['close-replication', 'commit', 'open-replication', 'announce']);
  assert.equal(committed(decision)[0]?.store, 'incomplete');
});

test('pair 14: a failover closes and flushes, makes role and generation durable, then serves, then is over', () => {
  const decision = on(stateIn('detached', {}, { role: 'secondary' }), {
    type: 'command',
    command: { name: 'failover', force: false, to: null },
  });
  assert.deepEqual(steps(decision), [
    'close-replication',
    'flush-own',
    'commit',
    'build-primary',
    'mode alone',
    'open-exports',
    'commit',
    'drop-link',
  ]);
  const [first, last] = committed(decision);
  assert.deepEqual(
    [first?.role, first?.promoting, first?.generation?.id, first?.ancestors],
    ['primary', 'latest', idOf(99), [idOf(1)]],
  );
  assert.deepEqual(last, { promoting: null });
});

test('pair 15: handing over: users gone, both flushed, durable, disconnected, then said', () => {
  const away = on(stateIn('in-step', { session: agreed, serving: true }), {
    type: 'command',
    command: { name: 'switch' },
  });
  assert.deepEqual(steps(away), ['refuse-users', 'begin-close-exports']);
  const decision = on(away.state, { type: 'exports-closed' });
  assert.deepEqual(steps(decision), ['flush-remote', 'save-clean-stop', 'mode held', 'detach', 'offer']);
});

test('pair 15: found handing over: serves after a refusal only, and is the target of whoever took it', () => {
  const record: Partial<GroupRecord> = { handingOver: { id: idOf(2), number: 2 } };
  const state = stateIn('handing-over', { session: asked }, record);
  const target: PairEvent = { type: 'message', message: { type: 'target', differs: null } };
  assert.equal(on(state, target).plan, undefined);
  const refused = on(state, { type: 'message', message: { type: 'refused', id: idOf(2) } }).state;
  assert.deepEqual(committed(on(refused, target)), [{ handingOver: null }]);
  const other = on(state, { type: 'message', message: { type: 'refused', id: idOf(3) } }).state;
  assert.equal(on(other, target).plan, undefined);
  const took = on(state, { type: 'message', message: { type: 'took-over', id: idOf(2) } });
  assert.equal(committed(took)[0]?.role, 'secondary');
});

test('pair 13: a target that agrees while `start --alone` is under way is brought into step afterwards', () => {
  const said: PairEvent = { type: 'command', command: { name: 'start-alone' } };
  const going = on(stateIn('waiting', { session: asked, connected: true }), said).state;
  const agreed = on(going, { type: 'message', message: { type: 'target', differs: null } }).state;
  const served = on(agreed, { type: 'plan-done', plan: 'serve-alone' }).state;
  assert.match(served.phase, /attaching|comparing/);
});

test('pair 15: a link lost while handing over answers the switch, and leaves `start --alone` possible', () => {
  const offered: Partial<GroupRecord> = { handingOver: { id: idOf(2), number: 2 } };
  const lost: PairEvent = { type: 'link-lost', reason: 'gone' };
  for (const phase of ['switching', 'handing-over'] as const) {
    const decision = on(stateIn(phase, { session: agreed, pending: 'switch' }, offered), lost);
    assert.equal(decision.state.phase, 'handing-over');
    assert.deepEqual(
      decision.now?.map((step) => step.do),
      ['answer'],
      phase,
    );
    const alone = on(decision.state, { type: 'command', command: { name: 'start-alone' } });
    assert.equal(alone.state.phase, 'going-alone', phase);
  }
});

test('pair 15: a secondary refuses durably before it says so, and never takes what it refused', () => {
  const detached = stateIn('detached', {}, { role: 'secondary' });
  const mine = { ...theirs, name: 'alpha' };
  const offer = { id: idOf(2), number: 2 };
  const decision = on(detached, {
    type: 'hello',
    mine,
    sequence: 5,
    theirs: { ...theirs, role: 'primary', handingOver: offer },
  });
  assert.deepEqual(steps(decision), ['close-replication', 'commit', 'send refused', 'refuse-users', 'agree']);
  const following = stateIn('following', { session: agreed }, { role: 'secondary', refused: [offer.id] });
  assert.equal(on(following, { type: 'message', message: { type: 'hand-over', generation: offer } }).plan, undefined);
});

test('pair 13: a hello made before the group file changed decides nothing', () => {
  const event: PairEvent = { type: 'hello', mine: { ...theirs, name: 'alpha', role: 'primary' }, sequence: 4, theirs };
  const decision = on(stateIn('waiting'), event);
  assert.equal(decision.state.session, null);
  assert.deepEqual(
    decision.now?.map((step) => step.do),
    ['drop-link'],
  );
});

test('pair 18: a clean stop in step: users gone, flushed, let go, bitmaps and mark, goodbye', () => {
  const stop = on(
    stateIn('in-step', {
      session: agreed,
      serving: true,
      proof: { peers: [idOf(1)], instance: 'i1', checkpoint: null },
    }),
    {
      type: 'command',
      command: { name: 'stop' },
    },
  );
  assert.deepEqual(steps(stop), ['refuse-users', 'begin-close-exports']);
  assert.deepEqual(steps(on(stop.state, { type: 'exports-closed' })), [
    'flush-remote',
    'mode held',
    'detach',
    'save-clean-stop',
    'send goodbye',
    'await-goodbye',
    'finish',
  ]);
});

test('a timer that outlived its reason changes nothing', () => {
  const state = stateIn('demoting', { serving: true });
  assert.equal(on(state, { type: 'retry', phase: 'going-alone' }).plan, undefined);
  assert.equal(on({ ...state, plan: 'send-away' }, { type: 'retry', phase: 'demoting' }).plan, undefined);
});

test('pair 7, 13: whatever happens in whatever order, nobody is answered alone before it is durable', () => {
  const messages = [
    { type: 'target', differs: null },
    { type: 'flush' },
    { type: 'flushed' },
    { type: 'attach', how: 'sync', bytes: 0 },
    { type: 'attached', exports: { d: 'x' }, checkpoint: null, fresh: false },
    { type: 'took', id: idOf(1), checkpoint: null },
    { type: 'in-step' },
    { type: 'switch-request' },
    { type: 'hand-over', generation: { id: idOf(8), number: 2 } },
    { type: 'took-over', id: idOf(8) },
    { type: 'refused', id: idOf(8) },
    { type: 'stop-serving' },
    { type: 'stopped-serving' },
    { type: 'goodbye', clean: true },
    { type: 'sync-end', generation: { id: idOf(8), number: 2 }, ancestors: [] },
  ] as const;
  const commands = [
    { name: 'failover', force: false, to: null },
    { name: 'failover', force: true, to: null },
    { name: 'switch' },
    { name: 'resolve', keep: 'alpha' },
    { name: 'start-alone' },
    { name: 'stop' },
  ] as const;
  const event: fc.Arbitrary<PairEvent | 'done' | 'failed'> = fc.oneof(
    fc.constantFrom<PairEvent | 'done' | 'failed'>(
      'done',
      'done',
      'done',
      'failed',
      { type: 'link-lost', reason: 'x' },
      { type: 'replication-down', reason: 'x' },
      { type: 'compared' },
      { type: 'copied' },
      { type: 'exports-closed' },
      { type: 'work-failed', error: 'x' },
      { type: 'hello', mine: { ...theirs, name: 'alpha', role: 'primary' }, sequence: 5, theirs },
    ),
    fc
      .constantFrom(...messages)
      .map((message): PairEvent => ({ type: 'message', message: structuredClone(message) as Message })),
    fc.constantFrom(...commands).map((command): PairEvent => ({ type: 'command', command })),
  );
  fc.assert(
    fc.property(
      fc.constantFrom<Phase>('waiting', 'in-step', 'alone', 'detached', 'handing-over'),
      fc.array(event, { maxLength: 40 }),
      (phase, events) => {
        const shared = phase !== 'alone';
        let state = stateIn(
          phase,
          { serving: phase === 'in-step' || phase === 'alone' },
          { role: phase === 'detached' ? 'secondary' : 'primary', aloneSince: shared ? null : 5 },
        );
        // What is durable if the plan that runs comes to its end; of one that fails or is replaced nothing is.
        let after = state.record;
        for (const one of events) {
          if (one === 'done' && state.plan !== null) state = { ...state, record: after };
          const decision = stepOn(state, one);
          ({ state } = decision);
          if (decision.plan === undefined) continue;
          after = state.record;
          for (const step of decision.plan.steps) {
            if (step.do === 'commit') after = { ...after, ...step.change };
            if (step.do === 'open-exports') assert.equal(after.role, 'primary');
            if (step.do !== 'set-mode' || step.mode !== 'alone') continue;
            const where = `${decision.plan.name} after ${JSON.stringify(one)}`;
            assert.notEqual(after.aloneSince, null, `${where}: answers alone, and that is not durable`);
            if (state.record.aloneSince !== null) continue;
            assert.notEqual(after.generation?.id, state.record.generation?.id, `${where}: in the old generation`);
          }
        }
      },
    ),
    { numRuns: 3000 },
  );
});

function stepOn(state: PairState, one: PairEvent | 'done' | 'failed'): Decision {
  const fresh = { ...given, id: idOf(ids++) };
  if (one !== 'done' && one !== 'failed') return decide(state, one, fresh);
  if (state.plan === null) return { state };
  if (one === 'done') return decide(state, { type: 'plan-done', plan: state.plan }, fresh);
  return decide(state, { type: 'plan-failed', plan: state.plan, step: 'commit', error: 'x' }, fresh);
}

test('pair 18: a stop that came while a session began does not wait for its sync', () => {
  const state = stateIn('going-alone', { session: agreed, serving: true, plan: 'go-alone', stopWanted: true });
  const begun = on(state, { type: 'plan-done', plan: 'go-alone' });
  assert.ok(['comparing', 'attaching', 'stopping'].includes(begun.state.phase));
  const proven = { session: agreed, serving: true, plan: 'mark', stopWanted: true } as const;
  assert.equal(on(stateIn('attaching', proven), { type: 'plan-done', plan: 'mark' }).state.phase, 'stopping');
});

test('a primary that knows the word is told that a checkpoint is held, and an older one is not', () => {
  const held = { number: 3, untilMs: 2000 };
  for (const max of [1, 2]) {
    const session = { ...agreed, theirs: { ...theirs, versions: { min: 1, max } } };
    const ended = on(stateIn('following', { session, held }), { type: 'hold-over' });
    assert.equal(ended.state.held, null);
    assert.deepEqual(ended.now ?? [], max === 1 ? [] : [{ do: 'send', message: { type: 'held', held: null } }]);
  }
});

test('pair 7: in lock-step a follower has what was flushed stall-ms-max ago, a standby what was flushed by now', () => {
  const at = { ...given, wallMs: 1_000_000 };
  const heartbeat = { type: 'message', message: { type: 'heartbeat', inSync: true } } as const;
  for (const behindMs of [0, 2000]) {
    const lockStep = behindMs > 0;
    const self = { ...stateIn('following').self, overlays: true, lockStep, behindMs };
    const { state, plan } = decide(stateIn('following', { self, session: agreed }), heartbeat, at);
    assert.equal(state.asOfMs, at.wallMs - behindMs);
    assert.deepEqual(plan?.steps, [{ do: 'commit', change: { inStepMs: at.wallMs - behindMs } }]);
  }
});
