/** How an image is opened, and the options for it that the drivers `file` and `host_device` share. */
import { z } from 'zod';
import type { DriverNode, OpenContext } from '../block/driver.ts';
import type { HostFile } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';
import { ImageLocks } from './file-locks.ts';
import { FileNode } from './file-node.ts';

export const fileOptions = {
  locking: z
    .enum(['auto', 'on', 'off'])
    .default('auto')
    .describe(
      'byte locks that keep other programs from using the image in a conflicting way; auto: where there are any',
    ),
  exclusive: z.boolean().default(false).describe('no other program may write to the image, as if a VM used it (ours)'),
  io: z
    .enum(['auto', 'async'])
    .default('auto')
    .describe(
      'auto: at once while the page cache answers, on threads once the image turns out slow; ' +
        'async: always on threads, so that not even its first slow request holds up other disks (ours)',
    ),
  aio: z
    .enum(['threads', 'native', 'io_uring'])
    .default('threads')
    .describe(
      'taken for the sake of QEMU’s command lines; all three do the same here, no io_uring is used: `io` decides ' +
        'whether requests are made at once or on threads. native needs cache.direct=on, as there',
    ),
  'aio-max-batch': z.int().nonnegative().optional().describe('accepted, changes nothing'),
  'drop-cache': z.boolean().optional().describe('accepted, changes nothing'),
} as const;

const schema = z.object({ filename: z.string(), ...fileOptions });
type FileOptions = z.output<typeof schema>;

/**
 * Opens an image and takes what must be held from the beginning.
 * @param kind `block`: only a block device will do
 * @throws BlockError `locked`: another program forbids it, or has claimed the device; `invalid-option`; what the host
 * says
 */
export async function openImage(
  options: FileOptions,
  context: OpenContext,
  kind: 'any' | 'block',
): Promise<DriverNode> {
  const { direct } = context.cache;
  if (options.aio === 'native' && !direct) {
    throw new BlockError('invalid-option', 'aio: native needs cache.direct=on');
  }
  const openFile = (readOnly: boolean): Promise<HostFile> =>
    context.host.files.open(options.filename, {
      access: readOnly ? 'read' : 'write',
      direct,
      threads: options.io === 'async',
      claim: !readOnly && options.locking !== 'off',
    });
  const file = await openFile(context.readOnly);
  try {
    if (kind === 'block' && file.kind !== 'block') {
      throw new BlockError('invalid-option', `filename: ${options.filename} is not a block device: use driver 'file'`);
    }
    const locks = new ImageLocks(context.host, file, options.locking, options.exclusive, context.readOnly);
    await locks.change(0, 15);
    return new FileNode({ host: context.host, file, locks, readOnly: context.readOnly, openAgain: openFile });
  } catch (error) {
    await file.close();
    throw error;
  }
}
