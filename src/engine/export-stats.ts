/** What the clients of an export have asked for so far: counted when a request is issued, failed ones included. */
export class ExportStats {
  readBytes = 0;
  writtenBytes = 0;
  discardedBytes = 0;
  reads = 0;
  writes = 0;
  discards = 0;
  flushes = 0;
  /** the end of the highest byte that was written */
  writtenEnd = 0;

  read(length: number): void {
    this.reads += 1;
    this.readBytes += length;
  }

  /** Zeroes are a write. */
  written(offset: number, length: number): void {
    this.writes += 1;
    this.writtenBytes += length;
    if (offset + length > this.writtenEnd) this.writtenEnd = offset + length;
  }

  discarded(length: number): void {
    this.discards += 1;
    this.discardedBytes += length;
  }
}
