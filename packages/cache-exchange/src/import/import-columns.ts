import { StillhouseError } from '@stillhouse/errors';
import type { ParquetRows } from '../parquet/parquet-rows.ts';

/** @throws StillhouseError IMPORT_COLUMN_MISSING */
export function requireColumns({ path, columnNames }: ParquetRows, needed: readonly string[], remedy?: string): void {
  const missing = needed.filter((name) => !columnNames.includes(name));
  if (missing.length === 0) return;
  throw new StillhouseError({
    code: 'IMPORT_COLUMN_MISSING',
    where: path,
    problem: `column ${missing.join(', ')} is missing`,
    got: columnNames.join(', '),
    ...(remedy === undefined ? {} : { remedy }),
  });
}
