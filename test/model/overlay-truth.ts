/**
 * What may stand on the disks of a pair with overlays, seen from outside: every block of 4 KiB holds one version, and
 * versions grow in the order in which writes were issued, over all disks.
 *
 * Three claims are made of a state that is found: it is *exactly* a known one; or it holds every flush that was
 * answered while both sides were in step; and in any case it is a *cut* (pair.md 22): whoever saw a flush complete
 * before issuing the next write never finds the later without the earlier, on whichever disk.
 */
import assert from 'node:assert/strict';
import { blockBytes, versionsIn } from '../sim/checker.ts';

/** by disk: the version in each block */
export type GroupState = ReadonlyMap<string, Uint32Array>;

interface FlushPoint {
  readonly disk: string;
  /** the last version that was issued before the answer came */
  readonly before: number;
  readonly covered: Uint32Array;
}

export class GroupTruth {
  readonly blocks: number;
  readonly disks: readonly string[];
  /** what a reader of the serving side finds, unless something is in flight there */
  current: Map<string, Uint32Array>;
  /** what the other side holds for sure while both are in step */
  promised: Map<string, Uint32Array>;
  /** by disk and block: every version that may be found, in order */
  #issued = new Map<string, number[][]>();
  #flushes: FlushPoint[] = [];
  readonly #counter: { versions: number };

  /** @param counter of versions that are shared with other truths */
  constructor(disks: readonly string[], blocks: number, counter: { versions: number } = { versions: 0 }) {
    this.#counter = counter;
    this.blocks = blocks;
    this.disks = disks;
    const empty = (): Map<string, Uint32Array> => new Map(disks.map((disk) => [disk, new Uint32Array(blocks)]));
    this.current = empty();
    this.promised = empty();
    this.adopt(empty());
  }

  /** What was found is what there is from now on, on both sides. */
  adopt(found: GroupState): void {
    this.current = copyState(found);
    this.promised = copyState(found);
    this.#flushes = [];
    for (const disk of this.disks)
      this.#issued.set(
        disk,
        [...stateOf(found, disk)].map((version) => [version]),
      );
  }

  /** The content of a write of some blocks. */
  issue(disk: string, first: number, count: number): { version: number; bytes: Uint8Array } {
    const version = ++this.#counter.versions;
    for (let block = first; block < first + count; block++) this.#issued.get(disk)?.[block]?.push(version);
    const bytes = Buffer.alloc(count * blockBytes);
    for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32BE(version, at);
    return { version, bytes };
  }

  /** Of a writer beside this one, on a state that is known; a version tells which of both wrote it. */
  beside(): GroupTruth {
    const truth = new GroupTruth(this.disks, this.blocks, this.#counter);
    truth.adopt(this.current);
    return truth;
  }

  answered(disk: string, first: number, count: number, version: number): void {
    stateOf(this.current, disk).fill(version, first, first + count);
  }

  snapshot(): GroupState {
    return copyState(this.current);
  }

  /** @param both the answer came while both sides were in step: the other one has it, too */
  flushed(disk: string, covered: Uint32Array, both: boolean): void {
    this.#flushes.push({ disk, before: this.#counter.versions, covered });
    if (!both) return;
    const promised = stateOf(this.promised, disk);
    for (const [block, version] of covered.entries()) promised[block] = Math.max(version, promised[block] ?? 0);
  }

  /** The state holds what was promised at least, and nothing that nobody wrote. */
  checkReaches(found: GroupState, least: GroupState, what: string): void {
    for (const disk of this.disks) {
      const [versions, floor] = [stateOf(found, disk), stateOf(least, disk)];
      for (const [block, version] of versions.entries()) {
        const where = `${what}: ${disk}, block ${block} has version ${version}`;
        assert.ok(version >= (floor[block] ?? 0), `${where}, promised is ${floor[block]}`);
        assert.ok(this.#issued.get(disk)?.[block]?.includes(version), `${where}, which was not written there`);
      }
    }
    this.#checkCut(found, what);
  }

  #checkCut(found: GroupState, what: string): void {
    const newest = [...found.values()].reduce((all, versions) => versions.reduce((a, b) => Math.max(a, b), all), 0);
    for (const flush of this.#flushes) {
      if (flush.before >= newest) continue;
      const versions = stateOf(found, flush.disk);
      for (const [block, version] of flush.covered.entries()) {
        const said = `${what}: has version ${newest}, but on ${flush.disk}, block ${block} only ${versions[block]}`;
        assert.ok((versions[block] ?? 0) >= version, `${said}: ${version} was flushed before`);
      }
    }
  }
}

export function stateOf(state: GroupState, disk: string): Uint32Array {
  return state.get(disk) ?? assert.fail(`no disk ${disk}`);
}

export function copyState(state: GroupState): Map<string, Uint32Array> {
  return new Map([...state].map(([disk, versions]) => [disk, versions.slice()]));
}

export function sameState(one: GroupState, other: GroupState): boolean {
  return [...one].every(([disk, versions]) =>
    versions.every((version, block) => version === stateOf(other, disk)[block]),
  );
}

/** The state is exactly that one, byte for byte. */
export function checkExactly(found: GroupState, wanted: GroupState, what: string): void {
  for (const [disk, versions] of wanted) {
    const there = stateOf(found, disk);
    assert.equal(there.length, versions.length);
    const at = versions.findIndex((version, block) => version !== there[block]);
    const differing = versions.filter((version, block) => version !== there[block]).length;
    const said = `${what}: ${disk}, block ${at} has version ${there[at]}, wanted is ${versions[at]}`;
    assert.equal(at, -1, `${said} (${differing} blocks differ)`);
  }
}

/** @throws AssertionError a block that is no version all the way through */
export function versionsOf(bytes: Buffer, where: string): Uint32Array {
  const versions = new Uint32Array(bytes.length / blockBytes);
  for (let block = 0; block < versions.length; block++) {
    const found = versionsIn(bytes.subarray(block * blockBytes, (block + 1) * blockBytes));
    assert.equal(found.length, 1, `${where}: block ${block} is a mixture of ${found.slice(0, 8).join(', ')}`);
    versions[block] = found[0] ?? 0;
  }
  return versions;
}
