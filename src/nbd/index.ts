/** The NBD library: server and client, usable without the rest of blockstep (`blockstep/nbd`). */
export type { BackendFlags, NbdBackend, NbdExportDirectory, NbdServerExport } from './backend.ts';
export { NbdClient, type NbdConnectOptions } from './client.ts';
export type { NbdBlockSizes, NbdExportInfo } from './export-info.ts';
export type { NbdExportListing } from './handshake-client.ts';
export { listExports } from './list-exports.ts';
export { NbdServer } from './server.ts';
export { formatNbdUri, type NbdUri, type NbdUriTls, parseNbdUri } from './uri.ts';
