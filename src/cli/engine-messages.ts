/**
 * What the main thread and the engine's thread say to each other: QMP's commands, answers and events as plain objects,
 * errors as code, errno and message (an error object would lose its class on the way).
 */

import type { QmpEvent } from '../qmp/target.ts';
import { BlockError, type BlockErrorCode, type Errno, toBlockError } from '../util/errors.ts';

export interface EngineThreadData {
  /** the daemon's name, for the engine's messages */
  readonly name: string;
}

export type ToEngine =
  | {
      readonly kind: 'execute';
      readonly id: number;
      readonly command: string;
      readonly args: Readonly<Record<string, unknown>> | undefined;
    }
  | { readonly kind: 'close' };

export type FromEngine =
  | { readonly kind: 'ready' }
  | { readonly kind: 'result'; readonly id: number; readonly result: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: CarriedError }
  | { readonly kind: 'event'; readonly event: QmpEvent }
  | { readonly kind: 'closed'; readonly error: CarriedError | null };

export interface CarriedError {
  readonly code: BlockErrorCode;
  readonly errno: Errno;
  readonly message: string;
}

export function carryError(thrown: unknown): CarriedError {
  const { code, errno, message } = toBlockError(thrown);
  return { code, errno, message };
}

export function arrivedError(error: CarriedError): BlockError {
  return new BlockError(error.code, error.message, { errno: error.errno });
}
