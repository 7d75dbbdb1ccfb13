import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { NbdServerExport } from '../../src/nbd/backend.ts';
import * as nbd from '../../src/nbd/constants.ts';
import {
  HandshakeServer,
  optionBytesMax,
  optionDropBytesMax,
  optionsMax,
  queriesMax,
} from '../../src/nbd/handshake-server.ts';
import { MemoryBackend } from './memory-backend.ts';
import { bytes, clientFlags, contextData, infoData, option, optionReplies, u16, u32, u64 } from './wire.ts';

const disk: NbdServerExport = {
  name: 'disk',
  description: 'one disk',
  backend: new MemoryBackend(65536),
  readOnly: false,
  multiConn: true,
  ordered: true,
  blockSizes: [1, 4096, nbd.NBD_PAYLOAD_BYTES_MAX],
};
const aligned: NbdServerExport = {
  ...disk,
  name: 'aligned',
  readOnly: true,
  ordered: false,
  blockSizes: [512, 4096, 65536],
};
const refused = 'disk0 is secondary; the primary is alpha at nbd://alpha/disk0';

function haggler(): HandshakeServer {
  return new HandshakeServer({
    list: () => [disk, aligned],
    find(name) {
      if (name === '' || name === 'disk') return disk;
      if (name === 'aligned') return aligned;
      return name === 'held' ? { refused } : null;
    },
  });
}

/** Feeds bytes in pieces and gives what came of it. */
function haggle(input: Uint8Array, cuts: readonly number[] = []) {
  const handshake = haggler();
  const output: Uint8Array[] = [HandshakeServer.greeting()];
  let at = 0;
  for (const cut of [...cuts, input.length]) {
    const to = Math.min(input.length, Math.max(at, cut));
    handshake.push(input.subarray(at, to));
    at = to;
    for (let reply = handshake.step(); reply !== null; reply = handshake.step()) output.push(reply);
  }
  const all = Buffer.concat(output);
  return { ...optionReplies(all), output: all, handshake };
}

const ask = (...options: Uint8Array[]) => haggle(bytes(clientFlags(), ...options));
const types = (replies: readonly { type: number }[]) => replies.map(({ type }) => type);
const structured = option(nbd.NBD_OPT_STRUCTURED_REPLY);

test('NBD_OPT_GO tells size and flags, and the session begins with what follows', () => {
  const { replies, handshake } = ask(structured, option(nbd.NBD_OPT_GO, infoData('disk')), bytes('more'));
  assert.deepEqual(types(replies), [nbd.NBD_REP_ACK, nbd.NBD_REP_INFO, nbd.NBD_REP_ACK]);
  const info = replies[1]?.data;
  assert.deepEqual(
    info,
    Buffer.from(bytes(u16(nbd.NBD_INFO_EXPORT), u64(65536), u16(handshake.agreement?.flags ?? 0))),
  );
  const { NBD_FLAG_HAS_FLAGS, NBD_FLAG_SEND_DF, NBD_FLAG_CAN_MULTI_CONN } = nbd;
  const expected = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN | writable;
  assert.equal(handshake.agreement?.flags, expected);
  assert.equal(handshake.agreement?.structured, true);
  assert.equal(Buffer.from(handshake.rest()).toString(), 'more');
});

const writable =
  nbd.NBD_FLAG_SEND_FLUSH |
  nbd.NBD_FLAG_SEND_FUA |
  nbd.NBD_FLAG_SEND_TRIM |
  nbd.NBD_FLAG_SEND_WRITE_ZEROES |
  nbd.NBD_FLAG_SEND_FAST_ZERO;

test('NBD_OPT_EXPORT_NAME answers with 124 zeroes unless the client asked for none, and without DF', () => {
  for (const [flags, zeroes] of [
    [1, 124],
    [3, 0],
    [0, 124],
  ] as const) {
    const { rest, handshake } = haggle(bytes(clientFlags(flags), option(nbd.NBD_OPT_EXPORT_NAME, bytes('disk'))));
    assert.equal(rest.length, 10 + zeroes);
    assert.equal(rest.readBigUInt64BE(), 65536n);
    assert.equal(rest.readUInt16BE(8) & nbd.NBD_FLAG_SEND_DF, 0);
    assert.ok(rest.subarray(10).every((byte) => byte === 0));
    assert.notEqual(handshake.agreement, null);
  }
});

