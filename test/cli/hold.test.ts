/** A backup of a running pair: the checkpoint is held, and who copies the secondary's URI copies one moment. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { createHost } from '../../src/host/index.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { parseNbdUri } from '../../src/nbd/uri.ts';
import { run } from '../support/process.ts';
import { requireTools } from '../support/tools.ts';
import { type Entry, TestPair } from './pair-support.ts';

requireTools('nbdcopy');

const blockBytes = 4096;
const blocks = 64;

/** Writes one block after the other, over and over, a number that counts up; a write is answered before the next. */
class Writer {
  readonly #client: NbdClient;
  /** writes that were begun, and that were answered */
  begun = 0;
  answered = 0;
  #over = false;
  #ended: Promise<void>;

  static async start(t: TestContext, uri: string): Promise<Writer> {
    const { address, exportName } = parseNbdUri(uri);
    const writer = new Writer(await NbdClient.connect(createHost(), { address, exportName }));
    // The daemons may be gone by then.
    t.after(() => writer.stop().catch(() => undefined));
    return writer;
  }

  private constructor(client: NbdClient) {
    this.#client = client;
    this.#ended = this.#write();
    this.#ended.catch(() => undefined);
  }

  async #write(): Promise<void> {
    const bytes = Buffer.alloc(blockBytes);
    while (!this.#over) {
      bytes.writeUInt32LE(this.begun + 1);
      const offset = (this.begun % blocks) * blockBytes;
      this.begun++;
      await this.#client.write(offset, bytes, 0);
      this.answered = this.begun;
      // Time passes, the test's own work too.
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Lets it write so many more. */
  async more(count: number): Promise<void> {
    for (const goal = this.answered + count; this.answered < goal; ) {
      await Promise.race([this.#ended, new Promise((resolve) => setTimeout(resolve, 10))]);
    }
  }

  async stop(): Promise<void> {
    this.#over = true;
    await this.#ended;
    await this.#client.close();
  }
}

/** How many writes a copy has: those up to that one, and no later one. */
function momentOf(copy: Buffer): number {
  const numbers = Array.from({ length: blocks }, (_, block) => copy.readUInt32LE(block * blockBytes));
  const last = Math.max(...numbers);
  for (const [block, number] of numbers.entries()) {
    const newest = last - ((((last - 1 - block) % blocks) + blocks) % blocks);
    assert.equal(number, Math.max(0, newest), `block ${block} of the moment after write ${last}`);
  }
  return last;
}

const uriOf = (entry: Entry): string => entry.uri ?? assert.fail(`no URI: ${JSON.stringify(entry)}`);

test('nbdcopy from the secondary copies the moment of the hold, while the disk is written and the clock runs', async (t) => {
  const pair = await TestPair.make(t);
  await pair.configure();
  for (const name of ['a', 'b']) {
    await pair.edit(name, 'size: 1GiB', 'size: 1MiB');
    await pair.edit(name, 'peer:\n', 'checkpoint: 50ms\npeer:\n');
  }
  await pair.run('b');
  await pair.run('a');
  const primary = await pair.until('a', 'in sync', (entry) => entry.inSync === true);
  const secondary = await pair.entry('b');
  const writer = await Writer.start(t, uriOf(primary));
  await writer.more(2 * blocks);

  const before = writer.answered;
  const held = await pair.command('checkpoint', '--hold', '10m');
  const after = writer.begun;
  assert.equal(held.code, 0, held.stderr);
  const [, number] = /^checkpoint (\d+), held for 10 min\n/.exec(held.stdout) ?? [];
  assert.match(held.stdout, new RegExp(`\\nb shows it read-only: ${uriOf(secondary)}\\n$`));

  const moments = new Set<number>();
  for (let copied = 0; copied < 3; copied++) {
    await writer.more(blocks);
    const file = join(pair.data, `copy${copied}.img`);
    const result = await run('nbdcopy', ['--requests=1', uriOf(secondary), file]);
    assert.equal(result.code, 0, result.stderr);
    moments.add(momentOf(await readFile(file)));
  }
  const [moment = 0, ...others] = moments;
  assert.deepEqual(others, []);
  assert.ok(before <= moment && moment <= after, `${before} <= ${moment} <= ${after}`);
  const { stdout } = await pair.command('status');
  assert.match(stdout, new RegExp(`\nb: checkpoint ${number} is held until .*, for 9 min more`));
  assert.match(stdout, new RegExp(`\na: checkpoint ${number} is held on b until .*, for 9 min more`));

  const released = await pair.command('checkpoint', '--release');
  assert.deepEqual([released.stdout, released.code], [`checkpoint ${number} was held until now\n`, 0], released.stderr);
  await pair.until('b', 'past it', ({ checkpoint }) => (checkpoint as { number: number }).number > Number(number));
  const again = await pair.command('checkpoint', '--release');
  assert.equal(again.code, 8);
  assert.match(again.stderr, /^blockstep: no checkpoint is held: what was read meanwhile may be of several moments\n$/);
});
