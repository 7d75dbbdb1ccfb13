import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { z } from 'zod';
import { fitStrings, parseKeyval, parseSize } from '../../src/qmp/keyval.ts';

test('dotted keys make objects, numbered keys make lists, doubled commas are commas', () => {
  assert.deepEqual(
    parseKeyval('driver=quorum,node-name=q,children.0=a,children.1.driver=file,children.1.filename=/a,,b'),
    {
      driver: 'quorum',
      'node-name': 'q',
      children: ['a', { driver: 'file', filename: '/a,b' }],
    },
  );
  assert.deepEqual(parseKeyval('server.type=unix,server.path=/x=y'), { server: { type: 'unix', path: '/x=y' } });
  assert.deepEqual(parseKeyval('list.1.0=b,list.0.0=a,list.0.1='), { list: [['a', ''], ['b']] });
});

test('the first word may stand without its key, the last value of a key holds, a trailing comma is nothing', () => {
  assert.deepEqual(parseKeyval('nbd,id=e', 'type'), { type: 'nbd', id: 'e' });
  assert.deepEqual(parseKeyval('a=1,a=2,'), { a: '2' });
  assert.deepEqual(parseKeyval('unix,,socket', 'type'), { type: 'unix,socket' });
});

test('text that begins with a brace is JSON', () => {
  assert.deepEqual(parseKeyval('{"driver":"memory","size":5}'), { driver: 'memory', size: 5 });
  assert.throws(() => parseKeyval('{"driver":'), { code: 'invalid-option', message: /not valid JSON/ });
});

test('what is no list of options is refused, and the key is named', () => {
  for (const [text, message] of [
    ['', /key=value/],
    ['a=1,b', /"b"/],
    ['=x', /"=x"/],
    ['a..b=1', /"a\.\.b"/],
    ['a.=1', /"a\."/],
    ['a b=1', /"a b"/],
    ['__proto__=1', /__proto__/],
    ['a.__proto__.b=1', /__proto__/],
    ['a=1,a.b=2', /"a\.b"/],
    ['a.b=1,a=2', /"a"/],
    ['l.0=a,l.2=b', /"l\.1"/],
    ['l.0=a,l.x=b', /"l\.1"/],
    [`${'a.'.repeat(70)}b=1`, /not a valid option name/],
    [Array.from({ length: 2000 }, (_, n) => `k${n}=1`).join(','), /1024/],
  ] as const) {
    assert.throws(() => parseKeyval(text), { code: 'invalid-option', message }, text.slice(0, 40));
  }
});

test('whatever text is given, there is an answer or one error, and no prototype is touched', () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom('a', '.', ',', '=', '0', '1', '_', '{', 'constructor') }), (text) => {
      try {
        parseKeyval(text, 'driver');
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'invalid-option');
      }
    }),
  );
  assert.equal(({} as Record<string, unknown>).driver, undefined);
});

const schema = z.strictObject({
  name: z.string(),
  size: z.int().optional(),
  on: z.boolean().optional(),
  deep: z.array(z.strictObject({ n: z.number() })).optional(),
  either: z
    .union([z.strictObject({ kind: z.literal('a'), n: z.int() }), z.strictObject({ kind: z.literal('b') })])
    .optional(),
  tagged: z
    .discriminatedUnion('type', [
      z.strictObject({ type: z.literal('x'), flag: z.boolean() }),
      z.strictObject({ type: z.literal('y'), flag: z.string() }),
    ])
    .optional(),
});

test('strings become what the schema wants, and only there', () => {
  const given = parseKeyval(
    'name=12,size=64k,on=yes,deep.0.n=1,deep.1.n=0x10,either.kind=a,either.n=3,tagged.type=x,tagged.flag=off',
  );
  assert.deepEqual(schema.parse(fitStrings(schema, given)), {
    name: '12',
    size: 65536,
    on: true,
    deep: [{ n: 1 }, { n: 16 }],
    either: { kind: 'a', n: 3 },
    tagged: { type: 'x', flag: false },
  });
  assert.deepEqual(fitStrings(schema, parseKeyval('name=on,tagged.type=y,tagged.flag=on')), {
    name: 'on',
    tagged: { type: 'y', flag: 'on' },
  });
  assert.equal(given.size, '64k');
});

test('what does not fit is left for the check to name', () => {
  const fitted = fitStrings(schema, { name: 'a', size: '64x', on: 'maybe', more: '1' });
  assert.deepEqual(fitted, { name: 'a', size: '64x', on: 'maybe', more: '1' });
});

test('sizes are written as QEMU writes them', () => {
  const cases: [string, number | undefined][] = [
    ['0', 0],
    ['4096', 4096],
    ['1k', 1024],
    ['1K', 1024],
    ['1.5G', 1.5 * 1024 ** 3],
    ['2T', 2 * 1024 ** 4],
    ['512B', 512],
    ['0x1F', 31],
    ['8P', undefined],
    ['7P', 7 * 1024 ** 5],
    ['-1', undefined],
    ['1.5', undefined],
    ['1e3', undefined],
    ['', undefined],
    ['k', undefined],
    ['1kk', undefined],
    ['9007199254740993', undefined],
    ['Infinity', undefined],
  ];
  for (const [text, size] of cases) assert.equal(parseSize(text), size, text);
});
