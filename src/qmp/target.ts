/**
 * The narrow waist: whoever executes commands and tells events. The engine is one, a `QmpClient` over a socket is one,
 * the proxy of an engine in a worker thread is one: a supervisor, a QMP server or a CLI sees no difference.
 */

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

export interface QmpTarget {
  /** Runs one command; resolves with what QMP calls `return`. Rejects with a `BlockError` that has the QMP class. */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>;
  /** Events from now on; the function returned ends it. */
  subscribe(listener: (event: QmpEvent) => void): () => void;
}
