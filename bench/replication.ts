/**
 * Replication beside two real QEMUs (`rigs.ts`), in alternating rounds, each with new daemons:
 * - 4k random writes, 32 at a time, with a checkpoint after each second: by nbd_load, beside which the daemons have the
 *   machine to themselves, and by fio, which takes part of it;
 * - the time of a checkpoint with much and with little held in the hidden overlay;
 * - a failover with data in the hidden overlay, from the command to the answer of the first write to the view.
 *
 * Both keep their overlays as QEMU's documents advise, in memory, without syncs. The ratio is that of the medians.
 */
import { randomFillSync } from 'node:crypto';
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs';
import { createHost } from '../src/host/index.ts';
import type { NbdClient } from '../src/nbd/client.ts';
import { compileCheapLoad, runCheap, runFio } from './loads.ts';
import { blockstepRig, qemuRig, Rig, type RigKind } from './rigs.ts';

const mebi = 1024 * 1024;
const checkpointEveryMs = 1000;
/** bytes: of the disk, and in the hidden overlay at the two checkpoints and at the failover */
interface Sizes {
  readonly disk: number;
  readonly large: number;
  readonly small: number;
  readonly failover: number;
}

const realSizes: Sizes = { disk: 1024 * mebi, large: 512 * mebi, small: mebi, failover: 128 * mebi };
const tinySizes: Sizes = { disk: 32 * mebi, large: 16 * mebi, small: mebi, failover: 4 * mebi };
/** checkpoints of each size in a round */
const checkpointsOfRound = 3;
/** seconds of writes that are not counted: until code is compiled, and files have grown to what a second needs */
const warmSeconds = 4;
/** ms; ours, the large one */
const checkpointMsMax = 3;

export interface ReplicationOptions {
  readonly rounds: number;
  /** of the random writes, a round */
  readonly seconds: number;
  /** makes everything small: shows that it runs, measures nothing */
  readonly tiny: boolean;
}

/** What the rounds of one kind gave; times in milliseconds. */
interface Series {
  readonly iops: number[];
  readonly fioIops: number[];
  /** with checkpoints in the middle of the writes: ours alone */
  readonly unstoppedIops: number[];
  /** of the checkpoints between the random writes */
  readonly loadedCheckpoint: number[];
  readonly largeCheckpoint: number[];
  readonly smallCheckpoint: number[];
  readonly failover: number[];
}

const emptySeries = (): Series => ({
  iops: [],
  fioIops: [],
  unstoppedIops: [],
  loadedCheckpoint: [],
  largeCheckpoint: [],
  smallCheckpoint: [],
  failover: [],
});

export interface ReplicationResult {
  readonly markdown: string;
  readonly met: boolean;
}

/** @param folder on a memory file system, with room for five disks of a GiB */
export async function replicationBench(folder: string, options: ReplicationOptions): Promise<ReplicationResult> {
  const program = await compileCheapLoad(folder);
  const qemu = emptySeries();
  const ours = emptySeries();
  const both = [
    [qemuRig, qemu],
    [blockstepRig, ours],
  ] as const;
  for (let round = 0; round < options.rounds; round += 1) {
    for (const [kind, series] of round % 2 === 0 ? both : both.toReversed()) {
      await measureRound(folder, kind, series, program, options);
      const { iops, fioIops, largeCheckpoint, smallCheckpoint, failover } = series;
      const last = (values: readonly number[]): string => (values.at(-1) ?? Number.NaN).toFixed(2);
      const checkpoints = `checkpoint ${last(largeCheckpoint)} and ${last(smallCheckpoint)} ms`;
      const times = `${checkpoints}, failover ${last(failover)} ms`;
      const writes = `${Math.round(iops.at(-1) ?? 0)} IOPS (fio ${Math.round(fioIops.at(-1) ?? 0)})`;
      process.stderr.write(`round ${round + 1}  ${kind.name}  ${writes}, ${times}\n`);
    }
  }
  return report(qemu, ours, options.tiny ? tinySizes : realSizes);
}

