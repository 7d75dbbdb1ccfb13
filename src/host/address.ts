/** Socket addresses as a person reads them, and what is wrong with one. */
import { BlockError } from '../util/errors.ts';
import type { SocketAddress } from './host.ts';

/** Linux' `sockaddr_un` has room for this many bytes and a zero. */
const unixPathBytesMax = 107;

/** `unix:/path`, `127.0.0.1:4711`, `[::1]:4711`. */
export function addressText(address: SocketAddress): string {
  return address.type === 'unix' ? `unix:${address.path}` : hostAndPort(address.host, address.port);
}

/** `127.0.0.1:4711` or `[::1]:4711`. */
export function hostAndPort(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Throws `invalid-option` for an address that no system could use. */
export function checkAddress(address: SocketAddress): void {
  if (address.type === 'inet') {
    if (Number.isInteger(address.port) && address.port >= 0 && address.port <= 65_535) return;
    throw new BlockError('invalid-option', `port ${address.port}: it must be between 0 and 65535`);
  }
  const length = new TextEncoder().encode(address.path).length;
  if (length > 0 && length <= unixPathBytesMax && !address.path.includes('\0')) return;
  const text = `socket path ${address.path}: it must have 1 to ${unixPathBytesMax} bytes, it has ${length}`;
  throw new BlockError('invalid-option', text);
}
