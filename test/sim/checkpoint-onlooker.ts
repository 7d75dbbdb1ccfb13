/** A user of a secondary's view of one disk (pair.md 17): it compares what it sees with the model, and may write. */
import { NbdClient } from '../../src/nbd/client.ts';
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

  /** Writes a block, where the view can be written. */
  async write(block: number): Promise<void> {
    if (this.#client.info.readOnly) return;
    await this.#pair.checkpoints.writeOwn(this.#side, this.#disk, this.#client, block);
  }

  close(): void {
    this.#client.close().catch(() => undefined);
  }
}
