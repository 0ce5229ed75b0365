/**
 * The teacher cache: the contract between the phases. A cache can be written and read with this package alone, or in
 * any language with an Arrow library by FORMAT.md.
 */

export { type LabelSelection, type OpenCacheOptions, openCache, type TeacherCache } from './cache-reader.ts';
export { type CacheSize, describeSize, estimateCacheSize, type GroupSize } from './cache-size.ts';
export { type CacheWriter, openCacheWriter } from './cache-writer.ts';
export {
  type CacheDescription,
  type CacheGroup,
  type DescriptionDifference,
  diffDescriptions,
  type HiddenDtype,
  type HiddenLayer,
  type LabelPositions,
  normaliseDescription,
  type TeacherIdentity,
  type TokenizerIdentity,
} from './description.ts';
export { dequantiseHidden, measureChannelRms, quantiseHidden } from './hidden-quantisation.ts';
export {
  type CachedRow,
  type HiddenLabels,
  type LabelledRow,
  labelPositions,
  type TopKLabels,
} from './labelled-row.ts';
export {
  type CacheManifest,
  FORMAT_NAME,
  FORMAT_VERSION,
  type ListedFile,
  type ListedMatrix,
  type ListedShard,
  type MatrixDtype,
} from './manifest.ts';
export { readManifest } from './manifest-parser.ts';
export { type MatrixRows, type OutputMatrixSource, widenMatrixRows } from './output-matrix.ts';
export { exportParquet, type ParquetExport } from './parquet-export.ts';
export { type VerifyProblem, type VerifyReport, verifyCache } from './verify.ts';
