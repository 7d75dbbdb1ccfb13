/** A disk on a block device of the host (operations: file-node.ts). */
import { z } from 'zod';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import { fileOptions, openImage } from './file-open.ts';

export const hostDeviceDriver = defineDriver({
  name: 'host_device',
  summary: 'a block device of the host; claimed, if writable, against mounts and other claims (O_EXCL)',
  options: z.strictObject({
    filename: z.string().min(1).max(4096).describe('path of the device'),
    ...fileOptions,
  }),
  open: (options, context): Promise<DriverNode> => openImage(options, context, 'block'),
});