test('a read-only export says so and offers nothing that writes', () => {
  const { handshake } = ask(option(nbd.NBD_OPT_GO, infoData('aligned')));
  const flags = handshake.agreement?.flags ?? 0;
  assert.notEqual(flags & nbd.NBD_FLAG_READ_ONLY, 0);
  assert.equal(flags & (nbd.NBD_FLAG_SEND_TRIM | nbd.NBD_FLAG_SEND_WRITE_ZEROES | nbd.NBD_FLAG_SEND_FAST_ZERO), 0);
});

test('NBD_OPT_INFO gives name, description and block sizes where asked, and the handshake goes on', () => {
  const wanted = [nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, nbd.NBD_INFO_BLOCK_SIZE, 4711];
  const { replies, handshake } = ask(option(nbd.NBD_OPT_INFO, infoData('', wanted)), option(nbd.NBD_OPT_ABORT));
  const texts = replies.map(({ data }) => data.toString('latin1'));
  assert.ok(texts.includes(bytes(u16(nbd.NBD_INFO_NAME), 'disk').toString()));
  assert.ok(texts.includes(bytes(u16(nbd.NBD_INFO_DESCRIPTION), 'one disk').toString()));
  const sizes = bytes(u16(nbd.NBD_INFO_BLOCK_SIZE), u32(1), u32(4096), u32(nbd.NBD_PAYLOAD_BYTES_MAX));
  assert.ok(replies.some(({ data }) => data.equals(sizes)));
  assert.equal(handshake.agreement, null);
  assert.equal(handshake.closed, true);
});

test('block sizes that are not the default ones are told unasked', () => {
  const { replies } = ask(option(nbd.NBD_OPT_INFO, infoData('aligned')));
  const sizes = bytes(u16(nbd.NBD_INFO_BLOCK_SIZE), u32(512), u32(4096), u32(65536));
  assert.ok(replies.some(({ data }) => data.equals(sizes)));
});

test('NBD_OPT_LIST names every export with its description', () => {
  const { replies } = ask(option(nbd.NBD_OPT_LIST));
  assert.deepEqual(types(replies), [nbd.NBD_REP_SERVER, nbd.NBD_REP_SERVER, nbd.NBD_REP_ACK]);
  assert.equal(replies[0]?.data.subarray(4).toString(), 'diskone disk');
  assert.equal(replies[0]?.data.readUInt32BE(), 4);
});

test('a refused name is answered with the sentence why, an unknown one with its name', () => {
  const { replies, handshake } = ask(
    option(nbd.NBD_OPT_GO, infoData('held')),
    option(nbd.NBD_OPT_GO, infoData('nothing')),
    option(nbd.NBD_OPT_INFO, infoData('held')),
  );
  assert.deepEqual(types(replies), [nbd.NBD_REP_ERR_POLICY, nbd.NBD_REP_ERR_UNKNOWN, nbd.NBD_REP_ERR_POLICY]);
  assert.equal(replies[0]?.data.toString(), refused);
  assert.match(replies[1]?.data.toString() ?? '', /no export "nothing"/);
  assert.equal(handshake.agreement, null);
  assert.equal(handshake.closed, false);
});

test('TLS, extended headers and unknown options are unsupported, and the next option is understood', () => {
  const { replies } = ask(
    option(nbd.NBD_OPT_STARTTLS),
    option(nbd.NBD_OPT_EXTENDED_HEADERS),
    option(nbd.NBD_OPT_PEEK_EXPORT, bytes('x')),
    option(0xffff_ffff, bytes('data of an unknown option')),
    option(nbd.NBD_OPT_ABORT, bytes('ignored')),
  );
  assert.deepEqual(types(replies), [...Array(4).fill(nbd.NBD_REP_ERR_UNSUP), nbd.NBD_REP_ACK]);
  for (const { type, data } of replies) if (type !== nbd.NBD_REP_ACK) assert.ok(data.length > 0, 'a readable message');
});

