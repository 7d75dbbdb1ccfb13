/**
 * Sizes, times and addresses as people write and read them. Bytes are numbers; a size in text has a binary unit
 * (`1GiB`) or none; what is shown is rounded to three digits.
 */
import type { SocketAddress } from '../host/host.ts';

const unitBytes: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 2 ** 10,
  kib: 2 ** 10,
  m: 2 ** 20,
  mib: 2 ** 20,
  g: 2 ** 30,
  gib: 2 ** 30,
  t: 2 ** 40,
  tib: 2 ** 40,
  p: 2 ** 50,
  pib: 2 ** 50,
};

/**
 * Bytes of `1GiB`, `512 MiB`, `1.5T` or a plain number; null if it is none of these, or no whole number of bytes.
 * `GB` is refused: whether it means 10^9 or 2^30 differs between programs, and a disk must not be smaller than meant.
 */
export function parseSize(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  const unit = unitBytes[(match?.[2] ?? 'none').toLowerCase()];
  if (unit === undefined) return null;
  const bytes = Number(match?.[1]) * unit;
  return Number.isSafeInteger(bytes) ? bytes : null;
}

/** `1536` -> `1.5 KiB`. */
export function formatSize(bytes: number): string {
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let index = 0;
  while (value >= 1024 && index < names.length - 1) {
    value /= 1024;
    index += 1;
  }
  const digits = index === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits).replace(/\.0+$/, '')} ${names[index]}`;
}

const unitMs: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, min: 60_000, h: 3_600_000 };

/** Milliseconds of `500ms`, `1s`, `1.5 s`, `2m` or `1h`; null without a unit, or if it is no whole number of them. */
export function parseDuration(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]+)$/.exec(text.trim());
  const ms = Number(match?.[1]) * (unitMs[match?.[2] ?? ''] ?? Number.NaN);
  return Number.isSafeInteger(ms) ? ms : null;
}

/** `4200` -> `4.2 s`; from a minute on in whole units. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

/** A moment (milliseconds since 1970) as ISO 8601 without fractions, in UTC. */
export function formatMoment(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}

/** `HOST:PORT`, `[IPv6]:PORT` or `unix:PATH`; null if it is none of these. */
export function parseAddress(text: string): SocketAddress | null {
  if (text.startsWith('unix:')) return text.length > 5 ? { type: 'unix', path: text.slice(5) } : null;
  const match = /^(?:\[([0-9a-f:.%]+)\]|([a-z0-9._-]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  return host === undefined || port > 65_535 ? null : { type: 'inet', host, port };
}

export function formatAddress(address: SocketAddress): string {
  if (address.type === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}
