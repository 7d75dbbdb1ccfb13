/**
 * A small NBD server over a file or over memory, for tools that are run against it:
 * `node serve.ts --file PATH | --memory BYTES [--unix PATH] [--name NAME] [--read-only] [--ordered]`.
 * It prints `ready ADDRESS` once it listens (without --unix: 127.0.0.1 and a port of the system's choice).
 */
import { parseArgs } from 'node:util';
import type { HostFile, SocketAddress } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import type { NbdBackend, NbdServerExport } from '../../src/nbd/backend.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { addExtent, type Extent } from '../../src/util/extents.ts';
import { MemoryBackend } from '../nbd/memory-backend.ts';

/** The operations of a file, as an export needs them. */
class FileBackend implements NbdBackend {
  readonly length: number;
  readonly #file: HostFile;

  constructor(file: HostFile) {
    this.#file = file;
    this.length = file.size();
  }

  read(offset: number, into: Uint8Array) {
    return this.#file.read(offset, into);
  }

  write(offset: number, from: Uint8Array, flags: number) {
    const done = this.#file.write(offset, from);
    if ((flags & 1) === 0) return done;
    return this.#file.sync();
  }

  writeZeroes(offset: number, length: number, flags: number) {
    const done = (flags & 2) === 0 ? this.#file.punchHole(offset, length) : this.#file.zeroRange(offset, length);
    if (!done) return this.write(offset, new Uint8Array(length), flags);
    return (flags & 1) === 0 ? undefined : this.#file.sync();
  }

  discard(offset: number, length: number) {
    this.#file.punchHole(offset, length);
    return undefined;
  }

  flush() {
    return this.#file.sync();
  }

  blockStatus(offset: number, length: number): Extent[] {
    const extents: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const data = Math.min(end, this.#file.seekData(at) ?? at);
      addExtent(extents, data - at, true, false);
      const hole = data < end ? Math.min(end, this.#file.seekHole(data) ?? end) : end;
      addExtent(extents, hole - data, false, true);
      at = hole;
    }
    return extents;
  }
}

const { values } = parseArgs({
  options: {
    file: { type: 'string' },
    memory: { type: 'string' },
    unix: { type: 'string' },
    name: { type: 'string', default: 'disk' },
    'read-only': { type: 'boolean', default: false },
    ordered: { type: 'boolean', default: false },
  },
});
const host = createHost();
const backend =
  values.file === undefined
    ? new MemoryBackend(Number(values.memory ?? 64 * 1024 * 1024))
    : new FileBackend(await host.files.open(values.file, { access: values['read-only'] ? 'read' : 'write' }));
const exported: NbdServerExport = {
  name: values.name,
  description: 'a disk for tests',
  backend,
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
