/** Teacher caches in the formats of other tools, and back. FORMATS.md describes every column. */
export type { ParquetLayout } from './cache-columns.ts';
export type { ExportResult } from './export-folder.ts';
export { exportParquet, type ParquetExportOptions } from './parquet-export.ts';
