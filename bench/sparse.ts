/**
 * Copies of a half-empty disk beside qemu-nbd, in alternating rounds: nbdcopy from an export to a file, and from a file
 * to an export. Server on CPU 1, nbdcopy on CPU 0, all files on a memory file system. The ratio is the median of the
 * rounds' ratios; above 1, ours is quicker.
 */
import { execFile } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, openSync, rmSync, statSync, truncateSync, writeSync } from 'node:fs';
import { promisify } from 'node:util';
import { ours, qemuNbd, RunningServer, type ServerKind } from './servers.ts';

const run = promisify(execFile);
const mebi = 1024 * 1024;
/** what a ratio must reach */
const ratioMin = 1;

export interface SparseOptions {
  readonly rounds: number;
  readonly nodeArgs: readonly string[];
  /** makes everything small: shows that it runs, measures nothing */
  readonly tiny: boolean;
}

/** A disk of data and holes in turn, each a piece long, data first. */
interface Layout {
  readonly diskBytes: number;
  readonly pieceBytes: number;
}

const real: Layout = { diskBytes: 2048 * mebi, pieceBytes: 64 * mebi };
const tiny: Layout = { diskBytes: 64 * mebi, pieceBytes: 4 * mebi };

interface Row {
  readonly name: string;
  readonly copy: (server: RunningServer, file: string) => Promise<void>;
  readonly qemuMs: number[];
  readonly oursMs: number[];
}

function halfEmpty(path: string, { diskBytes, pieceBytes }: Layout): void {
  const piece = randomFillSync(new Uint8Array(pieceBytes));
  const file = openSync(path, 'w');
  for (let at = 0; at < diskBytes; at += 2 * pieceBytes) writeSync(file, piece, 0, pieceBytes, at);
  closeSync(file);
  truncateSync(path, diskBytes);
}

const nbdcopy = async (from: string, to: string): Promise<void> => {
  await run('taskset', ['-c', '0', 'nbdcopy', from, to]);
};

const uriOf = ({ socket }: RunningServer): string => `nbd+unix:///disk?socket=${socket}`;

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

const ratioOf = ({ qemuMs, oursMs }: Row): number => median(oursMs.map((ms, round) => (qemuMs[round] ?? 0) / ms));

/** @returns a table, and whether every ratio was reached */
export async function sparseBench(folder: string, options: SparseOptions): Promise<{ markdown: string; met: boolean }> {
  const layout = options.tiny ? tiny : real;
  const source = `${folder}/source.raw`;
  halfEmpty(source, layout);
  const rows: Row[] = [
    { name: 'from an export to a file', copy: copyFrom, qemuMs: [], oursMs: [] },
    { name: 'from a file to an export', copy: (server, file) => copyTo(server, file, source), qemuMs: [], oursMs: [] },
  ];
  const [qemu, blockstep] = unmapping(options.nodeArgs);
  // The round before the first is not counted: code is not compiled yet.
  for (let round = -1; round < options.rounds; round += 1) {
    for (const row of rows) {
      const kinds = [qemu, blockstep];
      for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
        const ms = await timed(folder, kind, layout, row);
        if (round >= 0) (kind === qemu ? row.qemuMs : row.oursMs).push(ms);
        process.stderr.write(`round ${round + 1}  ${row.name}  ${kind.name}  ${Math.round(ms)} ms\n`);
      }
    }
  }
  return { markdown: table(rows, layout), met: rows.every((row) => ratioOf(row) >= ratioMin) };
}

/** The servers, allowed to make holes. */
function unmapping(nodeArgs: readonly string[]): [ServerKind, ServerKind] {
  const blockstep = ours(nodeArgs);
  const unmap = (option: string) => option.replace(/^driver=\w+,/, '$&discard=unmap,');
  return [
    { ...qemuNbd, args: (...where) => ['--discard=unmap', ...qemuNbd.args(...where)] },
    { ...blockstep, args: (...where) => blockstep.args(...where).map(unmap) },
  ];
}

/** A server of its own for each copy, so that none of them finds pages or tables that another one made. */
async function timed(folder: string, kind: ServerKind, layout: Layout, { copy }: Row): Promise<number> {
  const file = `${folder}/disk.raw`;
  halfEmpty(file, layout);
  const server = await RunningServer.start(kind, file, `${folder}/disk.sock`);
  try {
    const began = performance.now();
    await copy(server, file);
    return performance.now() - began;
  } finally {
    await server.stop();
    rmSync(file);
  }
}

async function copyFrom(server: RunningServer, file: string): Promise<void> {
  const copy = `${file}.copy`;
  try {
    await nbdcopy(uriOf(server), copy);
    checkHoles(copy);
  } finally {
    rmSync(copy, { force: true });
  }
}

async function copyTo(server: RunningServer, file: string, source: string): Promise<void> {
  await nbdcopy(source, uriOf(server));
  checkHoles(file);
}

/** A copy that is quick because it wrote nothing, or slow because it wrote holes, is no sparse copy. */
function checkHoles(path: string): void {
  const { blocks, size } = statSync(path);
  const part = (blocks * 512) / size;
  if (part < 0.45 || part > 0.55) throw new Error(`${path}: ${Math.round(part * 100)} % is data, half was expected`);
}

function table(rows: readonly Row[], { diskBytes }: Layout): string {
  const lines = rows.map((row) => {
    const ratio = ratioOf(row);
    const cells = [
      `nbdcopy, ${diskBytes / mebi} MiB half empty, ${row.name}`,
      `${(median(row.qemuMs) / 1000).toFixed(2)} s`,
      `${(median(row.oursMs) / 1000).toFixed(2)} s`,
      `**${ratio.toFixed(2)}**`,
      `${ratioMin}x ${ratio >= ratioMin ? 'met' : '**missed**'}`,
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return ['| copy | qemu-nbd | blockstep | ratio | target |', '|---|---|---|---|---|', ...lines].join('\n');
}
