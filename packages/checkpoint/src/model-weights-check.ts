import { StillhouseError } from '@stillhouse/errors';
import { formatShape, formatTensorType } from '@stillhouse/tensor-types';
import type { ModelConfig } from './model-config.ts';
import { describeParameters } from './parameters.ts';
import { OUTPUT_MATRIX_NAME } from './tensor-names.ts';
import type { TensorSource } from './tensor-source.ts';

/** Buffers that old checkpoints hold though they follow from the config. */
const DERIVED_BUFFER = /(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|self_attn\.bias)$/;

/**
 * Checks that a source holds exactly the tensors that `config` asks for, by name, shape and dtype. Two known extras
 * pass: buffers that follow from the config, and an output matrix beside a tied embedding (whether its values are the
 * embedding's only reading can tell: `openModelWeights` does).
 * @param where names the whole in errors about tensors that are in no file; by default the file of the first tensor
 * @throws StillhouseError MODEL_TENSOR_MISSING, MODEL_TENSOR_SHAPE, MODEL_TENSOR_DTYPE, MODEL_TENSOR_UNEXPECTED
 */
export function checkModelWeights(source: TensorSource, config: ModelConfig, where?: string): void {
  const specs = describeParameters(config);
  const whole = where ?? source.tensors.values().next().value?.file ?? 'weights';
  for (const { name, shape } of specs) {
    const info = source.tensors.get(name);
    if (info === undefined) {
      throw new StillhouseError({
        code: 'MODEL_TENSOR_MISSING',
        where: whole,
        problem: `tensor ${name} is missing`,
        expected: `shape ${formatShape(shape)} by config.json`,
        remedy: 'The weights are incomplete or belong to another config.json',
      });
    }
    if (info.shape.join() !== shape.join()) {
      throw new StillhouseError({
        code: 'MODEL_TENSOR_SHAPE',
        where: info.file,
        problem: `tensor ${name} has another shape than config.json asks for`,
        expected: formatShape(shape),
        got: formatShape(info.shape),
      });
    }
    if (!info.isFloat) {
      throw new StillhouseError({
        code: 'MODEL_TENSOR_DTYPE',
        where: info.file,
        problem: `tensor ${name} does not hold plain floating-point weights`,
        expected: 'float32, bfloat16, float16 or float64',
        got: formatTensorType(info.dtype, info.shape),
        remedy: 'Use weights that are not quantized',
      });
    }
  }
  const known = new Set(specs.map(({ name }) => name));
  for (const { name, file, dtype, shape } of source.tensors.values()) {
    if (known.has(name) || DERIVED_BUFFER.test(name) || name === OUTPUT_MATRIX_NAME) continue;
    throw new StillhouseError({
      code: 'MODEL_TENSOR_UNEXPECTED',
      where: file,
      problem: `tensor ${name} has no place in this architecture, and leaving it out would give another model`,
      expected: `the tensors of a ${config.architecture} model with ${config.layerCount} layers`,
      got: formatTensorType(dtype, shape),
    });
  }
}
