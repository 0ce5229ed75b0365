import { adapterSide, describeParameters, layerTensorName, type ModelConfig } from '@stillhouse/checkpoint';
import { adapterParameters, type LowRankAdapter } from '@stillhouse/decoder';
import { seededUniform } from '@stillhouse/seeded-random';

/** Low-rank adapters of a student's linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685). */
export interface StudentAdapter extends LowRankAdapter {
  readonly alpha: number;
  readonly layers: ReadonlySet<number>;
}

/** The adapters' tensors of a student, by full name. */
export function studentAdapterParameters(config: ModelConfig, adapter: StudentAdapter) {
  const ofLayer = adapterParameters(config, adapter);
  return [...adapter.layers]
    .sort((a, b) => a - b)
    .flatMap((layer) => ofLayer.map(({ name, shape }) => ({ name: layerTensorName(layer, name), shape })));
}

/** The tensors of a student, in checkpoint order, and of its adapters where it has any. */
export const studentParameters = (config: ModelConfig, adapter: StudentAdapter | undefined) => [
  ...describeParameters(config),
  ...(adapter === undefined ? [] : studentAdapterParameters(config, adapter)),
];

const ADAPTER_STREAM = 2_000_003;

/**
 * A new adapter's tensor: A uniform in ±1/√in, which is Kaiming's with a = √5 (as PEFT has it), and B zero, so that the
 * student begins as it is. The same on every machine for a seed and a name's place among the adapters.
 */
export function initialAdapter(
  config: ModelConfig,
  adapter: StudentAdapter,
  seed: number,
): (name: string) => Float32Array<ArrayBuffer> {
  const specs = new Map(
    studentAdapterParameters(config, adapter).map(({ name, shape }, stream) => [name, { shape, stream }]),
  );
  return (name) => {
    const { shape, stream } = specs.get(name)!;
    const [rows, columns] = shape as [number, number];
    if (adapterSide(name) === 'b') return new Float32Array(rows * columns);
    return seededUniform(rows * columns, 1 / Math.sqrt(columns), seed, ADAPTER_STREAM + stream);
  };
}
