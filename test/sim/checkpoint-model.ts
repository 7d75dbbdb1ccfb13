/**
 * The model of checkpoints: what each checkpoint of each side holds, byte for byte, and what must be in it (pair.md 14,
 * 17, 20 to 22; record-log.md 8, 9).
 *
 * When the engine of a secondary has prepared a checkpoint, all its disks hold still: the images at that moment are
 * what the checkpoint of the next number is, should it become durable (which it may though the process dies before it
 * knows). From then on whatever is passed off as that checkpoint is compared with them.
 */
import assert from 'node:assert/strict';
import type { Engine } from '../../src/engine/engine.ts';
import type { NbdClient } from '../../src/nbd/client.ts';
import type { Checkpoint, GroupRecord } from '../../src/pair/generation.ts';
import type { PairState } from '../../src/pair/pair-state.ts';
import type { QmpTarget } from '../../src/qmp/target.ts';
import type { Done } from '../../src/util/later.ts';
import { blockBytes, contentOf, DiskModel, type GroupModel, isMixOf, versionsIn } from './checker.ts';
import { type OwnBlock, OwnWrites } from './checkpoint-own.ts';
import { otherSide, type PairWorld, type SideName, sideNames } from './pair-world.ts';

/** by disk, by block: a version that must be there, or a later one */
type Floor = ReadonlyMap<string, readonly number[]>;

/** by disk: the bytes of all blocks that users write, one behind the other */
type Images = ReadonlyMap<string, Uint8Array>;

/** how many checkpoints of a side are remembered: one may be told of after others were made */
const rememberedMax = 20;

/** A connection to a view, or the node behind it. */
type BlockReader = Pick<NbdClient, 'read'>;

export class CheckpointModel {
  readonly #pair: PairWorld;
  readonly #snapshots = new Map<string, Images>();
  /** counts the begins and ends of checkpoints of a side, and its starts: what was read across one says nothing */
  readonly #changes = new Map<SideName, number>();
  readonly #changing = new Set<SideName>();
  /** sides that lost their power since the last start was complete, or whose disks failed before it */
  readonly #mayHaveLost = new Set<SideName>();
  /** by version: what had been flushed, over all disks, before it was issued */
  readonly #floors = new Map<number, Floor>();
  readonly #flushed = new Map<GroupModel, Floor>();
  /** every version of a block that was ever issued, oldest first */
  readonly #issued = new Map<string, number[][]>();
  /** what was answered to the users of a side since it last began to serve */
  readonly #answered = new Map<SideName, Map<string, number[]>>();
  /** primaries that hold their writers back: what had been answered before, and the first version after it */
  readonly #barriers = new Map<SideName, { readonly answered: Floor; readonly version: number }>();
  /** what users of a view write beside it */
  readonly own: ReadonlyMap<SideName, OwnWrites>;
  /** how many checkpoints there were, and how many blocks of views were compared */
  readonly counts = { made: 0, viewed: 0, promotions: 0 };

