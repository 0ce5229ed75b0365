import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { OutputMatrixSource } from '@stillhouse/teacher-cache';
import type { Tokenizer } from '@stillhouse/tokenizer';
import type { Teacher } from './build-inputs.ts';
import { matrixDtype } from './build-plan.ts';
import { outputMatrixName } from './teacher-weights.ts';

export interface NamedBytes {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** The tokenizer's files, byte for byte. */
export function readTokenizerFiles({ files }: Tokenizer): Promise<readonly NamedBytes[]> {
  return Promise.all(files.map(async ({ name, path }) => ({ name, bytes: await readFile(path) })));
}

/** The output matrix as the teacher stores it, read as it is written. */
export function readOutputMatrix({ config, weights }: Teacher): OutputMatrixSource {
  const name = outputMatrixName(config);
  const { dtype, file, offsetBytes, sizeBytes } = weights.tensors.get(name)!;
  const asStored = createReadStreamOf(file, offsetBytes, sizeBytes);
  return {
    dtype: matrixDtype(dtype),
    rows: config.vocabSize,
    columns: config.hiddenSize,
    // The cache has no float64.
    chunks: dtype === 'float64' ? readAsFloat32(weights, name) : asStored,
  };
}

async function* createReadStreamOf(file: string, start: number, sizeBytes: number): AsyncGenerator<Uint8Array> {
  yield* createReadStream(file, { start, end: start + sizeBytes - 1, highWaterMark: 4 << 20 });
}

async function* readAsFloat32(weights: Teacher['weights'], name: string): AsyncGenerator<Uint8Array> {
  yield new Uint8Array((await weights.readFloat32(name)).buffer);
}
