import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run } from '../support/process.ts';
import { temporaryFolder } from '../support/temp.ts';
import { requireTools } from '../support/tools.ts';
import { emptyFile, ourServer } from './our-server.ts';

requireTools('fio');

for (const blocks of ['4k', '512-64k']) {
  test(`fio finds what it wrote, 32 in flight, blocks of ${blocks}`, async (t) => {
    const folder = await temporaryFolder(t);
    await emptyFile(`${folder}/disk`, 16 * 1024 * 1024);
    const { uri } = await ourServer(t, { file: `${folder}/disk` });
    const blockArgs = blocks.includes('-') ? [`--bsrange=${blocks}`, '--bs_unaligned=0'] : [`--bs=${blocks}`];
    const { code, stdout, stderr } = await run(
      'fio',
      [
        '--name=verify',
        '--ioengine=nbd',
        `--uri=${uri}`,
        '--rw=randwrite',
        ...blockArgs,
        '--iodepth=32',
        '--size=16m',
        '--randseed=4711',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--do_verify=1',
        '--fsync=64',
      ],
      { cwd: folder },
    );
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, /err= 0/);
    assert.match(stdout, /READ: bw=/, 'what was written was read again');
  });
}
