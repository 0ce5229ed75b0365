/**
 * The teacher cache: the contract between the phases. A cache can be written and read with this package alone, or in
 * any language with an Arrow library by FORMAT.md.
 */

// Checks
export { requireSameTeacher } from './check/same-teacher.ts';
export { type VerifyReport, verifyCache } from './check/verify.ts';

// Codecs
export {
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
export type { OutputMatrixSource } from './codecs/output-matrix.ts';
export { packTopK, roundTopK } from './codecs/topk-packing.ts';
export { loadZstd } from './codecs/zstd.ts';

// The format
export { type CacheSize, describeSize, estimateCacheSize } from './format/cache-size.ts';
export {
  type CacheDescription,
  type CacheGroup,
  type DataIdentity,
  GROUP_CHANNELS,
  type HiddenDtype,
  type LabelPositions,
  normaliseDescription,
  type TokenizerIdentity,
} from './format/description.ts';
export {
  attentionLayer,
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
  FORMAT_VERSION,
  type ListedFile,
  listFiles,
  MANIFEST_NAME,
  type MatrixDtype,
} from './format/manifest.ts';
export { MANIFEST_LIMIT_BYTES } from './format/manifest-bounds.ts';
export { parseManifest, readManifest } from './format/manifest-parser.ts';
export type { ScoringSettings } from './format/provenance.ts';
export { type DataRange, listData } from './format/shard-layout.ts';
export { printTeacher, type TeacherIdentity, teacherSha256, type WeightsIdentity } from './format/teacher-identity.ts';

// Reading
export { type CacheFiles, type FileStamp, type LocalFile, readStamp, sameStamp } from './read/cache-files.ts';
export { openCache, openCacheFiles, type TeacherCache } from './read/cache-reader.ts';
export { measureKeptBatches } from './read/kept-batches.ts';
export {
  PULL_STAGING_NAME,
  PULLED_STATE_NAME,
  type PulledState,
  readPulledState,
  writePulledState,
} from './read/pulled-state.ts';

// Writing
export { lockForBuilding } from './write/builder-lock.ts';
export { type CacheExtension, openCacheExtension } from './write/cache-extension.ts';
export { type CacheRepair, type DamagedShard, openCacheRepair } from './write/cache-repair.ts';
export type { CacheWriter } from './write/cache-writer.ts';
export { listUnfinishedParts, mergeCache, type UnfinishedPart } from './write/merge-cache.ts';
export { openCacheWriter } from './write/open-cache-writer.ts';
export { type Partition, printPartition } from './write/part-manifest.ts';
