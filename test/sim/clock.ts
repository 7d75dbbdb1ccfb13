/**
 * Simulated time: one queue of events, in the order of their times, and of their making where the times are equal.
 *
 * An event may belong to a process: if that is dead, the event falls away; if it hangs, the event waits until it goes
 * on.
 */
import type { HostClock, HostTimer } from '../../src/host/host.ts';

/** A process, as far as its events are concerned. */
export interface Life {
  alive: boolean;
  /** stopped (SIGSTOP): what is for it waits in `waiting` */
  hung: boolean;
  waiting: SimEvent[];
}

export interface SimEvent {
  readonly time: number;
  readonly order: number;
  readonly life: Life | null;
  /** null: cancelled */
  call: (() => void) | null;
}

export class Timeline {
  /** simulated milliseconds since the world began */
  now = 0;
  #order = 0;
  /** a binary heap: no event comes before its parent at (index - 1) >> 1 */
  readonly #heap: SimEvent[] = [];

  /** Calls `call` after `ms`; `life`: on behalf of this process, null: of the world. */
  after(ms: number, life: Life | null, call: () => void): SimEvent {
    const event: SimEvent = { time: this.now + Math.max(0, ms || 0), order: this.#order++, life, call };
    if (life === null || life.alive) this.#push(event);
    return event;
  }

  /** The time of the next event, or null if there is none. */
  nextTime(): number | null {
    return this.#heap[0]?.time ?? null;
  }

  /** Moves to the next event and runs it. */
  step(): void {
    const event = this.#pop();
    if (event === undefined || event.call === null) return;
    this.now = Math.max(this.now, event.time);
    const life = event.life;
    if (life !== null && !life.alive) return;
    if (life?.hung) life.waiting.push(event);
    else event.call();
  }

  /** What waited for a hanging process comes to it now, in order. */
  goOn(life: Life): void {
    life.hung = false;
    for (const { call } of life.waiting.splice(0)) if (call !== null) this.after(0, life, call);
  }

  #push(event: SimEvent): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parentAt = (at - 1) >> 1;
      const parent = heap[parentAt];
      if (parent === undefined || isBefore(parent, event)) break;
      heap[at] = parent;
      at = parentAt;
    }
    heap[at] = event;
  }

  #pop(): SimEvent | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let childAt = 2 * at + 1;
      let child = heap[childAt];
      const right = heap[childAt + 1];
      if (child === undefined) break;
      if (right !== undefined && isBefore(right, child)) {
        child = right;
        childAt++;
      }
      if (isBefore(last, child)) break;
      heap[at] = child;
      at = childAt;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(a: SimEvent, b: SimEvent): boolean {
  return a.time < b.time || (a.time === b.time && a.order < b.order);
}

/** The clock of one process. Its zero is its own, as a machine's uptime is. */
export class SimClock implements HostClock {
  readonly #timeline: Timeline;
  readonly #life: Life;
  readonly #zero: number;
  readonly #wallZero: number;

  constructor(timeline: Timeline, life: Life, zero: number, wallZero: number) {
    this.#timeline = timeline;
    this.#life = life;
    this.#zero = zero;
    this.#wallZero = wallZero;
  }

  now(): number {
    return this.#timeline.now + this.#zero;
  }

  wall(): number {
    return Math.floor(this.#timeline.now + this.#wallZero);
  }

  after(ms: number, call: () => void): HostTimer {
    // A timer that hung with its process may be cancelled by an event that comes before it when both go on.
    let cancelled = false;
    const event = this.#timeline.after(ms, this.#life, () => {
      if (!cancelled) call();
    });
    return {
      cancel() {
        cancelled = true;
        event.call = null;
      },
    };
  }

  endOfTurn(call: () => void): void {
    this.#timeline.after(0, this.#life, call);
  }
}
