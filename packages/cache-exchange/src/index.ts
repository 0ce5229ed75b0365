/** Teacher caches in the formats of other tools, and back. FORMATS.md describes every column. */
export { exportParquet, type ParquetExport } from './parquet-export.ts';
