/**
 * blockstep as a library. The engine with its drivers, the real host, and the supervisor of a pair; the libraries that
 * they are made of are sub-paths: `blockstep/nbd`, `blockstep/qmp`, `blockstep/block`.
 */
export type { DriverDefinition } from './block/driver.ts';
export { drivers } from './drivers/index.ts';
export { Engine, type EngineOptions } from './engine/engine.ts';
export { createHost, type Host, type SocketAddress } from './host/index.ts';
export { checkPairConfig, type DiskConfig, type PairConfig, pairDefaults, type Role } from './pair/config.ts';
export { PairDaemon } from './pair/daemon.ts';
export type { QmpEvent, QmpTarget } from './qmp/target.ts';
export { BlockError, type BlockErrorCode, type Errno, type QmpErrorClass } from './util/errors.ts';
