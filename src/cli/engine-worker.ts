/**
 * The engine's own thread in the daemon: a disk that stalls in a system call must not silence the heartbeat, which
 * lives in the main thread (design: "The data path"). Commands come in and answers go out as messages; bytes of the
 * disk never cross threads.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { drivers } from '../drivers/index.ts';
import { Engine } from '../engine/engine.ts';
import { createHost } from '../host/index.ts';
import { carryError, type EngineThreadData, type FromEngine, type ToEngine } from './engine-messages.ts';

function serve(): void {
  const port = parentPort;
  if (port === null) throw new TypeError('this file is the start of a thread');
  const say = (message: FromEngine): void => port.postMessage(message);
  const { name } = workerData as EngineThreadData;
  const engine = new Engine(createHost(), drivers, { name });
  engine.subscribe((event) => say({ kind: 'event', event }));

  const execute = async ({ id, command, args }: ToEngine & { kind: 'execute' }): Promise<void> => {
    try {
      say({ kind: 'result', id, result: await engine.execute(command, args) });
    } catch (error) {
      say({ kind: 'error', id, error: carryError(error) });
    }
  };
  const close = async (): Promise<void> => {
    try {
      await engine.close();
      say({ kind: 'closed', error: null });
    } catch (error) {
      say({ kind: 'closed', error: carryError(error) });
    }
    port.close();
  };
  port.on('message', (message: ToEngine) => void (message.kind === 'close' ? close() : execute(message)));
  say({ kind: 'ready' });
}

serve();
