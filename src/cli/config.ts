/**
 * The configuration file of one daemon: YAML in, a `PairConfig` out, everything checked.
 *
 * Each error is one line that begins `FILE:LINE:COLUMN:` and says what was expected there. Unknown keys are refused,
 * with the nearest known one as a suggestion, so that a typo never becomes a default. Paths are relative to the file's
 * folder.
 */
import { readFile } from 'node:fs/promises';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import { isMap, isNode, LineCounter, type Node, parseDocument } from 'yaml';
import { z } from 'zod';
import type { SocketAddress } from '../host/host.ts';
import { disksMax, isLoopback, isWildcard, type PairConfig, pairDefaults } from '../pair/config.ts';
import { describeIssues } from '../qmp/check.ts';
import { BlockError } from '../util/errors.ts';
import { socketPathBytesMax } from './data-folder.ts';
import { nearest } from './nearest.ts';
import { formatAddress, parseAddress, parseDuration, parseSize } from './units.ts';

const configBytesMax = 1 << 20;
/** Node names are made from it (`NAME-replication`), and QEMU allows those 31 characters. */
const diskNameLengthMax = 19;
const sectorBytes = 512;
/** Checkpoints more often than that would be most of what the pair does. */
const checkpointMsMin = 50;
const checkpointMsMax = 24 * 3_600_000;

// ---------------------------------------------------------------- the schema

/** A text or number that `parse` understands, or an issue that says what was expected. */
function parsed<T>(expected: string, parse: (text: string) => T | null): z.ZodType<T> {
  return z.unknown().transform((given, context): T => {
    const value = typeof given === 'string' || typeof given === 'number' ? parse(String(given)) : null;
    if (value !== null) return value;
    const message = given === undefined ? 'is missing' : `expected ${expected}, got ${JSON.stringify(given)}`;
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  });
}

const word = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, 'expected a name of letters, digits, ".", "_" and "-", 63 at most');

const diskName = z
  .string()
  .regex(/^[A-Za-z][A-Za-z0-9._-]*$/, 'expected a letter, then letters, digits, ".", "_" and "-"')
  .max(diskNameLengthMax, `expected at most ${diskNameLengthMax} characters`);

const size = parsed('a size such as 10GiB (units: KiB, MiB, GiB, TiB)', parseSize).refine(
  (bytes) => bytes > 0 && bytes % sectorBytes === 0,
  `expected a multiple of ${sectorBytes} bytes, not zero`,
);

const address = parsed('HOST:PORT, [IPv6]:PORT or unix:PATH', parseAddress);

const milliseconds = (min: number, max: number) =>
  z.int('expected whole milliseconds').min(min, `expected at least ${min}`).max(max, `expected at most ${max}`);

const checkpointClock = parsed<number | 'off'>('a time such as 1s, 500ms or 2m, or off', (text) =>
  text === 'off' ? text : parseDuration(text),
).refine(
  (ms) => ms === 'off' || (ms >= checkpointMsMin && ms <= checkpointMsMax),
  `expected ${checkpointMsMin}ms to ${checkpointMsMax / 3_600_000}h, or off`,
);

const diskSchema = z.strictObject({ name: diskName, file: z.string().min(1).optional(), size });

const configSchema = z.strictObject({
  name: word,
  volume: word,
  role: z.enum(['primary', 'secondary']),
  data: z.string().min(1),
  disks: z.array(diskSchema).min(1, 'expected at least one disk').max(disksMax, `expected at most ${disksMax} disks`),
  listen: z.strictObject({
    supervisor: address,
    replication: address,
    nbd: z.preprocess((one) => (one === undefined || Array.isArray(one) ? one : [one]), z.array(address).min(1)),
  }),
  peer: z.strictObject({ name: word, supervisor: address }),
  advertise: z.strictObject({ replication: address.optional() }).optional(),
  store: z.enum(['overlays', 'mirror']).default(pairDefaults.store),
  mode: z.enum(['standby', 'lock-step']).default(pairDefaults.mode),
  // Their defaults depend on the two above.
  acknowledge: z.enum(['flush', 'remote', 'local']).optional(),
  checkpoint: checkpointClock.optional(),
  overlays: z.strictObject({ folder: z.string().min(1).optional(), sync: z.boolean().optional() }).optional(),
  resync: z.enum(['give-up-checkpoint', 'keep-checkpoint']).default(pairDefaults.resync),
  degraded: z.enum(['continue', 'stop']).default(pairDefaults.degraded),
  'stall-ms-max': milliseconds(100, 60_000).default(pairDefaults.stallMsMax),
  'heartbeat-ms': milliseconds(10, 60_000).default(pairDefaults.heartbeatMs),
  'peer-timeout-ms': milliseconds(50, 600_000).default(pairDefaults.peerTimeoutMs),
  window: size.default(pairDefaults.windowBytes),
  overwrite: word.nullable().default(pairDefaults.overwrite),
  insecure: z.boolean().default(false),
});

