/** The commands about exports and NBD servers. */
import type { z } from 'zod';
import type { SocketAddress } from '../../host/host.ts';
import type { Handlers } from '../../qmp/command.ts';
import type { socketAddressLegacy } from '../../qmp/schema/common.ts';
import type { exportSchema } from '../../qmp/schema/export.ts';
import { BlockError } from '../../util/errors.ts';
import type { Engine } from '../engine.ts';

type LegacyAddress = z.output<typeof socketAddressLegacy>;

export function exportCommands(engine: Engine): Handlers<typeof exportSchema> {
  const { exports } = engine;
  return {
    'nbd-server-start': (args) => {
      refuseTls(args);
      return exports.startServer({
        server: args.server,
        addresses: [args.addr, ...(args['more-addrs'] ?? [])].map(fromLegacy),
        connectionsMax: args['max-connections'],
      });
    },
    'nbd-server-stop': ({ server }) => exports.stopServer(server),
    'query-nbd-server': () =>
      exports.servers().map(({ addresses, ...server }) => ({ ...server, addrs: addresses.map(toLegacy) })),
    'block-export-add': (args) =>
      exports.add({
        id: args.id,
        nodeName: args['node-name'],
        name: args.name,
        description: args.description,
        writable: args.writable,
        writethrough: args.writethrough,
        server: args.server,
        ordered: args.ordered,
        multiConn: args['multi-conn'],
        onWriteError: args['on-write-error'],
      }),
    'x-block-export-resume': ({ id }) => exports.resume(id),
    'block-export-del': ({ id, mode }) => exports.remove(id, mode),
    'nbd-server-add': ({ device, name = device, bitmap: _, ...more }) =>
      exports.add({ id: name, nodeName: device, name, ...more }),
    'nbd-server-remove': ({ name, mode }) => exports.remove(name, mode),
    'query-block-exports': () =>
      exports.list().map((one) => ({
        id: one.id,
        type: 'nbd' as const,
        'node-name': one.nodeName,
        'shutting-down': one.shuttingDown,
        name: one.name,
        server: one.server,
        writable: one.writable,
        connections: one.connections,
        ...(one.stop === null ? {} : { stopped: { reason: one.stop.error.message, waiting: one.stop.waiting } }),
      })),
    'nbd-export-refuse': ({ name, reason, server }) => exports.refuse(name, reason, server),
  };
}

function refuseTls(args: { 'tls-creds'?: string | undefined; 'tls-authz'?: string | undefined }): void {
  for (const name of ['tls-creds', 'tls-authz'] as const) {
    if (args[name] !== undefined) throw new BlockError('not-supported', `arguments.${name}: TLS is not supported yet`);
  }
}

function fromLegacy(address: LegacyAddress): SocketAddress {
  return address.type === 'unix'
    ? { type: 'unix', path: address.data.path }
    : { type: 'inet', host: address.data.host, port: Number(address.data.port) };
}

function toLegacy(address: SocketAddress): LegacyAddress {
  return address.type === 'unix'
    ? { type: 'unix', data: { path: address.path } }
    : { type: 'inet', data: { host: address.host, port: String(address.port) } };
}
