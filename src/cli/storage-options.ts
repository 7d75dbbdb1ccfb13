/**
 * The options of the storage daemon, which are qemu-storage-daemon's: from argv to a list of steps, in the order given.
 * What a step takes is what the QMP command behind it takes; the words of the command line become its numbers and
 * booleans by the schema (`fitStrings`).
 */
import { parseArgs } from 'node:util';
import { z } from 'zod';
import type { DriverRegistry } from '../block/registry.ts';
import { parseBlockdev } from '../engine/blockdev-text.ts';
import type { SocketAddress } from '../host/host.ts';
import { check } from '../qmp/check.ts';
import { fitStrings, parseKeyval } from '../qmp/keyval.ts';
import { id } from '../qmp/schema/common.ts';
import { blockExportOptions, nbdServerOptions } from '../qmp/schema/export.ts';
import { BlockError } from '../util/errors.ts';

/** One thing to do before the daemon serves. `option` is how the user wrote it, for messages. */
export type StorageStep =
  | {
      readonly kind: 'command';
      readonly option: string;
      readonly command: string;
      readonly args: Record<string, unknown>;
    }
  | { readonly kind: 'monitor'; readonly option: string; readonly address: SocketAddress };

export interface StorageOptions {
  readonly steps: readonly StorageStep[];
  readonly pidfile: string | null;
  readonly daemonize: boolean;
  readonly show: 'help' | 'version' | null;
}

export const storageHelp = `usage: blockstep storage-daemon [options]

The block engine by hand. Options are worked through in the order given.

  --blockdev [driver=]<driver>,node-name=<name>[,<option>=<value>...]
                     make a block node; also as JSON: --blockdev '{"driver": ...}'
  --nbd-server addr.type=unix,addr.path=<path>[,max-connections=<n>]
  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>[,max-connections=<n>]
                     start the NBD server
  --export [type=]nbd,id=<id>,node-name=<name>[,name=<export name>][,writable=on]
                     export a node
  --chardev socket,id=<id>,path=<path>,server=on,wait=off
  --chardev socket,id=<id>,host=<loopback address>,port=<port>,server=on,wait=off
                     a socket for --monitor
  --monitor [chardev=]<id>
                     serve QMP on that socket
  --pidfile <path>   write the process id there once everything serves
  --daemonize        go to the background once everything serves
  -h, --help         this text
  -V, --version      name and version

In a value, a comma is written twice. Numbers take the suffixes k, M, G, T. SIGINT, SIGTERM and the QMP command quit
stop the daemon cleanly. All commands and the options of each driver: docs/reference/qmp.md
`;

const flags = {
  blockdev: { type: 'string', multiple: true },
  'nbd-server': { type: 'string', multiple: true },
  export: { type: 'string', multiple: true },
  chardev: { type: 'string', multiple: true },
  monitor: { type: 'string', multiple: true },
  pidfile: { type: 'string' },
  daemonize: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean', short: 'V' },
} as const;

/** @throws BlockError invalid-option, naming the option and the key */
export function parseStorageOptions(argv: readonly string[], drivers: DriverRegistry): StorageOptions {
  const parsed = parseFlags(argv);
  const steps: StorageStep[] = [];
  const sockets = new Map<string, { readonly address: SocketAddress; used: boolean }>();
  for (const token of parsed.tokens) {
    if (token.kind !== 'option' || token.value === undefined) continue;
    const option = `--${token.name} ${token.value}`;
    try {
      switch (token.name) {
        case 'blockdev':
          steps.push({ kind: 'command', option, command: 'blockdev-add', args: parseBlockdev(token.value, drivers) });
          break;
        case 'nbd-server':
          steps.push({ kind: 'command', option, command: 'nbd-server-start', args: nbdServer(token.value) });
          break;
        case 'export':
          steps.push({ kind: 'command', option, command: 'block-export-add', args: exported(token.value) });
          break;
        case 'chardev': {
          const { name, address } = chardev(token.value);
          if (sockets.has(name)) throw new BlockError('name-in-use', `there is already a chardev "${name}"`);
          sockets.set(name, { address, used: false });
          break;
        }
        case 'monitor': {
          const socket = sockets.get(monitor(token.value));
          if (socket === undefined)
            throw new BlockError('invalid-option', 'chardev: give the --chardev of that id before');
          if (socket.used) throw new BlockError('in-use', 'chardev: that socket has a monitor already');
          socket.used = true;
          steps.push({ kind: 'monitor', option, address: socket.address });
          break;
        }
      }
    } catch (error) {
      throw inOption(option, error);
    }
  }
  const { values } = parsed;
  return {
    steps,
    pidfile: values.pidfile ?? null,
    daemonize: values.daemonize ?? false,
    show: values.help === true ? 'help' : values.version === true ? 'version' : null,
  };
}

/** The error with the option that it came from put before it. */
export function inOption(option: string, error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  return new BlockError(error.code, `${option}: ${error.message}`, { errno: error.errno, cause: error });
}

function parseFlags(argv: readonly string[]) {
  try {
    return parseArgs({ args: [...argv], options: flags, strict: true, tokens: true });
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new BlockError('invalid-option', `${text.split('. ')[0]} (--help shows the options)`);
  }
}

/** JSON has its types; the dotted form gets them from the schema. */
function typed(schema: z.ZodType, text: string, implied?: string): Record<string, unknown> {
  const options = parseKeyval(text, implied);
  return text.startsWith('{') ? options : fitStrings(schema, options);
}

function nbdServer(text: string): Record<string, unknown> {
  const { addr, ...rest } = check(nbdServerOptions, typed(nbdServerOptions, text), '');
  const { type, ...data } = addr;
  return { ...rest, addr: { type, data } };
}

function exported(text: string): Record<string, unknown> {
  return check(blockExportOptions, typed(blockExportOptions, text, 'type'), '');
}

const chardevOptions = z.strictObject({
  backend: z.literal('socket'),
  id,
  path: z.string().min(1).max(107).optional(),
  host: z.string().min(1).optional(),
  port: z.int().min(0).max(65535).optional(),
  server: z.boolean().optional(),
  wait: z.boolean().optional(),
});

function chardev(text: string): { name: string; address: SocketAddress } {
  const options = check(chardevOptions, typed(chardevOptions, text, 'backend'), '');
  if (options.server !== true) throw new BlockError('not-supported', 'server: only server=on is supported');
  if (options.wait === true) throw new BlockError('not-supported', 'wait: only wait=off is supported');
  return { name: options.id, address: chardevAddress(options) };
}

function chardevAddress({ path, host, port }: z.output<typeof chardevOptions>): SocketAddress {
  if (path !== undefined) {
    if (host !== undefined || port !== undefined)
      throw new BlockError('invalid-option', 'path: excludes host and port');
    return { type: 'unix', path };
  }
  if (host === undefined || port === undefined) {
    throw new BlockError('invalid-option', 'path: is missing (or host and port)');
  }
  // Whoever reaches QMP can do everything (pair.md 19).
  if (!/^(127(\.\d{1,3}){3}|::1|localhost)$/.test(host)) {
    throw new BlockError('not-supported', `host: QMP over TCP listens on loopback only, not on ${host}`);
  }
  return { type: 'inet', host, port };
}

const monitorOptions = z.strictObject({
  chardev: id,
  mode: z.literal('control').optional(),
  pretty: z.literal(false).optional(),
});

function monitor(text: string): string {
  return check(monitorOptions, typed(monitorOptions, text, 'chardev'), '').chardev;
}
