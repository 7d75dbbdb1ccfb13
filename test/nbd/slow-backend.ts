/** A backend that answers when the test says so. */
import { type Deferred, deferred } from '../../src/util/later.ts';
import { MemoryBackend } from './memory-backend.ts';

/** Every call waits until the test ends it. */
export class SlowBackend extends MemoryBackend {
  readonly calls: { readonly name: string; readonly end: Deferred }[] = [];

  #wait(name: string): never {
    const end = deferred();
    this.calls.push({ name, end });
    // The memory's methods answer at once; here they do not, and the contract allows both.
    return end.promise as never;
  }

  override read(): undefined {
    return this.#wait('read');
  }

  override write(): undefined {
    return this.#wait('write');
  }

  override writeZeroes(): undefined {
    return this.#wait('zeroes');
  }

  override discard(): undefined {
    return this.#wait('discard');
  }

  override flush(): undefined {
    return this.#wait('flush');
  }

  get names(): string[] {
    return this.calls.map(({ name }) => name);
  }

  endAll(): void {
    for (const { end } of this.calls.splice(0)) end.resolve();
  }
}
