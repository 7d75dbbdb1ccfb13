/**
 * The commands by which a person decides: `checkpoint`, `failover`, `switch`, `resolve`, `start --alone`. Each finds
 * the daemon that it is for, lets it do the work, and says in a line or two what is so now.
 */
import { z } from 'zod';
import type { Host } from '../host/host.ts';
import { check } from '../qmp/check.ts';
import { BlockError } from '../util/errors.ts';
import { type DaemonStatus, isServing } from './daemon-status.ts';
import {
  type AnsweringDaemon,
  ask,
  askAll,
  askStatus,
  chooseDaemon,
  type DaemonPlace,
  findDaemons,
  type Which,
} from './daemons.ts';
import { exitCodes } from './exit-codes.ts';
import { formatDuration } from './units.ts';

/** A checkpoint or a failover waits for what is in flight; its own limits are the daemon's. */
const commandMsMax = 10 * 60_000;

const answer = z.looseObject({ text: z.string() });

const isSecondary = (status: DaemonStatus): boolean => status.role === 'secondary';

/** Makes a checkpoint. The primary is asked if it is there; the other side knows how to ask it too. */
export async function checkpoint(host: Host, which: Which): Promise<number> {
  const answering = await askAnswering(host, which);
  const { place } = answering.find(({ status }) => status.role === 'primary') ?? answering[0];
  process.stdout.write(`${await order(host, place, 'pair-checkpoint', {})}\n`);
  return exitCodes.ok.code;
}

/** Makes one on the secondary, which makes no other one for so long: what is read there meanwhile is one moment. */
export async function holdCheckpoint(host: Host, which: Which, holdMs: number): Promise<number> {
  const { place, status } = await chooseDaemon(host, which, 'is secondary', isSecondary);
  const text = await order(host, place, 'pair-checkpoint', { holdMs });
  process.stdout.write(`${text}, held for ${formatDuration(holdMs)}\n`);
  for (const uri of status.uris) process.stdout.write(`${place.name} shows it read-only: ${uri}\n`);
  return exitCodes.ok.code;
}

/** Ends the hold. That this fails if it had ended before is what a backup's script learns from it. */
export async function releaseCheckpoint(host: Host, which: Which): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is secondary', isSecondary);
  process.stdout.write(`${await order(host, place, 'pair-checkpoint', { release: true })}\n`);
  return exitCodes.ok.code;
}

/** Makes the secondary serve: the latest write, or the last checkpoint. */
export async function failover(
  host: Host,
  which: Which,
  options: { to?: 'latest' | 'checkpoint'; force: boolean },
): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is secondary', isSecondary);
  return decide(host, place, 'pair-failover', { ...options });
}

/** Both sides change roles without losing a write: both have to be there and in sync. */
export async function switchRoles(host: Host, which: Which): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is secondary', isSecondary);
  return decide(host, place, 'pair-switch', {});
}

/** After a split brain: the side whose data stays. It may be told on either side, best on the one that is kept. */
export async function resolve(host: Host, which: Which, keep: string): Promise<number> {
  const answering = await askAnswering(host, which);
  const chosen = answering.find(({ place }) => place.name === keep) ?? answering[0];
  return decide(host, chosen.place, 'pair-resolve', { keep });
}

/** A primary that waits for the other side serves without it. */
export async function startAlone(host: Host, which: Which): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is primary', (status) => status.role === 'primary');
  return decide(host, place, 'pair-start', { alone: true });
}

/** Lets the daemon do it; prints what it says, and where the disk is served if it is. */
async function decide(
  host: Host,
  place: DaemonPlace,
  command: string,
  args: Readonly<Record<string, unknown>>,
): Promise<number> {
  const text = await order(host, place, command, args);
  const now = await askStatus(host, place);
  const serves = 'status' in now && isServing(now.status);
  process.stdout.write(`${text}\n${serves ? `${now.status.name} serves ${now.status.uris.join(' ')}\n` : ''}`);
  return exitCodes.ok.code;
}

/** What the daemon says when it has done it. */
async function order(
  host: Host,
  place: DaemonPlace,
  command: string,
  args: Readonly<Record<string, unknown>>,
): Promise<string> {
  return check(answer, await ask(host, place, command, args, commandMsMax), command).text;
}

/** The daemons meant that answer, at least one. */
async function askAnswering(host: Host, which: Which): Promise<[AnsweringDaemon, ...AnsweringDaemon[]]> {
  const all = await askAll(host, await findDaemons(which));
  const [first, ...more] = all.filter((one) => 'status' in one);
  if (first !== undefined) return [first, ...more];
  const said = all.flatMap((one) => ('error' in one ? [one.error.message] : []));
  throw new BlockError('connection-failed', `no daemon answers: ${said.join('; ')}`);
}
