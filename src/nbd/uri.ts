/**
 * NBD URIs (doc/uri.md of the NBD project, over RFC 3986): `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`
 * and their `nbds` forms. Parsed by hand: the WHATWG parser would resolve `..` and so change an export's name.
 */
import type { SocketAddress } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import { NBD_DEFAULT_PORT } from './constants.ts';
import { encodeName, quote } from './text.ts';

/** What an `nbds` URI says of TLS; all optional. */
export interface NbdUriTls {
  readonly type?: 'anon' | 'x509' | 'psk';
  /** the name to verify the server's certificate against */
  readonly hostname?: string;
  readonly verifyPeer?: boolean;
  readonly username?: string;
}

export interface NbdUri {
  readonly address: SocketAddress;
  /** empty: the server's default export */
  readonly exportName: string;
  /** null: plain (`nbd`, `nbd+unix`); else TLS must be used (`nbds`, `nbds+unix`) */
  readonly tls: NbdUriTls | null;
}

const uriBytesMax = 16 * 1024;
/** RFC 3986, appendix B, with a scheme and an authority that must be there. */
const pattern = /^([a-z][a-z0-9+.-]*):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?$/is;
const authorityPattern = /^(?:([^@]*)@)?(\[[^\]]*\]|[^:[\]]*)(?::([0-9]*))?$/s;
const tlsTypes = ['anon', 'x509', 'psk'] as const;

/** @throws BlockError invalid-option, telling what is wrong with it */
export function parseNbdUri(text: string): NbdUri {
  const fail = (why: string): BlockError => new BlockError('invalid-option', `NBD URI ${quote(text)}: ${why}`);
  const parts = text.length > uriBytesMax ? null : pattern.exec(text);
  if (parts === null) throw fail('expected nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH');
  const [, scheme = '', authority = '', path = '', query = '', fragment] = parts;
  if (/[^\x21-\x7e]/.test(text)) throw fail('spaces and characters beyond ASCII must be percent-encoded');
  const kind = /^nbd(s?)(\+unix)?$/.exec(scheme.toLowerCase());
  if (kind === null) throw fail(`unknown scheme "${scheme}": expected nbd, nbds, nbd+unix or nbds+unix`);
  if (fragment !== undefined) throw fail('it has a fragment ("#"), which means nothing here: write %23');
  const secure = kind[1] === 's';
  const exportName = decode(path.slice(1), fail);
  if (exportName.includes('\0')) throw fail('the export name contains a NUL');
  const parameters = parseQuery(query, fail);
  const socket = parameters.get('socket');
  const host = parseAuthority(authority, fail);
  let address: SocketAddress;
  if (kind[2] === undefined) {
    if (socket !== undefined) throw fail('"socket" belongs to nbd+unix');
    if (host.host === '') throw fail('it names no host');
    address = { type: 'inet', host: host.host, port: host.port };
  } else {
    if (host.host !== '' || authority.includes(':')) throw fail('a host makes no sense with a unix socket');
    if (socket === undefined || socket === '') throw fail('it names no socket: expected ?socket=PATH');
    if (socket.includes('\0')) throw fail('sockets of the abstract namespace are not supported');
    address = { type: 'unix', path: socket };
  }
  return { address, exportName, tls: parseTls(parameters, secure, host.user, fail) };
}

/** The URI of an export. `parseNbdUri` gives the same back. */
export function formatNbdUri(uri: { address: SocketAddress; exportName: string; tls?: NbdUriTls | null }): string {
  encodeName(uri.exportName);
  const { address } = uri;
  const tls = uri.tls ?? null;
  const scheme = `nbd${tls === null ? '' : 's'}${address.type === 'unix' ? '+unix' : ''}`;
  const user = tls?.username === undefined ? '' : `${encodeURIComponent(tls.username)}@`;
  const query: string[] = [];
  let authority = user;
  if (address.type === 'unix') {
    query.push(`socket=${encode(address.path)}`);
  } else {
    const host = address.host.includes(':')
      ? `[${address.host.replaceAll('%', '%25')}]`
      : encodeURIComponent(address.host);
    authority += address.port === NBD_DEFAULT_PORT ? host : `${host}:${address.port}`;
  }
  if (tls?.type !== undefined) query.push(`tls-type=${tls.type}`);
  if (tls?.hostname !== undefined) query.push(`tls-hostname=${encode(tls.hostname)}`);
  if (tls?.verifyPeer !== undefined) query.push(`tls-verify-peer=${tls.verifyPeer ? 1 : 0}`);
  return `${scheme}://${authority}/${encode(uri.exportName)}${query.length === 0 ? '' : `?${query.join('&')}`}`;
}

type Fail = (why: string) => BlockError;

function parseAuthority(authority: string, fail: Fail): { host: string; port: number; user: string | undefined } {
  const parts = authorityPattern.exec(authority);
  if (parts === null) throw fail(`"${authority}" is no host (an IPv6 address stands in brackets)`);
  const [, user, host = '', port] = parts;
  const number = port === undefined || port === '' ? NBD_DEFAULT_PORT : Number(port);
  if (number < 1 || number > 65_535) throw fail(`${port} is no port`);
  const literal = host.startsWith('[');
  if (literal && !/^\[[0-9a-f:.]+(%25[^\]]+)?\]$/i.test(host)) throw fail(`${host} is no IPv6 address`);
  return {
    host: decode(literal ? host.slice(1, -1) : host, fail),
    port: number,
    user: user === undefined ? undefined : decode(user, fail),
  };
}

function parseQuery(query: string, fail: Fail): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const part of query === '' ? [] : query.split('&')) {
    const at = part.indexOf('=');
    const key = decode(at < 0 ? part : part.slice(0, at), fail);
    // "Any other query parameters which the client does not understand SHOULD be diagnosed by the parser."
    if (!['socket', 'tls-type', 'tls-hostname', 'tls-verify-peer'].includes(key)) {
      throw fail(`unknown parameter ${quote(key)}`);
    }
    if (parameters.has(key)) throw fail(`"${key}" stands twice`);
    parameters.set(key, at < 0 ? '' : decode(part.slice(at + 1), fail));
  }
  return parameters;
}

function parseTls(
  parameters: Map<string, string>,
  secure: boolean,
  user: string | undefined,
  fail: Fail,
): NbdUriTls | null {
  const name = parameters.get('tls-type');
  const hostname = parameters.get('tls-hostname');
  const verify = parameters.get('tls-verify-peer');
  const given = [...parameters.keys()].find((key) => key.startsWith('tls-'));
  if (!secure) {
    if (given !== undefined) throw fail(`"${given}" belongs to nbds: a plain connection uses no TLS`);
    if (user !== undefined) throw fail('a user name belongs to nbds: a plain connection uses no TLS');
    return null;
  }
  const type = tlsTypes.find((known) => known === name);
  if (name !== undefined && type === undefined) throw fail(`"tls-type" is anon, x509 or psk, not ${quote(name)}`);
  if (verify !== undefined && verify !== '0' && verify !== '1') throw fail('"tls-verify-peer" is 0 or 1');
  return {
    ...(type === undefined ? {} : { type }),
    ...(hostname === undefined ? {} : { hostname }),
    ...(verify === undefined ? {} : { verifyPeer: verify === '1' }),
    ...(user === undefined ? {} : { username: user }),
  };
}

function decode(text: string, fail: Fail): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw fail(`${quote(text)} is not valid percent-encoded UTF-8`);
  }
}

/** Percent-encodes all but unreserved characters and the slash, which may stand in a path and in a query. */
const encode = (text: string): string => encodeURIComponent(text).replaceAll('%2F', '/');
