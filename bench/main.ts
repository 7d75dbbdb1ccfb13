/**
 * `npm run bench`: our NBD server beside qemu-nbd, copies of sparse disks beside it (`sparse.ts`), emptied overlays
 * (`checkpoint.ts`), then replication beside two QEMUs (`replication.ts`), in one session, in alternating rounds, as
 * ratios.
 *
 * Server on CPU 1, client on CPU 0; each server has a file of 1 GiB without holes on a memory file system, so that no
 * disk is measured. The ratio is the median of the rounds' ratios: a round's two runs see the same machine.
 *
 *   npm run bench -- [nbd] [sparse] [checkpoint] [replication] [--rounds 3] [--seconds 3] [--only TEXT]
 *                  [--node-arg ARG ...] [--tiny] [--check]
 *
 * Without a name all are measured. `--tiny` shows that all but nbd run, and measures nothing; `--check` ends
 * with exit code 1 if a ratio is below its target.
 */
import { randomFillSync } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { checkpointBench } from './checkpoint.ts';
import { cheapLoad, compileCheapLoad, fileBytes, fioLoad, type Load, type Measured } from './loads.ts';
import { replicationBench } from './replication.ts';
import { ours, qemuNbd, RunningServer } from './servers.ts';
import { sparseBench } from './sparse.ts';

const sections = ['nbd', 'sparse', 'checkpoint', 'replication'];
const { values: asked, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '3' },
    only: { type: 'string', default: '' },
    'node-arg': { type: 'string', multiple: true, default: [] },
    check: { type: 'boolean', default: false },
    tiny: { type: 'boolean', default: false },
  },
});

/** What one load gave, a measurement a round. */
interface Result {
  readonly load: Load;
  readonly qemu: Measured[];
  readonly ours: Measured[];
}

function fill(path: string): void {
  const block = randomFillSync(new Uint8Array(16 * 1024 * 1024));
  const file = openSync(path, 'w');
  for (let at = 0; at < fileBytes; at += block.length) writeSync(file, block, 0, block.length, at);
  closeSync(file);
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

const ratioOf = ({ qemu, ours }: Result) => median(ours.map(({ iops }, round) => iops / (qemu[round]?.iops ?? 0)));

async function measure(loads: readonly Load[], servers: readonly [RunningServer, RunningServer]): Promise<Result[]> {
  const [qemu, blockstep] = servers;
  const results = loads.map((load): Result => ({ load, qemu: [], ours: [] }));
  // Not counted: code that is not compiled yet, files that no CPU cache has seen.
  for (const load of loads) for (const server of servers) await load.run(server, 1);
  for (let round = 0; round < Number(asked.rounds); round += 1) {
    for (const result of results) {
      const order = round % 2 === 0 ? [qemu, blockstep] : [blockstep, qemu];
      for (const server of order) {
        const measured = await result.load.run(server, Number(asked.seconds));
        (server === qemu ? result.qemu : result.ours).push(measured);
        const line = `round ${round + 1}  ${result.load.name}  ${server.kind.name}  ${Math.round(measured.iops)} IOPS`;
        process.stderr.write(`${line}  ${measured.cpuMicros.toFixed(2)} us CPU/op\n`);
      }
    }
  }
  return results;
}

function table(results: readonly Result[]): string {
  const thousands = (all: readonly Measured[]) => `${(median(all.map(({ iops }) => iops)) / 1000).toFixed(1)}k`;
  const micros = (all: readonly Measured[]) => median(all.map(({ cpuMicros }) => cpuMicros)).toFixed(1);
  const rows = results.map((result) => {
    const { load, qemu, ours } = result;
    const ratio = ratioOf(result);
    const verdict = `${load.ratioMin}x ${ratio >= load.ratioMin ? 'met' : '**missed**'}`;
    const cells = [
      load.name,
      thousands(qemu),
      thousands(ours),
      `**${ratio.toFixed(2)}**`,
      verdict,
      micros(qemu),
      micros(ours),
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return [
    '| load | qemu-nbd IOPS | blockstep IOPS | ratio | target | qemu-nbd CPU us/op | blockstep CPU us/op |',
    '|---|---|---|---|---|---|---|',
    ...rows,
  ].join('\n');
}

async function replicated(folder: string): Promise<boolean> {
  const options = { rounds: Number(asked.rounds), seconds: Number(asked.seconds), tiny: asked.tiny };
  const { markdown, met } = await replicationBench(folder, options);
  process.stdout.write(`${markdown}\n`);
  return met;
}

async function sparse(folder: string): Promise<boolean> {
  const options = { rounds: Number(asked.rounds), nodeArgs: asked['node-arg'], tiny: asked.tiny };
  const { markdown, met } = await sparseBench(folder, options);
  process.stdout.write(`${markdown}\n`);
  return met;
}

async function bench(folder: string): Promise<boolean> {
  const program = await compileCheapLoad(folder);
  const loads = [
    fioLoad('randread', 2),
    fioLoad('randwrite', 2),
    cheapLoad(program, 'read', 4),
    cheapLoad(program, 'write', 3.5),
  ].filter(({ name }) => name.includes(asked.only));
  for (const name of ['qemu', 'ours']) fill(`${folder}/${name}.raw`);
  const qemu = await RunningServer.start(qemuNbd, `${folder}/qemu.raw`, `${folder}/qemu.sock`);
  let results: Result[];
  try {
    const kind = ours(asked['node-arg']);
    const blockstep = await RunningServer.start(kind, `${folder}/ours.raw`, `${folder}/ours.sock`);
    try {
      results = await measure(loads, [qemu, blockstep]);
    } finally {
      await blockstep.stop();
    }
  } finally {
    await qemu.stop();
  }
  process.stdout.write(`${table(results)}\n`);
  return results.every((result) => ratioOf(result) >= result.load.ratioMin);
}

const folder = mkdtempSync('/dev/shm/blockstep-bench-');
const cleanUp = () => rmSync(folder, { recursive: true, force: true });
process.on('exit', cleanUp);
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));
const stranger = positionals.find((name) => !sections.includes(name));
if (stranger !== undefined) throw new Error(`there is no section "${stranger}": ${sections.join(' or ')}`);
const wanted = (name: string): boolean => positionals.length === 0 || positionals.includes(name);
let met = true;
if (wanted('nbd') && !(await bench(folder))) met = false;
if (wanted('sparse') && !(await sparse(folder))) met = false;
if (wanted('checkpoint') && !(await checkpointBench(folder, asked.tiny))) met = false;
if (wanted('replication') && !(await replicated(folder))) met = false;
process.exitCode = asked.check && !met ? 1 : 0;
