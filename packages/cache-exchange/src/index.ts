/** Teacher caches in the formats of other tools, and back. FORMATS.md describes every column. */
export type { ParquetLayout } from './cache-columns.ts';
export {
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  parseDistillKitConfig,
  printDistillKitConfig,
  readDistillKitConfig,
} from './distillkit-config.ts';
export { exportDistillKit } from './distillkit-export.ts';
export { createDistillKitPacking, type DistillKitPacking } from './distillkit-packing.ts';
export type { ExportResult } from './export-folder.ts';
export { exportParquet, type ParquetExportOptions } from './parquet-export.ts';
