import { type MatrixRows, streamOutputMatrix, widenMatrixRows } from '../codecs/output-matrix.ts';
import type { CacheManifest, ListedMatrix } from '../format/manifest.ts';
import type { CacheFiles } from './cache-files.ts';

/** The output matrix of a cache that has one. */
export interface MatrixReader {
  /** Some rows at a time, as they are stored. */
  stream(): AsyncGenerator<MatrixRows>;
  /** As float32, [vocabSize, hiddenSize]. */
  readWhole(): Promise<Float32Array<ArrayBuffer>>;
}

export function openMatrixReader(files: CacheFiles, listed: CacheManifest['outputMatrix']): MatrixReader {
  const matrix = listed as ListedMatrix;
  async function* stream(): AsyncGenerator<MatrixRows> {
    const local = await files.acquire(matrix);
    try {
      yield* streamOutputMatrix(local.path, matrix);
    } finally {
      local.release();
    }
  }
  return {
    stream,
    readWhole: async () => {
      const { rows, columns, dtype } = matrix;
      const whole = new Float32Array(rows * columns);
      for await (const part of stream()) {
        const start = part.firstRow * columns;
        widenMatrixRows(dtype, part, whole.subarray(start, start + part.rowCount * columns));
      }
      return whole;
    },
  };
}
