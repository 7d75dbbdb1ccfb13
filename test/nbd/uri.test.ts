/** NBD URIs: parse and format (doc/uri.md). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { SocketAddress } from '../../src/host/host.ts';
import { formatNbdUri, type NbdUri, parseNbdUri } from '../../src/nbd/uri.ts';
import { BlockError } from '../../src/util/errors.ts';

const inet = (host: string, port = 10_809): SocketAddress => ({ type: 'inet', host, port });
const unix = (path: string): SocketAddress => ({ type: 'unix', path });

const valid: [string, NbdUri][] = [
  // The table of uri.md, "NBD URI export name".
  ['nbd://example.com/disk', { address: inet('example.com'), exportName: 'disk', tls: null }],
  ['nbd+unix:///disk?socket=sock', { address: unix('sock'), exportName: 'disk', tls: null }],
  ['nbd://example.com/', { address: inet('example.com'), exportName: '', tls: null }],
  ['nbd://example.com', { address: inet('example.com'), exportName: '', tls: null }],
  ['nbd://example.com//disk', { address: inet('example.com'), exportName: '/disk', tls: null }],
  ['nbd://example.com/hello%20world', { address: inet('example.com'), exportName: 'hello world', tls: null }],
  ['nbd://example.com:10809/export', { address: inet('example.com'), exportName: 'export', tls: null }],
  ['nbd+unix:///export?socket=nbd.sock', { address: unix('nbd.sock'), exportName: 'export', tls: null }],
  ['NBD://[::1]:1234/a', { address: inet('::1', 1234), exportName: 'a', tls: null }],
  ['nbd://[fe80::1%25eth0]/a', { address: inet('fe80::1%eth0'), exportName: 'a', tls: null }],
  ['nbd://h:/a/../b', { address: inet('h'), exportName: 'a/../b', tls: null }],
  ['nbd+unix:///?socket=/a%20b/c+d', { address: unix('/a b/c+d'), exportName: '', tls: null }],
  ['nbd+unix://?socket=/s', { address: unix('/s'), exportName: '', tls: null }],
  ['nbds://me@h/x', { address: inet('h'), exportName: 'x', tls: { username: 'me' } }],
  [
    'nbds+unix:///x?socket=/s&tls-type=psk&tls-hostname=h.example&tls-verify-peer=0',
    { address: unix('/s'), exportName: 'x', tls: { type: 'psk', hostname: 'h.example', verifyPeer: false } },
  ],
];
for (const [text, uri] of valid) {
  test(`${text} is parsed`, () => {
    assert.deepEqual(parseNbdUri(text), uri);
    assert.deepEqual(parseNbdUri(formatNbdUri(uri)), uri);
  });
}

const invalid: [string, RegExp][] = [
  ['', /expected nbd:\/\//],
  ['disk', /expected nbd:\/\//],
  ['nbd:unix:/s:exportname=x', /expected nbd:\/\//],
  ['http://h/x', /unknown scheme "http"/],
  ['nbd+tcp://h/x', /unknown scheme/],
  ['nbd:///disk', /names no host/],
  ['nbd://h:0/x', /no port/],
  ['nbd://h:65536/x', /no port/],
  ['nbd://h:nbd/x', /no host/],
  ['nbd://::1/x', /IPv6 address stands in brackets/],
  ['nbd://[zz]/x', /no IPv6 address/],
  ['nbd://h/%zz', /percent-encoded/],
  ['nbd://h/%ff', /percent-encoded/],
  ['nbd://h/a%00b', /NUL/],
  ['nbd://h/a b', /must be percent-encoded/],
  ['nbd://h/größe', /must be percent-encoded/],
  ['nbd://h/a#b', /fragment/],
  ['nbd://h/x?socket=/s', /belongs to nbd\+unix/],
  ['nbd://h/x?port=1', /unknown parameter "port"/],
  ['nbd+unix:///x', /names no socket/],
  ['nbd+unix:///x?socket=', /names no socket/],
  ['nbd+unix://h/x?socket=/s', /host makes no sense/],
  ['nbd+unix:///x?socket=/s&socket=/t', /stands twice/],
  ['nbd+unix:///?socket=%00/abstract', /abstract namespace/],
  ['nbd://h/x?tls-type=x509', /belongs to nbds/],
  ['nbd://me@h/x', /belongs to nbds/],
  ['nbds://h/x?tls-type=best', /anon, x509 or psk/],
  ['nbds://h/x?tls-verify-peer=yes', /0 or 1/],
];
for (const [text, message] of invalid) {
  test(`${JSON.stringify(text)} is refused`, () => {
    assert.throws(
      () => parseNbdUri(text),
      (error) => error instanceof BlockError && error.code === 'invalid-option' && message.test(error.message),
    );
  });
}

const name = fc.string({ unit: 'binary', maxLength: 30 }).filter((text) => !text.includes('\0') && text.isWellFormed());
const address = fc.oneof(
  fc
    .tuple(
      fc.oneof(fc.domain(), fc.ipV4(), fc.constantFrom('::1', 'fe80::1%eth0')),
      fc.integer({ min: 1, max: 65_535 }),
    )
    .map(([host, port]) => inet(host, port)),
  name.filter((path) => path !== '').map(unix),
);

test('parsing gives back what was formatted', () => {
  fc.assert(
    fc.property(address, name, (where, exportName) => {
      const text = formatNbdUri({ address: where, exportName });
      assert.match(text, /^[\x21-\x7e]+$/);
      assert.deepEqual(parseNbdUri(text), { address: where, exportName, tls: null });
    }),
  );
});

test('any text is parsed or refused with a BlockError', () => {
  const near = fc
    .tuple(fc.constantFrom(...valid.map(([text]) => text)), fc.nat(60), fc.string({ maxLength: 3 }))
    .map(([text, at, more]) => text.slice(0, at) + more + text.slice(at + 1));
  fc.assert(
    fc.property(fc.oneof(near, fc.string()), (text) => {
      try {
        parseNbdUri(text);
      } catch (error) {
        assert.ok(error instanceof BlockError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});
