/**
 * The teacher cache: the contract between the phases. A cache can be written and read with this package alone, or in
 * any language with an Arrow library by FORMAT.md.
 */

export { lockForBuilding } from './builder-lock.ts';
export { type CacheExtension, type ExtensionRequest, openCacheExtension } from './cache-extension.ts';
export { type CacheFiles, type FileStamp, type LocalFile, readStamp, sameStamp } from './cache-files.ts';
export {
  type OpenCacheOptions,
  openCache,
  openCacheFiles,
  type TeacherCache,
} from './cache-reader.ts';
export { type CacheRepair, type DamagedShard, openCacheRepair } from './cache-repair.ts';
export { type CacheSize, describeSize, estimateCacheSize, type GroupSize } from './cache-size.ts';
export type { CacheWriter } from './cache-writer.ts';
export {
  type CacheDescription,
  type CacheGroup,
  type DataIdentity,
  type DescriptionDifference,
  diffDescriptions,
  GROUP_CHANNELS,
  type HiddenDtype,
  type LabelPositions,
  normaliseDescription,
  type TeacherIdentity,
  type TokenizerIdentity,
} from './description.ts';
export {
  type CoordinateCoder,
  decodeStates,
  encodeStates,
  fitCoordinateCoder,
  type HiddenCodebook,
  LARGEST_CODE,
  measureCodedBytes,
} from './hidden-codebook.ts';
export {
  type AttentionLayer,
  attentionLayer,
  compareLayers,
  describeHiddenLayer,
  type HiddenLayer,
  hasLayer,
  isHiddenLayer,
  nameLayers,
} from './hidden-layer.ts';
export { dequantiseHidden, measureChannelRms, quantiseHidden, quantiseHiddenGroups } from './hidden-quantisation.ts';
export { type HiddenScale, isCodebook } from './hidden-scale.ts';
export { measureKeptBatches } from './kept-batches.ts';
export {
  keepsWholeVocabulary,
  largestTopKCount,
  MOST_DRAWS,
  type SampledPolicy,
  type TopKPolicy,
} from './label-policy.ts';
export {
  type CachedRow,
  type HiddenLabels,
  type LabelledRow,
  type LabelSelection,
  labelPositions,
  type SampledLabels,
  type TopKLabels,
  targetsOf,
} from './labelled-row.ts';
export type { LogprobDtype } from './logprob-codes.ts';
export {
  type CacheManifest,
  FORMAT_NAME,
  FORMAT_VERSION,
  type ListedFile,
  type ListedMatrix,
  type ListedShard,
  listFiles,
  MANIFEST_NAME,
  type MatrixDtype,
} from './manifest.ts';
export { MANIFEST_LIMIT_BYTES } from './manifest-bounds.ts';
export { parseManifest, readManifest } from './manifest-parser.ts';
export { listUnfinishedParts, type MergeResult, mergeCache, type UnfinishedPart } from './merge-cache.ts';
export { openCacheWriter, type WriterOptions } from './open-cache-writer.ts';
export { type MatrixRows, type OutputMatrixSource, widenMatrixRows } from './output-matrix.ts';
export { type Partition, printPartition } from './part-manifest.ts';
export type { GroupProvenance, ScoringSettings } from './provenance.ts';
export {
  PULL_STAGING_NAME,
  PULLED_STATE_NAME,
  type PulledState,
  readPulledState,
  writePulledState,
} from './pulled-state.ts';
export { requireSameTeacher } from './same-teacher.ts';
export { type DataRange, listData, type RowRange } from './shard-layout.ts';
export { packTopK, roundTopK } from './topk-packing.ts';
export { type VerifyProblem, type VerifyReport, verifyCache } from './verify.ts';
export { loadZstd, type ZstdCodec } from './zstd.ts';
