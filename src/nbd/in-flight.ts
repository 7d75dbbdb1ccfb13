/**
 * The requests of one connection: in flight, in slots, and waiting for one, in the order issued.
 *
 * A cookie is a slot's index and a sequence number. Towards an ordered server (pair.md 3) requests go out strictly as
 * they were issued. Towards any other one the protocol promises nothing ("Ordering of messages and writes"), so
 * requests whose ranges overlap are never in flight together, unless all of them only read; the later waits, others may
 * overtake it.
 */
import { PendingRequest } from './pending.ts';

/** objects kept to be used again */
const spareMax = 256;

export class InFlight {
  readonly #capacity: number;
  readonly #ordered: boolean;
  readonly #slots: (PendingRequest | undefined)[];
  readonly #sequences: Uint32Array;
  readonly #freeSlots: number[] = [];
  /** the requests that have a slot, without gaps, and how many of them change their range */
  readonly #active: PendingRequest[] = [];
  #modifying = 0;
  #waiting: PendingRequest[] = [];
  readonly #spare: PendingRequest[] = [];

  /** @param capacity requests in flight at most */
  constructor(capacity: number, ordered: boolean) {
    this.#capacity = capacity;
    this.#ordered = ordered;
    this.#slots = new Array<PendingRequest | undefined>(capacity).fill(undefined);
    this.#sequences = new Uint32Array(capacity);
    for (let slot = capacity - 1; slot >= 0; slot -= 1) this.#freeSlots.push(slot);
  }

  /** Nothing in flight and nothing waiting. */
  get idle(): boolean {
    return this.#active.length === 0 && this.#waiting.length === 0;
  }

  get count(): number {
    return this.#active.length;
  }

  get waitingCount(): number {
    return this.#waiting.length;
  }

  /** An object for a new request. */
  take(): PendingRequest {
    return this.#spare.pop() ?? new PendingRequest();
  }

  /** True: the request has a slot now and is to be sent. False: it waits, and `next` will give it. */
  submit(request: PendingRequest): boolean {
    // Slots first: without one there is nothing to compare, however many wait.
    const waits =
      this.#freeSlots.length === 0 ||
      (this.#waiting.length > 0 && (this.#ordered || this.#conflictsWaiting(request, this.#waiting.length)));
    if (waits || !this.#mayGo(request)) {
      this.#waiting.push(request);
      return false;
    }
    this.#enter(request);
    return true;
  }

  /** A waiting request that may go now; it has a slot then. Undefined: none. */
  next(): PendingRequest | undefined {
    // Only as many as could be in flight are looked at: the first of all can always go once what is in flight is done.
    const reach = this.#ordered ? 1 : this.#capacity;
    for (let index = 0; index < this.#waiting.length && index < reach; index += 1) {
      if (this.#freeSlots.length === 0) return undefined;
      const request = this.#waiting[index];
      if (request === undefined || !this.#mayGo(request) || this.#conflictsWaiting(request, index)) continue;
      // The usual one is the first, and a long line need not be moved for it.
      if (index === 0) this.#waiting.shift();
      else this.#waiting.splice(index, 1);
      this.#enter(request);
      return request;
    }
    return undefined;
  }

  /** The request in flight with this cookie. */
  find(slot: number, sequence: number): PendingRequest | undefined {
    const request = this.#slots[slot];
    return request !== undefined && this.#sequences[slot] === sequence && !request.replied ? request : undefined;
  }

  /** The second half of the cookie of a request in flight; the first is its slot. */
  sequenceOf(request: PendingRequest): number {
    return this.#sequences[request.slot] ?? 0;
  }

  /** Takes a request that was answered out of its slot. */
  leave(request: PendingRequest): void {
    const last = this.#active.pop();
    if (last !== undefined && last !== request) {
      this.#active[request.active] = last;
      last.active = request.active;
    }
    if (request.modifies) this.#modifying -= 1;
    this.#slots[request.slot] = undefined;
    this.#freeSlots.push(request.slot);
  }

  /** Takes back an object whose promise was settled. */
  giveBack(request: PendingRequest): void {
    request.forget();
    if (this.#spare.length < spareMax) this.#spare.push(request);
  }

  /** Empties the table: everything that was in flight, then what waited. */
  takeAll(): PendingRequest[] {
    const all = [...this.#active, ...this.#waiting];
    for (const request of this.#active.splice(0)) {
      this.#slots[request.slot] = undefined;
      this.#freeSlots.push(request.slot);
    }
    this.#waiting = [];
    this.#modifying = 0;
    return all;
  }

  #enter(request: PendingRequest): void {
    const slot = this.#freeSlots.pop() ?? 0;
    request.slot = slot;
    request.active = this.#active.length;
    this.#active.push(request);
    this.#slots[slot] = request;
    this.#sequences[slot] = ((this.#sequences[slot] ?? 0) + 1) >>> 0;
    if (request.modifies) this.#modifying += 1;
  }

  #mayGo(request: PendingRequest): boolean {
    if (this.#freeSlots.length === 0) return false;
    if (this.#ordered) return true;
    const modifies = request.modifies;
    if (!modifies && this.#modifying === 0) return true;
    for (const other of this.#active) {
      if ((modifies || other.modifies) && request.overlaps(other)) return false;
    }
    return true;
  }

  /** True if one of the first `count` that wait must go before this request. */
  #conflictsWaiting(request: PendingRequest, count: number): boolean {
    const modifies = request.modifies;
    for (let index = 0; index < count; index += 1) {
      const other = this.#waiting[index];
      if (other !== undefined && (modifies || other.modifies) && request.overlaps(other)) return true;
    }
    return false;
  }
}
