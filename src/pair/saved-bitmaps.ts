/**
 * What may differ, kept over a clean stop (pair.md 12). The file is durable before the group file's mark names its
 * checksum; a file that does not match the mark proves nothing, and the next sync compares everything.
 */
import { z } from 'zod';
import type { Host } from '../host/host.ts';
import { loadHash64 } from '../util/xxhash.ts';
import { type Bitmaps, isEmpty } from './ranges.ts';

const fileName = 'may-differ.json';
/** bytes; 64 disks with 65536 ranges each stay below it */
const fileBytesMax = 256 * 2 ** 20;

const bitmapsSchema = z.record(z.string(), z.array(z.tuple([z.int().min(0), z.int().min(1)])));

/** Saves them durably. @returns the mark for the group file; empty: nothing differs, and nothing was written */
export async function saveBitmaps(host: Host, folder: string, bitmaps: Bitmaps): Promise<string> {
  if (isEmpty(bitmaps)) return '';
  const bytes = new TextEncoder().encode(JSON.stringify(bitmaps));
  const path = `${folder}/${fileName}`;
  await host.files.remove(`${path}.new`);
  const file = await host.files.open(`${path}.new`, { access: 'write', create: 'exclusive' });
  try {
    await file.write(0, bytes);
    await file.sync();
  } finally {
    await file.close();
  }
  await host.files.rename(`${path}.new`, path);
  await host.files.syncFolder(folder);
  return checksum(bytes);
}

/** Null: what is there is not what the mark stands for. */
export async function loadBitmaps(host: Host, folder: string, mark: string): Promise<Bitmaps | null> {
  if (mark === '') return {};
  const path = `${folder}/${fileName}`;
  const stat = await host.files.stat(path);
  if (stat === null || stat.size > fileBytesMax) return null;
  const file = await host.files.open(path, { access: 'read' });
  try {
    const bytes = new Uint8Array(file.size());
    await file.read(0, bytes);
    if ((await checksum(bytes)) !== mark) return null;
    const bitmaps = bitmapsSchema.safeParse(JSON.parse(new TextDecoder().decode(bytes)));
    return bitmaps.success ? bitmaps.data : null;
  } finally {
    await file.close();
  }
}

async function checksum(bytes: Uint8Array): Promise<string> {
  const hash = await loadHash64();
  return hash(bytes).toString(16).padStart(16, '0');
}
