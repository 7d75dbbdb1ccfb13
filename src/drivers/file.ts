/** An image in a file of the host, or on a block device (operations: file-node.ts). */
import { z } from 'zod';
import { type DriverNode, defineDriver } from '../block/driver.ts';
import { fileOptions, openImage } from './file-open.ts';

export const fileDriver = defineDriver({
  name: 'file',
  summary: 'an image in a file of the host',
  options: z.strictObject({
    filename: z.string().min(1).max(4096).describe('path of the image, which must exist'),
    ...fileOptions,
  }),
  open: (options, context): Promise<DriverNode> => openImage(options, context, 'any'),
});