async function measureRound(
  parent: string,
  kind: RigKind,
  series: Series,
  program: string,
  options: ReplicationOptions,
): Promise<void> {
  const sizes = options.tiny ? tinySizes : realSizes;
  const folder = `${parent}/${kind.name}`;
  mkdirSync(folder);
  try {
    const length = sizes.disk;
    fillDisks([`${folder}/primary.raw`, `${folder}/secondary.raw`], length);
    const rig = await Rig.start(createHost(), kind, folder, length);
    try {
      await writesUnderCheckpoints(rig, series, program, options.seconds, length);
      if (kind === blockstepRig) await writesThroughCheckpoints(rig, series, options.seconds, length);
      const user = await rig.user();
      for (let count = 0; count < checkpointsOfRound; count += 1) {
        series.largeCheckpoint.push(await checkpointWith(rig, user, sizes.large));
        series.smallCheckpoint.push(await checkpointWith(rig, user, sizes.small));
      }
      await fill(user, sizes.failover);
      await rig.checkForwarded();
      await user.close();
      series.failover.push(await timeFailover(rig));
    } finally {
      await rig.stop();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Equal disks without holes. */
function fillDisks(paths: readonly string[], length: number): void {
  const block = randomFillSync(new Uint8Array(16 * mebi));
  for (const path of paths) {
    const file = openSync(path, 'w');
    for (let at = 0; at < length; at += block.length) writeSync(file, block, 0, block.length, at);
    closeSync(file);
  }
}

/** A second of writes; all of them are answered when it ends. */
type SecondOfWrites = () => Promise<{ readonly iops: number; readonly count: number }>;

/**
 * A second of writes, then a checkpoint, again and again; what is counted is writes by the time of both. QEMU wants its
 * writers stopped around a checkpoint (COLO stops the whole machine), and ends itself with "First cluster in emptied
 * image is in use" where a copy to the hidden overlay is under way; so they are stopped for both.
 */
async function writesUnderCheckpoints(
  rig: Rig,
  series: Series,
  program: string,
  seconds: number,
  length: number,
): Promise<void> {
  const cheap: SecondOfWrites = () => runCheap(program, { way: 'write', socket: rig.socket, seconds: 1, pid: null });
  const fio: SecondOfWrites = () => runFio({ way: 'randwrite', socket: rig.socket, seconds: 1, bytes: length });
  await writesAndCheckpoints(rig, cheap, warmSeconds);
  for (const [writes, iops] of [
    [cheap, series.iops],
    [fio, series.fioIops],
  ] as const) {
    const run = await writesAndCheckpoints(rig, writes, seconds);
    iops.push((run.count / run.spentMs) * 1000);
    series.loadedCheckpoint.push(...run.checkpointMs);
  }
  await rig.checkForwarded();
}

async function writesAndCheckpoints(
  rig: Rig,
  writes: SecondOfWrites,
  seconds: number,
): Promise<{ count: number; spentMs: number; checkpointMs: number[] }> {
  const run = { count: 0, spentMs: 0, checkpointMs: [] as number[] };
  for (let second = 0; second < seconds; second += 1) {
    const { count, iops } = await writes();
    const checkpointMs = await timed(() => rig.checkpoint());
    run.checkpointMs.push(checkpointMs);
    run.count += count;
    run.spentMs += (count / iops) * 1000 + checkpointMs;
  }
  return run;
}

/** The writers are not stopped: only ours can do that. */
async function writesThroughCheckpoints(rig: Rig, series: Series, seconds: number, length: number): Promise<void> {
  let failure: unknown = null;
  const checkpoints = setInterval(() => {
    rig.checkpoint().catch((error: unknown) => {
      failure = error;
    });
  }, checkpointEveryMs);
  try {
    const { iops } = await runFio({ way: 'randwrite', socket: rig.socket, seconds, bytes: length });
    series.unstoppedIops.push(iops);
  } finally {
    clearInterval(checkpoints);
  }
  if (failure !== null) throw failure;
  await rig.checkForwarded();
  await rig.checkpoint();
}

async function checkpointWith(rig: Rig, user: NbdClient, hiddenBytes: number): Promise<number> {
  await fill(user, hiddenBytes);
  return await timed(() => rig.checkpoint());
}

/** Writes the start of the disk: the old content of all of it is in the hidden overlay then. */
async function fill(user: NbdClient, bytes: number): Promise<void> {
  const data = randomFillSync(new Uint8Array(mebi));
  for (let at = 0; at < bytes; at += data.length) await user.write(at, data, 0);
}

async function timeFailover(rig: Rig): Promise<number> {
  const view = await rig.view();
  await rig.losePrimary();
  const data = randomFillSync(new Uint8Array(4096));
  const ms = await timed(async () => {
    await rig.failover();
    await view.write(0, data, 0);
  });
  await view.close();
  return ms;
}

async function timed(call: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await call();
  return performance.now() - start;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

function report(qemu: Series, ours: Series, sizes: Sizes): ReplicationResult {
  const milliseconds = (value: number): string => `${value.toFixed(2)} ms`;
  const rows: string[] = [];
  let met = true;
  const row = (name: string, text: (value: number) => string, of: keyof Series, ratioMin: number | null): void => {
    const [theirs, mine] = [median(qemu[of]), median(ours[of])];
    const ratio = of === 'iops' || of === 'fioIops' ? mine / theirs : theirs / mine;
    if (ratioMin !== null && !(ratio >= ratioMin)) met = false;
    const verdict = ratioMin === null ? '' : `${ratioMin}x ${ratio >= ratioMin ? 'met' : '**missed**'}`;
    rows.push(`| ${[name, text(theirs), text(mine), `**${ratio.toFixed(1)}**`, verdict].join(' | ')} |`);
  };
  const perSecond = (value: number): string => `${Math.round(value)} IOPS`;
  row('replicated randwrite 4k qd32 (nbd_load), a checkpoint after each second', perSecond, 'iops', 4);
  row('the same by fio', perSecond, 'fioIops', 4);
  row('checkpoint after such a second', milliseconds, 'loadedCheckpoint', null);
  row(`checkpoint, ${sizes.large / mebi} MiB in hidden`, milliseconds, 'largeCheckpoint', 40);
  row(`checkpoint, ${sizes.small / mebi} MiB in hidden`, milliseconds, 'smallCheckpoint', null);
  row(`failover, ${sizes.failover / mebi} MiB in hidden, to the first write`, milliseconds, 'failover', 3);
  const [large, small] = [median(ours.largeCheckpoint), median(ours.smallCheckpoint)];
  const quick = large <= checkpointMsMax;
  const mib = (bytes: number): string => `${bytes / mebi} MiB`;
  const compared = `ours with ${mib(sizes.large)} in hidden takes ${(large / small).toFixed(2)} times what it takes`;
  const verdict = `at most ${checkpointMsMax} ms: ${quick ? 'met' : '**missed**'}`;
  return {
    met: met && quick,
    markdown: [
      '| replication | QEMU | blockstep | ratio | target |',
      '|---|---|---|---|---|',
      ...rows,
      '',
      `Checkpoint: ${compared} with ${mib(sizes.small)}; ${verdict}.`,
      `Ours with the writers (fio) not stopped for a checkpoint: ${Math.round(median(ours.unstoppedIops))} IOPS.`,
    ].join('\n'),
  };
}
