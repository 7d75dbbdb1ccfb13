import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { encodeMessage, JsonStream } from '../../src/qmp/json-stream.ts';

interface Seen {
  values: unknown[];
  errors: number;
}

function feed(pieces: readonly (string | Uint8Array)[], limits = {}): Seen {
  const seen: Seen = { values: [], errors: 0 };
  const stream = new JsonStream(
    {
      value: (value) => seen.values.push(value),
      error: () => {
        seen.errors += 1;
      },
    },
    limits,
  );
  for (const piece of pieces) stream.push(typeof piece === 'string' ? Buffer.from(piece, 'latin1') : piece);
  return seen;
}

const command = '{"execute":"query-version","id":1}';
const parsed = { execute: 'query-version', id: 1 };

test('messages need no newline between them, and may hold any white space', () => {
  assert.deepEqual(feed(['{"a":1}{"b":[1, {"c":"}{"}]}\r\n  [ ]\t"x" 5 true\n']).values, [
    { a: 1 },
    { b: [1, { c: '}{' }] },
    [],
    'x',
    5,
    true,
  ]);
});

test("strings may stand in single quotes, and \\' is an escape in both kinds", () => {
  assert.deepEqual(feed([`{'a':'say "hi"','b':"it\\'s",'c':'it\\'s','d':'\\n\\\\'}`]).values, [
    { a: 'say "hi"', b: "it's", c: "it's", d: '\n\\' },
  ]);
});

test('what is not JSON is reported once, and the next message is taken', () => {
  for (const bad of [
    '@@@ ',
    '\x01',
    '\xff',
    '{"execute": "query\n',
    '{"a": [1, 2\xff',
    '{"execute":\x01',
    '"abc\xff',
    '{bad}',
    '{"a" 1}',
    ']',
    '{"a":1,}',
    '[}',
    'tru ',
    '"\xc3\x28"',
    ',,,:::',
  ]) {
    const seen = feed([bad, command]);
    assert.deepEqual(seen, { values: [parsed], errors: 1 }, JSON.stringify(bad));
  }
});

test('each line of garbage is reported', () => {
  assert.equal(feed(['@\n@\n]\n]\n']).errors, 4);
});

test('a run of garbage on one line is reported once', () => {
  assert.equal(feed([']'.repeat(10_000)]).errors, 1);
});

test('brackets that are left open end at a control character', () => {
  assert.deepEqual(feed(['[[[{"a":[', '\x01', command]), { values: [parsed], errors: 1 });
});

test('a message beyond the limit of bytes is reported once and its line is passed over', () => {
  const long = `{"a":"${'x'.repeat(100)}","b":[1,2,3]} ]]] \n${command}`;
  assert.deepEqual(feed([long], { messageBytesMax: 50 }), { values: [parsed], errors: 1 });
});

test('brackets beyond the limit of depth are reported once and their line is passed over', () => {
  const deep = `${'['.repeat(200)}${']'.repeat(200)}\n${command}`;
  assert.deepEqual(feed([deep], { depthMax: 100 }), { values: [parsed], errors: 1 });
  assert.equal(feed([`${'['.repeat(100)}${']'.repeat(100)}`], { depthMax: 100 }).values.length, 1);
});

test('a member named __proto__ is an ordinary member', () => {
  const [value] = feed(['{"__proto__":{"polluted":true}}']).values;
  assert.deepEqual(Object.keys(value as object), ['__proto__']);
  assert.equal(({} as Record<string, unknown>).polluted, undefined);
});

test('fed byte by byte or in any pieces, the values are the same', () => {
  fc.assert(
    fc.property(fc.array(fc.jsonValue(), { maxLength: 5 }), fc.array(fc.nat(40), { maxLength: 30 }), (values, cuts) => {
      const bytes = Buffer.from(values.map((value) => JSON.stringify(value)).join(' '));
      const pieces: Uint8Array[] = [];
      let at = 0;
      for (const cut of cuts) {
        pieces.push(bytes.subarray(at, at + cut));
        at += cut;
      }
      pieces.push(bytes.subarray(at), Buffer.from('\n'));
      const expected = values.map((value) => JSON.parse(JSON.stringify(value)));
      assert.deepEqual(feed(pieces), { values: expected, errors: 0 });
      assert.deepEqual(feed([...Buffer.concat(pieces)].map((byte) => Uint8Array.of(byte))).values, expected);
    }),
  );
});

test('whatever bytes arrive, a line of its own is taken afterwards', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (garbage) => {
      const seen = feed([garbage, '\x01\n', command]);
      assert.deepEqual(seen.values.at(-1), parsed);
    }),
    { numRuns: 2000 },
  );
});

test('a message is written in ASCII and ended by CRLF', () => {
  const bytes = encodeMessage({ text: 'é€😀\u007f', list: [1] });
  const text = Buffer.from(bytes).toString('latin1');
  assert.match(text, /^[\x20-\x7e]*\r\n$/);
  assert.deepEqual(JSON.parse(text), { text: 'é€😀\u007f', list: [1] });
});

test('an id that is larger than a double can say is written as it came; every other number is a number', () => {
  const ids = ['9007199254740993', '-9223372036854775808', '18446744073709551615', '1.5', '7'];
  for (const id of ids) {
    const [value] = feed([`{"execute":"x","id":${id}}`]).values as [{ id: unknown }];
    assert.equal(Buffer.from(encodeMessage({ id: value.id })).toString(), `{"id":${id}}\r\n`);
  }
  assert.deepEqual(feed(['{"id":10000000000000000.5,"size":9007199254740993}']).values, [{ id: 1e16, size: 2 ** 53 }]);
});
