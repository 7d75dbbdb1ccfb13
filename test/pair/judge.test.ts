/** The outcomes of a hello, case by case (pair.md 10, 13). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { judge } from '../../src/pair/judge.ts';
import type { Hello } from '../../src/pair/messages.ts';
import { helloOf, idOf } from './machine.ts';

const at = (number: number, ...ancestors: number[]): Pick<Hello, 'generation' | 'ancestors'> => ({
  generation: { id: idOf(number), number },
  ancestors: ancestors.map(idOf),
});
const nothing = { generation: null, ancestors: [] } as const satisfies Pick<Hello, 'generation' | 'ancestors'>;

function side(name: string, more: Partial<Hello>): Hello {
  return helloOf(name, {
    role: name === 'p' ? 'primary' : 'secondary',
    disks: [{ name: 'd', size: 1024 }],
    ...more,
  });
}

interface Case {
  readonly name: string;
  readonly p: Partial<Hello>;
  readonly s: Partial<Hello>;
  /** what p comes to, and what s */
  readonly gives: readonly [string, string];
  readonly says?: RegExp;
}

const cases: readonly Case[] = [
  { name: 'the same id: the primary serves', p: at(1), s: at(1), gives: ['source', 'target'] },
  {
    name: "one side's id among the other's ancestors: the descendant serves",
    p: at(2, 1),
    s: at(1),
    gives: ['source', 'target'],
  },
  {
    name: 'the other side was promoted: the old primary is the target',
    p: at(1),
    s: { ...at(2, 1), role: 'primary' },
    gives: ['target', 'source'],
  },
  {
    name: 'neither descends: split brain',
    p: at(2, 1),
    s: { ...at(3, 1), role: 'primary' },
    gives: ['split-brain', 'split-brain'],
    says: /resolve --keep p.*resolve --keep s/,
  },
  {
    name: 'a secondary of an unknown history: split brain, nothing is overwritten',
    p: at(2),
    s: at(3),
    gives: ['split-brain', 'split-brain'],
  },
  {
    name: 'each among the ancestors of the other: never a merge',
    p: at(2, 3),
    s: at(3, 2),
    gives: ['split-brain', 'split-brain'],
  },
  {
    name: 'two primaries of one id: split brain',
    p: at(1),
    s: { ...at(1), role: 'primary' },
    gives: ['split-brain', 'split-brain'],
  },
  {
    name: 'two secondaries of one id: a failover decides',
    p: { ...at(1), role: 'secondary' },
    s: at(1),
    gives: ['no-primary', 'no-primary'],
    says: /failover/,
  },
  {
    name: 'the newer side is secondary: an old primary does not serve',
    p: at(1),
    s: at(2, 1),
    gives: ['no-primary', 'no-primary'],
    says: /failover` on s/,
  },
  {
    name: 'two fresh sides: as configured',
    p: { ...nothing, blank: true },
    s: { ...nothing, blank: true },
    gives: ['source', 'target'],
  },
  {
    name: 'two fresh primaries: refused',
    p: { blank: true },
    s: { blank: true, role: 'primary' },
    gives: ['refused', 'refused'],
    says: /both.*begin as the primary/,
  },
  {
    name: 'two fresh secondaries: refused',
    p: { blank: true, role: 'secondary' },
    s: { blank: true },
    gives: ['refused', 'refused'],
    says: /begin as the secondary/,
  },
  { name: 'a fresh target: first sync', p: at(1), s: { blank: true }, gives: ['source', 'target'] },
  {
    name: 'a fresh side configured as primary beside a promoted one is its target',
    p: { blank: true },
    s: { ...at(1), role: 'primary' },
    gives: ['target', 'source'],
  },
  {
    name: 'a fresh primary beside a secondary with data serves nobody',
    p: { blank: true },
    s: at(1),
    gives: ['no-primary', 'no-primary'],
    says: /failover` on s/,
  },
  {
    name: 'two disks that both hold data are not paired',
    p: at(1),
    s: { role: 'none', store: 'incomplete' },
    gives: ['refused', 'refused'],
    says: /resolve --keep p` overwrites it/,
  },
  {
    name: 'unless the primary was told to overwrite that side',
    p: { ...at(1), overwrite: { name: 's', any: false } },
    s: { role: 'none', store: 'incomplete' },
    gives: ['source', 'target'],
  },
  {
    name: 'a target marked incomplete of this volume needs no overwrite',
    p: at(1),
    s: { store: 'incomplete' },
    gives: ['source', 'target'],
  },
  {
    name: 'nor one with an id of its own',
    p: at(2),
    s: { ...at(7), store: 'incomplete' },
    gives: ['source', 'target'],
  },
  {
    name: 'overwrite of the configuration does not overwrite a primary',
    p: { ...at(1), overwrite: { name: 's', any: false } },
    s: { ...at(2), role: 'primary' },
    gives: ['split-brain', 'split-brain'],
  },
  {
    name: 'a decision of a person does',
    p: { ...at(1), overwrite: { name: 's', any: true } },
    s: { ...at(2), role: 'primary' },
    gives: ['source', 'target'],
  },
  {
    name: 'two lost group files: a person decides',
    p: { role: 'none', store: 'incomplete' },
    s: { role: 'none', store: 'incomplete' },
    gives: ['no-primary', 'no-primary'],
    says: /resolve --keep p/,
  },
  {
    name: 'different sizes are refused, naming both',
    p: at(1),
    s: { ...at(1), disks: [{ name: 'd', size: 2048 }] },
    gives: ['refused', 'refused'],
    says: /1024 bytes on p and 2048 bytes on s|2048 bytes on s and 1024 bytes on p/,
  },
  {
    name: 'a disk that only one side has is named',
    p: at(1),
    s: { ...at(1), disks: [] },
    gives: ['refused', 'refused'],
    says: /disk d is only in the configuration of p/,
  },
  {
    name: 'another volume is refused',
    p: at(1),
    s: { ...at(1), volume: 'w' },
    gives: ['refused', 'refused'],
    says: /volume/,
  },
];

for (const one of cases) {
  test(`pair 13: ${one.name}`, () => {
    const [p, s] = [side('p', one.p), side('s', one.s)];
    const outcomes = [judge(p, s), judge(s, p)];
    assert.deepEqual(
      outcomes.map((outcome) => outcome.kind),
      one.gives,
    );
    if (one.says === undefined) return;
    for (const outcome of outcomes) assert.match('reason' in outcome ? outcome.reason : '', one.says);
  });
}

test('pair 13: both sides come to the same outcome, and never to two sources or two targets', () => {
  const id = fc.nat(4);
  const anySide = (name: string): fc.Arbitrary<Hello> =>
    fc
      .record({
        role: fc.constantFrom('none', 'primary', 'secondary'),
        held: fc.option(id),
        ancestors: fc.array(id, { maxLength: 3 }),
        store: fc.constantFrom('clean', 'incomplete'),
        blank: fc.boolean(),
        overwrite: fc.option(fc.record({ name: fc.constantFrom('p', 's'), any: fc.boolean() })),
      })
      .map(({ held, ancestors, ...more }) =>
        side(name, {
          ...more,
          ...(held === null ? nothing : at(held, ...ancestors.filter((one) => one !== held))),
        } as Partial<Hello>),
      );
  fc.assert(
    fc.property(anySide('p'), anySide('s'), (p, s) => {
      const [mine, theirs] = [judge(p, s).kind, judge(s, p).kind];
      const other = { source: 'target', target: 'source' } as const;
      assert.equal(theirs, mine === 'source' || mine === 'target' ? other[mine] : mine);
      // Who serves says so of itself, and nobody with data is a target without a reason.
      if (mine === 'source') assert.equal(p.role, 'primary');
    }),
    { numRuns: 5000 },
  );
});
