/** All drivers of blockstep: the one file that imports them. A driver that is added gets its line here. */
import type { DriverDefinition } from '../block/driver.ts';
import { blkdebugDriver } from './blkdebug.ts';
import { commitTopDriver } from './commit-top.ts';
import { copyBeforeWriteDriver } from './copy-before-write.ts';
import { fileDriver } from './file.ts';
import { hostDeviceDriver } from './host-device.ts';
import { memoryDriver } from './memory.ts';
import { mirrorTopDriver } from './mirror-top.ts';
import { nbdDriver } from './nbd.ts';
import { nullCoDriver } from './null-co.ts';
import { quorumDriver } from './quorum.ts';
import { rawDriver } from './raw.ts';
import { replicationDriver } from './replication.ts';
import { shadowDriver } from './shadow.ts';

export const drivers: readonly DriverDefinition[] = [
  blkdebugDriver,
  commitTopDriver,
  copyBeforeWriteDriver,
  fileDriver,
  hostDeviceDriver,
  memoryDriver,
  mirrorTopDriver,
  nbdDriver,
  nullCoDriver,
  quorumDriver,
  rawDriver,
  replicationDriver,
  shadowDriver,
];
