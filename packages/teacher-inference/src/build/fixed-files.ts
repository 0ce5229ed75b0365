import { readFile } from 'node:fs/promises';
import type { WeightTensor } from '@stillhouse/checkpoint';
import type { OutputMatrixSource } from '@stillhouse/teacher-cache';
import type { Tokenizer } from '@stillhouse/tokenizer';
import type { Teacher } from './build-inputs.ts';
import { matrixDtype } from './build-plan.ts';

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
  const { head } = weights;
  const dtype = matrixDtype(head.dtype);
  return {
    dtype,
    rows: config.vocabSize,
    columns: config.hiddenSize,
    // The cache has no float64.
    chunks: dtype === head.dtype ? head.streamStored() : readAsFloat32(head),
  };
}

async function* readAsFloat32(tensor: WeightTensor): AsyncGenerator<Uint8Array> {
  yield new Uint8Array((await tensor.read('float32')).buffer);
}
