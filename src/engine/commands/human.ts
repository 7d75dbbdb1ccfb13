/**
 * `human-monitor-command`: the two lines of QEMU's monitor for people that a manager of replication gives
 * (docs/block-replication.txt: `drive_add`, `drive_del`). What went wrong is text in the answer, as in QEMU.
 */
import { BlockError, toBlockError } from '../../util/errors.ts';
import { parseBlockdev } from '../blockdev-text.ts';
import type { Engine } from '../engine.ts';

type Options = Record<string, unknown>;

/** What the monitor prints; empty if all went well. */
export async function runHumanCommand(engine: Engine, line: string): Promise<string> {
  const [word = '', ...rest] = line.trim().split(/\s+/);
  try {
    if (word === 'drive_add') await driveAdd(engine, rest);
    else if (word === 'drive_del') await driveDel(engine, rest);
    else return `unknown command: '${word}'\r\n`;
    return '';
  } catch (error) {
    return `${toBlockError(error).message}\r\n`;
  }
}

/** `drive_add -n UNUSED OPTIONS` makes a node; a drive of a machine, which it makes without `-n`, is not known here. */
async function driveAdd(engine: Engine, words: readonly string[]): Promise<void> {
  const [flag, , text, ...more] = words;
  if (flag !== '-n' || text === undefined || more.length > 0) {
    throw new BlockError('invalid-option', 'drive_add: expected -n, a word that means nothing, and the options');
  }
  const options = parseBlockdev(text, engine.drivers);
  if (options['node-name'] === undefined) {
    throw new BlockError('invalid-option', "drive_add: 'node-name' needs to be specified");
  }
  await engine.execute('blockdev-add', nested(options));
}

async function driveDel(engine: Engine, words: readonly string[]): Promise<void> {
  const [name, ...more] = words;
  if (name === undefined || more.length > 0) throw new BlockError('invalid-option', 'drive_del: expected one name');
  await engine.execute('blockdev-del', { 'node-name': name });
}

/** The older spelling of an NBD server, `host` and `port` or `path` beside the driver, as `server`; at any depth. */
function nested(options: Options): Options {
  const { host, port, path, ...rest } = options;
  const inner = Object.fromEntries(
    Object.entries(rest).map(([name, member]) => [name, isObject(member) ? nested(member) : member]),
  );
  if (options.driver !== 'nbd' || options.server !== undefined) {
    return { ...options, ...inner };
  }
  if (path !== undefined) return { ...inner, server: { type: 'unix', path } };
  return host === undefined ? inner : { ...inner, server: { type: 'inet', host, port: port ?? '10809' } };
}

function isObject(value: unknown): value is Options {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
