/**
 * The commands by which a person decides: `failover`, `switch`, `resolve`, `start --alone`. Each finds the daemon that
 * it is for, lets it do the work, and says in a line or two what is so now.
 */
import type { Host } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import { type AnsweringDaemon, ask, askAll, askStatus, chooseDaemon, findDaemons, type Which } from './daemons.ts';
import { exitCodes } from './exit-codes.ts';
import { formatMoment } from './units.ts';

/** A failover waits for what is in flight; its own limits are the daemon's. */
const commandMsMax = 10 * 60_000;

/** Makes the secondary serve: the latest write, or the last checkpoint. */
export async function failover(
  host: Host,
  which: Which,
  options: { to?: 'latest' | 'checkpoint'; force: boolean },
): Promise<number> {
  const chosen = await chooseDaemon(host, which, 'is secondary', (status) => status.role === 'secondary');
  const before = chosen.status.latestAsOf;
  await ask(host, chosen.place, 'pair-failover', { ...options }, commandMsMax);
  await sayWhoServes(host, chosen);
  if (before !== null && before !== undefined) {
    const moment = typeof before === 'number' ? formatMoment(before) : String(before);
    say(`it has the latest write as of ${moment}; the old primary may have gone on alone after that`);
  }
  return exitCodes.ok.code;
}

/** Both sides change roles without losing a write: both have to be there and in sync. */
export async function switchRoles(host: Host, which: Which): Promise<number> {
  const chosen = await chooseDaemon(host, which, 'is secondary', (status) => status.role === 'secondary');
  await ask(host, chosen.place, 'pair-switch', {}, commandMsMax);
  await sayWhoServes(host, chosen);
  return exitCodes.ok.code;
}

/** After a split brain: the side whose data stays. */
export async function resolve(host: Host, which: Which, keep: string): Promise<number> {
  const answering = (await askAll(host, await findDaemons(which))).filter((one) => 'status' in one);
  const chosen = answering.find((one) => one.place.name === keep) ?? answering[0];
  if (chosen === undefined) throw new BlockError('connection-failed', 'no daemon answers');
  await ask(host, chosen.place, 'pair-resolve', { keep }, commandMsMax);
  say(`${keep} keeps its data; the other side gets a full compare with it`);
  return exitCodes.ok.code;
}

/** A primary that waits for the other side serves without it. */
export async function startAlone(host: Host, which: Which): Promise<number> {
  const chosen = await chooseDaemon(host, which, 'is primary', (status) => status.role === 'primary');
  await ask(host, chosen.place, 'pair-start', { alone: true }, commandMsMax);
  await sayWhoServes(host, chosen);
  return exitCodes.ok.code;
}

async function sayWhoServes(host: Host, { place }: AnsweringDaemon): Promise<void> {
  const now = await askStatus(host, place);
  if (!('status' in now)) throw now.error;
  const uris = (now.status.disks ?? []).flatMap((disk) => disk.uri ?? []);
  say(`${now.status.name} is ${now.status.role}: ${(uris.length > 0 ? uris : [now.status.uri]).join(' ')}`);
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