test('malformed option data is ERR_INVALID with a reason, and the next option is understood', () => {
  const bad: Uint8Array[] = [
    option(nbd.NBD_OPT_LIST, bytes('x')),
    option(nbd.NBD_OPT_STRUCTURED_REPLY, bytes('x')),
    option(nbd.NBD_OPT_GO),
    option(nbd.NBD_OPT_GO, u32(5)),
    option(nbd.NBD_OPT_GO, bytes(u32(0xffff_ffff), 'disk', u16(0))),
    option(nbd.NBD_OPT_GO, bytes(u32(4), 'disk')),
    option(nbd.NBD_OPT_GO, bytes(u32(4), 'disk', u16(2), u16(1))),
    option(nbd.NBD_OPT_GO, bytes(infoData('disk'), 'x')),
    option(nbd.NBD_OPT_GO, bytes(u32(2), [0xc3, 0x28], u16(0))),
    option(nbd.NBD_OPT_GO, infoData('a\0b')),
    option(nbd.NBD_OPT_GO, infoData('n'.repeat(4097))),
    option(nbd.NBD_OPT_SET_META_CONTEXT, contextData('disk', ['base:allocation'])),
    structured,
    option(nbd.NBD_OPT_SET_META_CONTEXT, contextData('disk', ['nocolon'])),
    option(nbd.NBD_OPT_SET_META_CONTEXT, bytes(u32(4), 'disk', u32(2), u32(1), 'x')),
    option(nbd.NBD_OPT_LIST_META_CONTEXT, bytes(u32(4), 'disk')),
  ];
  const { replies } = ask(...bad, option(nbd.NBD_OPT_ABORT));
  assert.equal(replies.length, bad.length + 1);
  for (const [index, { type, data }] of replies.entries()) {
    if (type === nbd.NBD_REP_ACK) continue;
    assert.equal(type, nbd.NBD_REP_ERR_INVALID, `option ${index}`);
    assert.ok(data.length > 0, 'a readable message');
  }
  assert.equal(replies.filter(({ type }) => type === nbd.NBD_REP_ACK).length, 2);
});

test('metadata contexts: wildcards list, exact names select, unknown namespaces are ignored', () => {
  const names = (input: readonly string[], type: number) => {
    const { replies } = ask(structured, option(type, contextData('disk', input)));
    assert.equal(replies.at(-1)?.type, nbd.NBD_REP_ACK);
    return replies.slice(1, -1).map(({ data }) => data.subarray(4).toString());
  };
  const both = ['base:allocation', 'blockstep:ordered'];
  const { NBD_OPT_LIST_META_CONTEXT: list, NBD_OPT_SET_META_CONTEXT: set } = nbd;
  assert.deepEqual(names([], list), both);
  assert.deepEqual(names(['base:', 'x-other:y'], list), ['base:allocation']);
  assert.deepEqual(names(['blockstep:'], list), ['blockstep:ordered']);
  assert.deepEqual(names([], set), []);
  assert.deepEqual(names(['base:', 'qemu:dirty-bitmap:a', 'x:y'], set), []);
  assert.deepEqual(names(['blockstep:ordered', 'base:allocation', 'base:allocation'], set), both);
});

test('an export that is not ordered has no context for it', () => {
  const { replies } = ask(structured, option(nbd.NBD_OPT_LIST_META_CONTEXT, contextData('aligned', [])));
  assert.deepEqual(
    replies.slice(1, -1).map(({ data }) => data.subarray(4).toString()),
    ['base:allocation'],
  );
});

test('contexts are forgotten by a failed selection, a new structured reply, another export name', () => {
  const set = (name: string, query = 'base:allocation') =>
    option(nbd.NBD_OPT_SET_META_CONTEXT, contextData(name, [query]));
  const go = (name = 'disk') => option(nbd.NBD_OPT_GO, infoData(name));
  const selected = (...options: Uint8Array[]) => ask(structured, ...options).handshake.agreement?.contexts.length;
  assert.equal(selected(set('disk'), go()), 1);
  assert.equal(selected(set('disk'), set('disk', 'nocolon'), go()), 0);
  assert.equal(selected(set('disk'), set('nothing'), go()), 0);
  assert.equal(selected(set('disk'), structured, go()), 0);
  assert.equal(selected(set('disk'), go('aligned')), 0);
  assert.equal(selected(set('disk'), go('')), 0);
  assert.equal(
    selected(set('disk'), option(nbd.NBD_OPT_SET_META_CONTEXT, new Uint8Array(optionBytesMax + 1)), go()),
    0,
  );
});