type ConfigFile = z.infer<typeof configSchema>;
type Path = readonly (string | number)[];

interface Finding {
  readonly path: Path;
  /** begins with the field's name */
  readonly message: string;
  /** the message is about the key itself at the end of the path */
  readonly ofKey?: boolean;
}

// ---------------------------------------------------------------- reading

export interface ConfigOptions {
  /** as `insecure: true` in the file */
  readonly insecure?: boolean;
  /** as `overwrite: NAME` in the file */
  readonly overwrite?: string;
}

/** Reads and checks a file. Errors are `invalid-option` with file, line, column and reason. */
export async function readConfig(file: string, options: ConfigOptions = {}): Promise<PairConfig> {
  let text: Buffer;
  try {
    text = await readFile(file);
  } catch (error) {
    const missing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
    const why = missing ? 'there is no such file' : error instanceof Error ? error.message : String(error);
    throw new BlockError('invalid-option', `${file}: ${why}`, { cause: error });
  }
  if (text.length > configBytesMax)
    throw new BlockError('invalid-option', `${file}: larger than ${configBytesMax} bytes`);
  return parseConfig(text.toString('utf8'), file, options);
}

/** Checks the text of a configuration file. `file` is its path, for messages and for paths that are relative to it. */
export function parseConfig(text: string, file: string, options: ConfigOptions = {}): PairConfig {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, stringKeys: true });
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${file}:${line}:${col}`;
  };
  const syntax = document.errors[0];
  if (syntax !== undefined) throw new BlockError('invalid-option', `${at(syntax.pos[0])}: ${syntax.message}`);

  const found = (findings: readonly Finding[]): never => {
    const placed = findings.map((one) => ({ ...one, offset: offsetOf(document.contents, one) }));
    // A key with a typo comes first: what is missing is then probably what was meant.
    placed.sort((a, b) => Number(b.ofKey ?? false) - Number(a.ofKey ?? false) || a.offset - b.offset);
    const [first] = placed;
    if (first === undefined) throw new TypeError('no finding');
    const more = placed.length > 1 ? ` (and ${placed.length - 1} more)` : '';
    throw new BlockError('invalid-option', `${at(first.offset)}: ${first.message}${more}`);
  };
  if (!isMap(document.contents)) return found([{ path: [], message: 'expected a mapping of keys to values' }]);
  const content: unknown = document.toJS({ maxAliasCount: 0 });
  const checked = configSchema.safeParse(content);
  if (!checked.success) return found(checked.error.issues.flatMap((issue) => findingsOf(issue, content)));
  const insecure = options.insecure === true || checked.data.insecure;
  const findings = contradictions(checked.data, insecure, (path) => resolve(dirname(file), path));
  return findings.length > 0 ? found(findings) : { ...toPairConfig(checked.data, file, options), insecure };
}

function toPairConfig(config: ConfigFile, file: string, options: ConfigOptions): PairConfig {
  const folder = resolve(dirname(file));
  const inFolder = (path: string): string => (isAbsolute(path) ? path : join(folder, path));
  const placed = (one: SocketAddress): SocketAddress =>
    one.type === 'unix' ? { type: 'unix', path: inFolder(one.path) } : one;
  const dataFolder = inFolder(config.data);
  const advertised = config.advertise?.replication;
  return {
    name: config.name,
    volume: config.volume,
    role: config.role,
    dataFolder,
    disks: config.disks.map((disk) => ({
      name: disk.name,
      file: disk.file === undefined ? join(dataFolder, `${disk.name}.img`) : inFolder(disk.file),
      size: disk.size,
    })),
    listen: {
      supervisor: placed(config.listen.supervisor),
      replication: placed(config.listen.replication),
      nbd: config.listen.nbd.map(placed),
    },
    peer: { name: config.peer.name, supervisor: placed(config.peer.supervisor) },
    ...(advertised === undefined ? {} : { advertise: { replication: placed(advertised) } }),
    store: config.store,
    mode: config.mode,
    acknowledge: config.acknowledge ?? (config.mode === 'lock-step' ? 'local' : pairDefaults.acknowledge),
    checkpointMs: checkpointMsOf(config),
    overlays: {
      folder: config.overlays?.folder === undefined ? dataFolder : inFolder(config.overlays.folder),
      sync: config.overlays?.sync ?? true,
    },
    resync: config.resync,
    degraded: config.degraded,
    stallMsMax: config['stall-ms-max'],
    heartbeatMs: config['heartbeat-ms'],
    peerTimeoutMs: config['peer-timeout-ms'],
    windowBytes: config.window,
    overwrite: options.overwrite ?? config.overwrite,
  };
}

function checkpointMsOf(config: ConfigFile): number | null {
  if (config.checkpoint === 'off' || config.store === 'mirror') return null;
  return config.checkpoint ?? pairDefaults.checkpointMs;
}

// ---------------------------------------------------------------- what no single field shows

function contradictions(config: ConfigFile, insecure: boolean, placed: (path: string) => string): Finding[] {
  const findings: Finding[] = [];
  const say = (path: Path, message: string): number =>
    findings.push({ path, message: `${path.join('.')}: ${message}` });
  if (config.name === config.peer.name) say(['peer', 'name'], `is this side's own name, "${config.name}"`);
  const seen = new Map<string, number>();
  for (const [index, disk] of config.disks.entries()) {
    const other = seen.get(disk.name);
    if (other !== undefined) say(['disks', index, 'name'], `"${disk.name}" is the name of disks.${other} too`);
    seen.set(disk.name, index);
  }
  // pair.md 19: what has no password is reached from this machine only, unless somebody says that the network is safe.
  for (const field of ['supervisor', 'replication'] as const) {
    const one = config.listen[field];
    if (!insecure && !isLoopback(one)) {
      say(
        ['listen', field],
        'can be reached from other machines without TLS; say `insecure: true` if that network is safe',
      );
    }
    if (one.type === 'inet' && one.port === 0) say(['listen', field], 'needs a port: the other side has to know it');
  }
  for (const [path, one] of addresses(config)) {
    const bytes = one.type === 'unix' ? Buffer.byteLength(placed(one.path)) : 0;
    if (bytes > socketPathBytesMax)
      say(path, `a path of ${bytes} bytes, ${socketPathBytesMax} at most: choose a shorter one`);
  }
  for (const [path, message] of addressesTwice(config)) say(path, message);
  if (isWildcard(config.listen.replication) && config.advertise?.replication === undefined) {
    say(['listen', 'replication'], 'listens everywhere; say in `advertise.replication` where the peer reaches it');
  }
  if (config['peer-timeout-ms'] < 2 * config['heartbeat-ms']) {
    say(['peer-timeout-ms'], 'expected at least twice heartbeat-ms');
  }
  for (const [key, message] of storeContradictions(config)) say([key], message);
  return findings;
}

