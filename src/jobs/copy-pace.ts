/**
 * How many bytes a copy keeps under way, so that it leaves room for users on the same connection: a user's write queues
 * behind what is under way, so that must leave within `latencyMsMax` whatever the link carries (pair.md 6).
 *
 * It begins with one granule and doubles in each round trip while chunks come back early; a chunk that comes back late
 * halves it, once for all chunks that were under way together.
 */
export class CopyPace {
  /** bytes that may be under way, at least `bytesMin` */
  bytes: number;
  private readonly bytesMin: number;
  private readonly bytesMax: number;
  private readonly latencyMsMax: number;
  private cutMs = Number.NEGATIVE_INFINITY;

  /** @param latencyMsMax infinite: nobody else uses the connection, and all of `bytesMax` is used from the start */
  constructor(bytesMin: number, bytesMax: number, latencyMsMax: number) {
    this.bytesMin = bytesMin;
    this.bytesMax = Math.max(bytesMin, bytesMax);
    this.latencyMsMax = latencyMsMax;
    this.bytes = Number.isFinite(latencyMsMax) ? bytesMin : this.bytesMax;
  }

  /** A chunk of `length` bytes that left at `startMs` was answered at `nowMs`. */
  took(length: number, startMs: number, nowMs: number): void {
    const latencyMs = nowMs - startMs;
    if (latencyMs <= this.latencyMsMax / 2) {
      this.bytes = Math.min(this.bytes + length, this.bytesMax);
    } else if (latencyMs > this.latencyMsMax && startMs >= this.cutMs) {
      this.bytes = Math.max(Math.floor(this.bytes / 2), this.bytesMin);
      this.cutMs = nowMs;
    }
  }
}
