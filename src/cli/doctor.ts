/**
 * `blockstep doctor`: what this machine offers, tried and not guessed: a file is made in the data folder, used the way
 * disks are used, and removed. `limited`: all works, something is done in a lesser way, and the line says in which.
 * `failed`: nothing can be served here until that is mended.
 */
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import type { Host, HostFile } from '../host/host.ts';
import { loadSystemCalls } from '../host/system-calls.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { exitCodes } from './exit-codes.ts';
import { formatTable } from './table.ts';
import { reserveThreads } from './threads.ts';
import { formatSize } from './units.ts';

/** What one thing of the machine was found to be. */
export interface Finding {
  readonly check: string;
  readonly result: 'ok' | 'limited' | 'failed';
  /** what was found; if it is not ok, what follows from it */
  readonly found: string;
}

const nodeMajorMin = 24;
/** below this many bytes of free space the folder is called short of it */
const freeBytesMin = 256 * 1024 * 1024;
/** threads below which one hanging disk holds up the syncs of the others */
const threadsMin = 16;
const probeBytes = 1024 * 1024;
/** what O_DIRECT needs on any disk of today */
const directBytes = 4096;

/** @returns the exit code: 0 unless something failed, else 1 */
export async function doctor(host: Host, folder: string, options: { json: boolean }): Promise<number> {
  reserveThreads();
  const findings = [nodeVersion(), systemCalls(), threads(), ...(await examineFolder(host, folder)), nbdDevices()];
  process.stdout.write(`${options.json ? JSON.stringify(findings, null, 2) : formatFindings(findings)}\n`);
  return findings.some(({ result }) => result === 'failed') ? exitCodes.failure.code : exitCodes.ok.code;
}

export function formatFindings(findings: readonly Finding[]): string {
  return formatTable([
    ['CHECK', 'RESULT', 'FOUND'],
    ...findings.map(({ check, result, found }) => [check, result, found]),
  ]);
}

const finding = (check: string, fine: boolean, found: string, otherwise: string): Finding =>
  fine ? { check, result: 'ok', found } : { check, result: 'limited', found: otherwise };

function nodeVersion(): Finding {
  const { node } = process.versions;
  const result = Number.parseInt(node, 10) >= nodeMajorMin ? 'ok' : 'failed';
  return { check: 'Node', result, found: result === 'ok' ? node : `${node}; ${nodeMajorMin} or later is needed` };
}

function systemCalls(): Finding {
  return finding(
    'system calls',
    loadSystemCalls() !== null,
    `koffi for ${process.platform}-${process.arch}`,
    `koffi has no binary for ${process.platform}-${process.arch}: no holes are made or seen, no image is locked`,
  );
}

function threads(): Finding {
  const count = process.env.UV_THREADPOOL_SIZE ?? '';
  const few = `${count} (UV_THREADPOOL_SIZE): one disk that hangs may hold up the others; ${threadsMin} or more`;
  return finding('threads', Number(count) >= threadsMin, `${count} to wait for slow disks on`, few);
}

function nbdDevices(): Finding {
  const none = 'no /dev/nbd0 (modprobe nbd): a disk cannot be attached to the kernel here; other users need none';
  return finding('/dev/nbd', existsSync('/dev/nbd0'), 'there: nbd-client can attach disks', none);
}

// ---------------------------------------------------------------- the data folder

/** The folder, or where it would be made. */
function existing(folder: string): string {
  let at = resolve(folder);
  while (!existsSync(at) && dirname(at) !== at) at = dirname(at);
  return at;
}

async function examineFolder(host: Host, folder: string): Promise<Finding[]> {
  const at = existing(folder);
  const name = at === resolve(folder) ? at : `${at} (${folder} is not there yet)`;
  const path = join(at, `.blockstep-doctor-${randomUUID()}`);
  const findings: Finding[] = [];
  try {
    const file = await host.files.open(path, { access: 'write', create: 'exclusive' });
    try {
      await file.write(0, new Uint8Array(probeBytes).fill(1));
      await file.sync();
      await host.files.syncFolder(at);
      findings.push({ check: 'data folder', result: 'ok', found: `${name}: written and synced` });
      findings.push(await freeSpace(at), await holes(file), await zeroes(file), await locks(host, file));
    } finally {
      await file.close();
    }
    findings.push(await direct(host, path));
  } catch (thrown) {
    findings.push({ check: 'data folder', result: 'failed', found: toBlockError(thrown).message });
  } finally {
    await host.files.remove(path).catch(() => undefined);
  }
  return findings;
}

async function freeSpace(folder: string): Promise<Finding> {
  const { bavail, bsize } = await statfs(folder);
  const free = formatSize(bavail * bsize);
  return finding(
    'free space',
    bavail * bsize >= freeBytesMin,
    free,
    `${free}: writes to disks that grow will fail soon`,
  );
}

/** A hole must be made, and be seen. */
async function holes(file: HostFile): Promise<Finding> {
  const half = probeBytes / 2;
  const made = await file.punchHole(0, half);
  const seen = made && (await file.seekData(0)) === half;
  const why = made
    ? 'made, but not seen: copies read all of a disk'
    : 'none: zeroes are written, a discard frees nothing';
  return finding('holes', seen, 'made and seen: discard frees space, copies skip what is empty', why);
}

async function zeroes(file: HostFile): Promise<Finding> {
  const fast = await file.zeroRange(0, probeBytes);
  return finding('zeroing', fast, 'without writing (fallocate)', 'by writing zeroes, where no hole may be made');
}

async function locks(host: Host, file: HostFile): Promise<Finding> {
  const other = await host.files.open(file.path, { access: 'write' });
  try {
    const kept = file.locks?.exclude(0) === true && other.locks?.share(0) === false;
    const none = 'none: nothing keeps another program, or a second daemon, from the image';
    return finding('image locks', kept, 'kept between open files (OFD locks)', none);
  } finally {
    await other.close();
  }
}

async function direct(host: Host, path: string): Promise<Finding> {
  const check = 'direct I/O';
  try {
    const file = await host.files.open(path, { access: 'write', direct: true });
    try {
      await file.write(0, new Uint8Array(directBytes));
    } finally {
      await file.close();
    }
    return { check, result: 'ok', found: 'O_DIRECT: cache.direct=on is possible' };
  } catch (thrown) {
    const why = thrown instanceof BlockError ? thrown.message.replace(`open ${path}: `, '') : String(thrown);
    return { check, result: 'limited', found: `cache.direct=on is refused here: ${why}` };
  }
}