function addresses({ listen, peer }: ConfigFile): [Path, SocketAddress][] {
  return [
    ...listen.nbd.map((one, index): [Path, SocketAddress] => [['listen', 'nbd', index], one]),
    [['listen', 'supervisor'], listen.supervisor],
    [['listen', 'replication'], listen.replication],
    [['peer', 'supervisor'], peer.supervisor],
  ];
}

/** Each listener has an address of its own, and none of them is where the other side is. */
function addressesTwice(config: ConfigFile): [Path, string][] {
  const all = addresses(config);
  return all.flatMap(([path, one], index): [Path, string][] => {
    const other = all.slice(0, index).find(([, before]) => isSame(before, one));
    if (other === undefined) return [];
    const own = path[0] === 'peer' ? "this side's own " : 'also ';
    return [[path, `${formatAddress(one)} is ${own}${other[0].join('.')}`]];
  });
}

function isSame(one: SocketAddress, other: SocketAddress): boolean {
  return formatAddress(one) === formatAddress(other) && !(one.type === 'inet' && one.port === 0);
}

/** What does not go together with the store or the mode: a key that has no effect would be a promise that is broken. */
function storeContradictions(config: ConfigFile): [key: keyof ConfigFile, message: string][] {
  const { store, mode, acknowledge, checkpoint, overlays, resync } = config;
  const found: [keyof ConfigFile, string][] = [];
  if (store === 'mirror') {
    const none = 'needs `store: overlays`: a mirror has no checkpoints';
    if (mode === 'lock-step') found.push(['mode', `lock-step ${none}`]);
    if (checkpoint !== undefined && checkpoint !== 'off') found.push(['checkpoint', none]);
    if (overlays !== undefined) found.push(['overlays', 'needs `store: overlays`: a mirror has none']);
    if (resync === 'keep-checkpoint') found.push(['resync', `keep-checkpoint ${none}`]);
  }
  if (mode === 'lock-step' && acknowledge !== undefined && acknowledge !== 'local') {
    found.push(['acknowledge', `${acknowledge} cannot be kept in lock-step: answers are local there (leave it out)`]);
  }
  if (mode === 'standby' && acknowledge === 'local') {
    found.push(['acknowledge', 'local needs `mode: lock-step`: without it flushed writes would be lost']);
  }
  return found;
}

