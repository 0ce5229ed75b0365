/**
 * The teacher cache: the contract between the phases. A cache can be written and read with this package alone, or in
 * any language with an Arrow library by FORMAT.md.
 */

export type { VerifyProblem } from './check/findings.ts';
export { requireSameTeacher } from './check/same-teacher.ts';
export { type VerifyReport, verifyCache } from './check/verify.ts';
export {
  type CoordinateCoder,
  decodeStates,
  encodeStates,
  fitCoordinateCoder,
  type HiddenCodebook,
  LARGEST_CODE,
  measureCodedBytes,
} from './codecs/hidden-codebook.ts';
export {
  dequantiseHidden,
  measureChannelRms,
  quantiseHidden,
  quantiseHiddenGroups,
} from './codecs/hidden-quantisation.ts';
export { type HiddenScale, isCodebook } from './codecs/hidden-scale.ts';
export type { LogprobDtype } from './codecs/logprob-codes.ts';
export { type MatrixRows, type OutputMatrixSource, widenMatrixRows } from './codecs/output-matrix.ts';
export { packTopK, roundTopK } from './codecs/topk-packing.ts';
export { loadZstd, type ZstdCodec } from './codecs/zstd.ts';
export { type CacheSize, describeSize, estimateCacheSize, type GroupSize } from './format/cache-size.ts';
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
  type TokenizerIdentity,
} from './format/description.ts';
export {
  type AttentionLayer,
  attentionLayer,
  compareLayers,
  describeHiddenLayer,
  type HiddenLayer,
  hasLayer,
  isHiddenLayer,
  nameLayers,
} from './format/hidden-layer.ts';
export {
  keepsWholeVocabulary,
  largestTopKCount,
  MOST_DRAWS,
  type SampledPolicy,
  type TopKPolicy,
} from './format/label-policy.ts';
export {
  type CachedRow,
  type HiddenLabels,
  type LabelledRow,
  type LabelSelection,
  labelPositions,
  type SampledLabels,
  type TopKLabels,
  targetsOf,
} from './format/labelled-row.ts';
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
} from './format/manifest.ts';
export { MANIFEST_LIMIT_BYTES } from './format/manifest-bounds.ts';
export { parseManifest, readManifest } from './format/manifest-parser.ts';
export type { GroupProvenance, ScoringSettings } from './format/provenance.ts';
export { type DataRange, listData, type RowRange } from './format/shard-layout.ts';
export {
  type GraphIdentity,
  printTeacher,
  type ServiceIdentity,
  type TeacherIdentity,
  teacherSha256,
  type WeightsIdentity,
} from './format/teacher-identity.ts';
export { type CacheFiles, type FileStamp, type LocalFile, readStamp, sameStamp } from './read/cache-files.ts';
export {
  type OpenCacheOptions,
  openCache,
  openCacheFiles,
  type TeacherCache,
} from './read/cache-reader.ts';
export { measureKeptBatches } from './read/kept-batches.ts';
export {
  PULL_STAGING_NAME,
  PULLED_STATE_NAME,
  type PulledState,
  readPulledState,
  writePulledState,
} from './read/pulled-state.ts';
export { lockForBuilding } from './write/builder-lock.ts';
export { type CacheExtension, type ExtensionRequest, openCacheExtension } from './write/cache-extension.ts';
export { type CacheRepair, type DamagedShard, openCacheRepair } from './write/cache-repair.ts';
export type { CacheWriter } from './write/cache-writer.ts';
export { listUnfinishedParts, type MergeResult, mergeCache, type UnfinishedPart } from './write/merge-cache.ts';
export { openCacheWriter, type WriterOptions } from './write/open-cache-writer.ts';
export { type Partition, printPartition } from './write/part-manifest.ts';
