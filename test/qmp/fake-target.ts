/** A `QmpTarget` for tests of the wire: `echo` gives its arguments back, `slow` waits for `release`, `fail` fails. */
import type { QmpEvent, QmpTarget } from '../../src/qmp/target.ts';
import { BlockError, type BlockErrorCode } from '../../src/util/errors.ts';

export class FakeTarget implements QmpTarget {
  readonly calls: string[] = [];
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #waiting: (() => void)[] = [];

  async execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    this.calls.push(command);
    switch (command) {
      case 'qmp_capabilities':
        return {};
      case 'echo':
        return args;
      case 'nothing':
        return undefined;
      case 'large':
        return 'x'.repeat(Number(args.bytes));
      case 'slow':
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
        return 'slow';
      case 'fail':
        throw new BlockError(args.code as BlockErrorCode, 'it failed');
      case 'throw':
        throw new TypeError('a fault of our own');
      default:
        throw new BlockError('command-not-found', `there is no command ${command}`);
    }
  }

  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  release(): void {
    for (const go of this.#waiting.splice(0)) go();
  }

  emit(event: string, data: Record<string, unknown> = {}): void {
    const told = { event, data, timestamp: { seconds: 1, microseconds: 2 } };
    for (const listener of this.#listeners) listener(told);
  }
}

/** Waits until `condition` holds; the test's own time limit ends it. */
export async function until(condition: () => boolean): Promise<void> {
  for (let turn = 0; turn < 5000 && !condition(); turn += 1) await new Promise((resolve) => setTimeout(resolve, 2));
  if (!condition()) throw new Error('what was waited for did not come');
}
