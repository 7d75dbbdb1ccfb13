/** The QMP library: the wire, server and client, and commands as data. It knows nothing of block nodes. */
export { check } from './check.ts';
export { QmpClient, type QmpClientOptions } from './client.ts';
export {
  type CommandDefinition,
  defineCommand,
  defineEvent,
  type EventDefinition,
  type Handler,
  type Handlers,
} from './command.ts';
export { encodeMessage, type JsonLimits, type JsonSink, JsonStream, jsonLimits } from './json-stream.ts';
export { parseKeyval } from './keyval.ts';
export { type CommandFamily, engineFamilies, pairFamily } from './schema.ts';
export { QmpServer, qmpServerLimits } from './server.ts';
export type { QmpEvent, QmpTarget } from './target.ts';
export { programVersion, version } from './version.ts';
