import { writeFile } from 'node:fs/promises';

export interface DataRowsShape {
  /** Rows of the split `train`; the others of twelve are `test`. */
  readonly trainRows?: number;
  /** Tokens of each row. */
  readonly length?: number;
  /** Tokens from the first one on that are no targets. */
  readonly promptTokens?: number;
}

/** Writes a data file of twelve rows of ids below 512, each its own, for `stillhouse cache build`. */
export async function writeDataRows(path: string, shape: DataRowsShape = {}): Promise<void> {
  const { trainRows = 8, length = 20, promptTokens = 8 } = shape;
  const rows = Array.from({ length: 12 }, (_, row) =>
    JSON.stringify({
      id: `row-${row}`,
      split: row < trainRows ? 'train' : 'test',
      input_ids: Array.from({ length }, (_, i) => (row * 97 + i * i * 13 + 7) % 512),
      loss_mask: Array.from({ length }, (_, i) => (i >= promptTokens ? 1 : 0)),
    }),
  );
  await writeFile(path, `${rows.join('\n')}\n`);
}
