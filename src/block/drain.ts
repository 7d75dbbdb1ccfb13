/**
 * Draining: holding everybody who issues requests from outside, until nothing is in flight.
 *
 * Invariants: a parent is held as long as any drain below it lasts, and told only of the first begin and the last end;
 * a parent that comes above a drained node is held from then on as well.
 */
import type { BlockParent, Drained } from './graph-view.ts';
import { downward, rootsAbove, upward, type Vertex } from './vertex.ts';

/** One parent that is held by `count` drains; `quiet` ends when nothing of its own is under way. */
interface Hold {
  count: number;
  readonly quiet: Promise<void>;
}

interface Drain {
  readonly vertex: Vertex;
  readonly held: Map<BlockParent, Promise<void>>;
}

export class Drains {
  private readonly holds = new Map<BlockParent, Hold>();
  private readonly active = new Set<Drain>();

  /** Ends when nothing is in flight in the vertex, above it and below it. On an error everybody goes on. */
  async begin(vertex: Vertex): Promise<Drained> {
    const drain: Drain = { vertex, held: new Map() };
    this.active.add(drain);
    let ended = false;
    const end = (): void => {
      if (ended) return;
      ended = true;
      this.active.delete(drain);
      for (const parent of drain.held.keys()) this.release(parent);
    };
    try {
      // While one parent becomes quiet another may come above the node.
      for (let before = -1; before < drain.held.size; ) {
        before = drain.held.size;
        this.holdNew(drain);
        await Promise.all(drain.held.values());
      }
      // From the top down: what a window above still sends is settled below after it.
      const tops = upward(vertex);
      for (const each of downward(tops)) {
        // What is still being opened has no users yet.
        if (each.state === 'opening') continue;
        const settling = each.node.settle?.();
        if (settling !== undefined) await settling;
      }
    } catch (error) {
      end();
      throw error;
    }
    return { end };
  }

  /** Edges were added or moved: whoever stands above a drained node now is held. */
  edgesChanged(): void {
    for (const drain of this.active) this.holdNew(drain);
  }

  private holdNew(drain: Drain): void {
    for (const parent of rootsAbove(drain.vertex)) {
      if (drain.held.has(parent)) continue;
      const quiet = this.hold(parent);
      // Whoever waits for the drain sees the failure; nobody does when the parent came later.
      quiet.catch(() => undefined);
      drain.held.set(parent, quiet);
    }
  }

  private hold(parent: BlockParent): Promise<void> {
    const held = this.holds.get(parent);
    if (held !== undefined) {
      held.count += 1;
      return held.quiet;
    }
    const quiet = quietOf(parent);
    this.holds.set(parent, { count: 1, quiet });
    return quiet;
  }

  private release(parent: BlockParent): void {
    const held = this.holds.get(parent);
    if (held === undefined) return;
    held.count -= 1;
    if (held.count > 0) return;
    this.holds.delete(parent);
    parent.drainEnd();
  }
}

/** Async, so that a throw of `drainBegin` is a rejection like any other; it is called at once. */
async function quietOf(parent: BlockParent): Promise<void> {
  await parent.drainBegin();
}
