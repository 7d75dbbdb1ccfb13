/** The host seam: the interfaces, and the real machine behind them. */
export type {
  FileIo,
  FileStat,
  Host,
  HostClock,
  HostFile,
  HostFileLocks,
  HostFiles,
  HostListener,
  HostNetwork,
  HostRandom,
  HostStream,
  HostTimer,
  OpenHow,
  SocketAddress,
  StreamReceiver,
} from './host.ts';
export { createHost } from './node-host.ts';
