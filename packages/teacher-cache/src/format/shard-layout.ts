import type { CacheDescription, DataIdentity } from './description.ts';

/** Some rows of a cache, by their numbers: `rowCount` from `firstRow` on. */
export interface RowRange {
  readonly firstRow: number;
  readonly rowCount: number;
}

/** The rows that came from one data file. */
export interface DataRange extends RowRange {
  readonly data: DataIdentity;
  /** Only so many of its rows, from the first. */
  readonly limit: number | null;
}

/** Which rows came from which data, in the order in which they were added. */
export function listData(description: CacheDescription, plannedRows: number): readonly DataRange[] {
  const { data, limit, furtherData = [] } = description;
  const added = furtherData.reduce((sum, { rowCount }) => sum + rowCount, 0);
  const ranges: DataRange[] = [{ firstRow: 0, rowCount: plannedRows - added, data, limit }];
  for (const { limit: most, ...identity } of furtherData) {
    const { firstRow, rowCount } = ranges.at(-1)!;
    ranges.push({ firstRow: firstRow + rowCount, rowCount: identity.rowCount, data: identity, limit: most });
  }
  return ranges;
}

/** The shards of a cache: full ones, but where the rows of one data file end, so that rows can be added. */
export function* layOutShards(description: CacheDescription, plannedRows: number): Generator<RowRange> {
  const { rowsPerShard } = description;
  for (const { firstRow, rowCount } of listData(description, plannedRows)) {
    for (let done = 0; done < rowCount; done += rowsPerShard) {
      yield { firstRow: firstRow + done, rowCount: Math.min(rowsPerShard, rowCount - done) };
    }
  }
}

/** The number of the shard that begins with a row; undefined if none does. */
export function findShardIndex(description: CacheDescription, plannedRows: number, first: number): number | undefined {
  const { rowsPerShard } = description;
  let before = 0;
  for (const { firstRow, rowCount } of listData(description, plannedRows)) {
    const place = first - firstRow;
    if (place < rowCount) return place >= 0 && place % rowsPerShard === 0 ? before + place / rowsPerShard : undefined;
    before += Math.ceil(rowCount / rowsPerShard);
  }
  return undefined;
}

/** The range that holds a row, by bisection. @param ranges ascending and contiguous */
export function findRange<Range extends RowRange>(ranges: readonly Range[], row: number): Range | undefined {
  let low = 0;
  let high = ranges.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (ranges[middle]!.firstRow <= row) low = middle;
    else high = middle;
  }
  const range = ranges[low];
  return range !== undefined && row >= range.firstRow && row < range.firstRow + range.rowCount ? range : undefined;
}
