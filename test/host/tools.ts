/** What the cases of a host's contract, and other tests over a host, are written with. */
import assert from 'node:assert/strict';
import type { Host, HostFile } from '../../src/host/host.ts';
import { BlockError, type BlockErrorCode } from '../../src/util/errors.ts';

/** A case: its claim, and the program that shows it in an empty folder of its own. */
export type Case = readonly [claim: string, show: (host: Host, folder: string) => Promise<void>];

/** Collects what a stream delivers. */
export class Inbox {
  readonly ends: (Error | null)[] = [];
  deliveries = 0;
  length = 0;
  onReceived: ((count: number) => void) | undefined;
  onEnded: (() => void) | undefined;
  readonly #room: Uint8Array;
  readonly #pieces: Uint8Array[] = [];
  #receiving = false;

  constructor(roomLength = 65_536) {
    this.#room = new Uint8Array(roomLength);
  }

  space(): Uint8Array {
    assert.equal(this.#receiving, false);
    return this.#room;
  }

  received(count: number): void {
    assert.ok(count > 0 && count <= this.#room.length);
    assert.equal(this.ends.length, 0, 'received after ended');
    assert.equal(this.#receiving, false, 'received within received');
    this.#receiving = true;
    this.deliveries++;
    this.length += count;
    this.#pieces.push(this.#room.slice(0, count));
    this.onReceived?.(count);
    this.#receiving = false;
  }

  ended(error: Error | null): void {
    this.ends.push(error);
    this.onEnded?.();
  }

  bytes(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.#pieces));
  }

  text(): string {
    return Buffer.concat(this.#pieces).toString();
  }
}

export function sleep(host: Host, ms: number): Promise<void> {
  return new Promise((resolve) => host.clock.after(ms, resolve));
}

export async function until(host: Host, reached: () => boolean): Promise<void> {
  const begin = host.clock.now();
  while (!reached()) {
    if (host.clock.now() - begin > 20_000) throw new Error(`not so after 20 s: ${reached}`);
    await sleep(host, 1);
  }
}

export function pattern(length: number, salt: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + (i >> 8) * 7 + salt) & 0xff;
  return bytes;
}

export function text(of: string): Uint8Array {
  return new TextEncoder().encode(of);
}

export function create(host: Host, path: string): Promise<HostFile> {
  return host.files.open(path, { access: 'write', create: 'exclusive' });
}

export async function readAll(file: HostFile, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await file.read(offset, into);
  return into;
}

export async function fails(
  code: BlockErrorCode,
  named: string,
  call: () => Promise<unknown> | undefined,
): Promise<void> {
  await assert.rejects(
    async () => call(),
    (error) => {
      assert.ok(error instanceof BlockError, String(error));
      assert.equal(error.code, code, error.message);
      assert.ok(error.message.includes(named), error.message);
      return true;
    },
  );
}
