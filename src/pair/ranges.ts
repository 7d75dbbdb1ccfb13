/** What bitmaps are told in: ranges of bytes, in order, by disk. No I/O. */

export type Range = readonly [offset: number, length: number];

/** by disk */
export type Bitmaps = Record<string, Range[]>;

export function isEmpty(bitmaps: Bitmaps): boolean {
  return Object.values(bitmaps).every((ranges) => ranges.length === 0);
}

/** At most `most` ranges that cover these: the smallest gaps are given up first. Ranges are in order. */
export function joinRanges(ranges: readonly Range[], most: number): [number, number][] {
  const gaps: number[] = [];
  for (let i = 1; i < ranges.length; i++) gaps.push(gapBefore(ranges, i));
  const kept = gaps.sort((a, b) => b - a).slice(0, Math.max(0, most - 1));
  const limit = ranges.length <= most ? -1 : (kept.at(-1) ?? Number.POSITIVE_INFINITY);
  const joined: [number, number][] = [];
  for (const [i, [offset, length]] of ranges.entries()) {
    const last = joined.at(-1);
    // Gaps as long as the limit may be more than are left: the count decides.
    const apart = last === undefined || (gapBefore(ranges, i) >= limit && joined.length < most);
    if (apart) joined.push([offset, length]);
    else last[1] = offset + length - last[0];
  }
  return joined;
}

function gapBefore(ranges: readonly Range[], index: number): number {
  const [before, after] = [ranges[index - 1], ranges[index]];
  return before === undefined || after === undefined ? 0 : after[0] - before[0] - before[1];
}