  constructor(pair: PairWorld) {
    this.#pair = pair;
    for (const disk of pair.disks) {
      this.#issued.set(
        disk,
        Array.from({ length: pair.blocks }, () => [0]),
      );
    }
    for (const side of sideNames) this.#forgetAnswers(side);
    this.own = new Map(sideNames.map((side) => [side, new OwnWrites(pair.disks, pair.blocks)]));
  }

  // ---------------------------------------------------------------- checkpoints as they are made

  /** The engine as its supervisor sees it. */
  wrap(side: SideName, engine: QmpTarget, stateOf: () => PairState | null): QmpTarget {
    return {
      subscribe: (listener) => engine.subscribe(listener),
      execute: async (command, args) => {
        if (command === 'replication-prepare') {
          this.#change(side, true);
          try {
            const prepared = await engine.execute(command, args);
            this.#prepared(side, stateOf());
            return prepared;
          } catch (error) {
            this.#change(side, false);
            throw error;
          }
        }
        if (command === 'replication-set-mode') this.#setMode(side, args?.mode);
        if (command !== 'replication-commit' && command !== 'replication-abort') return engine.execute(command, args);
        const before = this.#ownOf(side).now();
        const answer = await engine.execute(command, args);
        if (command === 'replication-commit') this.#ownOf(side).emptied(before);
        this.#change(side, false);
        return answer;
      },
    };
  }

  #change(side: SideName, begins: boolean): void {
    this.#changes.set(side, (this.#changes.get(side) ?? 0) + 1);
    if (begins) this.#changing.add(side);
    else this.#changing.delete(side);
  }

  #prepared(side: SideName, state: PairState | null): void {
    if (state === null || !this.#pair.world.isAlive(side)) return;
    const { record } = state;
    if (record.role === 'primary') return;
    const images = this.#imagesNow(side);
    const number = record.checkpoints + 1;
    this.#snapshots.delete(`${side} ${number - rememberedMax}`);
    this.#snapshots.set(`${side} ${number}`, images);
    this.counts.made++;
    this.#pair.say(side, `prepared checkpoint ${number}`);
    this.#pair.check(() => {
      this.#checkCut(`${side}, checkpoint ${number}`, images);
      if (state.phase === 'following' && state.checkpointFor !== null) this.#checkBarrier(side, number, images);
    });
  }

  #imagesNow(side: SideName): Images {
    return new Map(
      this.#pair.disks.map((disk) => {
        const blocks = new Uint8Array(this.#pair.blocks * blockBytes);
        for (let block = 0; block < this.#pair.blocks; block++) {
          this.#pair.readImage(side, disk, this.#pair.layout(disk).offsetOf(block), blockOf(blocks, block));
        }
        return [disk, blocks];
      }),
    );
  }

  /**
   * A consistent cut (pair.md 22): what was flushed before a version was issued is there if the version is. (Of zeroes
   * nobody can tell since when they are there.)
   */
  #checkCut(where: string, images: Images): void {
    const floors = new Map<Floor, number>();
    for (const version of this.#versions(images)) {
      const floor = version > 0 ? this.#floors.get(version) : undefined;
      if (floor !== undefined) floors.set(floor, version);
    }
    for (const [floor, version] of floors) {
      this.#checkFloor(`${where} has version ${version}, before which others had been flushed`, images, floor);
    }
  }

  #setMode(side: SideName, mode: unknown): void {
    if (mode !== 'barrier') this.#barriers.delete(side);
    else this.#barriers.set(side, { answered: this.answered(side), version: this.#pair.checker.nextVersion() });
  }

  /**
   * In lock-step (pair.md 21): what was answered before the barrier is in the checkpoint, and what was issued since
   * waits until it is made.
   */
  #checkBarrier(side: SideName, number: number, images: Images): void {
    const primary = otherSide(side);
    const barrier = this.#barriers.get(primary);
    if (barrier === undefined || this.#pair.phase(primary) !== 'in-step') return;
    this.#checkFloor(`${side}, checkpoint ${number}, as a barrier`, images, barrier.answered);
    for (const [disk, versions] of this.answered(primary)) {
      for (const [block, version] of versions.entries()) {
        if (Math.abs(version) < barrier.version) continue;
        assert.fail(`${primary} answered version ${version} of ${disk} block ${block} behind the barrier`);
      }
    }
  }

  /** A checkpoint by command has what was answered before (pair.md 21). */
  checkContains(side: SideName, number: number, floor: Floor): void {
    this.#checkFloor(`${side}, checkpoint ${number} by command`, this.snapshot(side, number), floor);
  }

  #checkFloor(where: string, images: Images, floor: Floor): void {
    for (const [disk, versions] of floor) {
      const image = images.get(disk) ?? new Uint8Array(0);
      for (const [block, least] of versions.entries()) {
        const found = this.#versionsOf(disk, block, blockOf(image, block));
        const { seed } = this.#pair.world;
        if (found.some((version) => Math.abs(version) < Math.abs(least))) {
          assert.fail(`seed ${seed}: ${where}: ${disk} block ${block} has ${found.join('+')}, not yet ${least}`);
        }
      }
    }
  }

  /** The versions in a block, of zeroes the last ones; a word at a tear that never was one does not count. */
  #versionsOf(disk: string, block: number, bytes: Uint8Array): number[] {
    const issued = this.#issued.get(disk)?.[block] ?? [];
    const found = versionsIn(bytes).map((content) => issued.findLast((version) => contentOf(version) === content));
    return found.filter((version) => version !== undefined);
  }

  *#versions(images: Images): Generator<number> {
    for (const [disk, image] of images) {
      for (let block = 0; block < this.#pair.blocks; block++)
        yield* this.#versionsOf(disk, block, blockOf(image, block));
    }
  }

  /** What the checkpoint of this number is. */
  snapshot(side: SideName, number: number): Images {
    const images = this.#snapshots.get(`${side} ${number}`);
    assert.ok(images !== undefined, `seed ${this.#pair.world.seed}: ${side} never made a checkpoint ${number}`);
    return images;
  }

  // ---------------------------------------------------------------- what users do

  issued(side: SideName, disk: string, block: number, version: number): void {
    this.#issued.get(disk)?.[block]?.push(version);
    const model = this.#pair.checker.model(side);
    let floor = this.#flushed.get(model);
    if (floor === undefined) {
      floor = new Map([...model].map(([name, { allowed }]) => [name, allowed.map(([oldest]) => oldest ?? 0)]));
      this.#flushed.set(model, floor);
    }
    this.#floors.set(version, floor);
  }

  wasAnswered(side: SideName, disk: string, block: number, version: number): void {
    const versions = this.#answered.get(side)?.get(disk);
    if (versions !== undefined) versions[block] = version;
  }

  /** Who comes anew to a side that goes on serving finds what it had answered. */
  wasFound(side: SideName, disk: string, block: number, version: number): void {
    const least = this.answered(side).get(disk)?.[block] ?? 0;
    if (Math.abs(version) >= Math.abs(least)) return;
    assert.fail(`seed ${this.#pair.world.seed}: ${side} ${disk} block ${block} has ${version}, answered was ${least}`);
  }

  wasFlushed(side: SideName): void {
    this.#flushed.delete(this.#pair.checker.model(side));
  }

  /**
   * What was answered to the users of a side up to now, since it last began to serve; nothing, where its disks may have
   * lost it.
   */
  answered(side: SideName): Floor {
    if (this.#pair.hasFailed(side)) return new Map();
    return new Map([...(this.#answered.get(side) ?? [])].map(([disk, versions]) => [disk, [...versions]]));
  }

  #forgetAnswers(side: SideName): void {
    const { disks, blocks } = this.#pair;
    this.#answered.set(side, new Map(disks.map((disk) => [disk, new Array<number>(blocks).fill(0)])));
  }

  #ownOf(side: SideName): OwnWrites {
    return this.own.get(side) ?? assert.fail(side);
  }

  // ---------------------------------------------------------------- starts and promotions

  /** Until it has started, nobody knows what it shows. */
  starting(side: SideName): void {
    if (this.#pair.hasFailed(side)) this.#mayHaveLost.add(side);
    this.#change(side, true);
  }

  powerCut(side: SideName): void {
    this.#mayHaveLost.add(side);
  }

  /** May this side say that its checkpoint is lost? */
  mayLose(side: SideName): boolean {
    const may = this.#mayHaveLost.has(side) || this.#pair.hasFailed(side);
    return may && !this.#pair.config(side).overlays.sync;
  }

  /** A side has started; nothing was received yet. `last`: the state that its last life knew. */
  started(side: SideName, last: PairState | null, { record, sequence }: PairState): void {
    this.#change(side, false);
    // A promotion that had begun goes on with what the view's user wrote.
    this.#forgetAnswers(side);
    if (record.role === 'secondary') this.#ownOf(side).forget();
    const { seed } = this.#pair.world;
    const where = `seed ${seed}: ${side} after a start`;
    if (last !== null && this.#pair.sound) {
      assert.ok(sequence >= last.sequence, `${where}: group file at ${sequence}, it had been at ${last.sequence}`);
    }
    if (this.#pair.sound)
      assert.notEqual(record.store, 'resync', `${where}: a mixture is left, the checkpoint neither made nor given up`);
    const kept = this.#pair.sound && last !== null && last.record.checkpoint !== null && !this.mayLose(side);
    if (kept && last.record.role === 'secondary' && record.role === 'secondary' && record.store === 'clean') {
      assert.ok(record.checkpoint !== null, `${where}: its checkpoint is gone`);
    }
    this.#mayHaveLost.delete(side);
    if (record.role !== 'secondary' || record.checkpoint === null) return;
    // A standby that is in lock-step from now on.
    if (last !== null && record.checkpoints > last.record.checkpoints) this.#found(where, side, record.checkpoint);
    const inStep = this.#pair.config(side).mode === 'lock-step' && record.store === 'clean';
    if (inStep) assert.ok(record.rolledBack, `${where}: in lock-step it goes back to the checkpoint`);
    if (record.rolledBack) this.checkImages(`${where}, which went back`, side, record.checkpoint.number);
  }

  #found(where: string, side: SideName, { number }: Checkpoint): void {
    const images = this.#imagesNow(side);
    this.#checkCut(where, images);
    this.#snapshots.set(`${side} ${number}`, images);
  }

  /** The disks of a side hold this checkpoint. */
  checkImages(where: string, side: SideName, number: number): void {
    const now = this.#imagesNow(side);
    for (const [disk, expected] of this.snapshot(side, number)) {
      const image = now.get(disk) ?? new Uint8Array(0);
      for (let block = 0; block < this.#pair.blocks; block++) {
        const [is, was] = [blockOf(image, block), blockOf(expected, block)];
        if (Buffer.compare(is, was) === 0) continue;
        const found = `${versionsIn(is).join('+')}, checkpoint ${number} ${versionsIn(was).join('+')}`;
        assert.fail(`${where}: ${side} ${disk} block ${block} has ${found}`);
      }
    }
  }

  /**
   * What the users of a side that is promoted find, where that is not simply the latest that the primary flushed; null:
   * it is. `switchover`: nothing was lost of what the primary had.
   */
  promoted(side: SideName, record: GroupRecord, switchover: boolean): GroupModel | null {
    this.counts.promotions++;
    const own = this.#ownOf(side).all();
    this.#forgetAnswers(side);
    this.#ownOf(side).forget();
    if (record.promoting === 'checkpoint') {
      assert.ok(record.checkpoint !== null, `${side} is promoted to a checkpoint that is not there`);
      return this.#modelOf(this.snapshot(side, record.checkpoint.number), own);
    }
    if (switchover || this.#pair.config(side).mode !== 'lock-step') return null;
    // In lock-step the latest is no state of a machine: of each block it may be any.
    this.#floors.clear();
    return new Map(this.#pair.disks.map((disk) => [disk, modelWith(this.#issued.get(disk) ?? [])]));
  }

  #modelOf(images: Images, own: ReadonlyMap<string, readonly OwnBlock[]>): GroupModel {
    const { disks, blocks } = this.#pair;
    return new Map(
      disks.map((disk) => {
        const image = images.get(disk) ?? new Uint8Array(0);
        const allowed = Array.from({ length: blocks }, (_, block) => [
          ...versionsIn(blockOf(image, block)),
          ...(own.get(disk)?.[block]?.earlier ?? []),
          ...(own.get(disk)?.[block]?.versions ?? []),
        ]);
        return [disk, modelWith(allowed)];
      }),
    );
  }

  // ---------------------------------------------------------------- the view of a secondary

  /** Names the checkpoint that users of a secondary are shown; null: none, or it is changing. */
  #shown(side: SideName): { number: number; mark: string } | null {
    const daemon = this.#pair.sides.get(side)?.daemon;
    if (daemon === undefined || !this.#pair.world.isAlive(side) || this.#changing.has(side)) return null;
    const { record } = daemon.state;
    if (record.role !== 'secondary' || record.checkpoint === null) return null;
    const { number } = record.checkpoint;
    return { number, mark: `${number} ${this.#changes.get(side) ?? 0}` };
  }

  isShown(side: SideName): boolean {
    return this.#shown(side) !== null;
  }

  /**
   * Reads blocks through a connection to the view of a secondary: they are those of its last checkpoint.
   * @returns false: the checkpoint changed meanwhile, nothing was compared
   */
  async checkView(side: SideName, disk: string, client: BlockReader, blocks: readonly number[]): Promise<boolean> {
    const before = this.#shown(side);
    const found = await Promise.all(
      blocks.map(async (block) => {
        const bytes = new Uint8Array(blockBytes);
        await client.read(this.#pair.layout(disk).offsetOf(block), bytes);
        return bytes;
      }),
    );
    const after = this.#shown(side);
    if (before === null || after === null || before.mark !== after.mark) return false;
    const image = this.snapshot(side, before.number).get(disk) ?? new Uint8Array(0);
    for (const [index, block] of blocks.entries()) {
      this.counts.viewed++;
      const bytes = found[index] ?? new Uint8Array(0);
      const { versions, base } = this.#ownOf(side).at(disk, block);
      const [is, expected] = [versionsIn(bytes), blockOf(image, block)];
      if (base && Buffer.compare(bytes, expected) === 0) continue;
      if (is.length === 1 && versions.map(contentOf).includes(is[0] ?? 0)) continue;
      // A write of two requests, between which a checkpoint came: one is gone with it, the other is not.
      if (base && versions.length > 0 && isMixOf(bytes, [...versionsIn(expected), ...versions])) continue;
      const wanted = [...(base ? [versionsIn(expected).join('+')] : []), ...versions.map((own) => `${own} (own)`)];
      const where: string = `${disk} block ${block} of checkpoint ${before.number}`;
      assert.fail(`${side} shows ${where} as ${is.join('+')}, it is ${wanted.join(' or ')}`);
    }
    return true;
  }

  /**
   * A user of the view writes beside it (lock-step), or zeroes: it is gone at the next checkpoint.
   * @param write gets the version: above 0 one to write, below 0 zeroes
   */
  async writeOwn(
    side: SideName,
    disk: string,
    block: number,
    isZero: boolean,
    write: (version: number) => Done,
  ): Promise<void> {
    const mark = this.#shown(side)?.mark;
    const own = this.#ownOf(side);
    if (mark === undefined || own.at(disk, block).underWay) return;
    const version = (isZero ? -1 : 1) * this.#pair.checker.nextVersion();
    this.#issued.get(disk)?.[block]?.push(version);
    await own.write(disk, block, version, write, () => mark === this.#shown(side)?.mark);
  }

  /** What the nodes of a side that has just started read, whether a user is quick enough to see it or not. */
  async checkStarted(side: SideName, { graph }: Engine): Promise<void> {
    for (const disk of this.#pair.disks) {
      const reader: BlockReader = {
        read: async (offset, into) => {
          await graph.find(`${disk}-active`).node.read(offset, into);
        },
      };
      const blocks = Array.from({ length: this.#pair.blocks }, (_, block) => block);
      const checked = this.checkView(side, disk, reader, blocks);
      await checked.catch((error: unknown) => {
        // What reads there may be taken away meanwhile.
        if (error instanceof assert.AssertionError) this.#pair.failure ??= error;
      });
    }
  }
}

function blockOf(blocks: Uint8Array, block: number): Uint8Array {
  return blocks.subarray(block * blockBytes, (block + 1) * blockBytes);
}

function modelWith(allowed: readonly (readonly number[])[]): DiskModel {
  const model = new DiskModel(0);
  for (const versions of allowed) {
    model.allowed.push([...versions]);
    model.current.push(versions.at(-1) ?? 0);
  }
  return model;
}
