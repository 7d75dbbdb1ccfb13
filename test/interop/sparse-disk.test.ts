/** A disk of 1 TiB with 100 MiB in it: what clients ask and are answered is as much as the data, not as the disk. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { storageDaemon } from '../support/storage-daemon.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';

requireTools('nbdkit', 'nbdinfo', 'nbdcopy');
const mib = 2 ** 20;
const gib = 2 ** 30;
const tib = 2 ** 40;
const pieces = 10;
const pieceBytes = 10 * mib;

function sparseImage(path: string): void {
  const file = openSync(path, 'w');
  for (let i = 0; i < pieces; i += 1) {
    writeSync(file, new Uint8Array(pieceBytes).fill(i + 1), 0, pieceBytes, i * 100 * gib);
  }
  closeSync(file);
  truncateSync(path, tib);
}

/** What a client asked of an export: nbdkit stands between and writes it down, a line a request. */
async function asked(folder: string, uri: string, client: string) {
  const log = join(folder, 'log');
  const args = ['-U', '-', '--filter=log', 'nbd', `uri=${uri}`, `logfile=${log}`, '--run', client];
  const result = await run('nbdkit', args, { timeoutMs: 60_000 });
  assert.equal(result.code, 0, result.stderr);
  const lines = readFileSync(log, 'utf8').split('\n');
  // Requests are those with a count; the line of an answer has none.
  const counts = (name: string) =>
    lines.flatMap((line) => {
      const match = new RegExp(` ${name} id=\\d+ offset=0x[0-9a-f]+ count=0x([0-9a-f]+)`).exec(line);
      return match?.[1] === undefined ? [] : [Number.parseInt(match[1], 16)];
    });
  return { stdout: result.stdout, extents: counts('Extents').length, reads: counts('Read') };
}

test('through file, raw and export, through a quorum that votes, and through the quorum of a pair', async (t) => {
  const folder = await temporaryFolder(t);
  for (const name of ['plain', 'voted', 'paired']) sparseImage(join(folder, name));
  const file = (name: string) => `driver=raw,node-name=${name},file.driver=file,file.filename=${join(folder, name)}`;
  const storage = await storageDaemon(t, {
    blockdevs: [
      file('plain'),
      file('voted'),
      file('paired'),
      `null-co,node-name=zeroes,size=${tib},read-zeroes=on`,
      'driver=quorum,node-name=vote,vote-threshold=1,children.0=voted,children.1=zeroes',
      JSON.stringify({
        driver: 'replication',
        'node-name': 'r',
        mode: 'primary',
        file: null,
        size: tib,
        'on-link-down': 'hold',
      }),
      'driver=quorum,node-name=pair,vote-threshold=1,read-pattern=fifo,children.0=paired,children.1=r',
    ],
    exports: ['plain', 'vote', 'pair'].map((name) => `type=nbd,id=${name},node-name=${name},name=${name},writable=on`),
  });
  for (const name of ['plain', 'vote', 'pair']) {
    const map = await asked(folder, storage.uri(name), 'nbdinfo --map --totals --json $uri');
    const totals = JSON.parse(map.stdout) as { size: number; type: number }[];
    const data = totals.filter(({ type }) => (type & 2) === 0).reduce((sum, { size }) => sum + size, 0);
    assert.equal(data, pieces * pieceBytes, name);
    // A request of NBD reaches 4 GiB, and a piece ends an answer once more at most.
    assert.ok(map.extents <= tib / (4 * gib) + 2 * pieces + 2, `${name}: ${map.extents} requests for the map`);
  }
  const copy = await asked(folder, storage.uri('pair'), 'nbdcopy --connections=1 $uri null:');
  const read = copy.reads.reduce((sum, count) => sum + count, 0);
  assert.equal(read, pieces * pieceBytes, 'only the data is read');
  // nbdcopy works in pieces of 128 MiB.
  assert.ok(copy.extents <= tib / (128 * mib) + 2 * pieces, `${copy.extents} requests for the map`);
});