// ---------------------------------------------------------------- from issues to places

function findingsOf(issue: z.core.$ZodIssue, content: unknown): Finding[] {
  const path = issue.path.map((part) => (typeof part === 'number' ? part : String(part)));
  if (issue.code !== 'unrecognized_keys') return [{ path, message: describeIssues([issue], '', content) }];
  return issue.keys.map((key) => {
    const suggestion = nearest(key, keysAt(path));
    const unknown = `${[...path, key].join('.')}: is not a known key`;
    const message = suggestion === null ? unknown : `${unknown}; did you mean ${suggestion}?`;
    return { path: [...path, key], message, ofKey: true };
  });
}

/** The keys that the schema knows at a path. */
function keysAt(path: Path): string[] {
  let at: unknown = configSchema;
  for (const part of path) {
    while (at instanceof z.ZodOptional || at instanceof z.ZodDefault) at = at.unwrap();
    if (at instanceof z.ZodArray) at = at.element;
    else if (at instanceof z.ZodObject) at = (at.shape as Record<string, unknown>)[String(part)];
  }
  while (at instanceof z.ZodOptional || at instanceof z.ZodDefault) at = at.unwrap();
  return at instanceof z.ZodObject ? Object.keys(at.shape) : [];
}

/**
 * Where a finding is shown: at the value, or at the key, or (where there is neither) at the nearest thing around it.
 */
function offsetOf(contents: Node | null, finding: Finding): number {
  let node: unknown = contents;
  let offset = contents?.range?.[0] ?? 0;
  for (const [index, part] of finding.path.entries()) {
    if (isMap(node)) {
      const pair = node.items.find((item) => isNode(item.key) && 'value' in item.key && item.key.value === part);
      if (pair === undefined) return offset;
      const last = index === finding.path.length - 1;
      const shown = last && finding.ofKey !== true && isNode(pair.value) ? pair.value : pair.key;
      if (isNode(shown)) offset = shown.range?.[0] ?? offset;
      node = pair.value;
    } else if (isNode(node) && 'items' in node && Array.isArray(node.items)) {
      node = node.items[Number(part)];
      if (isNode(node)) offset = node.range?.[0] ?? offset;
    } else return offset;
  }
  return offset;
}
