import { StillhouseError } from '@stillhouse/errors';
import type { SafetensorsSource } from '../formats/safetensors/safetensors-source.ts';
import type { ModelConfig } from '../model-config.ts';
import { createModelWeights, type ModelWeights } from '../model-weights.ts';
import { EMBEDDING_NAME, isHeadTied, OUTPUT_MATRIX_NAME } from '../tensor-names.ts';
import { readModelConfig } from './config-file.ts';
import { openWeightFiles } from './weight-files.ts';

/**
 * Opens the weights of a Hugging Face folder and checks that they are those that its config asks for.
 * @param config as `readModelConfig` gives it, for those who have it already
 * @throws StillhouseError MODEL_TIED_HEAD_DIFFERS (the output matrix that stands beside a tied one is another), and
 *   those of `readModelConfig`, `openWeightFiles`, `checkModelWeights`
 */
export async function openModelWeights(folder: string, config?: ModelConfig): Promise<ModelWeights> {
  const known = config ?? (await readModelConfig(folder));
  const source = await openWeightFiles(folder);
  try {
    const weights = createModelWeights(source, known, folder);
    await checkRedundantHead(source, known);
    return weights;
  } catch (error) {
    await source.close();
    throw error;
  }
}

/**
 * A stored output matrix that config.json says is tied must be the embedding; transformers would use it, we would not.
 * @throws StillhouseError MODEL_TIED_HEAD_DIFFERS
 */
async function checkRedundantHead(source: SafetensorsSource, config: ModelConfig): Promise<void> {
  const head = source.tensors.get(OUTPUT_MATRIX_NAME);
  const embedding = source.tensors.get(EMBEDDING_NAME);
  if (!isHeadTied(config) || head === undefined || embedding === undefined) return;
  const isSameType = head.dtype === embedding.dtype && head.shape.join() === embedding.shape.join();
  const [left, right] = isSameType
    ? await Promise.all([source.readRaw(OUTPUT_MATRIX_NAME), source.readRaw(EMBEDDING_NAME)])
    : [new Uint8Array(1), new Uint8Array(0)];
  if (Buffer.compare(left, right) === 0) return;
  throw new StillhouseError({
    code: 'MODEL_TIED_HEAD_DIFFERS',
    where: head.file,
    problem: `${OUTPUT_MATRIX_NAME} is not ${EMBEDDING_NAME}, though config.json ties them`,
    remedy: 'Set tie_word_embeddings to false in config.json if the model has its own output matrix',
  });
}
