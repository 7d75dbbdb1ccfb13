/** A QMP client that knows nothing: it writes bytes and reads lines, so that a test sees what is on the wire. */
import { connect, type Socket } from 'node:net';
import type { TestContext } from 'node:test';

export interface RawClient {
  readonly socket: Socket;
  send(text: string | Uint8Array): void;
  /** The next line, parsed; rejects at the end of the connection or after `limitMs`. */
  next(limitMs?: number): Promise<Record<string, unknown>>;
  /** Sends a command and gives its answer, events on the way passed over. */
  command(execute: string, args?: object): Promise<Record<string, unknown>>;
  /** Resolves when the other side hangs up. */
  readonly closed: Promise<void>;
}

export async function rawClient(t: TestContext, path: string, limitMs = 5000): Promise<RawClient> {
  const socket = connect({ path });
  t.after(() => socket.destroy());
  const lines: string[] = [];
  const waiters: ((line: string | null) => void)[] = [];
  let over = false;
  let text = '';
  socket.setEncoding('utf8').on('data', (piece: string) => {
    text += piece;
    const parts = text.split('\r\n');
    text = parts.pop() ?? '';
    for (const line of parts) {
      const waiter = waiters.shift();
      if (waiter === undefined) lines.push(line);
      else waiter(line);
    }
  });
  const closed = new Promise<void>((resolve) => {
    socket.on('close', () => {
      over = true;
      for (const waiter of waiters.splice(0)) waiter(null);
      resolve();
    });
  });
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', () => resolve());
    socket.once('error', reject);
  });
  socket.on('error', () => undefined);
  const line = (ms: number): Promise<string | null> => {
    const ready = lines.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    if (over) return Promise.resolve(null);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no line within ${ms} ms`)), ms);
      waiters.push((got) => {
        clearTimeout(timer);
        resolve(got);
      });
    });
  };
  const next = async (ms = limitMs): Promise<Record<string, unknown>> => {
    const got = await line(ms);
    if (got === null) throw new Error('the connection was closed');
    return JSON.parse(got) as Record<string, unknown>;
  };
  const command = async (execute: string, args?: object): Promise<Record<string, unknown>> => {
    socket.write(JSON.stringify(args === undefined ? { execute } : { execute, arguments: args }));
    for (;;) {
      const message = await next();
      if (!('event' in message)) return message;
    }
  };
  return { socket, send: (bytes) => void socket.write(bytes), next, command, closed };
}
