/** A user of a secondary's view of one disk (pair.md 17): it compares what it sees with the model, and may write. */
import { NbdClient } from '../../src/nbd/client.ts';
import type { Done } from '../../src/util/later.ts';
import { blockBytes, fill } from './checker.ts';
import { nbdPort, type PairWorld, type SideName } from './pair-world.ts';

const blocksAtOnce = 8;

export class Onlooker {
  readonly #pair: PairWorld;
  readonly #side: SideName;
  readonly #disk: string;
  readonly #client: NbdClient;

  private constructor(pair: PairWorld, side: SideName, disk: string, client: NbdClient) {
    this.#pair = pair;
    this.#side = side;
    this.#disk = disk;
    this.#client = client;
  }

  static async connect(pair: PairWorld, side: SideName, disk: string): Promise<Onlooker> {
    const client = await NbdClient.connect(pair.world.host('onlooker'), {
      address: { type: 'inet', host: side, port: nbdPort },
      exportName: disk,
      timeoutMs: 3000,
    });
    return new Onlooker(pair, side, disk, client);
  }

  /** Looks at everything, a few blocks at a time. */
  async look(): Promise<void> {
    for (let first = 0; first < this.#pair.blocks; first += blocksAtOnce) await this.#lookFrom(first);
  }

  /** Looks until all of it held still for a look. @throws Error it never does */
  async lookWell(): Promise<void> {
    for (let first = 0; first < this.#pair.blocks; first += blocksAtOnce) {
      let tries = 0;
      while (!(await this.#lookFrom(first))) {
        if (++tries > 100) throw new Error(`the view of ${this.#disk} on ${this.#side} never held still`);
      }
    }
  }

  /** @returns false: the checkpoint changed meanwhile */
  #lookFrom(first: number): Promise<boolean> {
    const count = Math.min(blocksAtOnce, this.#pair.blocks - first);
    const blocks = Array.from({ length: count }, (_, index) => first + index);
    return this.#pair.checkpoints.checkView(this.#side, this.#disk, this.#client, blocks);
  }

  /** Writes a block, or zeroes, in two parts, where the view can be written. @param cut bytes of the first one */
  async write(block: number, isZero = false, cut = blockBytes): Promise<void> {
    const client = this.#client;
    if (client.info.readOnly) return;
    const offset = this.#pair.layout(this.#disk).offsetOf(block);
    const change = (version: number, from: number, to: number): Done => {
      if (from === to) return undefined;
      if (version < 0) return client.writeZeroes(offset + from, to - from, 0);
      return client.write(offset + from, fill(new Uint8Array(blockBytes), version).subarray(from, to), 0);
    };
    await this.#pair.checkpoints.writeOwn(this.#side, this.#disk, block, isZero, async (version) => {
      await Promise.all([change(version, 0, cut), change(version, cut, blockBytes)]);
    });
  }

  close(): void {
    this.#client.close().catch(() => undefined);
  }
}
