import { assertFinite } from './finite-weights.ts';
import type { ModelConfig } from './model-config.ts';
import { checkModelWeights } from './model-weights-check.ts';
import { describeParameters } from './parameters.ts';
import { arrangeByPlace, type ByPlace, EMBEDDING_NAME } from './tensor-names.ts';
import type { FloatArrays, StoredTensor, TensorSource } from './tensor-source.ts';

/** A tensor of a model that is still on disk. */
export interface WeightTensor extends Omit<StoredTensor, 'isFloat'> {
  /** All of it, row-major, in memory of its own. @throws StillhouseError WEIGHT_NOT_FINITE, as a source's reads do */
  read<Float extends keyof FloatArrays>(float: Float): Promise<FloatArrays[Float]>;
  /** The bytes as they are stored, in order, in pieces that are valid until the next is asked for. */
  streamStored(): AsyncIterable<Uint8Array<ArrayBuffer>>;
}

/**
 * A decoder's weights by their place in it, whatever the files are; nothing is read before it is asked for. The first
 * read of a tensor checks that its values are finite.
 */
export interface ModelWeights extends ByPlace<WeightTensor> {
  readonly config: ModelConfig;
  /** Every tensor once by full name, in checkpoint order; of the output matrix only where it is not tied. */
  readonly tensors: ReadonlyMap<string, WeightTensor>;
  /**
   * Rows of the embedding, [ids, hiddenSize], not checked for finite values.
   * @param ids ascending
   */
  readEmbeddingRows<Float extends keyof FloatArrays>(ids: readonly number[], float: Float): Promise<FloatArrays[Float]>;
  /**
   * Reads every tensor once, in pieces, so that no later read needs to check. @throws StillhouseError WEIGHT_NOT_FINITE
   */
  checkFinite(): Promise<void>;
  /** For weights that are known to be finite: no read checks. */
  assumeFinite(): void;
  close(): Promise<void>;
}

/**
 * A model's weights out of any source that has its tensors.
 * @param where names the whole in errors; by default the file of the first tensor
 * @throws StillhouseError as `checkModelWeights` does
 */
export function createModelWeights(source: TensorSource, config: ModelConfig, where?: string): ModelWeights {
  checkModelWeights(source, config, where);
  const unchecked = new Set(describeParameters(config).map(({ name }) => name));
  const open = (name: string): WeightTensor => {
    const { shape, dtype, file } = source.tensors.get(name)!;
    const read = async <Float extends keyof FloatArrays>(float: Float) => {
      const values = await source.read(name, float);
      if (!unchecked.has(name)) return values;
      assertFinite(name, values, file);
      // What float64 holds may be more than float32 can.
      if (float === 'float32') unchecked.delete(name);
      return values;
    };
    return { name, shape, dtype, file, read, streamStored: () => source.streamStored(name) };
  };
  const tensors = new Map([...unchecked].map((name) => [name, open(name)]));
  return {
    config,
    tensors,
    ...arrangeByPlace(config, tensors),
    readEmbeddingRows: (ids, float) => source.readRows(EMBEDDING_NAME, ids, float),
    async checkFinite() {
      for (const { name, read } of tensors.values()) {
        if (unchecked.has(name) && (await source.mayHoldNonFinite(name))) await read('float32');
        unchecked.delete(name);
      }
    },
    assumeFinite: () => unchecked.clear(),
    close: source.close,
  };
}
