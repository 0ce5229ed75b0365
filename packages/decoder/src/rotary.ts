import type { ModelConfig } from '@stillhouse/checkpoint';
import type { GraphBuilder, Value } from '@stillhouse/onnx-graph';

/**
 * Inverse frequencies of rotary position embedding, one for each pair of head dimensions: theta^(-2i/headDim)
 * (Su et al. 2021, arXiv 2104.09864, §3.2.2), rescaled as Llama 3 does where the configuration says so: wavelengths
 * beyond the old context are divided by `factor`, short ones kept, those between blended linearly.
 * @returns float64 [headDim / 2]
 */
export function inverseFrequencies(config: ModelConfig): Float64Array {
  const { headDim, rope } = config;
  const frequencies = Float64Array.from({ length: headDim / 2 }, (_, i) => rope.theta ** ((-2 * i) / headDim));
  const scaling = rope.scaling;
  if (scaling === undefined) return frequencies;
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalMaxPositions } = scaling;
  return frequencies.map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength < originalMaxPositions / highFrequencyFactor) return frequency;
    if (wavelength > originalMaxPositions / lowFrequencyFactor) return frequency / factor;
    const smooth =
      (originalMaxPositions / wavelength - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
    return (1 - smooth) * (frequency / factor) + smooth * frequency;
  });
}

export interface RotaryTables {
  /** [B, T, 1, headDim / 2] each. */
  readonly cos: Value;
  readonly sin: Value;
}

/** cos and sin of position x inverse frequency for `positionIds` int64 [B, T]. */
export function emitRotaryTables(g: GraphBuilder, config: ModelConfig, positionIds: Value): RotaryTables {
  const half = config.headDim / 2;
  const frequencies = inverseFrequencies(config);
  const constant = g.float === 'float64' ? frequencies : Float32Array.from(frequencies);
  const [batch, length] = positionIds.shape;
  const positions = g.reshape(g.cast(positionIds, g.float), [batch!, length!, 1, 1]);
  const angles = g.mul(positions, g.constant(constant, g.float, [half]));
  return { cos: g.cos(angles), sin: g.sin(angles) };
}

/** Rotates the two halves of each head of `x` [B, T, heads, headDim] against each other (the half-split form). */
export function emitRotary(g: GraphBuilder, x: Value, { cos, sin }: RotaryTables): Value {
  const axis = x.shape.length - 1;
  const half = (x.shape[axis] as number) / 2;
  const [first, second] = g.split(x, axis, [half, half]);
  return g.concat(
    [g.sub(g.mul(first!, cos), g.mul(second!, sin)), g.add(g.mul(second!, cos), g.mul(first!, sin))],
    axis,
  );
}
