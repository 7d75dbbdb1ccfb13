/** The client's handshake as a pure state object: bytes in, bytes and a result out. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import * as nbd from '../../src/nbd/constants.ts';
import type { NbdExportInfo } from '../../src/nbd/export-info.ts';
import { HandshakeClient, handshakeBytesMax, type NbdExportListing } from '../../src/nbd/handshake-client.ts';
import { BlockError } from '../../src/util/errors.ts';
import { allFlags, greeting, infoBlockSize, infoExport, optionReply } from './client-wire.ts';
import { bytes, u16, u32, u64 } from './wire.ts';

const contexts = ['base:allocation', 'blockstep:ordered'];
const start = (structured = true) => HandshakeClient.forExport('peer', { exportName: 'disk', contexts, structured });

const ok = optionReply(nbd.NBD_OPT_STRUCTURED_REPLY, nbd.NBD_REP_ACK);
const context = (id: number, name: string) =>
  optionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_META_CONTEXT, bytes(u32(id), name));
const contextsDone = optionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_ACK);
const info = (data: Uint8Array) => optionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_INFO, data);
const go = optionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_ACK);
const goError = (type: number, message = '') => optionReply(nbd.NBD_OPT_GO, type, message);
const beforeGo = bytes(greeting(), ok, contextsDone);

function feed<Result>(handshake: HandshakeClient<Result>, input: Uint8Array, pieces: readonly number[] = []): Buffer {
  const output: Uint8Array[] = [];
  const drain = (): void => {
    for (let more = handshake.takeOutput(); more !== null; more = handshake.takeOutput()) output.push(more);
  };
  let at = 0;
  let piece = 0;
  while (at < input.length && handshake.result === null) {
    const size = pieces.length === 0 ? input.length : (pieces[piece++ % pieces.length] ?? 1);
    at += handshake.receive(input.subarray(at, at + size));
    drain();
  }
  drain();
  return Buffer.concat(output);
}

function failure(input: Uint8Array, handshake: HandshakeClient<unknown> = start()): BlockError {
  try {
    feed(handshake, input);
  } catch (error) {
    assert.ok(error instanceof BlockError, String(error));
    return error;
  }
  assert.fail(`no error, result ${JSON.stringify(handshake.result)}`);
}

const whole = bytes(
  greeting(),
  ok,
  context(7, 'base:allocation'),
  context(9, 'blockstep:ordered'),
  contextsDone,
  info(bytes(u16(nbd.NBD_INFO_NAME), 'disk')),
  info(bytes(u16(nbd.NBD_INFO_DESCRIPTION), 'a disk')),
  info(bytes(u16(99), 'something new')),
  info(infoBlockSize(512, 4096, 1 << 20)),
  info(infoExport(12_345_678_901, allFlags)),
  go,
);

test('a whole handshake gives what the server announced', () => {
  const handshake = start();
  const output = feed(handshake, whole);
  assert.deepEqual(handshake.result, {
    size: 12_345_678_901,
    readOnly: false,
    flags: allFlags,
    blockSizes: { minimum: 512, preferred: 4096, maximum: 1 << 20 },
    contexts: new Map([
      ['base:allocation', 7],
      ['blockstep:ordered', 9],
    ]),
    structured: true,
    ordered: true,
    name: 'disk',
    description: 'a disk',
  } satisfies NbdExportInfo);
  const expected = bytes(
    u32(3),
    'IHAVEOPT',
    u32(nbd.NBD_OPT_STRUCTURED_REPLY),
    u32(0),
    'IHAVEOPT',
    u32(nbd.NBD_OPT_SET_META_CONTEXT),
    u32(4 + 4 + 4 + 4 + 15 + 4 + 17),
    u32(4),
    'disk',
    u32(2),
    u32(15),
    'base:allocation',
    u32(17),
    'blockstep:ordered',
    'IHAVEOPT',
    u32(nbd.NBD_OPT_GO),
    u32(4 + 4 + 2 + 6),
    u32(4),
    'disk',
    u16(3),
    u16(1),
    u16(2),
    u16(3),
  );
  assert.deepEqual(output, expected);
});

test('fed in any pieces, a handshake gives the same bytes and the same result, and leaves what follows', () => {
  const inputs = [
    whole,
    bytes(
      greeting(1),
      optionReply(8, nbd.NBD_REP_ERR_UNSUP),
      goError(nbd.NBD_REP_ERR_UNSUP),
      u64(4096),
      u16(1),
      Buffer.alloc(124),
    ),
  ];
  fc.assert(
    fc.property(
      fc.constantFrom(...inputs),
      fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 30 }),
      (input, pieces) => {
        const atOnce = start();
        const expected = feed(atOnce, input);
        const inPieces = start();
        assert.deepEqual(feed(inPieces, input, pieces), expected);
        assert.deepEqual(inPieces.result, atOnce.result);
        assert.notEqual(inPieces.result, null);
      },
    ),
  );
  const handshake = start();
  assert.equal(handshake.receive(bytes(whole, 'more')), whole.length);
});

test('a server without structured replies gives simple ones, and no contexts are asked for', () => {
  const handshake = start();
  const output = feed(handshake, bytes(greeting(), optionReply(8, nbd.NBD_REP_ERR_UNSUP), info(infoExport(10, 1)), go));
  assert.equal(handshake.result?.structured, false);
  assert.equal(handshake.result?.contexts.size, 0);
  assert.equal(output.includes('base:allocation'), false);
});

test('with structured: false they are not even asked for', () => {
  const handshake = start(false);
  feed(handshake, bytes(greeting(), info(infoExport(10, 1)), go));
  assert.equal(handshake.result?.structured, false);
});

test('contexts that end in an error are none', () => {
  const refused = optionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_ERR_TOO_BIG, 'too many');
  const handshake = start();
  feed(handshake, bytes(greeting(), ok, context(1, 'base:allocation'), refused, info(infoExport(10, 3)), go));
  assert.equal(handshake.result?.contexts.size, 0);
  assert.equal(handshake.result?.readOnly, true);
});

for (const zeroes of [true, false]) {
  test(`a server that does not know NBD_OPT_GO is asked by NBD_OPT_EXPORT_NAME, ${zeroes ? 'with' : 'without'} 124 zeroes`, () => {
    const handshake = start();
    const answer = bytes(u64(1 << 20), u16(5), Buffer.alloc(zeroes ? 124 : 0));
    const input = bytes(greeting(zeroes ? 1 : 3), ok, contextsDone, goError(nbd.NBD_REP_ERR_UNSUP), answer);
    const output = feed(handshake, input);
    assert.equal(handshake.result?.size, 1 << 20);
    assert.equal(handshake.result?.flags, 5);
    assert.deepEqual(output.subarray(-20), bytes('IHAVEOPT', u32(1), u32(4), 'disk'));
  });
}

test('a server that closes on NBD_OPT_EXPORT_NAME may have no such export', () => {
  const handshake = start();
  feed(handshake, bytes(beforeGo, goError(nbd.NBD_REP_ERR_UNSUP)));
  assert.match(handshake.endedEarly(null).message, /asked for export "disk": it may have no such export/);
});

const foreign: [string, Uint8Array, RegExp][] = [
  [
    'ssh',
    bytes('SSH-2.0-OpenSSH_9.2p1 Debian\r\n'),
    /peer is not an NBD server: it sent "SSH-2.0-OpenSSH_9.2p1 Debian"/,
  ],
  ['http', bytes('HTTP/1.1 400 Bad Request\r\n\r\n'), /is not an NBD server: it sent "HTTP\/1.1 400 Bad Request"/],
  ['binary', Buffer.from([0, 1, 2, 3, 255, 254, 27, 91, 65, 66]), /is not an NBD server/],
  ['almost', bytes('NBDMAGICNOTRIGHT', u16(3)), /is not an NBD server: it sent "NBDMAGICNOTRIGHT/],
];
for (const [name, input, message] of foreign) {
  test(`a peer that is not NBD (${name}) gives one clear sentence`, () => {
    const error = failure(input);
    assert.equal(error.code, 'protocol-error');
    assert.match(error.message, message);
    assert.doesNotMatch(error.message, /\p{C}/u);
  });
}

test('a peer that sends a few other bytes and closes, or waits, is named too', () => {
  const handshake = start();
  handshake.receive(bytes('220 '));
  assert.match(handshake.endedEarly(null).message, /is not an NBD server: it sent "220"/);
  assert.match(handshake.timedOut(5).message, /is not an NBD server/);
  assert.match(start().timedOut(5).message, /sent no NBD greeting within 5 ms: is it an NBD server\?/);
  assert.match(start().endedEarly(null).message, /closed the connection without a word/);
});

test('a server too old is named so', () => {
  assert.match(failure(greeting(0)).message, /too old .* fixed newstyle/);
  const oldstyle = bytes('NBDMAGIC', u64(0x00420281861253n), u64(1024), u32(1), Buffer.alloc(124));
  assert.match(failure(oldstyle).message, /oldstyle NBD handshake/);
});

const refusals: [number, string, RegExp][] = [
  [nbd.NBD_REP_ERR_POLICY, 'access-denied', /its policy forbids it/],
  [nbd.NBD_REP_ERR_INVALID, 'invalid-request', /invalid/],
  [nbd.NBD_REP_ERR_PLATFORM, 'not-supported', /platform/],
  [nbd.NBD_REP_ERR_TLS_REQD, 'access-denied', /requires TLS/],
  [nbd.NBD_REP_ERR_UNKNOWN, 'file-not-found', /no such export/],
  [nbd.NBD_REP_ERR_SHUTDOWN, 'shutting-down', /shutting down/],
  [nbd.NBD_REP_ERR_BLOCK_SIZE_REQD, 'invalid-request', /block sizes/],
  [nbd.NBD_REP_ERR_TOO_BIG, 'invalid-request', /too large/],
  [nbd.NBD_REP_ERR_EXT_HEADER_REQD, 'not-supported', /extended headers/],
  [0x8000_4444, 'connection-failed', /error 17476/],
];
for (const [type, code, words] of refusals) {
  test(`a refusal of type ${type.toString(16)} is told in words, with the server's, and answered by NBD_OPT_ABORT`, () => {
    const handshake = start();
    const error = failure(bytes(beforeGo, goError(type, 'for a\nreason')), handshake);
    assert.equal(error.code, code);
    assert.match(error.message, words);
    assert.match(error.message, /peer refused export "disk": .*\(it says: for a reason\)/);
    assert.deepEqual(handshake.takeOutput()?.subarray(-16), new Uint8Array(bytes('IHAVEOPT', u32(2), u32(0))));
  });
}

test('a server that requires TLS says so at the first option', () => {
  const error = failure(bytes(greeting(), optionReply(8, nbd.NBD_REP_ERR_TLS_REQD)));
  assert.match(error.message, /requires TLS/);
});

const broken: [string, Uint8Array, RegExp][] = [
  ['a wrong magic number', bytes(greeting(), Buffer.alloc(20, 1)), /wrong magic/],
  ['a reply to another option', bytes(greeting(), optionReply(7, 1)), /replied to option 7/],
  ['an endless reply', bytes(greeting(), optionReply(8, 1).subarray(0, 16), u32(0x7fff_ffff)), /2147483647 bytes/],
  ['a strange reply to contexts', bytes(greeting(), ok, optionReply(10, 77)), /type 77/],
  ['a context without a name', bytes(greeting(), ok, context(1, '')), /wrong length/],
  ['one context twice', bytes(greeting(), ok, context(1, 'a:b'), context(2, 'a:b')), /twice/],
  ['one context id twice', bytes(greeting(), ok, context(1, 'a:b'), context(1, 'a:c')), /twice/],
  [
    'too many contexts',
    bytes(greeting(), ok, ...Array.from({ length: 65 }, (_, i) => context(i, `a:${i}`))),
    /more than 64/,
  ],
  ['a strange reply to GO', bytes(beforeGo, optionReply(7, nbd.NBD_REP_SERVER)), /type 2/],
  ['information without a type', bytes(beforeGo, info(Buffer.alloc(1))), /wrong length/],
  ['a short NBD_INFO_EXPORT', bytes(beforeGo, info(infoExport(1).subarray(0, 11))), /NBD_INFO_EXPORT/],
  ['short block sizes', bytes(beforeGo, info(infoBlockSize(1, 512, 512).subarray(0, 13))), /NBD_INFO_BLOCK_SIZE/],
  ['a minimum of 3', bytes(beforeGo, info(infoBlockSize(3, 512, 4096))), /no sense/],
  ['a minimum of 0', bytes(beforeGo, info(infoBlockSize(0, 512, 4096))), /no sense/],
  ['a minimum of 128 KiB', bytes(beforeGo, info(infoBlockSize(131_072, 131_072, 1 << 20))), /no sense/],
  ['a maximum below the minimum', bytes(beforeGo, info(infoBlockSize(4096, 4096, 512))), /no sense/],
  ['an acknowledgement without an export', bytes(beforeGo, go), /without NBD_INFO_EXPORT/],
];
for (const [name, input, message] of broken) {
  test(`${name} breaks the handshake with a protocol error`, () => {
    const error = failure(input);
    assert.equal(error.code, 'protocol-error');
    assert.match(error.message, message);
  });
}

test('an export beyond 2^53 bytes is refused', () => {
  assert.match(failure(bytes(beforeGo, info(infoExport(2n ** 60n)), go)).message, /larger than 2\^53/);
});

test('a handshake that does not end is cut at its limit', () => {
  const handshake = start();
  handshake.receive(bytes(greeting(), ok, contextsDone));
  const filler = bytes(...Array.from({ length: 64 }, () => info(Buffer.alloc(16_000, 200))));
  assert.throws(() => {
    for (let sum = 0; sum <= handshakeBytesMax; sum += filler.length) handshake.receive(filler);
  }, /longer than 16777216 bytes/);
});

test('a list of exports comes with descriptions, and ends with a farewell', () => {
  const handshake = HandshakeClient.forList('peer');
  const entry = (name: string, description: string) =>
    optionReply(3, nbd.NBD_REP_SERVER, bytes(u32(Buffer.byteLength(name)), name, description));
  const output = feed(handshake, bytes(greeting(), entry('', ''), entry('größe', 'ein Test'), optionReply(3, 1)));
  assert.deepEqual(handshake.result, [
    { name: '', description: '' },
    { name: 'größe', description: 'ein Test' },
  ] satisfies NbdExportListing[]);
  assert.deepEqual(output.subarray(-16), bytes('IHAVEOPT', u32(2), u32(0)));
});

test('a list with a wrong entry, or a refused one, is an error', () => {
  const list = (data: Uint8Array) => bytes(greeting(), optionReply(3, nbd.NBD_REP_SERVER, data));
  assert.match(failure(list(bytes(u32(9), 'short')), HandshakeClient.forList('peer')).message, /wrong length/);
  assert.match(failure(list(bytes(u16(0))), HandshakeClient.forList('peer')).message, /wrong length/);
  const policy = bytes(greeting(), optionReply(3, nbd.NBD_REP_ERR_POLICY, 'no listing'));
  const error = failure(policy, HandshakeClient.forList('peer'));
  assert.match(error.message, /peer refused to list its exports: .*it says: no listing/);
});

test('names that the protocol cannot say are refused before anything is sent', () => {
  for (const exportName of ['x'.repeat(4097), 'a\0b', '\ud800']) {
    assert.throws(
      () => HandshakeClient.forExport('peer', { exportName, contexts, structured: true }),
      (error) => error instanceof BlockError && error.code === 'invalid-option',
    );
  }
});

test('whatever a peer sends is a result or a BlockError', () => {
  const mutated = fc
    .tuple(fc.constantFrom(whole, beforeGo), fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 4 }))
    .map(([input, changes]) => {
      const copy = Uint8Array.from(input);
      for (const [at, value] of changes) copy[at % copy.length] = value;
      return copy;
    });
  fc.assert(
    fc.property(fc.oneof(mutated, fc.uint8Array({ maxLength: 200 })), (input) => {
      try {
        feed(start(), input);
      } catch (error) {
        assert.ok(error instanceof BlockError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});
