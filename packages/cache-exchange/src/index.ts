/** Teacher caches in the formats of other tools, and back. FORMATS.md describes every column. */

export { type AxolotlAlignment, type AxolotlOptions, exportAxolotl } from './axolotl-export.ts';
export { type AxolotlImportOptions, importAxolotl } from './axolotl-import.ts';
export type { ParquetLayout } from './cache-columns.ts';
export { exportDatasets } from './datasets-export.ts';
export {
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  parseDistillKitConfig,
  printDistillKitConfig,
  readDistillKitConfig,
} from './distillkit-config.ts';
export { exportDistillKit } from './distillkit-export.ts';
export { type DistillKitImportOptions, importDistillKit } from './distillkit-import.ts';
export { createDistillKitPacking, type DistillKitPacking } from './distillkit-packing.ts';
export type { ExportResult } from './export-folder.ts';
export type { ImportOptions, ImportResult } from './import-cache.ts';
export { exportParquet, type ParquetExportOptions } from './parquet-export.ts';
export { exportTrl } from './trl-export.ts';
