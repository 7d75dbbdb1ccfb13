import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { emptyFile, ourServer } from './our-server.ts';

const size = 8 * 1024 * 1024;
const script = new URL('./libnbd-uses-every-command.py', import.meta.url).pathname;
// Debian's own Python has the module; another one that stands before it in PATH has not.
const python = '/usr/bin/python3';

requireTools('python3');

for (const structured of [true, false]) {
  for (const backend of ['memory', 'file']) {
    test(`libnbd: every command and error, ${structured ? 'structured' : 'simple'}, ${backend}`, async (t) => {
      const path = `${await temporaryFolder(t)}/disk`;
      await emptyFile(path, size);
      const { socket } = await ourServer(t, backend === 'file' ? { file: path } : { memory: size }, { ordered: true });
      const result = await run(python, [script, socket, structured ? '1' : '0']);
      assert.equal(result.stderr, '');
      assert.equal(result.stdout.trim(), 'good');
    });
  }
}
