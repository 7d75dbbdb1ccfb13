/**
 * Asks an NBD server which exports it has (NBD_OPT_LIST).
 */
import type { Host, SocketAddress } from '../host/host.ts';
import { describeServer, dial, handshakeMsDefault } from './dial.ts';
import { HandshakeClient, type NbdExportListing } from './handshake-client.ts';

/**
 * The exports that a server lists; it may leave some out.
 * @param timeoutMs for connecting and the whole list
 * @throws BlockError as `NbdClient.connect`; access-denied: the server does not tell
 */
export async function listExports(
  host: Host,
  where: { readonly address: SocketAddress; readonly timeoutMs?: number },
): Promise<NbdExportListing[]> {
  const handshake = HandshakeClient.forList(describeServer(where.address));
  let listed: NbdExportListing[] = [];
  await dial(host, where.address, where.timeoutMs ?? handshakeMsDefault, handshake, (_stream, exports) => {
    listed = exports;
    return null;
  });
  return listed;
}
