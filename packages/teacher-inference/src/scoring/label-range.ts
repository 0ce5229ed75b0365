import { StillhouseError } from '@stillhouse/errors';

/** The label positions of one row among those of its pass, [start, end). */
export interface LabelRange {
  readonly rowId: string;
  readonly start: number;
  readonly end: number;
  /** [end - start] their places in the row. */
  readonly positions: Int32Array;
  /** [end - start] the ids that they are to predict. */
  readonly targets: Int32Array;
}

/** The range that a label position of the pass is in. */
export function findRange(ranges: readonly LabelRange[], position: number): LabelRange {
  return ranges.find(({ start, end }) => position >= start && position < end)!;
}

/**
 * @param values [label positions, columns]
 * @throws StillhouseError TEACHER_OUTPUT_NOT_FINITE, naming the row
 */
export function requireFinite(
  values: Float32Array,
  columns: number,
  what: string,
  ranges: readonly LabelRange[],
): void {
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad < 0) return;
  const position = Math.floor(bad / columns);
  const { rowId, start } = findRange(ranges, position);
  throw new StillhouseError({
    code: 'TEACHER_OUTPUT_NOT_FINITE',
    where: `row ${rowId}, label position ${position - start}`,
    problem: `the teacher's ${what} are not finite numbers`,
    remedy: 'The weights overflow in float32 on this row: use another teacher or leave the row out',
  });
}