test('too many queries and an oversize option are ERR_TOO_BIG; what nobody would send is hung up', () => {
  const many = contextData('disk', Array(queriesMax + 1).fill('x:y'));
  const large = option(77, new Uint8Array(optionBytesMax + 1));
  const { replies } = ask(structured, option(nbd.NBD_OPT_SET_META_CONTEXT, many), large, option(nbd.NBD_OPT_ABORT));
  assert.deepEqual(types(replies).slice(1), [nbd.NBD_REP_ERR_TOO_BIG, nbd.NBD_REP_ERR_TOO_BIG, nbd.NBD_REP_ACK]);
  assert.equal(ask(option(77, new Uint8Array(0), optionDropBytesMax + 1)).handshake.closed, true);
  assert.equal(ask(option(nbd.NBD_OPT_EXPORT_NAME, new Uint8Array(0), optionBytesMax + 1)).handshake.closed, true);
  const endless = ask(...Array(optionsMax + 1).fill(option(nbd.NBD_OPT_LIST, bytes('x'))));
  assert.equal(endless.handshake.closed, true);
});

test('what cannot be answered is hung up: unknown client flags, bad magic, an export name that is not there', () => {
  assert.equal(haggle(clientFlags(4)).handshake.closed, true);
  assert.equal(ask(bytes('HTTP/1.1 GET / whatever')).handshake.closed, true);
  for (const name of ['nothing', 'held', 'n'.repeat(5000)]) {
    const { handshake, replies } = ask(option(nbd.NBD_OPT_EXPORT_NAME, bytes(name)));
    assert.equal(handshake.closed, true);
    assert.equal(replies.length, 0);
  }
  assert.equal(ask(option(nbd.NBD_OPT_EXPORT_NAME, Uint8Array.of(0xc3, 0x28))).handshake.closed, true);
});

test('however the bytes are cut, the output is the same', () => {
  const anyOption = fc.oneof(
    fc.constant(structured),
    fc.constant(option(nbd.NBD_OPT_LIST)),
    fc.constantFrom('disk', 'aligned', 'held', '').map((name) => option(nbd.NBD_OPT_INFO, infoData(name, [1, 2, 3]))),
    fc.constantFrom('disk', '').map((name) => option(10, contextData(name, ['base:allocation', 'blockstep:ordered']))),
    fc.tuple(fc.nat(20), fc.uint8Array({ maxLength: 64 })).map(([type, data]) => option(type, data)),
    fc.nat(3000).map((more) => option(99, new Uint8Array(optionBytesMax + 1 + more))),
  );
  fc.assert(
    fc.property(
      fc.array(anyOption, { maxLength: 8 }),
      fc.array(fc.nat(4000), { maxLength: 40 }),
      fc.boolean(),
      (options, steps, go) => {
        const input = bytes(clientFlags(), ...options, go ? option(nbd.NBD_OPT_GO, infoData('disk')) : [], 'rest');
        const cuts: number[] = [];
        for (const step of steps) cuts.push((cuts.at(-1) ?? 0) + step);
        const whole = haggle(input);
        const pieces = haggle(input, cuts);
        assert.deepEqual(pieces.output, whole.output);
        assert.deepEqual(pieces.handshake.agreement, whole.handshake.agreement);
        assert.equal(pieces.handshake.closed, whole.handshake.closed);
        if (whole.handshake.agreement !== null) assert.deepEqual(pieces.handshake.rest(), whole.handshake.rest());
      },
    ),
    { numRuns: 150 },
  );
});

test('byte by byte is the same as whole', () => {
  const input = bytes(
    clientFlags(),
    structured,
    option(nbd.NBD_OPT_LIST),
    option(nbd.NBD_OPT_SET_META_CONTEXT, contextData('disk', ['base:allocation'])),
    option(99, bytes('unknown')),
    option(nbd.NBD_OPT_GO, infoData('disk', [3])),
  );
  const cuts = Array.from({ length: input.length }, (_, index) => index + 1);
  assert.deepEqual(haggle(input, cuts).output, haggle(input).output);
});

test('random bytes never throw and never ask for more than a bounded buffer', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 20 }), fc.boolean(), (pieces, flags) => {
      const handshake = haggler();
      if (flags) handshake.push(clientFlags());
      for (const piece of pieces) {
        handshake.push(piece);
        while (handshake.step() !== null);
      }
    }),
    { numRuns: 500 },
  );
});
