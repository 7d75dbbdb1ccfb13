/**
 * Lines that stay, and one live line under them. On a terminal the live line is drawn anew in place; elsewhere it is
 * printed when it has changed, and every few seconds at most.
 */

/** between two status lines where nothing can be redrawn */
const plainMsMin = 3000;

export interface Output {
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  write(text: string): unknown;
}

export class StatusLine {
  private readonly output: Output;
  private readonly now: () => number;
  private live = '';
  private printed = '';
  private printedAt = Number.NEGATIVE_INFINITY;

  constructor(output: Output, now: () => number) {
    this.output = output;
    this.now = now;
  }

  /** A line that stays. */
  say(line: string): void {
    if (this.output.isTTY !== true) this.output.write(`${line}\n`);
    else this.output.write(`\r\x1b[2K${line}\n${this.fitted()}`);
  }

  /**
   * The live line from now on.
   * @param lasting what has to change before it is worth another line where nothing can be redrawn
   */
  show(line: string, lasting = line): void {
    this.live = line;
    if (this.output.isTTY === true) {
      this.output.write(`\r\x1b[2K${this.fitted()}`);
    } else if (lasting !== this.printed && this.now() - this.printedAt >= plainMsMin) {
      this.printed = lasting;
      this.printedAt = this.now();
      this.output.write(`${line}\n`);
    }
  }

  /** No live line any more. */
  clear(): void {
    this.live = '';
    if (this.output.isTTY === true) this.output.write('\r\x1b[2K');
  }

  /** A line that wraps could not be drawn over. */
  private fitted(): string {
    const columns = this.output.columns || 80;
    return this.live.length < columns ? this.live : `${this.live.slice(0, Math.max(0, columns - 2))}…`;
  }
}
