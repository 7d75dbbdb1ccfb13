/**
 * A TCP link between two daemons that can be cut: it listens on a port of its own and hands every connection on to a
 * unix socket. What is on its way while the link is *held* arrives when it is mended, as after a short break of a real
 * network; *down*, connections are lost and no new one comes about. A link may be slow: what a process sent in its last
 * moments is then lost with it.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';

type LinkState = 'up' | 'held' | 'down';

export class CutLink {
  /** where the other daemon connects */
  readonly port: number;
  readonly #server: Server;
  /** of the TCP connections and of the unix sockets behind them */
  readonly #ends = new Set<Socket>();
  /** what was received and waits for the link to be mended */
  readonly #late = new Set<() => void>();
  readonly #delayMs: number;
  #state: LinkState = 'up';

  /** @param delayMs of each piece, one way */
  static async open(target: string, delayMs = 0): Promise<CutLink> {
    const server = createServer({ pauseOnConnect: true });
    await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
    const address = server.address();
    if (address === null || typeof address === 'string') throw new TypeError('a TCP server has a port');
    return new CutLink(server, address.port, target, delayMs);
  }

  private constructor(server: Server, port: number, target: string, delayMs: number) {
    this.#delayMs = delayMs;
    this.#server = server;
    this.port = port;
    server.on('connection', (near) => this.#connected(near, target));
  }

  /** Nothing gets through, and nobody is told: neither side can tell this from a silent one. */
  hold(): void {
    this.#state = 'held';
    for (const end of this.#ends) end.pause();
  }

  /** Every connection breaks, and new ones are refused. */
  cut(): void {
    this.#state = 'down';
    this.reset();
  }

  /** Every connection breaks; new ones are made as before. */
  reset(): void {
    for (const end of this.#ends) {
      // Only TCP knows a reset.
      if (end.remoteAddress === undefined) end.destroy();
      else end.resetAndDestroy();
    }
  }

  mend(): void {
    this.#state = 'up';
    for (const end of this.#ends) end.resume();
    const late = [...this.#late];
    this.#late.clear();
    for (const arrive of late) arrive();
  }

  async close(): Promise<void> {
    this.cut();
    await new Promise((closed) => this.#server.close(closed));
  }

  #connected(near: Socket, target: string): void {
    if (this.#state === 'down') {
      near.resetAndDestroy();
      return;
    }
    const far = connect({ path: target, allowHalfOpen: true });
    this.#join(near, far);
    this.#join(far, near);
  }

  #join(from: Socket, to: Socket): void {
    this.#ends.add(from);
    from.on('data', (bytes: Buffer) => {
      // One piece is under way at a time, so that they keep their order.
      from.pause();
      const arrive = (): void => {
        if (this.#state === 'held') this.#late.add(arrive);
        else if (to.destroyed || to.write(bytes)) this.#resume(from);
        else to.once('drain', () => this.#resume(from));
      };
      if (this.#delayMs === 0) arrive();
      else setTimeout(arrive, this.#delayMs);
    });
    from.on('end', () => to.end());
    from.on('error', () => undefined);
    from.on('close', () => {
      this.#ends.delete(from);
      to.destroy();
    });
    this.#resume(from);
  }

  #resume(end: Socket): void {
    if (this.#state === 'up') end.resume();
    else end.pause();
  }
}
