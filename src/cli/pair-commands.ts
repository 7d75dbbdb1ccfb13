/**
 * The commands by which a person decides: `failover`, `switch`, `resolve`, `start --alone`. Each finds the daemon that
 * it is for, lets it do the work, and says in a line or two what is so now.
 */
import { z } from 'zod';
import type { Host } from '../host/host.ts';
import { check } from '../qmp/check.ts';
import { BlockError } from '../util/errors.ts';
import type { DaemonStatus } from './daemon-status.ts';
import { ask, askAll, askStatus, chooseDaemon, type DaemonPlace, findDaemons, type Which } from './daemons.ts';
import { exitCodes } from './exit-codes.ts';

/** A failover waits for what is in flight; its own limits are the daemon's. */
const commandMsMax = 10 * 60_000;

const answer = z.looseObject({ text: z.string() });

const isSecondary = (status: DaemonStatus): boolean => status.role === 'secondary';

/** Makes the secondary serve: the latest write, or the last checkpoint. */
export async function failover(
  host: Host,
  which: Which,
  options: { to?: 'latest' | 'checkpoint'; force: boolean },
): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is secondary', isSecondary);
  return order(host, place, 'pair-failover', { ...options });
}

/** Both sides change roles without losing a write: both have to be there and in sync. */
export async function switchRoles(host: Host, which: Which): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is secondary', isSecondary);
  return order(host, place, 'pair-switch', {});
}

/** After a split brain: the side whose data stays. It may be told on either side, best on the one that is kept. */
export async function resolve(host: Host, which: Which, keep: string): Promise<number> {
  const answering = (await askAll(host, await findDaemons(which))).filter((one) => 'status' in one);
  const chosen = answering.find((one) => one.place.name === keep) ?? answering[0];
  if (chosen === undefined) throw new BlockError('connection-failed', 'no daemon answers');
  return order(host, chosen.place, 'pair-resolve', { keep });
}

/** A primary that waits for the other side serves without it. */
export async function startAlone(host: Host, which: Which): Promise<number> {
  const { place } = await chooseDaemon(host, which, 'is primary', (status) => status.role === 'primary');
  return order(host, place, 'pair-start', { alone: true });
}

/** Lets the daemon do it; says what it says, and where the disk is served if it is. */
async function order(
  host: Host,
  place: DaemonPlace,
  command: string,
  args: Readonly<Record<string, unknown>>,
): Promise<number> {
  const { text } = check(answer, await ask(host, place, command, args, commandMsMax), command);
  const now = await askStatus(host, place);
  const serves =
    'status' in now && now.status.serving ? `\n${now.status.name} serves ${now.status.uris.join(' ')}` : '';
  process.stdout.write(`${text}${serves}\n`);
  return exitCodes.ok.code;
}
