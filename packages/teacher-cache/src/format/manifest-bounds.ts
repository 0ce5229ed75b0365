import { matrixElementBytes } from '../codecs/output-matrix.ts';
import type { CacheDescription } from './description.ts';
import { largestTopKCount } from './label-policy.ts';
import { type CacheManifest, type ListedFile, listFiles } from './manifest.ts';

/** A manifest of more text than this is not read. */
export const MANIFEST_LIMIT_BYTES = 256 << 20;

const ROWS_LIMIT = 2 ** 31 - 1;
const SHARDS_LIMIT = 1_000_000;
const FILE_LIMIT_BYTES = 2 ** 42;
const TOTAL_LIMIT_BYTES = 2 ** 50;
const TOKENIZER_FILE_LIMIT_BYTES = 2 ** 30;
/** Headers, padding and schema of an Arrow file; row ids and offsets of one row. Far more than any file has. */
const FILE_SLACK_BYTES = 1 << 20;
const ROW_SLACK_BYTES = 1 << 16;

export interface BoundViolation {
  readonly key: string;
  readonly expected: string;
  readonly got: unknown;
}

/** Counts from which lists would be made that no memory holds. Looked at before anything else is derived from them. */
export function findAbsurdCount(
  { rowsPerShard }: CacheDescription,
  rows: CacheManifest['rows'],
): BoundViolation | undefined {
  if (rows.planned > ROWS_LIMIT)
    return { key: 'rows.planned', expected: `at most ${ROWS_LIMIT} rows`, got: rows.planned };
  const shards = Math.ceil(rows.planned / rowsPerShard);
  return shards > SHARDS_LIMIT
    ? { key: 'rows.planned', expected: `at most ${SHARDS_LIMIT} shards of ${rowsPerShard} rows`, got: rows.planned }
    : undefined;
}

/** A file that is listed twice, or is larger or smaller than what it can hold by the counts beside it. */
export function findAbsurdFile(manifest: CacheManifest): BoundViolation | undefined {
  const { teacher, labels } = manifest.description;
  const width = teacher?.hiddenSize ?? 0;
  const paths = new Set<string>();
  let totalBytes = 0;
  for (const { group, file } of listFiles(manifest)) {
    // Two names that differ in case only are one file on some systems.
    const name = file.path.toLowerCase();
    if (paths.has(name)) return { key: 'path', expected: 'each file once', got: file.path };
    paths.add(name);
    totalBytes += file.sizeBytes;
    const limit = group === 'tokenizer' ? TOKENIZER_FILE_LIMIT_BYTES : FILE_LIMIT_BYTES;
    if (file.sizeBytes > limit) return tooLarge(file, limit);
  }
  if (totalBytes > TOTAL_LIMIT_BYTES) {
    return { key: 'sizeBytes', expected: `at most ${TOTAL_LIMIT_BYTES} in all`, got: totalBytes };
  }
  const matrix = manifest.outputMatrix;
  if (matrix !== null) {
    const bytes = matrix.rows * matrix.columns * matrixElementBytes(matrix.dtype);
    if (matrix.sizeBytes < bytes) {
      return { key: `${matrix.path}: sizeBytes`, expected: `at least ${bytes}, by its shape`, got: matrix.sizeBytes };
    }
    const most = 1.25 * bytes + FILE_SLACK_BYTES;
    if (matrix.sizeBytes > most) return tooLarge(matrix, most);
  }
  const isCoded = labels.hidden?.dtype === 'coded';
  for (const file of manifest.scales) {
    // A codebook has a rank of at most the width: two matrices, and tables of up to 256 frequencies.
    const most = (isCoded ? 8 * width * width + (16 + 512) * width : 8 * width) + FILE_SLACK_BYTES;
    if (file.sizeBytes > most) return tooLarge(file, most);
    if (file.sizeBytes < 4 * width) {
      return { key: `${file.path}: sizeBytes`, expected: `at least ${4 * width}, by its width`, got: file.sizeBytes };
    }
  }
  const topkBytes =
    labels.topk === null
      ? 0
      : largestTopKCount(labels.topk, teacher!.vocabSize) * 8 + labels.topk.temperatures.length * 4 + 64;
  const sampledBytes = (labels.sampled?.draws ?? 0) * 6 + 64;
  const bytesOf = (group: string): number | undefined => {
    if (group === 'topk') return topkBytes;
    if (group === 'sampled') return sampledBytes;
    return group.startsWith('hidden-') ? width * 4 + 64 : undefined;
  };
  for (const { rowCount, tokenCount, positionCount, files } of manifest.shards) {
    if (positionCount > tokenCount) {
      return { key: 'positionCount', expected: `at most the ${tokenCount} tokens`, got: positionCount };
    }
    const slack = FILE_SLACK_BYTES + rowCount * ROW_SLACK_BYTES;
    for (const [group, file] of Object.entries(files)) {
      const bytes = bytesOf(group);
      if (bytes === undefined || file === undefined) continue;
      const most = 1.25 * positionCount * bytes + slack;
      if (file.sizeBytes > most) return tooLarge(file, most);
    }
  }
  return undefined;
}

const tooLarge = (file: ListedFile, most: number): BoundViolation => ({
  key: `${file.path}: sizeBytes`,
  expected: `at most ${Math.floor(most)}`,
  got: file.sizeBytes,
});
