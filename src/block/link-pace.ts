/**
 * How many bytes may be under way on a connection: what is sent now waits for all of it, so that must be answered
 * within `latencyMsMax` whatever the link carries (pair.md 6). A sync has one, and so has the forwarding of users'
 * writes: on a connection that both use they share what it carries.
 *
 * It begins with `bytesMin` and looks at one request at a time, which costs the others nothing. A request that was
 * answered early doubles the bytes, if so much was under way with it that it says something about more. One that was
 * answered late leaves half of what was under way with it.
 */
import type { HostClock } from '../host/host.ts';

/** What is under way may hold a user up for this part of the time after which the link counts as stalled. */
export const stallShare = 4;

export class LinkPace {
  /** bytes that may be under way, at least `bytesMin` */
  bytes: number;
  private readonly clock: HostClock;
  private readonly bytesMin: number;
  private readonly bytesMax: number;
  private readonly latencyMsMax: number;
  /** the request that is looked at */
  private watched: object | null = null;
  private leftMs = 0;
  private leftBytes = 0;

  /** @param latencyMsMax infinite: nobody waits on the connection, and all of `bytesMax` is used from the start */
  constructor(clock: HostClock, bytesMin: number, bytesMax: number, latencyMsMax: number) {
    this.clock = clock;
    this.bytesMin = bytesMin;
    this.bytesMax = Math.max(bytesMin, bytesMax);
    this.latencyMsMax = latencyMsMax;
    this.bytes = Number.isFinite(latencyMsMax) ? bytesMin : this.bytesMax;
  }

  /** A request leaves. `underWay`: the bytes that are under way now, its own included. */
  left(request: object, underWay: number): void {
    if (this.watched !== null || this.latencyMsMax === Number.POSITIVE_INFINITY) return;
    this.watched = request;
    this.leftMs = this.clock.now();
    this.leftBytes = Math.min(underWay, this.bytes);
  }

  /** A request was answered, or is over in another way. */
  answered(request: object): void {
    if (this.watched !== request) return;
    this.watched = null;
    const latencyMs = this.clock.now() - this.leftMs;
    if (latencyMs > this.latencyMsMax) {
      this.bytes = Math.max(Math.floor(Math.min(this.leftBytes, this.bytes) / 2), this.bytesMin);
    } else if (latencyMs <= this.latencyMsMax / 2 && this.leftBytes >= this.bytes / 2) {
      this.bytes = Math.min(this.bytes + this.leftBytes, this.bytesMax);
    }
  }
}
