/**
 * The NBD server library alone, over memory, for tools that are run against it:
 * `node serve.ts --memory BYTES [--unix PATH] [--name NAME] [--read-only] [--ordered]`.
 * It prints `ready ADDRESS` once it listens (without --unix: 127.0.0.1 and a port of the system's choice).
 */
import { parseArgs } from 'node:util';
import type { SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import type { NbdServerExport } from '../../src/nbd/backend.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { MemoryBackend } from '../nbd/memory-backend.ts';

const { values } = parseArgs({
  options: {
    memory: { type: 'string', default: '67108864' },
    unix: { type: 'string' },
    name: { type: 'string', default: 'disk' },
    'read-only': { type: 'boolean', default: false },
    ordered: { type: 'boolean', default: false },
  },
});
const host = createHost();
const exported: NbdServerExport = {
  name: values.name,
  description: 'a disk for tests',
  backend: new MemoryBackend(Number(values.memory)),
  readOnly: values['read-only'],
  multiConn: true,
  ordered: values.ordered,
  blockSizes: [1, 4096, 32 * 1024 * 1024],
};
const server = new NbdServer(host, {
  list: () => [exported],
  find: (name) => {
    if (name === 'refused') return { refused: 'this disk is secondary; the primary is elsewhere' };
    return name === '' || name === exported.name ? exported : null;
  },
});
const asked: SocketAddress =
  values.unix === undefined ? { type: 'inet', host: '127.0.0.1', port: 0 } : { type: 'unix', path: values.unix };
const address = await server.listen(asked);
process.stdout.write(`ready ${address.type === 'unix' ? address.path : `${address.host}:${address.port}`}\n`);
process.on('SIGTERM', () => {
  void server.close().then(() => process.exit(0));
});
