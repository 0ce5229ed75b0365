/** Teacher caches in the formats of other tools, and back. FORMATS.md describes every column. */

export { exportAxolotl } from './axolotl/axolotl-export.ts';
export { importAxolotl } from './axolotl/axolotl-import.ts';
export { exportDatasets } from './datasets/datasets-export.ts';
export {
  DISTILLKIT_PRESETS,
  type DistillKitConfig,
  printDistillKitConfig,
  readDistillKitConfig,
} from './distillkit/distillkit-config.ts';
export { exportDistillKit } from './distillkit/distillkit-export.ts';
export { importDistillKit } from './distillkit/distillkit-import.ts';
export { createDistillKitPacking } from './distillkit/distillkit-packing.ts';
export type { ExportResult } from './export/export-folder.ts';
export { exportParquet } from './parquet/parquet-export.ts';
export { exportTrl } from './trl/trl-export.ts';
