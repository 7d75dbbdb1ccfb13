/** What the tests of a secondary stand on: an engine with the spec's graph, and NBD clients on both of its ends. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { temporaryFolder } from '../support/temp.ts';
import { type CheckedEngine, checkedEngine } from './checked.ts';

type Answer = Record<string, unknown>;

export interface SecondaryOptions {
  readonly length: number;
  /** options of the secondary disk */
  readonly local?: Answer;
  /** more options of the overlays, of their files and of the filter */
  readonly hidden?: Answer;
  readonly active?: Answer;
  readonly hiddenFile?: Answer;
  readonly activeFile?: Answer;
  readonly filter?: Answer;
  /** of the secondary disk's export; default true */
  readonly writable?: boolean;
}

/** One disk of a secondary: `d-local`, `d-hidden`, `d-active`, `d-top`; exports `s` of `d-local` and `t` of `d-top`. */
export class Secondary {
  readonly checked: CheckedEngine;
  readonly length: number;
  readonly socket: string;
  private readonly clients: NbdClient[] = [];

  private constructor(checked: CheckedEngine, length: number, socket: string) {
    this.checked = checked;
    this.length = length;
    this.socket = socket;
  }

  static async open(t: TestContext, options: SecondaryOptions): Promise<Secondary> {
    const checked = checkedEngine(t);
    const folder = await temporaryFolder(t);
    const secondary = new Secondary(checked, options.length, join(folder, 's.sock'));
    t.after(() => Promise.allSettled(secondary.clients.map((client) => client.close())));
    const { length } = options;
    const memory = { driver: 'memory', size: 0 };
    const grow = { 'grow-bytes': 65536 };
    await secondary.run('nbd-server-start', { addr: { type: 'unix', data: { path: secondary.socket } } });
    const nodes: Answer[] = [
      { 'node-name': 'd-local', ...(options.local ?? { driver: 'memory', size: length }) },
      { driver: 'blkdebug', 'node-name': 'd-hidden-file', image: memory, ...options.hiddenFile },
      {
        driver: 'shadow',
        'node-name': 'd-hidden',
        file: 'd-hidden-file',
        backing: 'd-local',
        ...grow,
        ...options.hidden,
      },
      { driver: 'blkdebug', 'node-name': 'd-active-file', image: memory, ...options.activeFile },
      {
        driver: 'shadow',
        'node-name': 'd-active',
        file: 'd-active-file',
        backing: 'd-hidden',
        ...grow,
        ...options.active,
      },
      {
        driver: 'replication',
        'node-name': 'd-top',
        mode: 'secondary',
        file: 'd-active',
        'top-id': 'd-top',
        ...options.filter,
      },
    ];
    for (const node of nodes) await secondary.run('blockdev-add', node);
    await secondary.run('block-export-add', {
      type: 'nbd',
      id: 's',
      'node-name': 'd-local',
      writable: options.writable ?? true,
    });
    await secondary.run('block-export-add', { type: 'nbd', id: 't', 'node-name': 'd-top', writable: true });
    return secondary;
  }

  async run(command: string, args: Answer = {}): Promise<Answer> {
    return (await this.checked.execute(command, args)) as Answer;
  }

  async list(command: string): Promise<Answer[]> {
    return (await this.checked.execute(command)) as Answer[];
  }

  start(): Promise<Answer> {
    return this.run('xen-set-replication', { enable: true, primary: false });
  }

  stop(): Promise<Answer> {
    return this.run('xen-set-replication', { enable: false, primary: false });
  }

  failover(): Promise<Answer> {
    return this.run('xen-set-replication', { enable: false, primary: false, failover: true });
  }

  checkpoint(): Promise<Answer> {
    return this.run('xen-colo-do-checkpoint');
  }

  async row(): Promise<Answer> {
    return (await this.list('query-replication'))[0] ?? assert.fail('no member');
  }

  async stage(): Promise<unknown> {
    return (await this.row()).stage;
  }

  async until(what: string, holds: () => Promise<boolean> | boolean): Promise<void> {
    for (let i = 0; !(await holds()); i += 1) {
      assert.ok(i < 4000, `${what} never came`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }

  untilStage(stage: string): Promise<void> {
    return this.until(`stage ${stage}`, async () => (await this.stage()) === stage);
  }

  async client(exportName: string): Promise<NbdClient> {
    const client = await NbdClient.connect(createHost(), { address: { type: 'unix', path: this.socket }, exportName });
    this.clients.push(client);
    return client;
  }
}

export async function fill(client: NbdClient, offset: number, length: number, value: number): Promise<void> {
  const bytes = new Uint8Array(Math.min(length, 2 ** 20)).fill(value);
  for (let at = 0; at < length; at += bytes.length) {
    await client.write(offset + at, bytes.subarray(0, Math.min(bytes.length, length - at)), 0);
  }
}

export async function contentOf(client: NbdClient, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; at += 2 ** 20) {
    await client.read(offset + at, bytes.subarray(at, Math.min(length, at + 2 ** 20)));
  }
  return bytes;
}

/** Every byte of the range is `value`. */
export async function assertFilled(client: NbdClient, offset: number, length: number, value: number): Promise<void> {
  const bytes = await contentOf(client, offset, length);
  const wrong = bytes.findIndex((byte) => byte !== value);
  assert.equal(wrong, -1, `byte ${offset + wrong} is ${bytes[wrong]}, not ${value}`);
}

/** Fails with NBD's EIO. */
export function eio(promise: Promise<unknown>): Promise<void> {
  return assert.rejects(promise, { errno: 'EIO' });
}
