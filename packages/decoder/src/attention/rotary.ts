import type { ModelConfig } from '@stillhouse/checkpoint';
import type { FloatDtype, Value } from '@stillhouse/onnx-graph';

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

/** cos and sin of angles, [B, T, headDim / 2] each. */
export interface RotaryTables<Table = Value> {
  readonly cos: Table;
  readonly sin: Table;
}

/**
 * cos and sin of position x inverse frequency, headDim / 2 numbers for each of `positions`. Angles are rounded to
 * `float` as transformers rounds them; their cosines are computed here, in double precision, because on a GPU sine and
 * cosine of an angle of some dozens are right to three digits (WGSL promises 2^-11, and nothing beyond π).
 */
export function computeRotaryTables(
  config: ModelConfig,
  positions: Int32Array,
  float: FloatDtype,
): RotaryTables<Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>> {
  const half = config.headDim / 2;
  const TableArray = float === 'float64' ? Float64Array : Float32Array;
  const frequencies = TableArray.from(inverseFrequencies(config));
  const [cos, sin] = [new TableArray(positions.length * half), new TableArray(positions.length * half)];
  const angle = new TableArray(1);
  const firstAt = new Map<number, number>();
  positions.forEach((position, at) => {
    const known = firstAt.get(position);
    if (known !== undefined) {
      for (const table of [cos, sin]) table.copyWithin(at * half, known * half, (known + 1) * half);
      return;
    }
    firstAt.set(position, at);
    for (let i = 0; i < half; i++) {
      angle[0] = position * frequencies[i]!;
      cos[at * half + i] = Math.cos(angle[0]);
      sin[at * half + i] = Math.sin(angle[0]);
    }
  });
  return { cos, sin };
}
