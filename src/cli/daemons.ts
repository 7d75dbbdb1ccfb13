/**
 * Finding the daemons that a command is about, and asking them over their control sockets.
 *
 * A daemon is found by its configuration file (`-c FILE`), or by a folder (`-d DIR`) that holds the configuration files
 * of a pair (the demo's), or is itself the data folder of one daemon. Where neither is said, it is the folder `./data`,
 * and if there is none, the file `./blockstep.yaml`.
 */
import { existsSync } from 'node:fs';
import { readdir, realpath } from 'node:fs/promises';
import { join, relative } from 'node:path';
import type { Host } from '../host/host.ts';
import { QmpClient } from '../qmp/client.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import { readConfig } from './config.ts';
import { type DaemonStatus, readStatus } from './daemon-status.ts';
import { controlSocket, folderIsHeld, readHolder } from './data-folder.ts';

/** Longer than the slowest answer of a daemon that is well. */
const statusMsMax = 5000;
/** Where daemons are looked for if nothing is said. */
const defaultFolder = 'data';
const defaultConfig = 'blockstep.yaml';

export interface Which {
  readonly data?: string;
  readonly config?: string;
  readonly name?: string;
}

/** Where a daemon is, whether it runs or not. */
export interface DaemonPlace {
  readonly name: string;
  readonly dataFolder: string;
  /** its configuration file, where that is known */
  readonly configFile: string | null;
  /** both sides run machines that are checkpointed too, as its configuration says; null: not known */
  readonly lockStep: boolean | null;
}

/** One that answers, and what it said. */
export interface AnsweringDaemon {
  readonly place: DaemonPlace;
  readonly status: DaemonStatus;
}

export interface SilentDaemon {
  readonly place: DaemonPlace;
  readonly error: BlockError;
}

/** The daemons meant, at least one. Rejects with one line that says what to do. */
export async function findDaemons(which: Which): Promise<DaemonPlace[]> {
  const found = await placesOf(which);
  if (found.length === 0) {
    const where = which.data ?? `${defaultFolder}, and there is no ${defaultConfig} here`;
    const how = 'say -c FILE, the configuration of one, or -d DIR, a folder of them (`npm start` makes a pair to try)';
    throw new BlockError('connection-failed', `no daemon has its data in ${where}; ${how}`);
  }
  const chosen = found.filter((place) => which.name === undefined || place.name === which.name);
  if (chosen.length === 0) {
    const names = found.map((place) => place.name).join(' and ');
    throw new BlockError('invalid-option', `there is no daemon named ${which.name}, only ${names}`);
  }
  return onceEach(chosen);
}

/** A data folder has one daemon, however many configuration files there are of it: copies, earlier ones. */
async function onceEach(places: readonly DaemonPlace[]): Promise<DaemonPlace[]> {
  const folders = await Promise.all(places.map(({ dataFolder }) => realpath(dataFolder).catch(() => dataFolder)));
  return places.filter((_, index) => folders.indexOf(folders[index] ?? '') === index);
}

async function placesOf({ config, data }: Which): Promise<DaemonPlace[]> {
  if (config !== undefined) return [await ofConfig(config)];
  const found = await inFolder(data ?? defaultFolder);
  const own = found.length === 0 && data === undefined && existsSync(defaultConfig);
  return own ? [await ofConfig(defaultConfig)] : found;
}

async function ofConfig(file: string): Promise<DaemonPlace> {
  const { name, dataFolder, mode } = await readConfig(file, { insecure: true });
  return { name, dataFolder, configFile: file, lockStep: mode === 'lock-step' };
}

async function inFolder(folder: string): Promise<DaemonPlace[]> {
  const names: string[] = await readdir(folder).catch(() => []);
  const configs = names.filter((name) => name.endsWith('.yaml')).sort((a, b) => (a < b ? -1 : 1));
  if (configs.length > 0) return Promise.all(configs.map((name) => ofConfig(join(folder, name))));
  const holder = await readHolder(folder);
  return holder === null ? [] : [{ name: holder.name, dataFolder: folder, configFile: null, lockStep: null }];
}

/** Connects to a daemon. Rejects with one line that says whether it runs. */
export async function connect(host: Host, place: DaemonPlace, connectMs = statusMsMax): Promise<QmpClient> {
  try {
    return await QmpClient.connect(host, controlSocket(place.dataFolder), { connectMs });
  } catch (thrown) {
    const error = toBlockError(thrown);
    if (!(await folderIsHeld(host, place.dataFolder))) {
      const how = place.configFile === null ? '' : `; start it: npx blockstep run -c ${shortPath(place.configFile)}`;
      throw new BlockError('connection-failed', `${place.name} is not running${how}`, { cause: error });
    }
    const holder = await readHolder(place.dataFolder);
    const who = holder === null ? place.name : `${place.name} (process ${holder.pid})`;
    throw new BlockError(error.code, `${who} does not answer: ${error.message}`, { errno: error.errno, cause: error });
  }
}

/** One command to one daemon. */
export async function ask(
  host: Host,
  place: DaemonPlace,
  command: string,
  args: Readonly<Record<string, unknown>>,
  commandMs: number,
): Promise<unknown> {
  const client = await connect(host, place);
  try {
    return await client.execute(command, args, commandMs);
  } finally {
    client.close();
  }
}

export async function askStatus(host: Host, place: DaemonPlace): Promise<AnsweringDaemon | SilentDaemon> {
  try {
    return { place, status: readStatus(await ask(host, place, 'pair-status', {}, statusMsMax)) };
  } catch (error) {
    return { place, error: toBlockError(error) };
  }
}

/** What all of them say, in the order given. */
export function askAll(host: Host, places: readonly DaemonPlace[]): Promise<(AnsweringDaemon | SilentDaemon)[]> {
  return Promise.all(places.map((place) => askStatus(host, place)));
}

/**
 * The one daemon that a command is for: the only one that answers and fits.
 * @param wanted what it has to be, for the message: `is secondary`
 */
export async function chooseDaemon(
  host: Host,
  which: Which,
  wanted: string,
  fits: (status: DaemonStatus) => boolean,
): Promise<AnsweringDaemon> {
  const all = await askAll(host, await findDaemons(which));
  const answering = all.filter((one) => 'status' in one);
  const fitting = answering.filter((one) => which.name !== undefined || fits(one.status));
  const [chosen, another] = fitting;
  if (chosen === undefined) {
    const said = all.map((one) => ('status' in one ? `${one.place.name} is ${one.status.role}` : one.error.message));
    const code = answering.length > 0 ? 'wrong-state' : 'connection-failed';
    const [only, ...more] = answering;
    const there =
      only === undefined || more.length > 0 ? '' : `; the other side is ${only.status.peer.name}: say it there`;
    throw new BlockError(code, `no daemon answers that ${wanted}: ${said.join('; ')}${there}`);
  }
  if (another !== undefined) {
    const names = fitting.map((one) => one.place.name).join(' and ');
    throw new BlockError('invalid-option', `${names}: each ${wanted}; choose one with --name`);
  }
  return chosen;
}

/** A path as a person in the present folder would write it. */
export function shortPath(path: string): string {
  const short = relative(process.cwd(), path);
  return short === '' ? '.' : short.length < path.length ? short : path;
}
