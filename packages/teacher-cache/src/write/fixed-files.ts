import { join } from 'node:path';
import { sha256Of, writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { refuseTokenizerFile, requireSameTokenizer } from '../check/writer-checks.ts';
import { writeArrowFile } from '../codecs/arrow-file-writer.ts';
import { encodeOutputMatrix, type OutputMatrixSource } from '../codecs/output-matrix.ts';
import { OUTPUT_MATRIX_PATH, tokenizerPath } from '../format/manifest.ts';
import { isPlainFileName } from '../format/manifest-parser.ts';
import type { CacheWriter } from './cache-writer.ts';
import type { CommittedState } from './committed-state.ts';
import type { WriterPlan } from './writer-plan.ts';

/** The files of a cache that no shard depends on: those of the tokenizer and the output matrix. */
export interface FixedFiles extends Pick<CacheWriter, 'putTokenizerFiles' | 'putOutputMatrix'> {
  readonly hasTokenizerFiles: boolean;
  readonly hasOutputMatrix: boolean;
  /** What the cache cannot be called complete without. */
  listMissing(): readonly string[];
}

export function openFixedFiles({ folder, bringsFixedFiles }: WriterPlan, state: CommittedState): FixedFiles {
  const { description } = state.body;
  return {
    get hasTokenizerFiles() {
      return !bringsFixedFiles || state.body.tokenizer.length > 0;
    },
    get hasOutputMatrix() {
      return !bringsFixedFiles || state.body.outputMatrix !== null;
    },
    listMissing: () => {
      if (!bringsFixedFiles) return [];
      const { tokenizer, outputMatrix } = state.body;
      return [
        ...(description.tokenizer !== null && tokenizer.length === 0 ? ['the tokenizer files'] : []),
        ...(description.labels.head && outputMatrix === null ? ['the output matrix'] : []),
      ];
    },
    putTokenizerFiles: async (files) => {
      if (!bringsFixedFiles) return;
      const sorted = [...files].sort((a, b) => (a.name < b.name ? -1 : 1));
      const tokenizer = sorted.map(({ name, bytes }) => {
        if (!isPlainFileName(name) || description.tokenizer === null) refuseTokenizerFile(folder, name);
        return { path: tokenizerPath(name), sizeBytes: bytes.length, sha256: sha256Of(bytes) };
      });
      if (state.body.tokenizer.length > 0) return requireSameTokenizer(folder, state.body.tokenizer, tokenizer);
      state.requireOpen();
      for (const { name, bytes } of sorted) await writeFileAtomically(join(folder, tokenizerPath(name)), bytes);
      await state.commit({ tokenizer });
    },
    putOutputMatrix: async (source) => {
      if (!bringsFixedFiles || state.body.outputMatrix !== null) return;
      refuseOtherMatrix(state.body, source);
      state.requireOpen();
      const path = OUTPUT_MATRIX_PATH;
      const { sizeBytes, sha256 } = await writeArrowFile(join(folder, path), encodeOutputMatrix(source));
      const { dtype, rows, columns } = source;
      await state.commit({ outputMatrix: { path, sizeBytes, sha256, dtype, rows, columns } });
    },
  };
}

function refuseOtherMatrix(
  { description: { teacher, labels } }: CommittedState['body'],
  source: OutputMatrixSource,
): void {
  if (labels.head && source.rows === teacher?.vocabSize && source.columns === teacher.hiddenSize) return;
  throw new StillhouseError({
    code: 'CACHE_MATRIX_INVALID',
    where: 'output matrix',
    problem: 'it is not the one the description has',
    expected: labels.head ? `${teacher?.vocabSize} x ${teacher?.hiddenSize}` : 'none',
    got: `${source.rows} x ${source.columns}`,
  });
}
