/**
 * The configuration files of the demo's pair: written once, with ports that were free then, and kept, so that the
 * disk's URI is the same at every start. They are ordinary files for `blockstep run -c`, and a person may edit them.
 */
import { randomBytes, randomInt } from 'node:crypto';
import { mkdir, readdir, rename, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { BlockError } from '../util/errors.ts';

/** Below the range that Linux takes outgoing connections' ports from: nobody else is given these by chance. */
const portMin = 10_000;
const portMax = 32_000;

export const demoNames = ['a', 'b'] as const;

interface Ports {
  readonly supervisor: number;
  readonly replication: number;
  readonly nbd: number;
}

/** The two files in the folder; writes them if there are none. Rejects if one of them is missing. */
export async function demoConfigFiles(folder: string): Promise<string[]> {
  const files = demoNames.map((name) => join(folder, `${name}.yaml`));
  const present: string[] = await readdir(folder).catch(() => []);
  const missing = demoNames.filter((name) => !present.includes(`${name}.yaml`));
  if (missing.length === 0) return files;
  if (missing.length < demoNames.length || demoNames.some((name) => present.includes(name))) {
    const what = missing.map((name) => `${name}.yaml`).join(' and ');
    throw new BlockError(
      'file-not-found',
      `${folder} holds data of a pair but no ${what}; put it back, or take the folder away`,
    );
  }
  const [a, b] = await freePorts();
  const volume = `demo-${randomBytes(4).toString('hex')}`;
  await mkdir(folder, { recursive: true });
  // The second file is the sign that both are whole.
  await writeWhole(join(folder, 'b.yaml'), formatConfig('b', 'secondary', b, 'a', a, volume));
  await writeWhole(join(folder, 'a.yaml'), formatConfig('a', 'primary', a, 'b', b, volume));
  return files;
}

async function writeWhole(file: string, text: string): Promise<void> {
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
}

function formatConfig(name: string, role: string, own: Ports, peer: string, other: Ports, volume: string): string {
  return `# One side of the demo's pair. Start it by hand with: npx blockstep run -c ${name}.yaml
name: ${name}
volume: ${volume}
role: ${role}
data: ./${name}
disks:
  - name: disk0
    file: ./${name}/disk0.img
    size: 1GiB
listen:
  nbd: 127.0.0.1:${own.nbd}
  supervisor: 127.0.0.1:${own.supervisor}
  replication: 127.0.0.1:${own.replication}
peer:
  name: ${peer}
  supervisor: 127.0.0.1:${other.supervisor}
`;
}

/** Ports for both sides that nobody listens on now. */
async function freePorts(): Promise<[Ports, Ports]> {
  const held: Server[] = [];
  try {
    const ports: number[] = [];
    for (let tries = 0; ports.length < 6; tries += 1) {
      if (tries > 1000) throw new BlockError('address-in-use', 'no free ports on 127.0.0.1');
      const port = randomInt(portMin, portMax);
      const server = await listenOn(port);
      if (server === null) continue;
      held.push(server);
      ports.push(port);
    }
    const of = (first: number): Ports => ({
      supervisor: ports[first] ?? 0,
      replication: ports[first + 1] ?? 0,
      nbd: ports[first + 2] ?? 0,
    });
    return [of(0), of(3)];
  } finally {
    await Promise.all(held.map((server) => new Promise((closed) => server.close(closed))));
  }
}

function listenOn(port: number): Promise<Server | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(null));
    server.listen(port, '127.0.0.1', () => resolve(server));
  });
}
