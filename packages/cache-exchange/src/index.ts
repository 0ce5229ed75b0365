/** Teacher caches in the formats of other tools, and back. FORMATS.md describes every column. */

export { type AxolotlAlignment, type AxolotlOptions, exportAxolotl } from './axolotl/axolotl-export.ts';
export { type AxolotlImportOptions, importAxolotl } from './axolotl/axolotl-import.ts';
export { exportDatasets } from './datasets/datasets-export.ts';
export {
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  parseDistillKitConfig,
  printDistillKitConfig,
  readDistillKitConfig,
} from './distillkit/distillkit-config.ts';
export { exportDistillKit } from './distillkit/distillkit-export.ts';
export { type DistillKitImportOptions, importDistillKit } from './distillkit/distillkit-import.ts';
export { createDistillKitPacking, type DistillKitPacking } from './distillkit/distillkit-packing.ts';
export type { ParquetLayout } from './export/cache-columns.ts';
export type { ExportResult } from './export/export-folder.ts';
export type { ImportOptions, ImportResult } from './import/import-cache.ts';
export { exportParquet, type ParquetExportOptions } from './parquet/parquet-export.ts';
export { exportTrl } from './trl/trl-export.ts';
