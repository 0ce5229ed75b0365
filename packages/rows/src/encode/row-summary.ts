import type { EncodedRow } from './encode-row.ts';

/** What rows are, in counts. */
export interface RowSummary {
  readonly rowCount: number;
  readonly tokenCount: number;
  /** Tokens that are to be predicted. */
  readonly targetCount: number;
  /** Rows that `maxLength` cut. */
  readonly truncatedCount: number;
  /** The longest row; absent where there is none. */
  readonly longest?: { readonly id: string; readonly line: number; readonly length: number };
}

/** Counts rows as they pass; holds none. */
export async function summariseRows(rows: AsyncIterable<EncodedRow> | Iterable<EncodedRow>): Promise<RowSummary> {
  let [rowCount, tokenCount, targetCount, truncatedCount] = [0, 0, 0, 0];
  let longest: RowSummary['longest'];
  for await (const { id, line, inputIds, lossMask, untruncatedLength } of rows) {
    rowCount += 1;
    tokenCount += inputIds.length;
    for (const bit of lossMask) targetCount += bit;
    if (untruncatedLength > inputIds.length) truncatedCount += 1;
    if (longest === undefined || inputIds.length > longest.length) longest = { id, line, length: inputIds.length };
  }
  return { rowCount, tokenCount, targetCount, truncatedCount, ...(longest === undefined ? {} : { longest }) };
}
